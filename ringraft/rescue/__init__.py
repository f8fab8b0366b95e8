"""Backups and what is done with a stopped node's directory. Nothing here runs inside a node but the format."""
