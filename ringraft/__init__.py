"""ringraft: a Raft-first orchestrator for game-playing AI work."""

__version__ = "0.1.0"
