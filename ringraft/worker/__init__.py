"""The part of a node that runs work: it claims items, runs each in a process of its own, reports.

Nothing is imported here: every item's process begins in this package and should begin quickly.
"""
