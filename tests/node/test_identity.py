"""Who a node is, and whose directory it is."""

import json

import pytest

from ringraft.node.identity import DataDirectory, StartRefused, propose_cluster_id

VOTERS = {"n1": "h:1", "n2": "h:2", "n3": "h:3"}


def start(path, node_id="n1", cluster_id=None, proposed=None):
    directory = DataDirectory.open(path)
    try:
        identity = directory.identify(node_id=node_id, cluster_id=cluster_id, proposed=proposed)
        directory.save(identity)
    finally:
        directory.close()
    return identity


def test_the_incarnation_rises_at_each_start_and_the_rest_stays(tmp_path):
    first = start(tmp_path / "d")
    second = start(tmp_path / "d")
    assert (first.incarnation, second.incarnation) == (1, 2)
    assert first.data_id == second.data_id
    assert first.cluster_id == second.cluster_id
    assert json.loads((tmp_path / "d" / "cluster.json").read_text())["incarnation"] == 2


def test_identifying_changes_nothing_until_it_is_saved(tmp_path):
    start(tmp_path)
    directory = DataDirectory.open(tmp_path)
    assert directory.identify(node_id="n1", cluster_id=None).incarnation == 2
    assert directory.identify(node_id="n1", cluster_id=None).incarnation == 2
    directory.close()


def test_a_new_directory_is_closed_to_others(tmp_path):
    start(tmp_path / "a" / "d")
    assert (tmp_path / "a" / "d").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "a" / "d" / "cluster.json").stat().st_mode & 0o777 == 0o600


def test_an_open_directory_is_closed_to_others(tmp_path):
    (tmp_path / "d").mkdir(mode=0o755)
    start(tmp_path / "d")
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700


def test_two_processes_cannot_have_one_directory(tmp_path):
    first = DataDirectory.open(tmp_path)
    with pytest.raises(StartRefused, match="in use by another process"):
        DataDirectory.open(tmp_path)
    first.close()
    DataDirectory.open(tmp_path).close()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"node_id": "n2"}, "belongs to node n1"),
        ({"cluster_id": "other"}, "belongs to cluster mine"),
    ],
)
def test_a_foreign_directory_is_refused(tmp_path, given, said):
    start(tmp_path, cluster_id="mine")
    with pytest.raises(StartRefused, match=said):
        start(tmp_path, **{"cluster_id": "mine", **given})
    assert json.loads((tmp_path / "cluster.json").read_text())["incarnation"] == 1


def test_a_log_without_an_owner_is_refused(tmp_path):
    (tmp_path / "log").mkdir()
    with pytest.raises(StartRefused, match=r"no cluster\.json"):
        start(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"node_id": "n1"}', '{"incarnation": 0}'])
def test_an_unreadable_identity_is_refused(tmp_path, content):
    (tmp_path / "cluster.json").write_text(content)
    with pytest.raises(StartRefused, match=r"cluster\.json"):
        start(tmp_path)


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StartRefused, match="cannot be used"):
        DataDirectory.open(tmp_path / "file" / "d")


def test_voters_of_one_configuration_agree_on_the_cluster_id():
    assert propose_cluster_id(VOTERS) == propose_cluster_id(dict(reversed(VOTERS.items())))
    assert propose_cluster_id(VOTERS) == propose_cluster_id({voter: "elsewhere:9" for voter in VOTERS})
    assert propose_cluster_id(VOTERS) != propose_cluster_id({**VOTERS, "n4": "h:4"})


def test_two_single_nodes_are_two_clusters():
    assert propose_cluster_id({"n1": "h:1"}) != propose_cluster_id({"n1": "h:1"})


def test_a_log_that_has_met_no_other_does_not_bind_its_directory_to_a_cluster(tmp_path):
    assert start(tmp_path, proposed="c-first").cluster_id == "c-first"
    (tmp_path / "log").mkdir()
    assert start(tmp_path, proposed="c-corrected").cluster_id == "c-corrected"
    (tmp_path / "log" / "seat").write_bytes(b"")
    assert start(tmp_path, proposed="c-other").cluster_id == "c-corrected"
    with pytest.raises(StartRefused, match="belongs to cluster c-corrected"):
        start(tmp_path, cluster_id="c-other")


def test_a_worker_learns_its_cluster_and_keeps_to_it(tmp_path):
    first = start(tmp_path)
    assert first.cluster_id is None
    assert start(tmp_path, cluster_id="c").cluster_id == "c"
    assert start(tmp_path).cluster_id == "c"
    with pytest.raises(StartRefused):
        start(tmp_path, cluster_id="d")
