"""The package as it is installed: whole, and with its defaults inside."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHOW = "import ringraft, ringraft.config as c; print(ringraft.__file__, c.load_settings(env={}).raft.heartbeat_ms)"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built and unpacked away from the checkout."""
    made = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(made)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (wheel,) = made.glob("ringraft-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(made / "site")
    return made / "site"


def test_installed_package_finds_its_defaults(unpacked: Path) -> None:
    assert (unpacked / "ringraft" / "defaults.yaml").read_text() == (ROOT / "config" / "defaults.yaml").read_text()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RINGR", "P2P_"))}
    ended = subprocess.run(
        [sys.executable, "-c", SHOW], cwd=unpacked, env=environment | {"PYTHONPATH": str(unpacked)},
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    where, heartbeat_ms = ended.stdout.split()
    assert (Path(where).parent, heartbeat_ms) == (unpacked / "ringraft", "75")


def test_every_module_is_in_the_wheel(unpacked: Path) -> None:
    def modules(root: Path) -> set[str]:
        return {path.relative_to(root).as_posix() for path in (root / "ringraft").rglob("*.py")}

    assert modules(unpacked) == modules(ROOT)
    assert (unpacked / "ringraft" / "py.typed").exists()
