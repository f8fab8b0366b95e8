"""Failover as a property: whatever faults hit three or five voters, no promise breaks; a counterexample is short."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chaos.sim.batch import quiet
from chaos.sim.plan import LEADER, Fault, Plan
from chaos.sim.world import World

FAULT_S = 10.0


def _targets(voters: int) -> st.SearchStrategy[tuple[int, ...]]:
    some = st.sets(st.integers(0, voters - 1), min_size=1).map(lambda nodes: tuple(sorted(nodes)))
    return st.just((LEADER,)) | some


@st.composite
def plans(draw: Any) -> Plan:
    """A small cluster and up to six faults, without what needs a disk."""
    voters = draw(st.sampled_from([3, 5]))

    def fault(kind: str, nodes: st.SearchStrategy[tuple[int, ...]], **args: st.SearchStrategy[Any]) -> Any:
        at_s = st.floats(1.0, FAULT_S - 1.0).map(lambda value: round(value, 3))
        for_s = st.floats(0.05, 4.0).map(lambda value: round(value, 3))
        return st.builds(Fault, st.just(kind), at_s, for_s, nodes, st.fixed_dictionaries(args))

    one = st.integers(0, voters - 1).map(lambda node: (node,))
    faults = st.one_of(
        fault("kill", _targets(voters)),
        fault("pause", _targets(voters)),
        fault("restart", _targets(voters)),
        fault("isolate", one | st.just((LEADER,)), way=st.sampled_from(["both", "in", "out"])),
        fault("halves", st.just(tuple(range(voters // 2)))),
        fault("resets", st.just(()), every_s=st.sampled_from([0.05, 0.3])),
        fault("transfer", one),
    )
    return Plan(
        seed=draw(st.integers(0, 2**16)),
        voters=voters,
        fault_s=FAULT_S,
        snapshot_entries=draw(st.sampled_from([20, 200])),
        faults=tuple(draw(st.lists(faults, max_size=6))),
    )


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(plans())
def test_no_schedule_of_failures_breaks_a_promise(plan: Plan) -> None:
    with quiet():
        result = World(plan).run()
    assert result.violation is None, f"{result.violation}\n{plan.as_json()}"
