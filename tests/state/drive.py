"""Random entries for a machine, drawn so that most commands hit something: few ids, nodes and instants."""

from __future__ import annotations

from typing import Any

import msgpack
from hypothesis import strategies as st

from ringraft.state import commands as ops
from ringraft.state.machine import StateMachine
from ringraft.state.model import TOKENS_PER_ENTRY, Command, Entry, Epoch, Key, Limits, NewItem
from ringraft.state.records import VoterRecord

WALL_START_MS = 1_700_000_000_000
SHORT = Limits(retention_ms=20_000, key_grace_ms=4_000, lease_default_ms=6_000, timers_per_entry=3, history_max=3)

names = st.sampled_from(["a", "b", "c", "D", "e"])
nodes = st.sampled_from(["n1", "n2"])
data_ids = st.sampled_from(["d1", "d2"])
bases = st.integers(0, 4)
payloads = st.sampled_from([b"\x80", msgpack.packb({"games": 4})])
tokens = st.builds(
    lambda index, position: index * TOKENS_PER_ENTRY + position, st.integers(1, 40), st.sampled_from([0, 0, 1])
)
capabilities = st.sampled_from(
    [msgpack.packb({}), msgpack.packb({"cpus": 8, "gpus": [{"name": "RTX 5090", "vram_gb": 32}]})]
)

items = st.builds(
    NewItem,
    work_type=st.sampled_from(["selfplay", "training"]),
    config=payloads,
    work_id=st.none() | names,
    priority=st.sampled_from([10, 50]),
    max_attempts=st.integers(1, 3),
    timeout_ms=st.sampled_from([None, 3_000]),
    depends_on=st.lists(names, max_size=2).map(tuple),
    on_dependency_failure=st.sampled_from(["cancel", "run", "wait"]),
    not_before_wall_ms=st.sampled_from([None, WALL_START_MS + 5_000]),
    requirements=st.sampled_from([b"", msgpack.packb({"gpu": "rtx5090"}), msgpack.packb({"cpus": 4})]),
    target_node=st.sampled_from([None, "n1"]),
    excluded_nodes=st.sampled_from([(), ("n2",)]),
    unique_key=st.sampled_from([None, "u"]),
    group=st.sampled_from([None, "g"]),
    class_key=st.sampled_from(["", "hex8_2p"]),
)

verbs: st.SearchStrategy[Any] = st.one_of(
    st.builds(ops.Add, items),
    st.builds(ops.AddBatch, st.lists(items, min_size=1, max_size=3).map(tuple)),
    st.builds(ops.Claim, nodes, st.none(), st.integers(1, 3), st.none(), st.none() | capabilities),
    st.builds(ops.Start, names, tokens),
    st.builds(ops.Renew, nodes, st.lists(st.builds(ops.LeaseRef, names, tokens, st.none() | payloads)).map(tuple)),
    st.builds(
        ops.Complete, names, tokens, payloads, st.none(), st.lists(items, max_size=2).map(tuple), st.none() | items
    ),
    st.builds(ops.CompleteBatch, st.lists(st.builds(ops.Complete, names, tokens), min_size=1, max_size=3).map(tuple)),
    st.builds(ops.Fail, names, tokens, st.just("it broke"), st.booleans()),
    st.builds(ops.Release, names, tokens, st.none() | nodes),
    st.builds(ops.Cancel, names, st.none()) | st.builds(ops.Cancel, st.none(), st.just("g")),
    st.builds(ops.Retry, names, st.none()) | st.builds(ops.Retry, st.none(), st.just("g")),
    st.just(ops.Tick()),
    st.builds(
        ops.RegisterNode,
        nodes,
        st.integers(1, 3),
        st.just(("worker",)),
        st.none(),
        capabilities,
        st.just(()),
        st.just("1.0"),
    ),
    st.builds(ops.NodeStatus, nodes, st.integers(1, 3), st.booleans()),
    st.builds(ops.Begin, nodes),
    st.just(ops.FormVoters("f", (VoterRecord("n1", "a:1", "d1", 1, True, 2), VoterRecord("n2", "b:1", is_voter=True)))),
    st.builds(ops.AnnounceVoter, nodes, data_ids, st.integers(1, 3), st.just(2), st.just("")),
    st.builds(ops.AdmitVoter, nodes, data_ids, st.integers(1, 3), st.just(2), st.just("c:1"), bases),
    st.builds(ops.AddLearner, st.sampled_from(["n1", "n3"]), st.just("d:1"), bases),
    st.builds(ops.RemoveVoter, nodes, bases),
    st.builds(ops.Configure, st.just(SHORT)),
)

keys = st.none() | st.builds(Key, st.just("p"), st.sampled_from(["k1", "k2"]), st.sampled_from([b"x", b"y"]))
commands = st.builds(Command, verbs, keys)
steps = st.tuples(st.sampled_from([0, 10, 2_000, 7_000, 30_000]), st.lists(commands, max_size=4).map(tuple))


def entries_of(drawn: list[tuple[int, tuple[Command, ...]]]) -> list[Entry]:
    """A log that begins with short limits, so that things come due while the test runs."""
    start = (Command(ops.Begin("n1")), Command(ops.Configure(SHORT)))
    log_ms, result = 0, [Entry(0, WALL_START_MS, Epoch(1, 1), start)]
    for step_ms, batch in drawn:
        log_ms += step_ms
        result.append(Entry(log_ms, WALL_START_MS + log_ms, Epoch(1, 1), batch))
    return result


def held_tokens(entry: Entry, machine: StateMachine) -> Entry:
    """The entry with most of its tokens made right, so that the verbs of a worker get somewhere."""

    def right(op: Any) -> Any:
        item = machine.tables.item(op.work_id)
        if item is None or item.grant is None or op.token % 3 == 0:
            return op
        parts = {name: getattr(op, name) for name in op.__slots__}
        return type(op)(**{**parts, "token": item.grant.token})

    def fixed(op: Any) -> Any:
        if isinstance(op, ops.Start | ops.Complete | ops.Fail | ops.Release):
            return right(op)
        if isinstance(op, ops.CompleteBatch):
            return ops.CompleteBatch(tuple(right(one) for one in op.items))
        if isinstance(op, ops.Renew):
            return ops.Renew(op.node_id, tuple(right(one) for one in op.leases))
        return op

    batch = tuple(Command(fixed(command.op), command.key) for command in entry.commands)
    return Entry(entry.log_ms, entry.wall_ms, entry.epoch, batch)
