"""Options for all tests."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite", action="store_true", help="accept what the traces and golden files show now; read the diff"
    )
    parser.addoption("--long", action="store_true", help="run also the tests marked long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long") or config.getoption("markexpr"):
        return
    skip = pytest.mark.skip(reason="takes longer than a minute: --long")
    for item in items:
        if "long" in item.keywords:
            item.add_marker(skip)
