"""A model of one work item: what each operation may do to it, and what it would be told.

It follows the REST contract, not the product's code. Time is not part of it: a lease that may run
out may do so at any moment (``by_itself``); whether it was too early is for ``leases`` to say. So a
state has several successors, and an operation fits when one of them gives the answer it got.

A claim whose answer was lost may have granted a lease under a token that nobody was told, and so may
one whose answer leaves out a lease that had ended by then: such a token is ``GUESS``, and all that is
known of it is that it lies above ``floor``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

GUESS = -1
"""A token that nobody has been told."""

FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED"})
LEASED = frozenset({"ASSIGNED", "RUNNING"})


class Spec(NamedTuple):
    """What of an item's fields decides its life."""

    max_attempts: int = 3
    has_timeout: bool = False
    depends: bool = False
    may_retire: bool = True
    """Whether the run lasts longer than final items are kept."""
    may_be_freed: bool = False
    """Whether workers register again during the run, which frees their older self's leases."""


class ItemState(NamedTuple):
    """Where the item may stand."""

    state: str = "ABSENT"
    is_retired: bool = False
    """Final, and no longer held; ``state`` says how it ended."""
    floor: int = 0
    """Tokens that are granted from now on lie above this."""
    token: int = 0
    """The newest grant's; 0 when there is none."""
    verdict: str = ""
    """How the newest lease ended; empty while it lives."""
    was_started: bool = False
    attempt: int = 0
    end_verb: str = ""
    """The worker's verb that made it final, with ``token``."""
    result: str | None = None
    """The accepted completion's result, as canonical JSON."""
    key: str | None = None
    """The idempotency key it was added with."""

    @property
    def is_held(self) -> bool:
        return self.state != "ABSENT" and not self.is_retired

    @property
    def is_final(self) -> bool:
        return self.state in FINAL


class View(NamedTuple):
    """What a read showed of an item; None where it showed nothing to compare."""

    state: str
    attempt: int | None = None
    token: int | None = None
    """Of the lease, while there is one."""
    result: str | None = None


class Event(NamedTuple):
    """One operation as this item saw it."""

    verb: str
    invoked_s: float
    returned_s: float
    """Infinite when it may take effect at any later time."""
    is_certain: bool
    """It was decided: it stands somewhere in the order. Otherwise it may be left out."""
    token: int = 0
    answers: frozenset[str] | None = None
    """What it was told, in the words of ``outcomes``; None when nobody knows."""
    view: View | None = None
    key: str | None = None
    result: str | None = None
    is_last: bool = False
    """A failure that is not to be tried again."""
    source: Any = None
    """The operation it comes from."""


Step = tuple[ItemState, str]
"""(the next state, what the caller is told)."""


def by_itself(at: ItemState, spec: Spec, may_be_granted: bool) -> Iterator[ItemState]:
    """Where time, other items and claims may take the item. ``may_be_granted``: by one that does not tell it."""
    if at.is_retired:
        return
    if at.state == "PENDING":
        if may_be_granted:
            yield at._replace(
                state="ASSIGNED", floor=max(at.floor, at.token), token=GUESS, verdict="", was_started=False
            )
    elif at.state in LEASED:
        yield from _lease_ends(at, spec)
    elif at.state == "BLOCKED":
        yield at._replace(state="PENDING")
        yield _cancelled(at)
    elif at.is_final and spec.may_retire:
        yield at._replace(is_retired=True)


def _lease_ends(at: ItemState, spec: Spec) -> Iterator[ItemState]:
    verdicts = ["expired"]
    if spec.may_be_freed:
        verdicts.append("superseded")
    if at.state == "ASSIGNED":
        yield from (at._replace(state="PENDING", verdict=verdict) for verdict in verdicts)
        return
    if spec.has_timeout:
        verdicts.append("timeout")
    yield from (_spent(at, spec, verdict) for verdict in verdicts)


def _spent(at: ItemState, spec: Spec, verdict: str, *, verb: str = "", is_last: bool = False) -> ItemState:
    is_spent = at.verdict == "expired" and at.was_started
    attempt = at.attempt if is_spent else at.attempt + 1
    if is_last or attempt >= spec.max_attempts:
        return at._replace(state="FAILED", attempt=attempt, verdict="failed" if verb else verdict, end_verb=verb)
    return at._replace(state="PENDING", attempt=attempt, verdict="retry" if verb else verdict)


def _cancelled(at: ItemState) -> ItemState:
    verdict = "cancelled" if at.token and at.verdict in ("", "expired") else at.verdict
    return at._replace(state="CANCELLED", verdict=verdict, end_verb="")


def outcomes(at: ItemState, event: Event, spec: Spec) -> Iterator[Step]:
    """Every way in which the operation may go in this state."""
    if event.verb == "read":
        return _read(at, event)
    if event.verb in ("add", "exists"):
        return _add(at, event, spec)
    if event.verb == "grant":
        return _grant(at, event)
    if event.verb in ("cancel", "cancel_group"):
        return _cancel(at, event)
    if event.verb in ("retry", "retry_group"):
        return _retry(at, event, spec)
    return _by_token(at, event, spec)


def fits(at: ItemState, event: Event, spec: Spec) -> Iterator[ItemState]:
    """The next states of those ways that agree with what the caller was told."""
    for after, told in outcomes(at, event, spec):
        if event.answers is None or told in event.answers:
            yield after


def _read(at: ItemState, event: Event) -> Iterator[Step]:
    view = event.view
    if view is None:
        if not at.is_held:
            yield at, "not_found"
        return
    if at.state != view.state:
        return
    if view.attempt is not None and at.attempt != view.attempt:
        return
    if at.state == "COMPLETED" and view.result is not None and at.result is not None and at.result != view.result:
        return
    if at.state in LEASED and view.token is not None:
        yield from ((same, "shown") for same in _same_token(at, view.token))
    else:
        yield at, "shown"


def _add(at: ItemState, event: Event, spec: Spec) -> Iterator[Step]:
    if at.is_held:
        yield at, "exists"
        if event.key is not None and event.key == at.key:
            # The first answer again.
            yield at, "added"
        return
    fresh = ItemState("PENDING", floor=max(at.floor, at.token), key=event.key)
    told = "exists" if event.verb == "exists" else "added"
    yield fresh, told
    if spec.depends:
        yield fresh._replace(state="BLOCKED"), told
        yield fresh._replace(state="CANCELLED"), told


def _grant(at: ItemState, event: Event) -> Iterator[Step]:
    if at.state == "PENDING" and event.token > max(at.floor, at.token):
        yield (
            at._replace(state="ASSIGNED", floor=event.token, token=event.token, verdict="", was_started=False),
            "granted",
        )


def _cancel(at: ItemState, event: Event) -> Iterator[Step]:
    if not at.is_held:
        yield at, "not_found"
    elif at.is_final:
        yield at, f"already_final {at.state}"
    else:
        yield _cancelled(at), "cancelled"
    if event.verb == "cancel_group" and (at.is_final or not at.is_held):
        yield at, "cancelled"


def _retry(at: ItemState, event: Event, spec: Spec) -> Iterator[Step]:
    is_back = at.is_held and at.state in ("FAILED", "CANCELLED")
    if is_back:
        verdict = "retried" if at.verdict == "expired" else at.verdict
        fresh = at._replace(state="PENDING", attempt=0, verdict=verdict, end_verb="")
        yield fresh, "retried"
        if spec.depends:
            yield fresh._replace(state="BLOCKED"), "retried"
            yield _cancelled(fresh), "retried"
    elif event.verb == "retry_group":
        yield at, "retried"
    elif not at.is_held:
        yield at, "not_found"
    elif at.state == "COMPLETED":
        yield at, "already_final COMPLETED"
    else:
        yield at, "wrong_state"


def _same_token(at: ItemState, token: int) -> Iterator[ItemState]:
    """The state if the newest token is this one; a guessed token may turn out to be it."""
    if at.token == token:
        yield at
    elif at.token == GUESS and token > at.floor:
        yield at._replace(token=token, floor=token)


def _by_token(at: ItemState, event: Event, spec: Spec) -> Iterator[Step]:
    """The verbs of a worker: its token must be the newest."""
    if not at.is_held:
        yield at, "not_found"
        return
    if at.is_final and event.verb == "renew" and at.state == "CANCELLED":
        # The worker of a cancelled item learns of it by its own lease.
        yield from ((same, "cancel") for same in _same_token(at, event.token) if same.token)
        if at.token != event.token or not at.token:
            yield at, f"already_final {at.state}"
        return
    if at.is_final and at.end_verb != event.verb:
        yield at, f"already_final {at.state}"
        return
    if at.token != event.token or not at.token:
        yield at, f"already_final {at.state}" if at.is_final else "stale_token"
    for same in _same_token(at, event.token):
        if same.token:
            yield _WITH_TOKEN[event.verb](same, event, spec)


def _start(at: ItemState, event: Event, spec: Spec) -> Step:
    if at.state in LEASED:
        return at._replace(state="RUNNING", was_started=True), "running"
    return at, "wrong_state"


def _renew(at: ItemState, event: Event, spec: Spec) -> Step:
    return at, "ok" if at.state in LEASED else "wrong_state"


def _release(at: ItemState, event: Event, spec: Spec) -> Step:
    if at.verdict == "released":
        return at, "released"
    if at.state in LEASED:
        return at._replace(state="PENDING", verdict="released"), "released"
    return at, "wrong_state"


def _may_finish(at: ItemState) -> bool:
    return at.state in LEASED or (at.state == "PENDING" and at.verdict == "expired")


def _complete(at: ItemState, event: Event, spec: Spec) -> Step:
    if at.is_final:
        return at, "completed"
    if _may_finish(at):
        done = at._replace(state="COMPLETED", verdict="completed", end_verb="complete", result=event.result)
        return done, "completed"
    return at, "wrong_state"


def _fail(at: ItemState, event: Event, spec: Spec) -> Step:
    if at.verdict in ("failed", "retry"):
        return at, at.verdict
    if _may_finish(at):
        after = _spent(at, spec, "failed", verb="fail", is_last=event.is_last)
        return after, after.verdict
    return at, "wrong_state"


def _hold(at: ItemState, event: Event, spec: Spec) -> Step:
    """A claim's answer that repeats what its key was granted before: the lease lives."""
    return at, "held" if at.state in LEASED else "not_held"


_WITH_TOKEN = {
    "start": _start,
    "renew": _renew,
    "release": _release,
    "complete": _complete,
    "fail": _fail,
    "hold": _hold,
}
