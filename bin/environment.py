"""Makes the environment that the scripts run in, once, and prints its interpreter. Standard library only.

The environment is ``.venv`` beside this checkout (or RINGRAFT_VENV), filled from
``requirements/NAME.txt``, every file checked by its hash. A note in it says which locks it holds, so
that the next start costs nothing and a changed lock rebuilds it. One process at a time builds;
a build that was cut short is begun again. An interpreter that already has every locked package at
its version (a container, say) is used as it is.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = {"run": ("run",), "test": ("run", "test")}
"""What each environment is good for: the test lock holds all of the run lock."""
NOTE = "ringraft-environment.json"


def main() -> int:
    """Exit code 0 with the interpreter on stdout, or 1 with a sentence on stderr."""
    name = sys.argv[1]
    if has_all(name):
        print(sys.executable)
        return 0
    directory = Path(os.environ.get("RINGRAFT_VENV") or ROOT / ".venv").absolute()
    python = directory / "bin" / "python"
    if not is_ready(directory, name):
        directory.parent.mkdir(parents=True, exist_ok=True)
        with directory.with_name(directory.name + ".lock").open("w") as lock:
            # Whoever waits here finds the environment made by the one it waited for.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_ready(directory, name):
                fault = build(directory, name)
                if fault:
                    print(fault, file=sys.stderr)
                    return 1
    print(python)
    return 0


def has_all(name: str) -> bool:
    """Whether this interpreter has the lock's packages at their versions; those for other Pythons are left out."""
    lock = (ROOT / "requirements" / f"{name}.txt").read_text()
    pinned = re.findall(r"^([A-Za-z0-9_.-]+)==(\S+) \\$", lock, re.MULTILINE)
    try:
        return all(importlib.metadata.version(package) == wanted for package, wanted in pinned)
    except importlib.metadata.PackageNotFoundError:
        return False


def is_ready(directory: Path, name: str) -> bool:
    """The note names this lock as it is now, and the interpreter is the one that was used."""
    note = read_note(directory)
    return note.get(name) == lock_hash(name) and note.get("python") == version() and (directory / "bin/python").exists()


def read_note(directory: Path) -> dict[str, str]:
    """What the environment holds; empty when there is none or it was not finished."""
    try:
        note: dict[str, str] = json.loads((directory / NOTE).read_text())
        return note
    except (FileNotFoundError, ValueError):
        return {}


def version() -> str:
    """Of the Python that builds: a minor version has packages of its own."""
    return f"{sys.version_info.major}.{sys.version_info.minor} {os.uname().machine}"


def lock_hash(name: str) -> str:
    """Of the lock as it stands in the checkout, with what builds it."""
    locks = [(ROOT / "requirements" / f"{lock}.txt").read_bytes() for lock in ("build", name)]
    return hashlib.sha256(b"\0".join(locks)).hexdigest()


def build(directory: Path, name: str) -> str | None:
    """Make the environment from nothing, or add to one that holds the smaller lock; a sentence when it fails."""
    note = read_note(directory)
    grows = name == "test" and note.get("run") == lock_hash("run") and is_ready(directory, "run")
    if directory.exists() and not grows:
        if not (directory / NOTE).exists():
            return f"{directory} exists and was not made by this script; move it away, or set RINGRAFT_VENV"
        shutil.rmtree(directory)
    say(f"making {directory} for Python {version()}: about a minute, once")
    try:
        if not grows:
            directory.mkdir()
            (directory / NOTE).write_text("{}")
            venv.create(directory, with_pip=True, symlinks=True)
        install(directory, name)
    except subprocess.CalledProcessError as error:
        if "ensurepip" in str(error.cmd):
            return f"{sys.executable} cannot make environments; install its venv package (apt install python3-venv)"
        return f"installing failed with exit code {error.returncode}; what pip said is above"
    except OSError as error:
        return f"{directory} cannot be made: {error}"
    write_note(directory, {"python": version(), **{lock: lock_hash(lock) for lock in LOCKS[name]}})
    return None


def install(directory: Path, name: str) -> None:
    """Install the lock, hashes checked. CalledProcessError when pip fails."""
    pip = [str(directory / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--no-input", "--require-hashes", "--only-binary", ":all:"]
    # The one package without a wheel is pure Python; building it with what was installed a line before
    # keeps every download under a hash.
    for lock, more in (("build", []), (name, ["--no-binary", "pysyncobj", "--no-build-isolation"])):
        requirement = ["--requirement", str(ROOT / "requirements" / f"{lock}.txt")]
        subprocess.run([*pip, *more, *requirement], check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)


def write_note(directory: Path, note: dict[str, str]) -> None:
    """Only now is the environment finished."""
    temporary = directory / f"{NOTE}.tmp"
    temporary.write_text(json.dumps(note, indent=2))
    temporary.replace(directory / NOTE)


def say(sentence: str) -> None:
    """Chatter; stdout carries the interpreter's path only."""
    print(sentence, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
