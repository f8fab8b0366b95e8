"""Configuration files: YAML with nothing said twice, in our form or in the seed's.

The seed's form has ``voters:`` (a list of names) and ``nodes:`` (a map; ``port`` is the SSH port);
an older relative of it says ``p2p_voters:`` and ``hosts:`` with ``ssh_host`` and more. Both become
``cluster.voters`` and ``cluster.nodes``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ringraft.settings.convert import Fault, nearest, node_entry
from ringraft.settings.strict_yaml import parse_yaml
from ringraft.settings.tree import NodeEntry, section_names

API_PORT = 8770
FILE_BYTES_MAX = 4 * 1024 * 1024

RENAMED = {"ssh_host": "host", "ssh_port": "port", "ssh_user": "user", "ssh_key": "key_file"}
"""Names of the older form, and ours."""

IGNORED_TOP = frozenset({"sync_routing", "auto_sync", "elo_sync", "raft_members", "preferred_leader"})
HOST_LISTS = frozenset({"voters", "p2p_voters", "nodes", "hosts"})


@dataclass(slots=True)
class Document:
    """What one file says: values by ``section.key``, and what is wrong or odd about it."""

    values: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_document(path: Path) -> Document:
    """The settings in one file; never raises for what a person may have written."""
    try:
        raw = path.read_bytes()
        if len(raw) > FILE_BYTES_MAX:
            return Document(faults=[f"{path}: {len(raw)} bytes, at most {FILE_BYTES_MAX}"])
        content = parse_yaml(raw.decode("utf-8"))
    except OSError as error:
        return Document(faults=[f"{path}: cannot be read: {error.strerror or error}"])
    except ValueError as error:
        return Document(faults=[f"{path}: {error}"])
    document = settings_document(content)
    document.faults = [f"{path}: {fault}" for fault in document.faults]
    document.warnings = [f"{path}: {warning}" for warning in document.warnings]
    return document


def settings_document(content: Any) -> Document:
    """The same for content that is parsed already."""
    document = Document()
    if content is None:
        return document
    if not isinstance(content, Mapping):
        document.faults.append("must be a map of sections")
        return document
    sections = section_names()
    for section, values in content.items():
        if section in HOST_LISTS:
            continue
        if section in IGNORED_TOP:
            document.warnings.append(f"{section} has no meaning here and is ignored")
        elif section not in sections:
            document.faults.append(f"unknown section {section}{nearest(str(section), [*sections, 'voters', 'nodes'])}")
        elif values is not None and not isinstance(values, Mapping):
            document.faults.append(f"{section} must be a map of settings")
        else:
            document.values.update({f"{section}.{key}": value for key, value in (values or {}).items()})
    _read_host_lists(content, document)
    return document


def _read_host_lists(content: Mapping[Any, Any], document: Document) -> None:
    nodes: dict[str, NodeEntry] = {}
    for form in ("hosts", "nodes"):
        listed = content.get(form)
        if listed is None:
            continue
        if not isinstance(listed, Mapping):
            document.faults.append(f"{form} must be a map of name: {{host, port, …}}")
            continue
        for name, entry in listed.items():
            _read_node(form, str(name), entry, nodes, document)
    if nodes:
        document.values["cluster.nodes"] = nodes
    for form in ("p2p_voters", "voters"):
        voters = content.get(form)
        if isinstance(voters, Mapping):
            document.values["cluster.voters"] = voters
        elif isinstance(voters, list):
            document.values["cluster.voters"] = _voter_addresses(voters, nodes, document)
        elif voters is not None:
            document.faults.append(f"{form} must be a list of node names, or a map of name: host:port")


def _read_node(form: str, name: str, entry: Any, nodes: dict[str, NodeEntry], document: Document) -> None:
    if isinstance(entry, Mapping):
        known = {f.name for f in fields(NodeEntry)}
        entry = {RENAMED.get(str(key), key): value for key, value in entry.items()}
        if form == "hosts":
            # The older form carries dozens of fields that mean nothing here; a mistyped one cannot be told apart.
            ignored = sorted(str(key) for key in entry if key not in known)
            entry = {key: value for key, value in entry.items() if key in known and value is not None}
            if ignored:
                document.warnings.append(f"hosts entry {name}: {', '.join(ignored)} not used")
    try:
        nodes[name] = node_entry(name, entry)
    except Fault as fault:
        document.faults.append(f"{form} {fault}")


def _voter_addresses(voters: list[Any], nodes: Mapping[str, NodeEntry], document: Document) -> dict[str, str]:
    addresses: dict[str, str] = {}
    for voter in voters:
        if not isinstance(voter, str):
            document.faults.append(f"voters must be a list of node names, and {voter!r} is not a text")
        elif voter in addresses:
            document.faults.append(f"voters names {voter} twice")
        elif voter in nodes:
            addresses[voter] = f"{nodes[voter].host}:{nodes[voter].api_port}"
        else:
            addresses[voter] = f"{voter}:{API_PORT}"
            document.warnings.append(
                f"voter {voter} has no entry under nodes; it is expected to answer as {addresses[voter]}"
            )
    return addresses
