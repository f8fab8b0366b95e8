"""A run as one picture: a lane for each node, the faults below, what clients got done, and where it broke."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from html import escape

from chaos.sim.plan import Fault
from chaos.sim.world import Note, Result

WIDTH = 1400
LEFT, RIGHT, TOP = 70, 20, 60
LANE, GAP, BAR = 34, 10, 13
COLOURS = {
    "leader": "#2a7f3f",
    "follower": "#9cc4e4",
    "candidate": "#e8b04b",
    "down": "#d9d9d9",
    "pause": "#8d6bb0",
    "refused": "#b03a3a",
}
STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#222} .small{font-size:9px} .title{font-size:15px;font-weight:600} "
    "svg{background:#fff} body{margin:16px;background:#fff;color:#222}"
)


@dataclass(frozen=True, slots=True)
class Span:
    """A node was so from then until then."""

    begin_s: float
    end_s: float
    what: str
    told: str


def html(result: Result) -> str:
    """A page that needs nothing else."""
    title = f"seed {result.plan.seed}: {_verdict(result)}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
        f"<body>{svg(result)}</body></html>\n"
    )


def svg(result: Result) -> str:
    """The picture alone."""
    end_s = max(result.simulated_s, 0.1)
    scale = (WIDTH - LEFT - RIGHT) / end_s

    def x(at_s: float) -> float:
        return round(LEFT + at_s * scale, 2)

    nodes = [f"n{number + 1}" for number in range(result.plan.voters)]
    parts = [f'<text class="title" x="{LEFT}" y="20">seed {result.plan.seed}: {escape(_verdict(result))}</text>']
    parts += _legend()
    y = TOP
    for node in nodes:
        parts.append(f'<text x="10" y="{y + LANE / 2 + 4}">{node}</text>')
        for span in spans(result.notes, node, end_s):
            width = max(0.5, x(span.end_s) - x(span.begin_s))
            told = escape(f"{node} {span.begin_s:.3f}–{span.end_s:.3f} s: {span.told}")
            parts.append(
                f'<rect x="{x(span.begin_s)}" y="{y}" width="{width:.2f}" height="{LANE}" fill="{COLOURS[span.what]}">'
                f"<title>{told}</title></rect>"
            )
        y += LANE + GAP
    y = _throughput(parts, result, x, y + 10)
    y = _faults(parts, result, x, y + 20)
    for at_s in range(0, int(end_s) + 1, max(1, int(end_s / 20))):
        parts.append(f'<line x1="{x(at_s)}" x2="{x(at_s)}" y1="{TOP - 6}" y2="{y}" stroke="#0002"/>')
        parts.append(f'<text class="small" x="{x(at_s)}" y="{TOP - 10}" text-anchor="middle">{at_s} s</text>')
    parts.append(_line(x(result.plan.fault_s), y, "#2a7f3f", "healed"))
    if result.violated_s is not None and result.violation is not None:
        parts.append(_line(x(result.violated_s), y, "#c00000", result.violation.rule))
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 20}">\n{body}\n</svg>'


def spans(notes: list[Note], node: str, end_s: float) -> list[Span]:
    """What this node was, one after the other."""
    found: list[Span] = []
    begin_s, what, told = 0.0, "down", "not started"
    before = (what, told)
    for note in notes:
        if note.who != node:
            continue
        if note.kind == "role":
            after = (note.text.split()[0], note.text)
        elif note.kind == "start":
            after = ("follower", note.text)
        elif note.kind in ("down", "refused", "pause"):
            after = (note.kind, note.text)
        elif note.kind == "resume":
            after = before
        else:
            continue
        if note.kind == "pause":
            before = (what, told)
        elif note.kind == "role" and what == "pause":
            before = after
            continue
        if what == "refused" and note.kind == "down":
            continue
        found.append(Span(begin_s, note.at_s, what, told))
        begin_s, (what, told) = note.at_s, after
    found.append(Span(begin_s, end_s, what, told))
    return [span for span in found if span.end_s > span.begin_s]


def _verdict(result: Result) -> str:
    return "no violation" if result.violation is None else f"{result.violation.rule}: {result.violation.told}"[:170]


def _legend() -> list[str]:
    parts = []
    for place, (name, colour) in enumerate(COLOURS.items()):
        left = LEFT + place * 90
        parts.append(f'<rect x="{left}" y="28" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text class="small" x="{left + 14}" y="37">{name}</text>')
    return parts


def _throughput(parts: list[str], result: Result, x: object, y: int) -> int:
    assert callable(x)
    done = Counter(int(op.returned_s or 0) for op in result.history if op.is_done or op.is_refused)
    lost = Counter(int(op.returned_s or 0) for op in result.history if not op.is_done and not op.is_refused)
    most = max([1, *done.values(), *lost.values()])
    height = 60
    parts.append(f'<text x="10" y="{y + 12}">ops/s</text>')
    parts.append(f'<text class="small" x="10" y="{y + 26}">to {most}</text>')
    for second in range(int(result.simulated_s) + 1):
        left, right = x(second), x(min(second + 1, result.simulated_s))
        for counts, colour, share in ((done, "#4a86c5", 0.6), (lost, "#d98080", 0.4)):
            bar = height * counts[second] / most
            offset = 0 if colour == "#4a86c5" else (right - left) * 0.6
            width = max(0.3, (right - left) * share)
            parts.append(
                f'<rect x="{left + offset:.2f}" y="{y + height - bar:.1f}" width="{width:.2f}" '
                f'height="{bar:.1f}" fill="{colour}"><title>{second} s: {done[second]} answered, {lost[second]} not '
                f"applied or unknown</title></rect>"
            )
    return y + height


def _faults(parts: list[str], result: Result, x: object, y: int) -> int:
    """Each fault in the first row that has room."""
    assert callable(x)
    rows: list[float] = []
    parts.append(f'<text x="10" y="{y + 10}">faults</text>')
    for fault in result.plan.faults:
        if fault.at_s > result.simulated_s:
            continue
        left = x(fault.at_s)
        right = max(left + 2, x(min(fault.at_s + fault.for_s, result.plan.fault_s)))
        text_end = left + 7 + 5.5 * len(_name(fault))
        row = next((number for number, end in enumerate(rows) if end < left), len(rows))
        if row == len(rows):
            rows.append(0.0)
        rows[row] = max(right, text_end)
        top = y + row * (BAR + 3)
        parts.append(
            f'<rect x="{left}" y="{top}" width="{right - left:.2f}" height="{BAR}" fill="#e4572e55" stroke="#e4572e">'
            f"<title>{escape(f'{fault.at_s:.3f} s: {fault.told()}')}</title></rect>"
            f'<text class="small" x="{left + 3}" y="{top + 10}">{escape(_name(fault))}</text>'
        )
    return y + max(1, len(rows)) * (BAR + 3)


def _name(fault: Fault) -> str:
    who = ",".join("leader" if node < 0 else f"n{node + 1}" for node in fault.nodes)
    return f"{fault.kind} {who}" if who and len(fault.nodes) < 3 else fault.kind


def _line(left: float, bottom: int, colour: str, told: str) -> str:
    return (
        f'<line x1="{left}" x2="{left}" y1="{TOP - 6}" y2="{bottom}" stroke="{colour}" stroke-width="2"/>'
        f'<text x="{left + 4}" y="{bottom + 14}" style="fill:{colour}">{escape(told)}</text>'
    )
