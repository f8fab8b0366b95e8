"""What a node's process does beside running the node: exit codes, signals, the ready line."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import signal
from collections.abc import Callable

log = logging.getLogger(__name__)

EXIT_DONE, EXIT_FAILED, EXIT_REFUSED = 0, 1, 2

FILES_BESIDE = 256
"""Open files beside the connections of others: the log, the archive, executors, own connections."""


def connections_allowed(wanted: int) -> int:
    """How many connections this process may hold; raises its limit of open files as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = wanted + FILES_BESIDE
    if soft != resource.RLIM_INFINITY and soft < need:
        soft = need if hard == resource.RLIM_INFINITY else min(need, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= need:
        return wanted
    allowed = max(1, soft - FILES_BESIDE)
    log.warning(
        "fewer connections than http.connections_max: raise the limit of open files action=files_limited "
        "limit=%d allowed=%d wanted=%d", soft, allowed, wanted,
    )  # fmt: skip
    return allowed


def say_ready(node_id: str, url: str) -> None:
    """The one line on stdout: this node listens and its log is replayed."""
    print(
        json.dumps({"event": "ready", "node_id": node_id, "url": url, "pid": os.getpid()}, separators=(",", ":")),
        flush=True,
    )


def end_on_signals(shut_down: Callable[[], None]) -> None:
    """The first SIGTERM or SIGINT stops gracefully, the second ends the process at once."""
    asked = False

    def stop(name: str) -> None:
        nonlocal asked
        if asked:
            log.warning("ends at once action=end_at_once signal=%s", name)
            logging.shutdown()
            os._exit(EXIT_FAILED)
        asked = True
        log.info("asked to stop action=signal signal=%s", name)
        shut_down()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, signal.Signals(number).name)
