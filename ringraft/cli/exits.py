"""Exit codes: what a script may rely on."""

from __future__ import annotations

from enum import IntEnum

from ringraft.client import ApiError, ClientError


class ExitCode(IntEnum):
    """The endings of a command."""

    OK = 0
    ERROR = 1
    USAGE = 2
    """Also: a setting is wrong, a port or data directory is taken."""
    WORK_FAILED = 3
    """A waited work item ended other than COMPLETED."""
    NOT_FOUND = 4
    UNHEALTHY = 5
    """No leader, no quorum, or no node answers."""
    UNKNOWN = 6
    """Timed out, or nobody can say whether it happened."""
    AUTH = 7
    INTERRUPTED = 130
    CANNOT_TELL = 255


class CommandFailed(Exception):
    """Ends the command with a sentence on stderr and a code."""

    def __init__(self, code: ExitCode, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


UNHEALTHY_CODES = frozenset({"no_leader", "no_quorum", "starting", "shutting_down", "disk_full"})


def exit_code(error: ClientError) -> ExitCode:
    """How a command ends that a node refused, or that reached none."""
    if isinstance(error, ApiError):
        if error.status in (401, 403):
            return ExitCode.AUTH
        if error.code == "not_found":
            return ExitCode.NOT_FOUND
        if error.status == 503 or error.code in UNHEALTHY_CODES:
            return ExitCode.UNHEALTHY
        return ExitCode.UNKNOWN if error.status == 504 else ExitCode.ERROR
    return ExitCode.UNHEALTHY if error.outcome == "not_applied" else ExitCode.UNKNOWN
