"""Settings: which layer wins, what is refused, and how it is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ringraft.config import ConfigError, NodeRole, Secret, Settings, defaults_text, load_settings
from ringraft.settings.convert import setting_types
from ringraft.settings.strict_yaml import parse_yaml
from ringraft.state.model import Limits

CONFIG = Path(__file__).resolve().parent.parent / "config"

SEED_YAML = """
voters:
  - nebius-backbone-1
  - runpod-h100
  - runpod-a100-1
nodes:
  runpod-h100:
    host: '102.210.171.65'
    port: 30178
    provider: runpod
    gpu: H100
  vast-5090-1:
    host: 'example.vast.ai'
    port: 22
    provider: vast
    gpu: RTX_5090
"""


def load(overrides: dict[str, Any] | None = None, env: dict[str, str] | None = None, *files: Path) -> Settings:
    return load_settings(overrides, env=env or {}, files=files)


def faults(overrides: dict[str, Any] | None = None, env: dict[str, str] | None = None, *files: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(overrides, env, *files)
    return "\n".join(caught.value.faults)


def written(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_defaults_file_has_every_key_and_no_other() -> None:
    content = parse_yaml(defaults_text())
    content.pop("profiles")
    documented = [f"{section}.{key}" for section, keys in content.items() for key in keys]
    assert documented == list(setting_types())


def test_every_default_carries_a_reason() -> None:
    text = defaults_text().split("\nprofiles:")[0]
    keys = [line for line in text.splitlines() if line.startswith("  ")]
    assert [line for line in keys if len(line.partition("# ")[2].split()) < 3] == []


def test_default_limits_are_the_state_machines_own() -> None:
    assert load().limits() == Limits()


def test_later_layer_wins_and_says_so(tmp_path: Path) -> None:
    first = written(tmp_path / "a.yaml", "raft: {heartbeat_ms: 41, election_max_ms: 601}\nstream: {window: 7}")
    second = written(tmp_path / "b.yaml", "stream: {window: 8}")
    env = {"RINGRAFT_RAFT__HEARTBEAT_MS": "42", "P2P_LOG_LEVEL": "debug", "RINGRAFT_NODE__LOG_LEVEL": "error"}
    settings = load({"raft.election_min_ms": "299"}, env, first, second)
    assert (settings.raft.heartbeat_ms, settings.origin("raft.heartbeat_ms")) == (42, "RINGRAFT_RAFT__HEARTBEAT_MS")
    assert (settings.raft.election_max_ms, settings.origin("raft.election_max_ms")) == (601, f"file {first}")
    assert (settings.raft.election_min_ms, settings.origin("raft.election_min_ms")) == (299, "command line")
    assert (settings.stream.window, settings.origin("stream.window")) == (8, f"file {second}")
    assert settings.node.log_level == "ERROR"
    assert settings.origin("lease.default_s") == "default"


def test_all_faults_are_told_at_once_with_the_nearest_name(tmp_path: Path) -> None:
    file = written(tmp_path / "a.yaml", "raft: {hartbeat_ms: 41}\nqueu: {}\nlease: 3")
    said = faults({"queue.items_max": "0"}, {"RINGRAFT_RAFT__HEARTBEAT": "1", "RINGRAFT_HTTP__WAITERS_MAX": "x"}, file)
    assert "unknown setting raft.hartbeat_ms" in said
    assert "did you mean raft.heartbeat_ms?" in said
    assert "unknown section queu (did you mean queue?)" in said
    assert "lease must be a map of settings" in said
    assert "did you mean RINGRAFT_RAFT__HEARTBEAT_MS?" in said
    assert "queue.items_max must be between 1 and 100,000,000, not 0 (command line)" in said
    assert "http.waiters_max must be a number, not 'x' (RINGRAFT_HTTP__WAITERS_MAX)" in said


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"raft.heartbeat_ms": "100"}, "must exceed 3 × raft.heartbeat_ms (100)"),
        ({"raft.election_max_ms": "300"}, "raft.election_max_ms (300) must exceed raft.election_min_ms (300)"),
        ({"membership.heartbeat_s": "3"}, "membership.peer_timeout_s (5) must exceed 2 × membership.heartbeat_s (3)"),
        ({"lease.default_s": "4000"}, "lease.default_s (4000) must lie between"),
        ({"http.request_timeout_s": "31"}, "must not exceed http.request_timeout_max_s (30)"),
        ({"http.batch_body_bytes_max": "9000000"}, "a batch travels in one log entry"),
        ({"consensus.mode": "bully"}, "consensus.mode bully is not available in this version; use raft"),
        ({"membership.mode": "swim"}, "membership.mode swim is not available in this version; use http"),
        ({"consensus.mode": "paxos"}, "must be one of raft, bully, hybrid, not 'paxos'"),
        ({"node.bind": "0.0.0.0:8770"}, "there is no cluster secret"),
        ({"node.bind": "8770"}, "node.bind must be host:port"),
        ({"node.bind": "http://a:1"}, "host:port"),
        ({"node.bind": "127.0.0.1:70000"}, "up to 65535"),
        ({"node.node_id": "a/b"}, "node.node_id must be letters, digits"),
        ({"node.node_id": "x" * 49}, "at most 48 characters"),
        ({"cluster.voters": "n1=a:1,n2=a:1"}, "share the address a:1"),
        ({"cluster.voters": "n1=a:1,N1=a:2"}, "differ only by case"),
        ({"cluster.voters": "n1=a:1,n1=a:2"}, "names n1 twice"),
        ({"node.roles": "worker"}, "name a voter with --join"),
        ({"worker.executors": "{play: {command: 'rm -rf x'}}"}, "no shell reads it"),
        ({"worker.executors": "{play: {}}"}, "either command or entry_point"),
        ({"auth.secret": "a", "auth.secret_file": "/nowhere"}, "both set"),
        ({"auth.token_file": "/nowhere/token"}, "auth.token_file /nowhere/token cannot be read: No such file"),
        ({"raft.heartbeat_ms": "nan"}, "must be a number"),
        ({"stream.window": "1.5"}, "must be a whole number"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(overrides: dict[str, str], sentence: str) -> None:
    assert sentence in faults(overrides)


def test_a_repeated_key_is_refused_with_its_lines(tmp_path: Path) -> None:
    file = written(tmp_path / "a.yaml", "raft:\n  heartbeat_ms: 50\n  heartbeat_ms: 60\n")
    assert "'heartbeat_ms' stands in line 2 and again in line 3" in faults({}, {}, file)


def test_yaml_cannot_build_objects(tmp_path: Path) -> None:
    file = written(tmp_path / "a.yaml", "node: !!python/object/apply:os.getcwd []\n")
    assert "could not determine a constructor" in faults({}, {}, file)


def test_missing_file_is_one_sentence(tmp_path: Path) -> None:
    assert "cannot be read: No such file or directory" in faults({}, {}, tmp_path / "none.yaml")


def test_seeds_variables_mean_what_they_meant() -> None:
    env = {
        "P2P_NODE_ID": "runpod-h100",
        "P2P_PORT": "9001",
        "P2P_DATA_DIR": "/srv/p2p",
        "P2P_LOG_LEVEL": "DEBUG",
        "RINGRIFT_P2P_HEARTBEAT_INTERVAL": "15",
        "RINGRIFT_P2P_PEER_TIMEOUT": "60",
        "RINGRIFT_P2P_STARTUP_GRACE_PERIOD": "120",
        "RINGRIFT_RAFT_ENABLED": "true",
        "RINGRIFT_CONSENSUS_MODE": "raft",
        "RINGRIFT_SWIM_ENABLED": "false",
        "RINGRIFT_MEMBERSHIP_MODE": "http",
        "RINGRIFT_TRACE_GOSSIP": "1",
        "WORK_POLL_INTERVAL": "5s",
        "GOSSIP_INTERVAL": "30s",
    }
    settings = load({}, env)
    assert settings.node.node_id == "runpod-h100"
    assert settings.node.bind == "127.0.0.1:9001"
    assert settings.node.data_dir == Path("/srv/p2p")
    assert settings.node.log_level == "DEBUG"
    assert settings.membership.heartbeat_s == 15
    assert settings.membership.peer_timeout_s == 60
    assert settings.membership.startup_grace_s == 120
    assert settings.membership.trace is True
    assert settings.node.work_poll_interval_s == 5
    for name in env:
        if name != "RINGRIFT_SWIM_ENABLED":  # false: nothing was asked for
            assert sum(warning.startswith(f"{name} ") for warning in settings.warnings) == 1, name


def test_swim_switch_asks_for_what_this_version_lacks() -> None:
    assert "membership.mode swim is not available" in faults({}, {"RINGRIFT_SWIM_ENABLED": "true"})


def test_node_alone_is_a_cluster_of_one() -> None:
    settings = load({"node.node_id": "my-node", "node.port": "8770", "node.roles": "voter"})
    assert settings.cluster.voters == {"my-node": "127.0.0.1:8770"}
    assert settings.node.roles == (NodeRole.VOTER,)
    assert settings.node.advertise == "127.0.0.1:8770"


def test_node_id_is_the_host_name_when_nobody_says() -> None:
    assert load().origin("node.node_id") == "host name"


@pytest.mark.parametrize("roles", ["", "voter", "worker"])
def test_configured_voter_list_always_wins(roles: str) -> None:
    voters = "n1=127.0.0.1:1001,n2=127.0.0.1:1002,n3=127.0.0.1:1003"
    said = {"cluster.voters": voters} | ({"node.roles": roles} if roles else {})
    assert load(said | {"node.node_id": "n2"}).node.is_voter
    other = load(said | {"node.node_id": "w1", "node.port": "0"})
    assert other.node.roles == (NodeRole.WORKER,)
    assert other.cluster.join == ("127.0.0.1:1001", "127.0.0.1:1002", "127.0.0.1:1003")
    assert any("not in cluster.voters" in warning for warning in other.warnings) == (roles == "voter")


def test_voter_listens_where_its_entry_says() -> None:
    settings = load({"node.node_id": "n2"}, {}, CONFIG / "dev-3.yaml")
    assert settings.node.bind == "127.0.0.1:8771"
    assert settings.node.advertise == "127.0.0.1:8771"


def test_port_replaces_only_what_was_said_more_weakly(tmp_path: Path) -> None:
    file = written(tmp_path / "a.yaml", "node: {bind: '127.0.0.9:1'}")
    assert load({}, {"P2P_PORT": "2"}, file).node.bind == "127.0.0.9:2"
    assert load({"node.bind": "127.0.0.1:3"}, {"P2P_PORT": "2"}, file).node.bind == "127.0.0.1:3"


def test_joining_node_is_a_worker() -> None:
    settings = load({"node.node_id": "w1", "cluster.join": "127.0.0.1:8770,127.0.0.1:8771"})
    assert settings.node.roles == (NodeRole.WORKER,)
    assert settings.cluster.join == ("127.0.0.1:8770", "127.0.0.1:8771")
    assert settings.cluster.voters == {}


def test_seeds_file_loads(tmp_path: Path) -> None:
    file = written(tmp_path / "hosts.yaml", SEED_YAML)
    settings = load({"node.node_id": "runpod-h100"}, {}, file)
    assert settings.cluster.voters["runpod-h100"] == "102.210.171.65:8770"
    assert settings.cluster.voters["nebius-backbone-1"] == "nebius-backbone-1:8770"
    assert settings.cluster.nodes["runpod-h100"].port == 30178
    assert settings.worker.capabilities == {"gpus": [{"name": "H100"}]}
    assert any("nebius-backbone-1 has no entry under nodes" in warning for warning in settings.warnings)
    worker = load({"node.node_id": "vast-5090-1"}, {}, file)
    assert worker.node.roles == (NodeRole.WORKER,)


def test_older_form_of_the_hosts_file_loads(tmp_path: Path) -> None:
    text = """
p2p_voters: [a, b, c]
sync_routing: {replication_target: 3}
hosts:
  a: {ssh_host: 10.0.0.1, ssh_port: 2222, ssh_user: me, gpu: H100, gpu_vram_gb: 80, tailscale_ip: 100.1.1.1}
  b: {ssh_host: 10.0.0.2}
  c: {ssh_host: 10.0.0.3, ssh_key: null}
"""
    settings = load({"node.node_id": "a"}, {}, written(tmp_path / "h.yaml", text))
    assert list(settings.cluster.voters.values()) == ["10.0.0.1:8770", "10.0.0.2:8770", "10.0.0.3:8770"]
    assert settings.cluster.nodes["a"].user == "me"
    assert any("tailscale_ip not used" in warning for warning in settings.warnings)


def test_mistyped_field_of_a_node_is_named(tmp_path: Path) -> None:
    said = faults({}, {}, written(tmp_path / "h.yaml", "nodes: {a: {hots: x}, b: {host: y, port: z}}"))
    assert "nodes entry a has an unknown field hots (did you mean host?)" in said
    assert "nodes entry b: port must be a number" in said


def test_template_loads_without_a_fault() -> None:
    settings = load({"node.node_id": "nebius-backbone-1"}, {}, CONFIG / "distributed_hosts.template.yaml")
    assert len(settings.cluster.voters) == 3


def test_wan_profile_is_a_layer_of_its_own() -> None:
    settings = load({"membership.profile": "wan", "raft.election_max_ms": "3000"})
    assert (settings.raft.heartbeat_ms, settings.origin("raft.heartbeat_ms")) == (300, "profile wan")
    assert settings.raft.election_max_ms == 3000


def test_secret_is_read_from_its_file_and_never_shown(tmp_path: Path) -> None:
    file = written(tmp_path / "secret", "correct-horse-battery\n")
    settings = load({}, {"RINGRAFT_AUTH__SECRET_FILE": str(file)})
    assert settings.auth.secret == Secret("correct-horse-battery")
    assert "horse" not in f"{settings}{settings.to_public()}"
    assert settings.to_public()["auth"]["secret"] == "***"
    assert settings.warnings == ()


def test_open_secret_file_is_a_warning_and_an_empty_one_a_fault(tmp_path: Path) -> None:
    open_file = written(tmp_path / "open", "correct-horse-battery", mode=0o644)
    assert "chmod 600" in load({"auth.secret_file": str(open_file)}).warnings[0]
    assert "must hold one line" in faults({"auth.secret_file": str(written(tmp_path / "empty", "\n"))})


def test_token_file_is_what_a_worker_shows(tmp_path: Path) -> None:
    file = written(tmp_path / "token", "worker-token")
    settings = load({"auth.token_file": str(file), "auth.secret": "the-cluster-secret"})
    assert settings.auth.credential() == Secret("worker-token")


def test_stronger_secret_wins_over_a_weaker_file(tmp_path: Path) -> None:
    file = written(tmp_path / "a.yaml", "auth: {secret_file: /nowhere}")
    settings = load({}, {"RINGRAFT_AUTH__SECRET": "correct-horse-battery"}, file)
    assert settings.auth.secret == Secret("correct-horse-battery")


def test_what_a_worker_tells_its_program_is_no_setting() -> None:
    assert load({}, {"RINGRAFT_ITEM_FILE": "/x", "RINGRAFT_ADDR": "a:1"}).warnings == ()
    assert "unknown setting RINGRAFT_ITEM" in faults({}, {"RINGRAFT_ITEM": "/x"})


def test_public_view_is_plain_json() -> None:
    public = load({"node.node_id": "n1"}, {}, CONFIG / "distributed_hosts.template.yaml").to_public()
    assert json.loads(json.dumps(public)) == public
    assert "token" not in public["auth"]
