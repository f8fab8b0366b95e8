"""Where log lines go: stderr, and a file where one is wanted. One line a record, whatever is in it."""

from __future__ import annotations

import logging
import time
from logging.handlers import RotatingFileHandler
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
FILE_BYTES_MAX = 64 * 1024 * 1024
FILES_KEPT = 5

ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    0x0A: "\\n",
    0x0D: "\\r",
    0x09: " ",
}
"""Control characters in what clients sent must not make lines of their own, nor steer a terminal."""


class OneLine(logging.Formatter):
    """UTC with milliseconds; a traceback follows on lines of its own, indented."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = record.message.translate(ESCAPES)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:
        text = super().formatException(ei)  # type: ignore[arg-type]
        return "\n".join("    " + line.translate(ESCAPES) for line in text.split("\n"))


def begin_logging(level: str, directory: Path | None, node_id: str) -> None:
    """Send the package's log lines to stderr and, with ``directory``, to ``NODE_ID.log`` in it.

    Raises OSError when the file cannot be written.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        handlers.append(
            RotatingFileHandler(
                directory / f"{node_id}.log", maxBytes=FILE_BYTES_MAX, backupCount=FILES_KEPT, encoding="utf-8"
            )
        )
    for handler in handlers:
        handler.setFormatter(OneLine(FORMAT))
    logging.basicConfig(level=logging.WARNING, handlers=handlers, force=True)
    logging.getLogger("ringraft").setLevel(level)
