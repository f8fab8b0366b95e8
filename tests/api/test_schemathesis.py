"""Requests generated from the OpenAPI document find nothing: all checks, with a credential."""

from __future__ import annotations

import asyncio
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.api.fake_node import SECRET, one_node

SEED = 20_260_131
EXAMPLES_SHORT = 25
EXAMPLES_LONG = 200


def command(url: str, examples: int, phases: str) -> list[str]:
    tool = shutil.which("schemathesis", path=f"{sysconfig.get_path('scripts')}:{Path(sys.executable).parent}")
    assert tool is not None, "pip install schemathesis, or the project's extra [test]"
    return [
        tool,
        "run",
        url + "/openapi.json",
        "--header",
        f"Authorization: Bearer {SECRET}",
        "--checks=all",
        f"--max-examples={examples}",
        f"--phases={phases}",
        f"--seed={SEED}",
        # It ends the node that is tested.
        "--exclude-path=/admin/shutdown",
        "--generation-database=none",
        "--no-color",
    ]


async def run(tmp_path: Path, examples: int, phases: str) -> None:
    async with one_node() as node:
        process = await asyncio.create_subprocess_exec(
            *command(node.url, examples, phases),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=tmp_path,
        )
        try:
            out, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 0, out.decode()[-20_000:]


async def test_generated_requests_find_nothing(tmp_path: Path) -> None:
    await run(tmp_path, EXAMPLES_SHORT, "examples,coverage,fuzzing")


@pytest.mark.long
@pytest.mark.timeout(1200)
async def test_many_generated_requests_find_nothing(tmp_path: Path) -> None:
    await run(tmp_path, EXAMPLES_LONG, "examples,coverage,fuzzing,stateful")
