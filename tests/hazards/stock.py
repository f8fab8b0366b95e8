"""The unmodified library in one thread: a virtual clock, a seeded random, a network of ours. No socket, no thread.

Only for processes of their own: our package fills the library's seams for the whole process.
"""

from __future__ import annotations

import copy
import heapq
import itertools
import logging
import random
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pysyncobj import SyncObj, SyncObjConf, replicated, syncobj
from pysyncobj.node import Node
from pysyncobj.transport import Transport

assert not [name for name in sys.modules if name.startswith("ringraft")], "this shows the library as it comes"
logging.disable(logging.CRITICAL)

STEP_S = 0.01
LINK_S = 0.001


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0


clock = Clock()
syncobj.monotonicTime = lambda: clock.now_s
syncobj.random = random.Random(7)


class Net:
    """Delivers in order, after a moment. ``drops`` decides which messages get lost; links stay up meanwhile."""

    def __init__(self) -> None:
        self.nodes: dict[str, Stock] = {}
        self.queue: list[tuple[float, int, str, str, dict[str, Any]]] = []
        self.drops: Callable[[str, str, dict[str, Any]], bool] = lambda source, target, message: False
        self.sent: list[tuple[str, str, dict[str, Any]]] = []
        self.errors: list[tuple[str, BaseException]] = []
        self._numbers = itertools.count()

    def send(self, source: str, target: str, message: dict[str, Any]) -> None:
        self.sent.append((source, target, message))
        if not self.drops(source, target, message):
            due_s = clock.now_s + LINK_S
            heapq.heappush(self.queue, (due_s, next(self._numbers), source, target, copy.deepcopy(message)))

    def cut(self, *names: str) -> None:
        """Nothing gets from or to these any more."""
        self.drops = lambda source, target, message: (source in names) != (target in names)

    def heal(self) -> None:
        self.drops = lambda source, target, message: False

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> float:
        """Let time pass; returns the seconds it took until ``until`` held."""
        begin_s = clock.now_s
        while clock.now_s < begin_s + seconds and not until():
            clock.now_s += STEP_S
            while self.queue and self.queue[0][0] <= clock.now_s:
                _, _, source, target, message = heapq.heappop(self.queue)
                if target in self.nodes:
                    self.guarded(target, lambda: self.nodes[target].receive(source, message))  # noqa: B023
            for name in list(self.nodes):
                self.guarded(name, lambda: self.nodes[name].doTick(0))  # noqa: B023
        return clock.now_s - begin_s

    def guarded(self, name: str, act: Callable[[], None]) -> None:
        """As the library's own thread does: an exception is noted, and the next tick comes."""
        try:
            act()
        except (EOFError, OSError, ValueError) as fault:
            self.errors.append((name, fault))

    def leader(self) -> str | None:
        """Whom a majority believes to lead."""
        heard = [node._getLeader().id for node in self.nodes.values() if node._getLeader() is not None]
        return next((name for name in self.nodes if heard.count(name) * 2 > len(self.nodes)), None)

    def elect(self, *exclude: str) -> str:
        self.run(20, lambda: self.leader() not in (None, *exclude))
        name = self.leader()
        assert name is not None, "nobody was elected"
        self.run(0.5)
        return name


class Wire(Transport):  # type: ignore[misc]
    def __init__(self, net: Net, name: str) -> None:
        super().__init__(None, None, ())
        self.net, self.name = net, name

    def send(self, node: Node, message: dict[str, Any]) -> bool:
        self.net.send(self.name, node.id, message)
        return True

    def addNode(self, node: Node) -> None:
        self._onNodeConnected(node)

    def dropNode(self, node: Node) -> None:
        self._onNodeDisconnected(node)

    def destroy(self) -> None:
        pass


class Stock(SyncObj):  # type: ignore[misc]
    """A replicated list of notes."""

    def __init__(self, net: Net, name: str, others: Iterable[str], **conf: Any) -> None:
        self.wire = Wire(net, name)
        others = [Node(other) for other in others]
        settings = SyncObjConf(autoTick=False, commandsWaitLeader=False, **conf)
        super().__init__(Node(name), others, settings, nodeClass=Node, transport=self.wire)
        self.notes: list[str] = []
        for other in others:
            self.wire._onNodeConnected(other)

    def receive(self, source: str, message: dict[str, Any]) -> None:
        self.wire._onMessageReceived(Node(source), message)

    @replicated
    def note(self, text: str) -> int:
        if text == "bad":
            raise ValueError("a command with a bug")
        self.notes.append(text)
        return len(self.notes)

    def log(self) -> Any:
        return self._SyncObj__raftLog

    @property
    def log_end(self) -> int:
        return int(self.log()[-1][1])

    @property
    def is_leader(self) -> bool:
        return bool(self._isLeader())


def cluster(names: str = "abc", directory: Path | None = None, **conf: Any) -> Net:
    """Nodes named by single letters; with a directory, each with its files there."""
    net = Net()
    for name in names:
        files = {} if directory is None else {"journalFile": str(directory / name)}
        net.nodes[name] = Stock(net, name, [other for other in names if other != name], **files, **conf)
    return net


def ask(node: Stock, text: str) -> list[tuple[Any, Any]]:
    """Propose; the list holds (result, error) once there is an answer."""
    answers: list[tuple[Any, Any]] = []
    node.note(text, callback=lambda result, error: answers.append((result, error)))
    return answers
