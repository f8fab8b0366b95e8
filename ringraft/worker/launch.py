"""The first code in an item's process: ``python -m ringraft.worker.launch DIRECTORY PARENT_PID``.

It ties the process to the worker's life, then becomes the declared program or calls the declared
entry point and leaves its result, or its error, as a file.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, Final

from ringraft.worker.durable import write_durably
from ringraft.worker.task import ArgumentError, Outcome, Task

ITEM_FILE: Final = "item.json"
RESULT_FILE: Final = "result.json"
ERROR_FILE: Final = "error.json"
BAD_ARGUMENTS: Final = 64
"""The exit code (EX_USAGE) of a program whose arguments are wrong: the item is not tried again."""
PR_SET_PDEATHSIG: Final = 1
NICE: Final = 5
"""Work yields to the node that renews its leases: a pegged machine must not lose them."""


def main(arguments: list[str]) -> int:
    """Run the item described in the directory; the exit code."""
    directory, parent_pid = Path(arguments[0]), int(arguments[1])
    die_with_parent(parent_pid)
    os.nice(NICE)
    item: dict[str, Any] = json.loads((directory / ITEM_FILE).read_bytes())
    command = item["command"]
    if command is not None:
        # Nothing of the item is in the arguments: its config comes as JSON on standard input.
        os.execv(command[0], command)
    return run_entry_point(item, directory)


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when the worker dies; the mark survives execve.

    Elsewhere than on Linux the next start of the worker ends what is left.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        raise SystemExit("the worker ended before this process began")


def run_entry_point(item: dict[str, Any], directory: Path) -> int:
    """Call the function and write what came of it."""
    task = Task(
        item["work_id"], item["work_type"], item["attempt"], item["config"], directory, Path(item["output_dir"])
    )
    try:
        module_name, _, name = item["entry_point"].partition(":")
        function = getattr(importlib.import_module(module_name), name)
        value = function(task)
        outcome = value if isinstance(value, Outcome) else Outcome(value or {})
        text = json.dumps({"result": dict(outcome.result), "artifacts": list(outcome.artifacts)}, allow_nan=False)
    except ArgumentError as error:
        print(f"bad arguments: {error}", file=sys.stderr)
        write_error(directory, f"bad arguments: {error}", retryable=False)
        return BAD_ARGUMENTS
    except Exception as error:  # noqa: BLE001 - the top of the process: whatever it was, it is reported
        traceback.print_exc()
        write_error(directory, f"{type(error).__name__}: {error}", retryable=True)
        return 1
    write_durably(directory / RESULT_FILE, text.encode())
    return 0


def write_error(directory: Path, error: str, *, retryable: bool) -> None:
    """Leave word of why there is no result."""
    write_durably(directory / ERROR_FILE, json.dumps({"error": error, "retryable": retryable}).encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
