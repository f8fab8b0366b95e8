"""Readable traces: commands in, everything that came of them out. ``pytest --rewrite`` accepts a change."""

from pathlib import Path

import pytest

from ringraft.state.machine import StateMachine
from tests.state.trace_language import run_file

FILES = sorted((Path(__file__).parent.parent / "testdata" / "state").glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_trace_comes_out_as_written(path: Path, request: pytest.FixtureRequest) -> None:
    text, trace = run_file(path)
    if request.config.getoption("--rewrite"):
        path.write_text(text)
    assert text == path.read_text()

    again = StateMachine(strict=True)
    for index, entry in trace.entries:
        again.apply(index, entry)
    assert again.digest() == trace.machine.digest()
    assert StateMachine.restore(trace.machine.snapshot()).digest() == trace.machine.digest()


def test_there_are_traces() -> None:
    assert len(FILES) >= 10
