"""The end of a simulated process."""

from __future__ import annotations


class Died(BaseException):
    """The process that runs is gone. Not an Exception, so that no code under test can catch it."""
