"""Forks voters: the imports are done once, so that a node that starts again costs what it does itself.

Started by ``nodes.Nursery``; takes one JSON line per order on stdin and answers on stdout:
``{"start": [arguments], "out": path, "log": path, "held": false}`` is answered by ``{"started": pid}``
(a held voter stands still until it gets SIGCONT), and the end of a voter is told as
``{"ended": pid, "code": exit code or -signal}``. Its end is that of all.

An argument names a bug of ``chaos.mutants`` to plant in every voter, to show that it would be noticed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
from typing import Any

import ringraft.node.app  # noqa: F401 - imported here so that no voter has to
from chaos.mutants.catalogue import MUTANTS
from ringraft.cli.main import run_command
from ringraft.cli.node import voter


def serve() -> None:
    """Until stdin ends."""
    wakes, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: set[int] = set()
    buffer = b""
    while True:
        ready = select.select([0, wakes], [], [])[0]
        if wakes in ready:
            os.read(wakes, 4096)
            _tell_ended(running)
        if 0 in ready:
            part = os.read(0, 65536)
            if not part:
                break
            *lines, buffer = (buffer + part).split(b"\n")
            for line in lines:
                running.add(_start(json.loads(line)))
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def _tell_ended(running: set[int]) -> None:
    for pid in list(running):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            running.discard(pid)
            _say({"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def _say(words: dict[str, Any]) -> None:
    os.write(1, json.dumps(words).encode() + b"\n")


def _start(order: dict[str, Any]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        _say({"started": pid})
        return pid
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    out = os.open(order["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (out, 1), (log, 2)):
        os.dup2(source, target)
    os.closerange(3, 256)
    sys.argv = ["ringraft-voter", *order["start"], "--end-with-parent", str(parent)]
    if order["held"]:
        os.kill(os.getpid(), signal.SIGSTOP)
    run_command(voter, "ringraft-voter")
    raise AssertionError("run_command exits")


if __name__ == "__main__":
    with MUTANTS[sys.argv[1]].planted() if sys.argv[1:] else contextlib.nullcontext():
        serve()
