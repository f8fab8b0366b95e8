"""Who leads, and the replicated log, behind one interface."""
