"""What happened, line by line, for a person: faults, roles, crashes, and the operations around a violation."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.sim.world import Note, Result

AROUND_S = 1.0
"""Operations that were under way so shortly before a violation are shown."""
MARKS = {
    "fault": "▼",
    "fault over": "▲",
    "violation": "✗",
    "leader": "★",
    "down": "✝",
    "start": "●",
    "failed": "!",
    "refused": "!",
    "damage": "~",
    "pause": "‖",
    "resume": "▸",
    "heal": "♥",
}


def lines(result: Result) -> Iterator[str]:
    """The run in order of time."""
    plan = result.plan
    yield f"seed {plan.seed}: {plan.voters} voters, faults for {plan.fault_s:g} s"
    yield (
        f"heartbeat {plan.heartbeat_ms} ms, election {plan.election_min_ms}–{plan.election_max_ms} ms, "
        f"a snapshot every {plan.snapshot_entries} entries, network {plan.delay_ms[0]}–{plan.delay_ms[1]} ms, syncs "
        f"{plan.sync_ms[0]}–{plan.sync_ms[1]} ms"
    )
    told: list[tuple[float, int, str]] = [(note.at_s, 0, _line(note)) for note in result.notes]
    if result.violated_s is not None:
        for op in result.history:
            if op.returned_s is not None and op.returned_s >= result.violated_s - AROUND_S:
                told.append((op.returned_s, 1, f"{op.returned_s:10.4f}    {'op':<6}{op.told()}"))
    for _, _, line in sorted(told, key=lambda one: (one[0], one[1])):
        yield line
    if result.violation is not None:
        yield f"{result.violated_s or 0.0:10.4f}  ✗ {result.violation}"


def _line(note: Note) -> str:
    return f"{note.at_s:10.4f}  {MARKS.get(note.kind, ' ')} {note.who:<6}{note.kind:<11} {note.text}"
