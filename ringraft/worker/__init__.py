"""The part of a node that runs work: it claims items, runs each in a process of its own, reports."""

from ringraft.worker.runtime import Worker, WorkerConfig

__all__ = ["Worker", "WorkerConfig"]
