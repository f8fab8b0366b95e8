"""What each step of a lifecycle costs a leader's processor, without sockets, disk and other processes.

    python -m bench.steps                     items in batches of 100
    python -m bench.steps --items 1 --repeat 200

One process takes calls as ``/work/stream`` does, makes entries of them, applies them and answers. The
figure of a step is the best of ``--repeat`` runs, so that a busy machine hardly shows: what to compare
before and after a cut.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

import msgpack

from bench.lifecycle import CONFIG
from bench.machine import machine_line
from ringraft.api import strictjson
from ringraft.api.auth import Principal, Role
from ringraft.api.submission import Submission
from ringraft.node.sealed import seal
from ringraft.state.codec import decode_entry, encode_entry
from ringraft.state.machine import StateMachine
from ringraft.state.model import Command, Done, Entry, Epoch, Limits

T = TypeVar("T")

LIFECYCLES = 500
"""Of one run: enough that what is done once, such as the first item's shape, does not show."""
DEPTH_MAX = 32
WHO = Principal("bench", Role.ADMIN, None)
NOT_THE_LEADER = ("decode (follower)",)


class Run:
    """A fresh state machine and the seconds that each step has taken on it."""

    def __init__(self, submission: Submission) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._submission = submission
        self._machine = StateMachine()
        self._pack = msgpack.Packer().pack

    def timed(self, step: str, work: Callable[[], T]) -> T:
        began = time.perf_counter()
        result = work()
        self.seconds[step] += time.perf_counter() - began
        return result

    def call(self, name: str, sent: dict[str, Any]) -> Any:
        """One call from its frame to its answer's frame."""
        timed, machine = self.timed, self._machine
        frame = msgpack.packb([[1, name, sent]])
        body = timed("unpack", lambda: msgpack.unpackb(frame))[0][2]
        key = body.pop("idempotency_key", None)
        verb = self._submission.verbs[name]
        timed("check", lambda: verb.check(body))
        ordered = timed("order", lambda: strictjson.ordered(body, depth_max=DEPTH_MAX))
        op = timed("build", lambda: verb.build(ordered, WHO))
        command = Command(op, timed("key", lambda: verb.key(WHO, key, ordered)))
        index = machine.index + 1
        entry = Entry(index, index, Epoch(0, 1), (command,))
        encoded = timed("encode", lambda: encode_entry(entry))
        timed("decode (follower)", lambda: decode_entry(encoded))
        [outcome] = timed(f"apply {name}", lambda: machine.apply(index, entry)).outcomes
        assert isinstance(outcome, Done), outcome
        answer = timed("answer", lambda: verb.answer(outcome.value, machine, ordered))
        timed("pack", lambda: self._pack([(1, 200, answer)]))
        return answer

    def lifecycles(self, items: int) -> None:
        """Add, claim and complete ``items`` at once."""
        index = self._machine.index
        new = {"work_type": "bench", "config": CONFIG}
        self.call("add_batch", {"items": [new] * items, "idempotency_key": f"add-{index}"})
        wanted = {"node_id": "bench", "max_items": items, "wait_s": 5, "idempotency_key": f"claim-{index}"}
        held = self.call("claim", wanted)["items"]
        done = [{"work_id": i["work_id"], "token": i["lease"]["token"], "result": {"ok": 1}} for i in held]
        self.call("complete_batch", {"items": done})
        final = [self._machine.tables.items[one["work_id"]] for one in done]
        self.timed("archive's rows", lambda: [seal(item, self._machine.pack(item)) for item in final])

    def hash_the_rest(self) -> None:
        self.timed("digest", self._machine.digest)


def best_us(items: int, repeat: int) -> dict[str, float]:
    """Microseconds a lifecycle, by step."""
    submission = Submission(Limits())
    # When it collects is chance here; ``bench.million`` shows what that costs.
    gc.disable()
    best: dict[str, float] = {}
    for _ in range(repeat):
        run = Run(submission)
        rounds = max(1, LIFECYCLES // items)
        for _ in range(rounds):
            run.lifecycles(items)
        run.hash_the_rest()
        gc.collect()
        for step, seconds in run.seconds.items():
            best[step] = min(best.get(step, float("inf")), seconds / rounds / items * 1e6)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100, help="items per call (100)")
    parser.add_argument("--repeat", type=int, default=40, help="runs, of which the best counts (40)")
    options = parser.parse_args()
    best = best_us(options.items, options.repeat)
    print(machine_line())
    print("| step | µs per lifecycle |\n|---|---|")
    for step, us in sorted(best.items(), key=lambda row: -row[1]):
        print(f"| {step} | {us:.2f} |")
    print(f"| all of the leader's | {sum(us for step, us in best.items() if step not in NOT_THE_LEADER):.2f} |")


if __name__ == "__main__":
    main()
