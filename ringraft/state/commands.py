"""What can be asked of the state machine. One class a verb; ``decide/`` has one function for each.

``holder`` limits a command to one node's own leases (a worker's credential is bound to its node
id); None means the caller may speak for any node.
"""

from __future__ import annotations

from ringraft.state.model import Limits, NewItem
from ringraft.state.record import record
from ringraft.state.records import VoterRecord

GROUP_WEIGHT = 1000
"""What a group counts for: it may have ten times as many items, so it travels alone."""


@record
class Add:
    """Add one item. Done: ``{status: added|exists, work_id, state?, index?, warnings?}``."""

    item: NewItem


@record
class AddBatch:
    """Add all or none. Done: ``{items: [{status, work_id, …} in order]}``."""

    items: tuple[NewItem, ...]


@record
class Claim:
    """Grant leases. Done: ``{claimed: [work_id, …], reasons: {code: count}}``."""

    node_id: str
    work_types: tuple[str, ...] | None
    max_items: int
    lease_ms: int | None
    capabilities: bytes | None
    """Packed capabilities; None: the node's registered ones, else only items without requirements."""


@record
class Start:
    """ASSIGNED → RUNNING. Done: ``{status: running}``."""

    work_id: str
    token: int
    holder: str | None = None


@record
class LeaseRef:
    """One lease to renew, with what the worker has to report."""

    work_id: str
    token: int
    progress: bytes | None = None


@record
class Renew:
    """Extend leases, each by itself. Done: ``{leases: [{work_id, ok, …}]}``."""

    node_id: str
    leases: tuple[LeaseRef, ...]


@record
class Complete:
    """Finish an item and add what follows from it. Done: ``{status: completed, spawned, then}``."""

    work_id: str
    token: int
    result: bytes | None = None
    artifacts: bytes | None = None
    spawn: tuple[NewItem, ...] = ()
    then: NewItem | None = None
    holder: str | None = None


@record
class CompleteBatch:
    """Finish many, each by itself. Done: ``{items: [{status: completed}|{status: refused, code}]}``."""

    items: tuple[Complete, ...]


@record
class Fail:
    """Done: ``{status: retry|failed, state, not_before_wall_ms}``. Always spends the attempt."""

    work_id: str
    token: int
    error: str
    retryable: bool = True
    holder: str | None = None


@record
class Release:
    """Hand back without spending an attempt. Done: ``{status: released}``."""

    work_id: str
    token: int
    holder: str | None = None


@record
class Cancel:
    """Cancel one item or a group: exactly one is set. Done: ``{status: cancelled, count}``."""

    work_id: str | None = None
    group: str | None = None


@record
class Retry:
    """Take FAILED or CANCELLED back. Done: ``{status: retried, count}``."""

    work_id: str | None = None
    group: str | None = None


@record
class Tick:
    """Nothing but time: lets due timers fire."""


@record
class RegisterNode:
    """A node presents itself; a higher incarnation frees its older self's leases.

    Done: ``{status: registered, freed}``.
    """

    node_id: str
    incarnation: int
    roles: tuple[str, ...]
    work_types: tuple[str, ...] | None
    capabilities: bytes
    addresses: tuple[str, ...]
    version: str


@record
class NodeStatus:
    """Membership's verdict, for information: it never ends a lease. Done: ``{}``."""

    node_id: str
    incarnation: int
    up: bool


@record
class Begin:
    """A leader's first command: its epoch begins here. Done: ``{}``."""

    leader_id: str


@record
class Configure:
    """Set the limits. Done: ``{}``."""

    limits: Limits


@record
class FormVoters:
    """The first leader's: who founds the cluster, with what is known of each. Done: ``{status: formed}``."""

    formation_id: str
    """Random: tells this cluster from another one of the same names."""
    founders: tuple[VoterRecord, ...]


@record
class AnnounceVoter:
    """A node that keeps the log says who it is. Done: ``{status: announced|exists}``."""

    node_id: str
    data_id: str
    incarnation: int
    command_version: int
    """The newest version of commands that its program knows."""
    address: str


@record
class AdmitVoter:
    """A learner that has caught up votes from now on, and its copy counts. Done: ``{status: admitted|exists}``."""

    node_id: str
    data_id: str
    incarnation: int
    command_version: int
    address: str
    basis: int
    """Which entry changed the voters last when this was decided."""


@record
class AddLearner:
    """A node is sent the log, to be admitted once it has caught up. Done: ``{status: added|exists}``."""

    node_id: str
    address: str
    basis: int


@record
class RemoveVoter:
    """A voter or learner no longer keeps the log. Done: ``{status: removed}``."""

    node_id: str
    basis: int


@record
class Refound:
    """Another life of this state, in a new generation: who keeps its log. Done: ``{status: refounded}``.

    Never in a log: what restores a backup or recovers a directory applies it to the image it begins with.
    """

    voters: tuple[VoterRecord, ...]
    formation_id: str


VOTER_CHANGES = (FormVoters, AdmitVoter, AddLearner, RemoveVoter)
"""What changes who keeps the log or whose copy counts."""

Op = (
    Add | AddBatch | Claim | Start | Renew | Complete | CompleteBatch | Fail | Release | Cancel | Retry
    | Tick | RegisterNode | NodeStatus | Begin | Configure
    | FormVoters | AnnounceVoter | AdmitVoter | AddLearner | RemoveVoter
)  # fmt: skip


def weight(op: object) -> int:
    """How many items an op may touch, as far as it says so itself: what applying it costs. At least 1."""
    match op:
        case AddBatch(items=items) | CompleteBatch(items=items):
            return max(1, len(items))
        case Claim(max_items=count):
            return max(1, count)
        case Renew(leases=leases):
            return max(1, len(leases))
        case Complete(spawn=spawn):
            return 2 + len(spawn)
        case Cancel(group=str()) | Retry(group=str()):
            return GROUP_WEIGHT
    return 1
