"""Lost directories and voters that come and go, with real processes."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

from tests.node.processes import Cluster, VoterProcess, eventually_some, free_ports
from tests.node.test_cluster_process import add, held


async def cli(*words: str) -> tuple[int, str, str]:
    """``ringraft …``: its exit code and what it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ringraft", *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def agree(cluster: Cluster) -> None:
    async def same() -> bool:
        return len(await cluster.digests()) == 1

    await eventually_some(same)


async def test_a_wiped_voter_does_not_vote_and_is_admitted_when_it_has_caught_up(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        await cluster.leader()
        assert await add(cluster, "n1", "a")
        await agree(cluster)
        cluster.voters["n3"].kill()
        assert await eventually_some(lambda: add(cluster, "n1", "kept-by-two"))
        cluster.voters["n1"].kill()
        shutil.rmtree(cluster.voters["n3"].data_dir)
        cluster.voters["n3"].start()
        cluster.voters["n3"].wait_ready()
        await asyncio.sleep(3)  # what must not happen would take two elections
        for name in ("n2", "n3"):
            assert (await cluster.get(name, "/health"))["leader_id"] is None
        assert (await cluster.get("n3", "/status"))["standing"] == "learner"
        async with cluster.session.get(cluster.voters["n3"].url + "/readyz") as answer:
            assert answer.status == 503
            assert "[-]voter learner: catching up" in await answer.text()
        cluster.voters["n1"].start()
        cluster.voters["n1"].wait_ready()

        async def is_member() -> bool:
            return bool((await cluster.get("n3", "/status"))["standing"] == "member")

        await eventually_some(is_member)
        await agree(cluster)
        cluster.voters["n1"].kill()
        assert await eventually_some(lambda: add(cluster, "n2", "with-the-new-directory"))

        async def has_all() -> bool:
            return bool(await held(cluster, "n3") == {"a", "kept-by-two", "with-the-new-directory"})

        await eventually_some(has_all)


async def test_a_damaged_journal_refuses_and_an_emptied_directory_rejoins(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        await cluster.leader()
        for number in range(20):
            assert await add(cluster, "n1", f"w{number}")
        await agree(cluster)
        broken = cluster.voters["n3"]
        broken.kill()
        [segment] = sorted((broken.data_dir / "log").glob("journal-*.seg"))
        data = bytearray(segment.read_bytes())
        data[len(data) // 3] ^= 0x10
        segment.write_bytes(bytes(data))
        code, _, said = broken.run()
        assert code == 2
        assert "damaged at offset" in said
        shutil.rmtree(broken.data_dir)
        broken.start()
        broken.wait_ready()
        await agree(cluster)
        assert len(await held(cluster, "n3")) == 20


async def test_a_voter_joins_by_the_command_line_and_the_leader_leaves(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        leader = await cluster.leader()
        assert await add(cluster, "n1", "a")
        address = f"127.0.0.1:{free_ports(1)[0]}"
        known = cluster.voters["n1"].url.removeprefix("http://")
        joining = VoterProcess(tmp_path, "n4", address, None, "--join", known)
        cluster.voters["n4"] = joining
        joining.start()
        joining.wait_ready()
        code, _, said = await cli("node", "members", "add", "n4", address, "--addr", known)
        assert (code, said) == (0, "n4 votes\n")
        await agree(cluster)
        status = await cluster.get("n4", "/status")
        assert status["cluster_id"] == (await cluster.get("n1", "/status"))["cluster_id"]
        assert [voter["node_id"] for voter in status["voters"]] == ["n1", "n2", "n3", "n4"]
        assert status["quorum_size"] == 3

        code, _, said = await cli("node", "members", "remove", leader, "--addr", known)
        assert (code, said) == (0, f"{leader} keeps the log no longer\n")
        left = cluster.voters.pop(leader)
        assert left.process is not None
        assert await asyncio.to_thread(left.process.wait, 20) == 0
        left.kill()
        assert "was removed from the cluster" in left.errors()
        code, _, said = left.run()
        assert code == 2
        assert f"{leader} was removed from its cluster" in said
        assert await eventually_some(lambda: add(cluster, "n4", "b"))
        await agree(cluster)

        # n4's configuration names nobody; what it knows is in its log.
        joining.kill()
        joining.start()
        joining.wait_ready()
        await agree(cluster)
        others = next(voter for name, voter in cluster.voters.items() if name != "n4").url
        code, out, _ = await cli("node", "members", "list", "--addr", others, "--json")
        assert code == 0
        assert '"n4"' in out and f'"{leader}"' not in out


async def test_two_of_three_begin_a_cluster_and_the_third_comes_later(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "--set", "raft.formation_wait_ms=300")
    late = cluster.voters.pop("n3")
    async with cluster:
        await cluster.leader()
        assert await add(cluster, "n1", "a")
        cluster.voters["n3"] = late
        late.start()
        late.wait_ready()
        await agree(cluster)
        assert await held(cluster, "n3") == {"a"}


async def test_a_voter_is_found_at_its_new_address(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        await cluster.leader()
        assert await add(cluster, "n1", "a")
        await agree(cluster)
        moved = cluster.voters["n3"]
        moved.kill()
        address = f"127.0.0.1:{free_ports(1)[0]}"
        peers = ",".join(
            f"{name}={voter.url.removeprefix('http://') if name != 'n3' else address}"
            for name, voter in cluster.voters.items()
        )
        cluster.voters["n3"] = again = VoterProcess(tmp_path, "n3", address, peers)
        again.start()
        again.wait_ready()

        async def is_known() -> bool:
            rows = (await cluster.get("n1", "/raft/members"))["items"]
            return any(row["node_id"] == "n3" and row["address"] == address and row["connected"] for row in rows)

        await eventually_some(is_known)
        assert await add(cluster, "n2", "b")
        await agree(cluster)


async def test_voters_that_have_all_moved_find_each_other(tmp_path: Path) -> None:
    """The log knows where each of them was; the configuration says where they are."""
    async with Cluster(tmp_path) as cluster:
        await cluster.leader()
        assert await add(cluster, "n1", "a")
        await agree(cluster)
        for voter in cluster.voters.values():
            voter.kill()
        addresses = [f"127.0.0.1:{port}" for port in free_ports(3)]
        peers = ",".join(f"{name}={address}" for name, address in zip(cluster.voters, addresses, strict=True))
        for name, address in zip(list(cluster.voters), addresses, strict=True):
            cluster.voters[name] = VoterProcess(tmp_path, name, address, peers)
            cluster.voters[name].start()
        for voter in cluster.voters.values():
            voter.wait_ready()
        assert await eventually_some(lambda: add(cluster, "n1", "b"))
        await agree(cluster)
        assert await held(cluster, "n3") == {"a", "b"}
