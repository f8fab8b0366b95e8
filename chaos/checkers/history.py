"""What clients saw: one record for each operation, from the call to its answer.

The simulator and runs against real processes write the same records, so the same checkers judge
both. Times are seconds on the driver's one monotonic clock (the simulator's virtual one). ``args``
is the body of the REST call and ``answer`` the body of its answer, with the names of the REST
contract; readers below know where in them a fact stands.

======== ======================================================= ===============================================
verb     args                                                    answer when done
======== ======================================================= ===============================================
add      an item's fields, ``idempotency_key?``                  ``{status: added|exists, work_id, state?}``
add_batch  ``{items: […], idempotency_key?}``                    ``{items: [as of add, …]}``
claim    ``{node_id, max_items, lease_s, idempotency_key?}``     ``{items: [{work_id, lease: {token}, …}, …]}``
start    ``{work_id, token}``                                    ``{status: running}``
renew    ``{node_id, leases: [{work_id, token}, …]}``            ``{leases: [{work_id, ok, cancel?, code?}, …]}``
complete ``{work_id, token, result?, spawn?, then?}``            ``{status: completed, spawned, then}``
complete_batch  ``{items: [as of complete, …]}``                 ``{items: [{status: completed|refused, code?}]}``
fail     ``{work_id, token, error, retryable?}``                 ``{status: retry|failed, state}``
release  ``{work_id, token}``                                    ``{status: released}``
cancel   ``{work_id}`` or ``{group}``                            ``{status: cancelled, count}``
retry    ``{work_id}`` or ``{group}``                            ``{status: retried, count}``
get      ``{work_id, consistency: linearizable|leader|stale}``   the item: ``{work_id, state, attempt, lease, …}``
======== ======================================================= ===============================================

A refused operation's answer is the problem: ``{code, state?}``; a ``get`` of an item that is not
there is refused with ``not_found``. Answers of operations that are not applied or unknown are None.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

VERBS = frozenset(
    {
        "add",
        "add_batch",
        "claim",
        "start",
        "renew",
        "complete",
        "complete_batch",
        "fail",
        "release",
        "cancel",
        "retry",
        "get",
    }
)


class Ending(StrEnum):
    """What the client knows in the end."""

    DONE = "done"
    """It happened, and ``answer`` says with what result."""
    REFUSED = "refused"
    """It was decided, and changed nothing; ``answer`` says why."""
    NOT_APPLIED = "not_applied"
    """It never will happen: nobody leads, no quorum."""
    UNKNOWN = "unknown"
    """It may have happened at any time since its call, may yet happen, or never."""


@dataclass(frozen=True, slots=True)
class Op:
    """One operation of one client."""

    client: str
    """Has one operation under way at a time; after an unknown ending it goes on under another name."""
    number: int
    """Counts the client's operations from 0."""
    verb: str
    args: dict[str, Any]
    node: str
    """Whom the client asked; not necessarily who decided."""
    invoked_s: float
    returned_s: float | None
    """None: no answer ever came."""
    ending: Ending
    answer: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        assert self.verb in VERBS, f"{self.verb!r} is no verb of a history: {sorted(VERBS)}"
        assert self.returned_s is None or self.invoked_s <= self.returned_s, f"{self} returned before it was called"
        if self.ending is Ending.DONE or self.ending is Ending.REFUSED:
            assert self.returned_s is not None, f"{self} has an answer, and no time of it"
            assert self.answer is not None, f"{self} was decided, and has no answer"

    @property
    def is_done(self) -> bool:
        return self.ending is Ending.DONE

    @property
    def is_refused(self) -> bool:
        return self.ending is Ending.REFUSED

    @property
    def may_have_happened(self) -> bool:
        """Done, or unknown."""
        return self.ending is Ending.DONE or self.ending is Ending.UNKNOWN

    @property
    def key(self) -> str | None:
        """The idempotency key it was sent with."""
        key = self.args.get("idempotency_key")
        return None if key is None else str(key)

    @property
    def code(self) -> str | None:
        """Why it was refused."""
        return str(self.answer["code"]) if self.is_refused and self.answer is not None else None

    def told(self) -> str:
        """The operation in one line, for a person."""
        asked = ", ".join(f"{name}={_plain(value)}" for name, value in self.args.items() if name not in QUIET)
        until = "…" if self.returned_s is None else f"{self.returned_s:.3f}"
        ending = self.ending.value if self.code is None else f"refused ({self.code})"
        said = "" if not self.is_done or self.answer is None else f": {_short(self.answer)}"
        times = f"[{self.invoked_s:.3f}–{until} s]"
        return f"{times} {self.client}#{self.number} at {self.node}: {self.verb}({asked}) {ending}{said}"


QUIET = frozenset({"config", "result", "work_type", "priority", "consistency"})
"""Arguments that decide nothing that is judged."""


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: one for name, one in value.items() if name not in QUIET}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _short(answer: dict[str, Any]) -> str:
    """An answer's facts; of an item only where it stands."""
    told = []
    for name, value in answer.items():
        if name == "lease":
            told.append(f"lease={value['token'] if value else None}")
        elif name in ("items", "leases"):
            told.append(f"{name}=[{'; '.join(_short(one) for one in value)}]")
        elif name in ("work_id", "status", "state", "attempt", "ok", "code", "cancel", "result", "spawned", "then"):
            told.append(f"{name}={value}")
    return " ".join(told)


def granted(op: Op) -> list[tuple[str, int]]:
    """(work_id, token) of each lease that a claim's answer hands out."""
    if op.verb != "claim" or not op.is_done:
        return []
    assert op.answer is not None
    return [(item["work_id"], item["lease"]["token"]) for item in op.answer["items"]]


def asked_items(op: Op) -> list[dict[str, Any]]:
    """The items that an operation asks to add: its own, a batch's, or what a completion spawns, in order."""
    if op.verb == "add":
        return [op.args]
    if op.verb == "add_batch":
        return list(op.args["items"])
    if op.verb == "complete":
        then = op.args.get("then")
        return [*op.args.get("spawn", ()), *([then] if then is not None else [])]
    return []


def born(op: Op) -> list[tuple[str, str, dict[str, Any]]]:
    """(work_id, status, fields asked) of each item that a done operation says is there: ``added`` or ``exists``.

    What a completion spawned is ``exists`` here: its answer does not say which of both it was.
    """
    if not op.is_done or op.answer is None:
        return []
    if op.verb == "add":
        return [(op.answer["work_id"], op.answer["status"], op.args)]
    if op.verb == "add_batch":
        pairs = zip(op.answer["items"], op.args["items"], strict=True)
        return [(answer["work_id"], answer["status"], asked) for answer, asked in pairs]
    if op.verb == "complete":
        then = op.answer.get("then")
        names = [*op.answer.get("spawned", ()), *([then] if then is not None else [])]
        asked = asked_items(op)
        # A repeat with another body is answered with what the first one added.
        return [(name, "exists", asked[number] if number < len(asked) else {}) for number, name in enumerate(names)]
    return []


def completions(op: Op) -> list[tuple[str, int, str]]:
    """(work_id, token, ending) of each completion that an operation asked for; ending as in ``Ending``."""
    if op.verb == "complete":
        return [(op.args["work_id"], op.args["token"], op.ending.value)]
    if op.verb != "complete_batch":
        return []
    asked = [(one["work_id"], one["token"]) for one in op.args["items"]]
    if not op.is_done or op.answer is None:
        return [(*one, op.ending.value) for one in asked]
    endings = [
        Ending.DONE.value if answer["status"] == "completed" else Ending.REFUSED.value for answer in op.answer["items"]
    ]
    return [(*one, ending) for one, ending in zip(asked, endings, strict=True)]


class History:
    """The operations of a run, in the order of their calls."""

    def __init__(self, ops: Iterable[Op] = ()) -> None:
        self.ops: list[Op] = sorted(ops, key=lambda op: (op.invoked_s, op.client, op.number))
        self._called_s: dict[str, float] = {}
        for op in self.ops:
            if op.key is not None:
                self._called_s.setdefault(op.key, op.invoked_s)

    def __iter__(self) -> Iterator[Op]:
        return iter(self.ops)

    def __len__(self) -> int:
        return len(self.ops)

    def of(self, *verbs: str) -> list[Op]:
        """The operations of these verbs, in the order of their calls."""
        return [op for op in self.ops if op.verb in verbs]

    def first_call_s(self, op: Op) -> float:
        """When the operation, or an earlier try with its key, was called: it may have happened since."""
        return op.invoked_s if op.key is None else self._called_s[op.key]

    def lines(self) -> Iterator[str]:
        """One JSON document a line."""
        return (json.dumps(asdict(op), sort_keys=True, separators=(",", ":")) for op in self.ops)

    @classmethod
    def parse(cls, lines: Iterable[str]) -> History:
        """What ``lines`` wrote. ValueError names the line that is none of ours."""
        ops = []
        for number, line in enumerate(lines, 1):
            try:
                fields = json.loads(line)
                ops.append(Op(**{**fields, "ending": Ending(fields["ending"])}))
            except (ValueError, TypeError, KeyError, AssertionError) as fault:
                raise ValueError(f"line {number} is no operation of a history: {fault}") from fault
        return cls(ops)

    def save(self, path: Path) -> None:
        path.write_text("".join(f"{line}\n" for line in self.lines()), "utf-8")

    @classmethod
    def load(cls, path: Path) -> History:
        with path.open(encoding="utf-8") as file:
            return cls.parse(file)


@dataclass(frozen=True, slots=True)
class FinalState:
    """What one node holds at the end, read from the node itself when nothing moves any more."""

    node: str
    index: int
    """The newest entry it applied."""
    digest: str
    items: dict[str, dict[str, Any]]
    """Every item it holds, by lower-case id, in the shape of GET /work/item."""
    archived: dict[str, dict[str, Any]]
    """Final items that retired, likewise; of a run without an archive what the driver saw retire."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that was broken, told so that somebody on call can act on it."""

    rule: str
    """A short name, such as ``lost_add``."""
    told: str
    ops: tuple[Op, ...] = ()
    """The operations involved, in the order of their calls."""

    def __str__(self) -> str:
        return "\n    ".join((f"{self.rule}: {self.told}", *(op.told() for op in self.ops)))
