"""What the code as a whole must keep to, read from its syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ringraft"
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 500

TREES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8"), str(path))
    for path in sorted(PACKAGE.rglob("*.py"))
}

PURE_MODULES = {
    "__future__", "array", "base64", "bisect", "collections", "collections.abc", "contextlib", "dataclasses",
    "datetime", "enum", "functools", "hashlib", "heapq", "itertools", "logging", "math", "operator", "re", "struct",
    "types", "typing", "weakref",
}  # fmt: skip
"""The standard library's value modules; ``logging`` only for the alarm of a broken decider."""

MAY_IMPORT: dict[str, set[str]] = {
    "state": set(),
    "settings": {"state"},
    "client": set(),
    "consensus": {"state", "config", "settings", "clock"},
    "membership": {"state", "config", "settings", "clock", "consensus"},
    "training": {"worker", "schema", "config"},
    "worker": {"client", "training", "config", "settings", "schema", "clock"},
    "cli": {"client", "config", "settings", "rescue"},
}
"""Which other parts of the package a part may see. Those not named here see what they need."""

BANNED_MODULES = {"pickle", "cPickle", "dill", "shelve", "marshal", "cloudpickle"}
BANNED_NAMES = {"eval", "exec", "compile", "__import__", "breakpoint"}
BANNED_CALLS = {
    "os.system", "os.popen", "asyncio.create_subprocess_shell", "subprocess.getoutput", "subprocess.getstatusoutput",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "time.sleep", "tempfile.mktemp",
}  # fmt: skip


def part_of(name: str) -> str:
    """The part a module belongs to: ``ringraft/state/model.py`` and ``ringraft.state.model`` are of ``state``."""
    pieces = name.removesuffix(".py").replace("/", ".").split(".")
    return pieces[1] if len(pieces) > 1 else ""


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every module imported, wherever it stands, with its line; ``from a import b`` is both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: import by full name"
            yield str(node.module), node.lineno


def dotted(node: ast.expr) -> str:
    """``os.path.join`` for the expression that says so, else nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def test_state_is_pure() -> None:
    wrong = [
        f"{path}:{line} imports {module}"
        for path, tree in TREES.items()
        if part_of(path) == "state"
        for module, line in imports(tree)
        if module not in PURE_MODULES and module != "msgpack" and not module.startswith("ringraft.state")
    ]
    assert wrong == []


def test_state_asks_no_clock_and_no_chance() -> None:
    asked = ("now", "utcnow", "today", "time", "monotonic", "random", "urandom", "uuid4", "getpid", "open")
    wrong = [
        f"{path}:{call.lineno} calls {dotted(call.func)}"
        for path, tree in TREES.items()
        if part_of(path) == "state"
        for call in calls(tree)
        if dotted(call.func).rpartition(".")[2] in asked
    ]
    assert wrong == []


def test_parts_see_only_what_they_may() -> None:
    wrong = []
    for path, tree in TREES.items():
        part = part_of(path)
        for module, line in imports(tree):
            if part not in MAY_IMPORT or not module.startswith("ringraft"):
                continue
            if module != "ringraft" and part_of(module) not in MAY_IMPORT[part] | {part}:
                wrong.append(f"{path}:{line} imports {module}")
    # The two doors: a command starts a node, the demo's counter is the only reader of training data.
    allowed = {("ringraft/cli/node.py", "ringraft.node.app")}
    assert [w for w in wrong if (w.partition(":")[0], w.rpartition(" ")[2]) not in allowed] == []


def test_pysyncobj_stays_in_its_room() -> None:
    wrong = [
        f"{path}:{line}"
        for path, tree in TREES.items()
        if not path.startswith("ringraft/consensus/replog/")
        for module, line in imports(tree)
        if module.split(".")[0] == "pysyncobj"
    ]
    assert wrong == []


def test_api_never_sees_a_concrete_backend() -> None:
    wrong = [
        f"{path}:{line} imports {module}"
        for path, tree in TREES.items()
        if part_of(path) == "api"
        for module, line in imports(tree)
        if module.startswith("ringraft.consensus") and module != "ringraft.consensus.base"
    ]
    assert wrong == []


def test_only_the_composition_root_picks_a_mode() -> None:
    wrong = [
        f"{path}:{node.lineno}"
        for path, tree in TREES.items()
        if path != "ringraft/node/app.py" and part_of(path) != "settings"
        for node in ast.walk(tree)
        if isinstance(node, ast.If | ast.IfExp | ast.Match)
        for part in ast.walk(node.test if not isinstance(node, ast.Match) else node.subject)
        if dotted(part) in ("settings.consensus.mode", "settings.membership.mode")  # type: ignore[arg-type]
    ]
    assert wrong == []


def test_nothing_dangerous_is_called() -> None:
    wrong = []
    for path, tree in TREES.items():
        wrong += [
            f"{path}:{line} imports {name}" for name, line in imports(tree) if name.split(".")[0] in BANNED_MODULES
        ]
        for call in calls(tree):
            name = dotted(call.func)
            if name in BANNED_NAMES or name in BANNED_CALLS:
                wrong.append(f"{path}:{call.lineno} calls {name}")
            shell = [k for k in call.keywords if k.arg == "shell"]
            if any(not (isinstance(k.value, ast.Constant) and k.value.value is False) for k in shell):
                wrong.append(f"{path}:{call.lineno} passes shell=")
    assert wrong == []


def test_only_config_reads_the_environment() -> None:
    wrong = [
        f"{path}:{node.lineno}"
        for path, tree in TREES.items()
        if path != "ringraft/config.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and dotted(node) in ("os.environ", "os.environb", "os.getenv", "os.putenv")
    ]
    assert wrong == []


def broad(handler: ast.ExceptHandler) -> bool:
    """It catches everything: bare, ``Exception`` or ``BaseException``."""
    named = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(name is None or dotted(name) in ("Exception", "BaseException") for name in named)


def stops(handler: ast.ExceptHandler) -> bool:
    """It raises, or says what happened (a log line, a traceback) or keeps it for a caller that waits for it."""
    for node in ast.walk(handler):
        if isinstance(node, ast.Raise):
            return True
        if isinstance(node, ast.Call):
            name = dotted(node.func).rpartition(".")[2] or getattr(node.func, "attr", "")
            if name in ("exception", "critical", "error", "print_exc", "set_exception", "_fail"):
                return True
    return False


def test_no_failure_is_swallowed() -> None:
    wrong = [
        f"{path}:{node.lineno}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and broad(node) and not stops(node)
    ]
    assert wrong == []


def test_no_import_is_guessed() -> None:
    wrong = [
        f"{path}:{node.lineno}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and node.type is not None
        and {"ImportError", "ModuleNotFoundError"} & {dotted(n) for n in ast.walk(node.type) if isinstance(n, ast.expr)}
        and not any(isinstance(inner, ast.Raise | ast.Return) for inner in ast.walk(node))
    ]
    assert wrong == []


def lines_of(node: ast.stmt) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


def table_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a literal that is returned: rows to look things up in may be as many as there are."""
    last = node.body[-1]
    return lines_of(last) if isinstance(last, ast.Return) and isinstance(last.value, ast.List | ast.Tuple) else 0


@pytest.mark.parametrize("path", TREES)
def test_functions_fit_a_screen_and_files_a_subject(path: str) -> None:
    lines = (ROOT / path).read_text("utf-8").count("\n")
    assert lines <= FILE_LINES_MAX, f"{path} has {lines} lines: look for the missing noun"
    long = [
        f"{path}:{node.lineno} {node.name} has {lines_of(node)} lines"
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and lines_of(node) - table_lines(node) > FUNCTION_LINES_MAX
    ]
    assert long == []


def test_no_mixins_and_no_managers() -> None:
    endings = ("Mixin", "Manager", "Handler", "Coordinator", "Helper", "Utils")
    wrong = [
        f"{path}:{node.lineno} {node.name}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name.endswith(endings)
    ]
    assert wrong == []
    assert [path for path in TREES if Path(path).stem in ("utils", "helpers", "common", "misc")] == []


def test_no_work_is_left_in_comments() -> None:
    words = ("TODO", "FIXME", "XXX", "HACK")
    wrong = [
        f"{path}:{number}"
        for path in TREES
        for number, line in enumerate((ROOT / path).read_text("utf-8").splitlines(), 1)
        if any(word in line for word in words)
    ]
    assert wrong == []


def test_every_module_says_what_it_is() -> None:
    assert [path for path, tree in TREES.items() if tree.body and not ast.get_docstring(tree)] == []
