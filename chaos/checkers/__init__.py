"""Judges of what happened: pure functions from a history to the rules it breaks."""
