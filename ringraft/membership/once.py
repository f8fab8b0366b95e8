"""Saying something that repeats with every heartbeat once, not every second."""

from __future__ import annotations

import logging
from typing import Any

SUBJECTS_MAX = 4096


class Once:
    """Warns when what there is to say about a subject changed; repeats go to DEBUG."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[Any, ...]] = {}

    def log(self, logger: logging.Logger, subject: str, text: str, *arguments: Any) -> None:
        is_new = self._said.get(subject) != arguments
        if len(self._said) >= SUBJECTS_MAX:
            self._said.clear()
        self._said[subject] = arguments
        logger.log(logging.WARNING if is_new else logging.DEBUG, text, *arguments)

    def forget(self, subject: str) -> None:
        """All is well again: the next time is news."""
        self._said.pop(subject, None)
