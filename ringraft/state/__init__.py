"""The replicated state machine: pure, deterministic, no I/O, clock, chance or exception."""
