"""The command language of the traces in tests/testdata/state.

A block is one log entry: commands, ``----``, then what came of it. ``at SECONDS`` begins a block
(log time; the wall clock runs along unless ``wall=`` sets it), further lines of the block are further
commands of the same entry. Tokens are written ``INDEX.POSITION``. What comes out: one line per outcome,
then every item and voter that the entry changed, then the events. ``basis=`` of a change of the voters is
the entry that changed them last unless given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack

from ringraft.state import commands as ops
from ringraft.state import invariants
from ringraft.state.codec import decode_entry, encode_entry
from ringraft.state.machine import StateMachine
from ringraft.state.model import (
    TOKENS_PER_ENTRY,
    Command,
    Done,
    Entry,
    Epoch,
    Key,
    Limits,
    NewItem,
    Outcome,
    Rejected,
)
from ringraft.state.records import Item, VoterRecord

WALL_START_MS = 1_700_000_000_000

ITEM_OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "type": ("work_type", str),
    "class": ("class_key", str),
    "config": ("config", lambda text: packed(text)),
    "priority": ("priority", int),
    "attempts": ("max_attempts", int),
    "timeout": ("timeout_ms", lambda text: milliseconds(text)),
    "after": ("depends_on", lambda text: names(text)),
    "on_failure": ("on_dependency_failure", str),
    "not_before": ("not_before_wall_ms", lambda text: WALL_START_MS + milliseconds(text)),
    "needs": ("requirements", lambda text: packed(text)),
    "target": ("target_node", str),
    "not": ("excluded_nodes", lambda text: names(text)),
    "unique": ("unique_key", str),
    "group": ("group", str),
    "strict": ("strict", lambda text: text == "yes"),
}


def milliseconds(text: str) -> int:
    return round(float(text) * 1000)


def names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def packed(text: str) -> bytes:
    return bytes(msgpack.packb(json.loads(text)))


def token(text: str) -> int:
    index, position = text.split(".")
    return int(index) * TOKENS_PER_ENTRY + int(position)


def shown_token(number: int) -> str:
    return f"{number // TOKENS_PER_ENTRY}.{number % TOKENS_PER_ENTRY}"


def new_item(words: list[str]) -> NewItem:
    fields: dict[str, Any] = {"work_type": "selfplay", "config": b"\x80"}
    for word in words:
        name, has_value, value = word.partition("=")
        if not has_value:
            fields["work_id"] = word
        else:
            field, convert = ITEM_OPTIONS[name]
            fields[field] = convert(value)
    return NewItem(**fields)


def voter(word: str) -> VoterRecord:
    """``n1`` or ``n1=DATA_ID/INCARNATION/VERSION``."""
    name, _, said = word.partition("=")
    data_id, incarnation, version = said.split("/") if said else ("", "0", "0")
    return VoterRecord(name, f"{name}:1", data_id, int(incarnation), True, int(version))


def parse(line: str, basis: int = 0) -> Command:
    """One command; ``key=`` gives it an idempotency key whose body is the rest of the line."""
    verb, *words = [word[1:-1] if word[0] == '"' else word for word in re.findall(r'"[^"]*"|\S+', line)]
    key = next((word[4:] for word in words if word.startswith("key=")), None)
    words = [word for word in words if not word.startswith("key=")]
    body = " ".join([verb, *words]).encode()
    return Command(build(verb, words, basis), None if key is None else Key("user", key, body))


def build(verb: str, words: list[str], basis: int) -> Any:
    parts = list(split(words, "|"))
    plain = [word for word in parts[0] if "=" not in word]
    options = dict(word.split("=", 1) for word in parts[0] if "=" in word)
    match verb:
        case "add":
            return ops.Add(new_item(words))
        case "add_batch":
            return ops.AddBatch(tuple(new_item(part) for part in parts))
        case "claim":
            return ops.Claim(
                plain[0],
                names(options["types"]) if "types" in options else None,
                int(options.get("max", 1)),
                milliseconds(options["lease"]) if "lease" in options else None,
                packed(options["caps"]) if "caps" in options else None,
            )
        case "start":
            return ops.Start(plain[0], token(plain[1]), options.get("holder"))
        case "renew":
            progress = packed(options["progress"]) if "progress" in options else None
            refs = [ops.LeaseRef(plain[n], token(plain[n + 1]), progress) for n in range(1, len(plain), 2)]
            return ops.Renew(plain[0], tuple(refs))
        case "complete":
            spawn = tuple(new_item(part[1:]) for part in parts[1:] if part[0] == "spawn")
            then = [new_item(part[1:]) for part in parts[1:] if part[0] == "then"]
            result = packed(options["result"]) if "result" in options else None
            return ops.Complete(
                plain[0], token(plain[1]), result, None, spawn, then[0] if then else None, options.get("holder")
            )
        case "complete_batch":
            return ops.CompleteBatch(tuple(ops.Complete(part[0], token(part[1])) for part in parts))
        case "fail":
            return ops.Fail(
                plain[0], token(plain[1]), plain[2], options.get("retryable") != "no", options.get("holder")
            )
        case "release":
            return ops.Release(plain[0], token(plain[1]), options.get("holder"))
        case "cancel" | "retry":
            kind = ops.Cancel if verb == "cancel" else ops.Retry
            return kind(plain[0] if plain else None, options.get("group"))
        case "register":
            return ops.RegisterNode(
                plain[0],
                int(plain[1]),
                ("worker",),
                names(options["types"]) if "types" in options else None,
                packed(options.get("caps", "{}")),
                (),
                "1.0",
            )
        case "up" | "down":
            return ops.NodeStatus(plain[0], int(plain[1]), verb == "up")
        case "begin":
            return ops.Begin(plain[0])
        case "configure":
            return ops.Configure(Limits(**{name: int(value) for name, value in options.items()}))
        case "tick":
            return ops.Tick()
        case "form":
            return ops.FormVoters("f1", tuple(voter(word) for word in words))
        case "announce":
            said = voter(words[0])
            address = options.get("address", said.address)
            return ops.AnnounceVoter(said.node_id, said.data_id, said.incarnation, said.command_version, address)
        case "admit":
            said, basis = voter(words[0]), int(options.get("basis", basis))
            parts = (said.node_id, said.data_id, said.incarnation, said.command_version, said.address)
            return ops.AdmitVoter(*parts, basis)
        case "add_learner":
            address = options.get("address", f"{plain[0]}:1")
            return ops.AddLearner(plain[0], address, int(options.get("basis", basis)))
        case "remove":
            return ops.RemoveVoter(plain[0], int(options.get("basis", basis)))
    raise ValueError(f"unknown verb {verb}")


def split(words: list[str], mark: str) -> Iterator[list[str]]:
    part: list[str] = []
    for word in words:
        if word == mark:
            yield part
            part = []
        else:
            part.append(word)
    yield part


class Trace:
    """Runs blocks against one machine and keeps the entries, so that they can be run again."""

    def __init__(self) -> None:
        self.machine = StateMachine(strict=True)
        self.entries: list[tuple[int, Entry]] = []
        self._epoch = Epoch(1, 1)

    def run(self, block: list[str]) -> list[str]:
        first = block[0].split()
        assert first[0] == "at", f"a block begins with at SECONDS: {block[0]}"
        log_ms, lines = milliseconds(first[1]), [" ".join(first[2:]), *block[1:]]
        wall_ms = WALL_START_MS + log_ms
        if lines[0].startswith("wall="):
            wall, _, lines[0] = lines[0].partition(" ")
            wall_ms = WALL_START_MS + milliseconds(wall[5:])
        epoch = self._epoch
        if lines[0].startswith("epoch="):
            number, _, lines[0] = lines[0].partition(" ")
            epoch = Epoch(1, int(number[6:]))
        if lines[0].startswith("show "):
            return self._show(lines[0].split()[1])
        commands = tuple(parse(line.strip(), self.machine.tables.voters_index) for line in lines)
        index = self.machine.index + 1
        entry = decode_entry(encode_entry(Entry(log_ms, wall_ms, epoch, commands)))
        before, voters = dict(self.machine.tables.items), dict(self.machine.tables.voters)
        applied = self.machine.apply(index, entry)
        self.entries.append((index, entry))
        invariants.check(self.machine)
        self._epoch = self.machine.epoch
        after = self.machine.tables.items
        changed = [name for name in {**before, **after} if before.get(name) is not after.get(name)]
        lines = [shown_outcome(outcome) for outcome in applied.outcomes]
        lines += [f"  {shown_item(name, after.get(name))}" for name in changed]
        now = self.machine.tables.voters
        lines += [
            f"  {shown_voter(name, now.get(name))}"
            for name in {**voters, **now}
            if voters.get(name) is not now.get(name)
        ]
        for event in applied.events:
            about = event.data.get("work_id") or event.data.get("node_id") or event.data.get("leader_id")
            lines.append(f"  * {event.type} {about or ' '.join(event.data['voters'])}")
        return lines

    def _show(self, work_id: str) -> list[str]:
        why = self.machine.why(work_id)
        assert why is not None
        lines = [f"{reason['code']}: {reason['detail']}" for reason in why["reasons"]]
        lines += [f"  {node}: {code}" for node, code in why["rejections"].items()]
        return [*lines, f"  position={why['position']}"]


def shown_outcome(outcome: Outcome) -> str:
    if isinstance(outcome, Rejected):
        pointers = "".join(f" [{pointer}]" for pointer, _ in outcome.errors)
        return f"rejected {outcome.code}: {outcome.detail}{pointers}"
    assert isinstance(outcome, Done)
    return " ".join(["ok", *shown_pairs(outcome.value)])


def shown_value(name: str, value: Any) -> str:
    if name.endswith("wall_ms") and value is not None:
        return f"{(value - WALL_START_MS) / 1000:.3f}"
    if isinstance(value, list):
        return "[" + ", ".join(shown_value(name, one) for one in value) + "]"
    if isinstance(value, dict):
        return "{" + " ".join(shown_pairs(value)) + "}"
    return str(value)


def shown_pairs(value: dict[str, Any]) -> list[str]:
    """Without what nearly every answer says here: that no worker has registered, that nothing was refused."""
    usual: tuple[Any, ...] = ({}, [], ["no worker is registered yet"])
    return [f"{name}={shown_value(name, one)}" for name, one in value.items() if one not in usual]


def shown_item(name: str, item: Item | None) -> str:
    if item is None:
        return f"{name} is gone"
    text = f"{item.spec.work_id} {item.state} attempt={item.attempt}"
    if item.is_leased and item.grant is not None:
        grant = item.grant
        text += f" node={grant.node_id} token={shown_token(grant.token)} expires={grant.expires_log_ms / 1000:.3f}"
    if item.wake_log_ms is not None:
        text += f" backs_off_until={item.wake_log_ms / 1000:.3f}"
    elif item.wake_wall_ms is not None:
        text += f" not_before={(item.wake_wall_ms - WALL_START_MS) / 1000:.3f}"
    if item.history:
        last = item.history[-1]
        text += f" history={last.attempt}:{last.node_id}:{last.outcome}"
    if item.error is not None:
        text += f' error="{item.error}"'
    return text


def shown_voter(name: str, record: VoterRecord | None) -> str:
    if record is None:
        return f"{name} keeps the log no longer"
    text = f"{record.node_id} {'voter' if record.is_voter else 'learner'} at={record.address}"
    if record.data_id:
        text += f" data={record.data_id} incarnation={record.incarnation} version={record.command_version}"
    return text


def run_file(path: Path) -> tuple[str, Trace]:
    """The file as it would be written now, and the trace that it ran."""
    trace = Trace()
    written: list[str] = []
    commands: list[str] = []
    is_output = False
    for line in [*path.read_text().splitlines(), ""]:
        if line == "----":
            written += [*commands, line, *trace.run(commands)]
            commands, is_output = [], True
        elif line == "":
            assert not commands, f"{path.name}: no ---- after {commands}"
            written.append(line)
            is_output = False
        elif line.startswith("#"):
            written.append(line)
        elif not is_output:
            commands.append(line)
    return "\n".join(written).rstrip("\n") + "\n", trace
