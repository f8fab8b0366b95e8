"""What the unmodified library does: one function a hazard. ``python -m tests.hazards.shown h4 DIRECTORY`` prints it."""

from __future__ import annotations

import json
import os
import pickle
import socket
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pysyncobj import SyncObj, SyncObjConf, journal
from pysyncobj.config import FAIL_REASON, SERIALIZER_STATE
from pysyncobj.node import Node, TCPNode
from pysyncobj.transport import TCPTransport

from tests.hazards.stock import Net, Stock, ask, cluster

Facts = dict[str, Any]
scratch = Path(sys.argv[2])


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Frame:
    """Unpickles by making a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def real_node(others: list[str]) -> tuple[SyncObj, int]:
    port = free_port()
    conf = SyncObjConf(autoTick=False)
    return SyncObj(f"127.0.0.1:{port}", others, conf), port


def say(port: int, value: Any) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    data = zlib.compress(pickle.dumps(value))
    connection.sendall(struct.pack("i", len(data)) + data)
    return connection


def h1() -> Facts:
    node, port = real_node(["127.0.0.1:1"])
    node.doTick(0)
    marker = scratch / "marker"
    with say(port, Frame(marker)):
        for _ in range(20):
            node.doTick(0.01)
    node.destroy()
    return {"a_stranger_ran_code": marker.exists()}


def h2() -> Facts:
    syncs: list[str] = []
    os.fsync = lambda fd: syncs.append("fsync")
    os.fdatasync = lambda fd: syncs.append("fdatasync")
    journal.ResizableFile.flush = lambda self: syncs.append("msync")
    net = cluster(directory=scratch)
    leader = net.nodes[net.elect()]
    answers = [ask(leader, f"n{number}") for number in range(20)]
    net.run(3)
    acks = sum(1 for _, target, message in net.sent if message["type"] == "next_node_idx" and message["success"])
    return {
        "acknowledged": sum(1 for answer in answers if answer), "append_acks": acks, "syncs": len(syncs),
        "votes": sum(1 for _, _, message in net.sent if message["type"] == "response_vote"),
    }  # fmt: skip


def h3() -> Facts:
    file = scratch / "journal"
    kept = journal.FileJournal(str(file))
    for index in range(1, 101):
        kept.add(b"x" * 20, index, 1)
    kept.setCurrentTerm(7, "a")

    class Killed(BaseException):
        pass

    added = 0
    add = journal.FileJournal.add

    def add_until_killed(self: Any, *entry: Any) -> None:
        nonlocal added
        added += 1
        if added == 3:
            raise Killed
        add(self, *entry)

    journal.FileJournal.add = add_until_killed
    try:
        kept.deleteEntriesTo(50)
    except Killed:
        pass
    journal.FileJournal.add = add
    again = journal.FileJournal(str(file))
    # A flipped bit is data as good as any.
    again.add(b"hello", 103, 1)
    data = file.read_bytes()
    file.write_bytes(data.replace(b"hello", b"jello"))
    file.with_name("journal.meta").write_bytes(b"rot")
    rotten = journal.FileJournal(str(file))
    return {
        "should_keep": 50, "kept": len(again) - 1, "rot_is_read": rotten[-1][0] == b"jello",
        "term_of_rotten_meta": rotten.getCurrentTerm(), "offset_bytes": struct.calcsize("<I"),
    }  # fmt: skip


def append(entries: list[tuple[bytes, int, int]], prev: tuple[int, int], commit: int, term: int = 1) -> dict[str, Any]:
    return {
        "type": "append_entries", "term": term, "commit_index": commit, "entries": entries,
        "prevLogIdx": prev[0], "prevLogTerm": prev[1],
    }  # fmt: skip


def h4() -> Facts:
    net = Net()
    net.nodes["b"] = follower = Stock(net, "b", "ac")
    entries = [(bytes([1]), index, 1) for index in range(2, 12)]
    follower.receive("a", append(entries, (1, 0), 11))
    follower.doTick(0)
    before = follower.log_end, follower.raftCommitIndex, follower.raftLastApplied
    follower.receive("a", append(entries[:4], (1, 0), 11))
    after = follower.log_end, follower.raftCommitIndex
    net.sent.clear()
    request = {"type": "request_vote", "term": 2, "last_log_index": 5, "last_log_term": 1}
    follower.receive("c", request)
    voted = any(message["type"] == "response_vote" for _, _, message in net.sent)
    return {"end": before[0], "committed": before[1], "applied": before[2], "end_after_resend": after[0],
            "committed_after_resend": after[1], "votes_for_one_that_lacks_committed_entries": voted}  # fmt: skip


def h5() -> Facts:
    dump = scratch / "dump"
    dump.write_bytes(b"rot")
    net = Net()
    net.nodes["a"] = node = Stock(net, "a", "", fullDumpFile=str(dump))
    net.run(3)
    answer = ask(node, "after")
    net.run(1)
    return {"serves": bool(answer), "notes": node.notes, "errors": len(net.errors)}


def h6() -> Facts:
    net = cluster()
    leader = net.elect()
    term = net.nodes[leader].raftCurrentTerm
    away = next(name for name in net.nodes if name != leader)
    net.cut(away)
    net.run(10)
    raised = net.nodes[away].raftCurrentTerm
    net.heal()
    net.run(2)
    now = max(node.raftCurrentTerm for node in net.nodes.values())
    return {"term": term, "raised_alone_to": raised, "term_after": now, "healthy_leader_deposed": now > term}


def h7() -> Facts:
    net = cluster()
    old = net.elect()
    net.cut(old)
    seconds = net.run(60, lambda: not net.nodes[old].is_leader)
    return {"still_leader_s": round(seconds, 1)}


def h8() -> Facts:
    net = cluster()
    old = net.elect()
    net.cut(old)
    new = net.elect(old)
    answer = ask(net.nodes[new], "acknowledged")
    net.run(2, lambda: bool(answer))
    return {
        "acknowledged": bool(answer),
        "old_says_it_leads": net.nodes[old].is_leader,
        "old_reads": net.nodes[old].notes,
    }


def h9() -> Facts:
    net = cluster()
    leader = net.elect()
    client, third = (name for name in net.nodes if name != leader)
    net.drops = lambda source, target, message: source == leader and target == client
    answer = ask(net.nodes[client], "once")
    net.run(0.3)
    del net.nodes[leader]
    net.heal()
    net.elect(leader)
    net.run(5, lambda: bool(net.nodes[third].notes))
    net.run(1)
    return {"told_leader_changed": answer[0][1] == FAIL_REASON.LEADER_CHANGED, "applied": net.nodes[client].notes}


def h10() -> Facts:
    net = cluster()
    old = net.elect()
    net.cut(old)
    answer = ask(net.nodes[old], "under way")
    net.run(60)
    alone = list(answer)
    new = net.leader()
    assert new is not None
    for number in range(20):
        net.nodes[new].note(f"n{number}")
    net.run(2)
    for name in net.nodes:
        if name != old:
            net.nodes[name].forceLogCompaction()
    net.run(2)
    net.heal()
    net.run(30)
    return {"answered_in_60_s": alone, "answered_ever": answer, "caught_up": len(net.nodes[old].notes)}


def diverged(tail: int, **conf: Any) -> tuple[Net, str, str]:
    """A former leader with an uncommitted tail, and the new one."""
    net = cluster(**conf)
    old = net.elect()
    net.cut(old)
    for number in range(tail):
        net.nodes[old].note(f"lost {number}")
    new = net.elect(old)
    return net, old, new


def h11() -> Facts:
    net, old, new = diverged(150)
    for number in range(150):
        net.nodes[new].note(f"n{number}")
    net.run(3)
    net.heal()
    seconds = net.run(60, lambda: net.nodes[old].notes == net.nodes[new].notes)
    return {"entries": 150, "seconds": round(seconds, 1)}


def h11b() -> Facts:
    net, old, new = diverged(20)
    for number in range(3000):
        net.nodes[new].note(f"n{number} " + "x" * 100)
    net.run(3)
    net.heal()
    net.run(60)
    behind = net.nodes[new].log_end - net.nodes[old].log_end
    heard = net.nodes[old]._getLeader()
    return {"behind_after_60_s": behind, "believes_in_the_right_leader": heard is not None and heard.id == new}


def h12() -> Facts:
    net = cluster()
    leader = net.nodes[net.elect()]
    ask(leader, "bad")
    net.run(1)
    applied, errors = leader.raftLastApplied, len(net.errors)
    later = ask(leader, "good")
    net.run(10)
    return {"stuck": leader.raftLastApplied == applied, "errors_a_second": round((len(net.errors) - errors) / 10),
            "later_write_answered": later}  # fmt: skip


def h13() -> Facts:
    forks: list[int] = []

    def fork() -> int:
        forks.append(1)
        return 1 << 30

    os.fork = fork
    net = cluster("a", fullDumpFile=str(scratch / "dump"))
    net.run(3)
    for number in range(10):
        net.nodes["a"].note(f"n{number}")
    net.run(1)
    net.nodes["a"].forceLogCompaction()
    net.run(0.05)
    # Without a file the snapshot is made inside the tick, however large the state.
    net = cluster("a")
    net.run(3)
    node = net.nodes["a"]
    node.note("x")
    node.note("y")
    net.run(1)
    node.forceLogCompaction()
    node.doTick(0)
    in_tick = node._SyncObj__serializer._Serializer__inMemorySerializedData
    return {"forks": len(forks), "made_in_the_tick": in_tick is not None}


def h14() -> Facts:
    low, high = f"127.0.0.1:{10001}", f"127.0.0.1:{10002}"
    dials = {}
    for name, other in ((low, high), (high, low)):
        transport = TCPTransport.__new__(TCPTransport)
        transport._selfNode, transport._selfIsReadonlyNode = TCPNode(name), False
        transport._preventConnectNodes = set()
        dials["low" if name == low else "high"] = transport._shouldConnect(TCPNode(other))
    return {"dials": dials, "retry_s": SyncObjConf().connectionRetryTime}


def h15() -> Facts:
    node, port = real_node(["127.0.0.1:1", "127.0.0.1:2"])
    node.doTick(0)
    with say(port, "127.0.0.1:2"):
        for _ in range(20):
            node.doTick(0.01)
        believed = node.isNodeConnected(TCPNode("127.0.0.1:2"))
    node.destroy()
    return {"a_stranger_is_the_peer_it_says": believed}


def h16() -> Facts:
    net = Net()
    net.nodes["a"] = candidate = Stock(net, "a", "bcde")
    net.run(5, lambda: candidate.raftCurrentTerm > 0)
    vote = {"type": "response_vote", "term": candidate.raftCurrentTerm}
    candidate.receive("b", vote)
    before = candidate.is_leader
    candidate.receive("b", vote)
    leads = candidate.is_leader
    # An acknowledgement says nothing of its term: one from before counts for this one.
    stale = {"type": "next_node_idx", "next_node_idx": candidate.log_end + 1, "reset": False, "success": True}
    candidate.receive("b", stale)
    candidate.receive("c", stale)
    commit = candidate.raftCommitIndex
    candidate.doTick(0)
    return {"voters": 5, "leads_with_two_real_votes": leads and not before,
            "commits_by_stale_acks": candidate.raftCommitIndex > commit}  # fmt: skip


def h17() -> Facts:
    net = cluster(dynamicMembershipChange=True)
    leader = net.elect()
    net.nodes[leader].addNodeToCluster(Node("d"))
    net.run(2)
    before = ask(net.nodes[leader], "before")
    net.run(2)
    gone = next(name for name in net.nodes if name != leader)
    del net.nodes[gone]
    after = ask(net.nodes[leader], "after")
    net.run(10)
    return {"writes_with_three_of_three": bool(before), "writes_with_one_down": bool(after)}


def h18() -> Facts:
    net = cluster()
    leader = net.elect()
    target = next(name for name in net.nodes if name != leader)
    net.drops = lambda source, to, message: message["type"] == "timeout_now"
    answers: list[Any] = []
    net.nodes[leader].transferLeadership(Node(target), lambda result, error: answers.append(error))
    net.run(5)
    return {"told_success": answers == [FAIL_REASON.SUCCESS], "leads": net.leader() == target}


def h19() -> Facts:
    net = cluster(directory=scratch)
    leader = net.elect()
    write, failed = journal.ResizableFile.write, []

    def failing(self: Any, offset: int, values: bytes) -> None:
        if not failed:
            failed.append(1)
            raise OSError(5, "Input/output error")
        write(self, offset, values)

    journal.ResizableFile.write = failing
    net.nodes[leader].note("first")
    net.run(1)
    answer = ask(net.nodes[leader], "second")
    net.run(3)
    return {"disk_failed": len(failed), "goes_on_and_acknowledges": bool(answer), "errors": len(net.errors)}


def h20() -> Facts:
    dump = scratch / "dump"
    dump.write_bytes(b"the last good snapshot")

    def first_slice(file: str, _: Any) -> None:
        Path(file).write_bytes(b"slice 1 of 9")

    from pysyncobj.serializer import Serializer

    maker = Serializer(str(dump), 1 << 16, False, first_slice, lambda file: (), lambda: SERIALIZER_STATE.SERIALIZING)
    maker.serialize(({}, None, None), 1)
    return {"still_serializing": maker.checkSerializing()[0] == SERIALIZER_STATE.SERIALIZING,
            "good_snapshot_is_now": dump.read_text()}  # fmt: skip


def h21() -> Facts:
    net = cluster()
    leader = net.elect()
    net.nodes[leader].note("x" * 131_000)
    net.run(2)
    followers = sorted({name for name, _ in net.errors} - {leader})
    return {"followers_that_raised": len(followers), "first": repr(net.errors[0][1])[:60] if net.errors else None}


def h22() -> Facts:
    net = cluster()
    leader = net.elect()
    away = next(name for name in net.nodes if name != leader)
    net.cut(away)
    net.run(1)
    for number in range(3000):
        net.nodes[leader].note(f"n{number} {os.urandom(150).hex()}")
    net.run(2)
    net.nodes[leader].forceLogCompaction()
    net.run(0.2)
    net.sent.clear()
    net.heal()
    sizes: list[int] = []
    restored: list[int] = []
    receive = net.nodes[away].receive

    def watched(source: str, message: dict[str, Any]) -> None:
        before = len(net.nodes[away].notes)
        receive(source, message)
        restored.append(len(net.nodes[away].notes) - before)

    net.nodes[away].receive = watched
    for _ in range(300):
        before = len(net.sent)
        net.run(0.01)
        sizes.append(sum(1 for _, _, message in net.sent[before:] if message.get("serialized")))
    return {"restored_in_one_message": max(restored), "chunks_in_one_tick": max(sizes)}


SHOWN: dict[str, Callable[[], Facts]] = {
    name: of for name, of in globals().items() if name[0] == "h" and name[1:].removesuffix("b").isdigit()
}

if __name__ == "__main__":
    print(json.dumps(SHOWN[sys.argv[1]](), default=str))
    sys.stdout.flush()
    # The library's poller and files are not worth a farewell.
    os._exit(0)
