"""Who may stand for election, and when a leader is deserted: pre-vote, stickiness, a leader that hears no majority."""

import asyncio
import random

import pytest

from ringraft.consensus.base import Role
from ringraft.consensus.replog.codec import PreVote, PreVoted, RequestVote, TimeoutNow, Vote
from tests.consensus.raft_kit import Cluster, LoopClock, cluster, note, run
from tests.consensus.test_raft import virtual

ELECTION_MAX_S = 0.5


def terms(c: Cluster) -> set[int]:
    return {node.status().epoch.number for node in c.nodes.values()}


def leaders(c: Cluster) -> list[str]:
    return [name for name, node in c.nodes.items() if node.status().role is Role.LEADER]


@virtual
async def test_a_node_that_was_cut_off_comes_back_in_its_old_term_and_deposes_nobody() -> None:
    async with cluster(3) as c:
        await c.write("a")
        leader, before = await c.leader(), terms(c)
        away = next(name for name in c.names if name != leader)
        for _ in range(3):
            c.network.partition([away], [name for name in c.names if name != away])
            await asyncio.sleep(5)
            assert c.nodes[away].status().epoch.number in before, "it never raised its term"
            c.network.heal()
            await c.write("b")
        await asyncio.sleep(1)
        assert (await c.leader(), terms(c)) == (leader, before)


@virtual
async def test_a_flapping_link_deposes_nobody() -> None:
    async with cluster(5) as c:
        await c.write("a")
        leader, before = await c.leader(), terms(c)
        away = next(name for name in c.names if name != leader)
        for _ in range(40):
            c.network.cut = {(leader, away), (away, leader)}
            c.network.refresh()
            await asyncio.sleep(c.rng.uniform(0.1, 0.9))
            c.network.heal()
            await asyncio.sleep(c.rng.uniform(0.05, 0.3))
        assert (await c.leader(), terms(c)) == (leader, before)


@virtual
async def test_a_request_for_a_vote_does_not_reach_who_hears_a_live_leader() -> None:
    async with cluster(3) as c:
        await c.write("a")
        leader, before = await c.leader(), terms(c)
        pushy, other = [name for name in c.names if name != leader]
        last = c.nodes[leader].status().last_index
        for name in (leader, other):
            c.nodes[name].on_messages(pushy, [RequestVote(max(before) + 7, last + 9, max(before) + 6)])
        await asyncio.sleep(1)
        assert (await c.leader(), terms(c)) == (leader, before)
        c.nodes[other].on_messages(pushy, [RequestVote(max(before) + 7, last + 9, max(before) + 6, True)])
        assert c.nodes[other].status().epoch.number == max(before) + 7, "whom the leader asked is let through"


@virtual
async def test_a_pre_vote_is_granted_by_log_and_answered_again_when_the_leader_is_gone() -> None:
    async with cluster(3) as c:
        await c.write("a")
        await asyncio.sleep(0.2)
        leader = await c.leader()
        voter, asker = [name for name in c.names if name != leader]
        term, last = c.nodes[voter].status().epoch.number, c.nodes[voter].status().last_index
        c.network.keep_sent = True

        def said() -> list[bool]:
            return [m.granted for s, t, m in c.network.sent if (s, t) == (voter, asker) and isinstance(m, PreVoted)]

        c.nodes[voter].on_messages(asker, [PreVote(term + 1, last, term)])
        assert said() == [False]
        c.network.cut = {(leader, voter), (leader, asker)}
        await asyncio.sleep(0.2)
        assert said() == [False]
        await asyncio.sleep(0.15)
        assert said()[:2] == [False, True]
        c.network.sent.clear()
        c.nodes[voter].on_messages(asker, [PreVote(term + 9, last - 1, term), PreVote(term, last + 5, term)])
        assert said() == [False, False], "a log that is behind, a term that is over"


@virtual
async def test_a_leader_that_can_send_but_not_receive_steps_down() -> None:
    async with cluster(3) as c:
        await c.write("a")
        old = await c.leader()
        c.network.cut = {(name, old) for name in c.names if name != old}
        c.network.refresh()
        began_s = c.loop.time()
        await c.until(lambda: c.nodes[old].status().role is not Role.LEADER)
        assert c.loop.time() - began_s <= ELECTION_MAX_S + 0.1
        assert await c.deposed(old) != old
        assert c.loop.time() - began_s < 2.5
        await c.write("b")
        c.network.heal()
        assert await c.converged() == ["a", "b"]


@virtual
async def test_a_leader_that_can_receive_but_not_send_is_replaced() -> None:
    async with cluster(3) as c:
        await c.write("a")
        old = await c.leader()
        c.network.cut = {(old, name) for name in c.names if name != old}
        c.network.refresh()
        began_s = c.loop.time()
        await c.deposed(old)
        assert c.loop.time() - began_s < 1.5
        await c.write("b")
        await c.until(lambda: c.nodes[old].status().role is not Role.LEADER, 1.0)
        c.network.heal()
        assert await c.converged() == ["a", "b"]


def ring(c: Cluster) -> set[tuple[str, str]]:
    """Each of five sees its two neighbours only: everybody a majority, and no two the same."""
    count = len(c.names)
    near = {(a, (a + step) % count) for a in range(count) for step in (1, count - 1)}
    pairs = {(a, b) for a in range(count) for b in range(count) if a != b}
    return {(c.names[a], c.names[b]) for a, b in pairs - near}


def bridge(c: Cluster) -> set[tuple[str, str]]:
    """Two halves that only one node sees both of."""
    left, right = c.names[:2], c.names[3:]
    return {(a, b) for a in left for b in right} | {(b, a) for a in left for b in right}


@pytest.mark.parametrize("shape", [ring, bridge])
@pytest.mark.parametrize("seed", range(4))
def test_whom_only_some_can_see_settles_and_stays(shape: object, seed: int) -> None:
    async def scenario() -> None:
        async with cluster(5, seed=seed) as c:
            await c.write("a")
            assert callable(shape)
            c.network.cut = shape(c)
            c.network.refresh()
            await asyncio.sleep(5)
            settled = max(terms(c))
            await asyncio.sleep(20)
            assert max(terms(c)) == settled, "no term after another while nothing changes"
            assert len(leaders(c)) == 1
            c.network.heal()
            await c.write("b")
            assert await c.converged() == ["a", "b"]

    run(scenario())


@virtual
async def test_a_handover_is_not_held_up_by_stickiness() -> None:
    async with cluster(5) as c:
        await c.write("a")
        for _ in range(6):
            old = await c.leader()
            to = random.Random(c.loop.time()).choice([name for name in c.names if name != old])
            began_s = c.loop.time()
            assert await c.nodes[old].transfer(to, deadline_s=1) == to
            assert c.loop.time() - began_s < 0.02
            await c.write("b")


@virtual
async def test_an_election_after_a_kill_needs_no_second_try() -> None:
    async with cluster(3, seed=8) as c:
        for number in range(15):
            await c.write(f"w{number}")
            victim = await c.leader()
            term = max(terms(c))
            c.kill(victim)
            await c.deposed(victim)
            await c.write("x")
            assert max(terms(c)) == term + 1
            await c.start(victim)
            await c.converged()


@virtual
async def test_a_candidate_whose_term_is_behind_catches_up_and_wins() -> None:
    async with cluster(3) as c:
        await c.write("a")
        old = await c.leader()
        best, behind = [name for name in c.names if name != old]
        c.network.partition([behind], [old, best])
        await c.write("only two have it")
        c.kill(old)
        c.network.partition([best], [behind])
        c.nodes[behind]._log.step_down(c.nodes[behind]._log.term() + 5)
        await asyncio.sleep(1)
        c.network.heal()
        assert await c.leader() == best
        await c.start(old)
        assert await c.converged() == ["a", "only two have it"]
        pending = c.nodes[best].propose(note("b"), deadline_s=1)
        await pending


class StepsOver:
    """A node's clock that passes ``at_s`` between the first look and the second."""

    def __init__(self, clock: LoopClock, at_s: float) -> None:
        self.clock, self.at_s, self.looks = clock, at_s, 0

    def monotonic_s(self) -> float:
        self.looks += 1
        return self.at_s + (1e-6 if self.looks > 1 else -1e-6)

    def monotonic_ms(self) -> int:
        return int(self.monotonic_s() * 1000)

    def wall_ms(self) -> int:
        return self.clock.wall_ms()


@virtual
async def test_a_deadline_that_passes_in_the_middle_of_a_tick_lets_nobody_stand_without_pre_votes() -> None:
    async with cluster(3) as c:
        await c.write("a")
        leader, before = await c.leader(), terms(c)
        log = c.nodes[next(name for name in c.names if name != leader)]._log
        clock = log._clock
        assert isinstance(clock, LoopClock)
        log._clock = StepsOver(clock, log.next_deadline_s())
        log.tick()
        log._clock = clock
        assert (log.role(), {log.term()}) == (Role.FOLLOWER, before)
        await asyncio.sleep(1)
        assert (await c.leader(), terms(c)) == (leader, before)


@virtual
async def test_who_is_to_stand_and_has_no_link_waits_quietly_and_deposes_nobody_when_it_is_back() -> None:
    async with cluster(3) as c:
        await c.write("a")
        leader, before = await c.leader(), terms(c)
        away = next(name for name in c.names if name != leader)
        node = c.nodes[away]
        c.network.cut = {(one, other) for one in c.names for other in c.names if away in (one, other)}
        node.on_messages(leader, [TimeoutNow(node.status().epoch.number)])
        for name in c.names:
            node._links.look(name)  # type: ignore[attr-defined]
        steps, step = 0, node._pace._do_step

        def count(late_s: float) -> None:
            nonlocal steps
            steps += 1
            step(late_s)

        node._pace._do_step = count
        await asyncio.sleep(5)
        assert steps < 60, "it wakes for its time-outs only"
        c.network.heal()
        await asyncio.sleep(1)
        c.network.keep_sent = True
        await asyncio.sleep(1)
        assert not any(isinstance(message, PreVote) for _, _, message in c.network.sent), "it hears the leader"
        assert (await c.leader(), terms(c)) == (leader, before)


@virtual
async def test_a_candidate_that_learns_that_its_directory_is_an_old_one_does_not_win() -> None:
    async with cluster(3) as c:
        await c.write("a")
        c.kill(await c.leader())
        c.network.tamper = lambda _source, _target, message: not isinstance(message, Vote | RequestVote)
        await c.until(lambda: any(node.status().role is Role.CANDIDATE for node in c.nodes.values()))
        candidate = next(node for node in c.nodes.values() if node.status().role is Role.CANDIDATE)
        other = next(node for node in c.nodes.values() if node is not candidate)
        said = other._roll.introduction(candidate.status().node_id, has_log=True)
        term = candidate.status().epoch.number
        known = said._replace(your_data_id="the directory it has lost", applied_index=said.applied_index + 1000)
        candidate.on_messages(other.status().node_id, [known, Vote(term)])
        assert (candidate.status().standing, candidate.status().role) == ("learner", Role.CANDIDATE)
