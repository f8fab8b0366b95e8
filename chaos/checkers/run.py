"""What a run was set to: the bounds that its checkers may rely on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Run:
    """What of a run's settings decides what may happen. Times are the driver's: divide a log's time by how much
    faster than the driver's clock a node's may run."""

    retention_s: float = 0.0
    """Final items, and keys of adds, are held at least this long."""
    key_grace_s: float = 0.0
    """A claim's key lives at least this long from its grant."""
    may_be_freed: bool = False
    """Workers register again, which frees their older self's leases."""


WHOLE = Run()
"""Nothing is known of the run's settings, so items may do all that they ever may."""
