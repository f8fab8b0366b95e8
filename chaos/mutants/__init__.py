"""Planted bugs: what the simulator has to find, or it proves nothing."""
