"""Reads the settings of a process from its layers, and says everything that is wrong with them at once.

Command line > ``RINGRAFT_SECTION__KEY`` > the seed's ``P2P_*`` and ``RINGRIFT_*`` names > files, the
later over the earlier > ``config/defaults.yaml``. The only module that reads the environment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, get_type_hints

from ringraft.settings.aliases import ALIASES, SWITCHES, WITHOUT_EFFECT
from ringraft.settings.convert import Fault, convert, nearest, setting_types
from ringraft.settings.derive import Values, derive
from ringraft.settings.document import Document, read_document, settings_document
from ringraft.settings.rules import broken_rules
from ringraft.settings.strict_yaml import parse_yaml
from ringraft.settings.tree import (
    AuthSettings,
    ClusterSettings,
    HttpSettings,
    MembershipSettings,
    NodeEntry,
    NodeRole,
    NodeSettings,
    QueueSettings,
    RaftSettings,
    Secret,
    Settings,
    WorkerSettings,
    section_names,
)

__all__ = [
    "AuthSettings",
    "ClusterSettings",
    "ConfigError",
    "HttpSettings",
    "MembershipSettings",
    "NodeEntry",
    "NodeRole",
    "NodeSettings",
    "QueueSettings",
    "RaftSettings",
    "Secret",
    "Settings",
    "WorkerSettings",
    "default_files",
    "defaults_text",
    "failpoint",
    "inherited_environment",
    "load_settings",
]

ENV_PREFIX = "RINGRAFT_"
ENV_FAILPOINT = "RINGRAFT_FAILPOINT"
ENV_RESERVED = frozenset(
    {"RINGRAFT_ADDR", "RINGRAFT_TOKEN", "RINGRAFT_TOKEN_FILE", "RINGRAFT_PYTHON", "RINGRAFT_VENV", ENV_FAILPOINT}
)
"""Names that the command line and the scripts read; no settings."""
ENV_EXECUTOR = frozenset(
    f"RINGRAFT_{name}" for name in ("ITEM_FILE", "RESULT_FILE", "ERROR_FILE", "PROGRESS_FILE", "OUTPUT_DIR")
)
"""What a worker tells the program it runs; a command that such a program starts must not trip over it."""

DEFAULT_RANK, PROFILE_RANK, FILE_RANK, ALIAS_RANK, ENV_RANK, FLAG_RANK = range(6)


class ConfigError(Exception):
    """Settings that no node should start with. ``faults`` has one sentence for each thing wrong."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True)
class _Given:
    """One value as somebody wrote it."""

    key: str
    raw: Any
    origin: str
    rank: int
    is_text: bool = False


def load_settings(
    overrides: Mapping[str, Any] | None = None,
    *,
    env: Mapping[str, str] | None = None,
    files: Sequence[Path] = (),
) -> Settings:
    """The settings of this process.

    ``overrides`` are the command line's values by ``section.key``; a text is read as a flag's text is.
    ``env`` is the environment, the process's own when None. A later file wins over an earlier one.
    ConfigError lists every fault.
    """
    faults: list[str] = []
    warnings: list[str] = []
    environ = os.environ if env is None else env
    given = [
        *_from_files(files, faults, warnings),
        *_from_aliases(environ, warnings),
        *_from_environment(environ, faults),
        *(_Given(key, raw, "command line", FLAG_RANK, is_text=True) for key, raw in (overrides or {}).items()),
    ]
    values = Values()
    for one in sorted([*_from_defaults(given), *given], key=lambda g: g.rank):
        _take(one, values, faults)
    if not faults:
        derive(values)
        faults, warnings = values.faults, [*warnings, *values.warnings]
    if not faults:
        settings = _build(values, tuple(warnings))
        faults = list(broken_rules(settings))
        if not faults:
            return settings
    raise ConfigError(faults)


def default_files() -> list[Path]:
    """The files that are read when none is named, those that exist, weakest first."""
    system = Path("/etc/ringraft")
    candidates = [
        system / "ringraft.yaml",
        *sorted((system / "conf.d").glob("*.yaml")),
        Path("config/distributed_hosts.yaml"),
        Path("ringraft.yaml"),
    ]
    return [path for path in candidates if path.is_file()]


def defaults_text() -> str:
    """``config/defaults.yaml`` as it stands: inside an installed package, or beside the package in a checkout."""
    packaged = package_files("ringraft") / "defaults.yaml"
    if packaged.is_file():
        return packaged.read_text("utf-8")
    return (Path(__file__).resolve().parent.parent / "config" / "defaults.yaml").read_text("utf-8")


def failpoint() -> str | None:
    """``name:count:action`` of the point at which a test wants this process to fail; None outside of tests."""
    return os.environ.get(ENV_FAILPOINT)


def inherited_environment() -> dict[str, str]:
    """This process's environment without ringraft's settings, for a child that is told its own by flags."""
    aliases = {name for name, *_ in (*ALIASES, *SWITCHES)}
    return {
        name: value
        for name, value in os.environ.items()
        if name not in aliases and not (name.startswith(ENV_PREFIX) and "__" in name)
    }


def _from_defaults(given: Sequence[_Given]) -> Iterator[_Given]:
    content = parse_yaml(defaults_text())
    profiles = content.pop("profiles")
    for key, raw in settings_document(content).values.items():
        yield _Given(key, raw, "default", DEFAULT_RANK)
    said = [g for g in sorted(given, key=lambda g: g.rank) if g.key == "membership.profile"]
    profile = str(said[-1].raw).strip().lower() if said else "lan"
    for key, raw in settings_document(profiles.get(profile)).values.items():
        yield _Given(key, raw, f"profile {profile}", PROFILE_RANK)


def _from_files(paths: Sequence[Path], faults: list[str], warnings: list[str]) -> Iterator[_Given]:
    for path in paths:
        document: Document = read_document(path)
        faults.extend(document.faults)
        warnings.extend(document.warnings)
        for key, raw in document.values.items():
            yield _Given(key, raw, f"file {path}", FILE_RANK)


def _from_aliases(environ: Mapping[str, str], warnings: list[str]) -> Iterator[_Given]:
    for name, key, meaning in SWITCHES:
        if environ.get(name, "").strip().lower() in ("true", "1", "yes", "on"):
            warnings.append(_alias_warning(name, key))
            yield _Given(key, meaning, name, ALIAS_RANK)
    for name, key in ALIASES:
        if name in environ:
            warnings.append(_alias_warning(name, key))
            yield _Given(key, environ[name], name, ALIAS_RANK, is_text=True)
    for name in WITHOUT_EFFECT:
        if name in environ:
            warnings.append(f"{name} has no effect in this version")


def _alias_warning(name: str, key: str) -> str:
    return f"{name} is read as {key}; its name here is {ENV_PREFIX}{key.upper().replace('.', '__')}"


def _from_environment(environ: Mapping[str, str], faults: list[str]) -> Iterator[_Given]:
    for name, text in environ.items():
        if not name.startswith(ENV_PREFIX) or name in ENV_RESERVED | ENV_EXECUTOR:
            continue
        key = name.removeprefix(ENV_PREFIX).lower().replace("__", ".")
        if key in setting_types():
            yield _Given(key, text, name, ENV_RANK, is_text=True)
        else:
            known = [ENV_PREFIX + k.upper().replace(".", "__") for k in setting_types()]
            faults.append(f"unknown setting {name} in the environment{nearest(name, known)}")


def _take(given: _Given, values: Values, faults: list[str]) -> None:
    if given.key not in setting_types():
        faults.append(f"unknown setting {given.key} ({given.origin}){nearest(given.key, list(setting_types()))}")
        return
    try:
        value = convert(given.key, given.raw, text=given.is_text)
    except Fault as fault:
        faults.append(f"{given.key} {fault} ({given.origin})")
        return
    values.put(given.key, value, given.origin, given.rank)


def _build(values: Values, warnings: tuple[str, ...]) -> Settings:
    hints = get_type_hints(Settings)
    sections: dict[str, Any] = {}
    for section in section_names():
        prefix = f"{section}."
        own = {key.removeprefix(prefix): value for key, value in values.by_key.items() if key.startswith(prefix)}
        sections[section] = hints[section](**own)
    return Settings(**sections, origins=values.origins, warnings=warnings)
