"""PySyncObj made fit to be trusted: the only place that imports it."""
