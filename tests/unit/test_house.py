"""The rules of the house, each shown to bite: what a linter does not know about how this code is laid out and written."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests import pages
from tests.hosts import guide

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
OWNERS = packages_distributions()
FROM_DEBIAN = {"rados", "rbd"}
FILE_LINES_MAX, FUNCTION_LINES_MAX = 600, 70
DRAWERS = {"utils", "util", "common", "helpers", "helper", "misc", "base_manager"}
VAGUE = re.compile(r"(Manager|Helper|Helpers|Util|Utils|Info|Data|Impl)$")
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell"}
Rule = Callable[[Path, str], Iterator[str]]


@cache
def tracked() -> dict[Path, str]:
    """Every text file under version control, by its path from the root."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = {}
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file() and b"\0" not in (raw := (ROOT / name).read_bytes()):
            files[Path(name)] = raw.decode()
    return files


def files_are_short(path: Path, text: str) -> Iterator[str]:
    if path.suffix == ".py" and (lines := text.count("\n")) > FILE_LINES_MAX:
        yield f"{path}: {lines} lines; split it by sub-noun"


def functions_are_short(path: Path, text: str) -> Iterator[str]:
    for node in _nodes(path, text):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield f"{path}:{node.lineno}: {node.name} has {lines} lines"


def names_say_what_a_thing_is(path: Path, text: str) -> Iterator[str]:
    if path.suffix == ".py" and DRAWERS & {path.stem, *path.parent.parts}:
        yield f"{path}: a drawer; name the noun"
    for node in _nodes(path, text):
        if isinstance(node, ast.ClassDef) and VAGUE.search(node.name):
            yield f"{path}:{node.lineno}: class {node.name} says nothing"


def modules_say_what_they_are(path: Path, text: str) -> Iterator[str]:
    nodes = _nodes(path, text)
    if nodes and isinstance(nodes[0], ast.Module) and nodes[0].body and not ast.get_docstring(nodes[0]):
        yield f"{path}: no docstring"


def nothing_is_patched(path: Path, text: str) -> Iterator[str]:
    for node in _nodes(path, text):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and node.attr in {"setattr", "setitem", "patch"}:
            names = [ast.unparse(node)]
        for name in names:
            if re.match(r"(unittest\.mock|mock)\b", name) or name in {
                "monkeypatch.setattr",
                "monkeypatch.setitem",
                "mocker.patch",
            }:
                yield f"{path}:{node.lineno}: {name}; pass a fake in"  # type: ignore[attr-defined]


def nothing_is_skipped(path: Path, text: str) -> Iterator[str]:
    for node in _nodes(path, text):
        if isinstance(node, ast.Attribute) and re.fullmatch(
            r"pytest\.(mark\.)?(skip|skipif|xfail|importorskip)", ast.unparse(node)
        ):
            yield f"{path}:{node.lineno}: {ast.unparse(node)}"


def nothing_waits_for_a_fixed_time(path: Path, text: str) -> Iterator[str]:
    for node in _nodes(path, text):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"time.sleep", "sleep", "asyncio.sleep", "signal.pause"}:
            yield f"{path}:{node.lineno}: {ast.unparse(node)}; wait for what you wait for, within a bound"


def nothing_reaches_a_shell(path: Path, text: str) -> Iterator[str]:
    """Names of images, addresses and all else go to programs as arguments of their own."""
    for node in _nodes(path, text):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in SHELLS or any(keyword.arg == "shell" for keyword in node.keywords):
                yield f"{path}:{node.lineno}: {name} starts a shell"
        elif isinstance(node, ast.List) and path.parts[0] in PACKAGES and not path.is_relative_to("cli/lab"):
            words = [word.value for word in node.elts if isinstance(word, ast.Constant)]
            if words[:1] and words[0] in {"sh", "bash", "/bin/sh", "/bin/bash"}:
                yield f"{path}:{node.lineno}: {words[0]} is a shell"


def life_cycles_are_decided_in_the_model(path: Path, text: str) -> Iterator[str]:
    if path.parts[:2] == ("sanderling", "model") or path.parts[0] == "tests":
        return
    for node in _nodes(path, text):
        if not isinstance(node, ast.Compare) or not isinstance(node.ops[0], ast.In | ast.NotIn):
            continue
        asked, among = node.left, node.comparators[0]
        if isinstance(asked, ast.Attribute) and asked.attr == "state" and isinstance(among, ast.Tuple | ast.Set | ast.List):
            yield f"{path}:{node.lineno}: {ast.unparse(node)}; ask the table in sanderling/model"


def no_address_of_a_registry_or_machine_stays_behind(path: Path, text: str) -> Iterator[str]:
    if path.name.startswith("requirements") and re.search(r"https?://|--(extra-)?index-url|--find-links|--trusted-host", text):
        yield f"{path}: an index is named; the machine's own configuration says where packages come from"
    for number, line in enumerate(text.split("\n"), 1):
        if path != HERE and re.search(r"https?://\S+/(simple|project|packages)/|(?<![\w.$}])/(home/\w+|root)/", line):
            yield f"{path}:{number}: {line.strip()[:80]}"


def every_command_of_a_page_is_typed_by_a_test(path: Path, text: str) -> Iterator[str]:
    """As its comment says (tests/pages.py); the test must be there."""
    if path.suffix != ".md":
        return
    for piece in pages.pieces(text):
        if piece.is_commands and piece.test is None:
            yield f"{path}: no test types {piece.text.splitlines()[0]!r}; name one above it, as tests/pages.py says"
        elif piece.test is not None:
            file, _, name = piece.test.partition("::")
            if f"def {name}(" not in tracked().get(Path(file), ""):
                yield f"{path}: there is no test {piece.test}"


HERE = Path(__file__).relative_to(ROOT)
PY = Path("sanderling/thing.py")
RULES: list[tuple[Rule, Path, str]] = [
    (files_are_short, PY, "x = 1\n" * (FILE_LINES_MAX + 1)),
    (functions_are_short, PY, "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX),
    (names_say_what_a_thing_is, Path("api/utils.py"), "x = 1\n"),
    (names_say_what_a_thing_is, PY, "class DiskManager: ...\n"),
    (modules_say_what_they_are, PY, "x = 1\n"),
    (nothing_is_patched, PY, "from unittest import mock\n"),
    (nothing_is_patched, PY, "def f(monkeypatch): monkeypatch.setattr('api.disks.now', None)\n"),
    (nothing_reaches_a_shell, PY, "import subprocess\nsubprocess.run('ls ' + name, shell=True)\n"),
    (nothing_reaches_a_shell, PY, "import os\nos.system(name)\n"),
    (nothing_reaches_a_shell, PY, "run(['sh', '-c', name])\n"),
    (nothing_is_skipped, PY, "import pytest\n@pytest.mark.skipif(True, reason='')\ndef test(): ...\n"),
    (nothing_is_skipped, PY, "import pytest\npytest.importorskip('rbd')\n"),
    (nothing_waits_for_a_fixed_time, PY, "import time\ntime.sleep(2)\n"),
    (life_cycles_are_decided_in_the_model, PY, "if disk.state in ('stopped', 'failed'): ...\n"),
    (life_cycles_are_decided_in_the_model, PY, "if op.state not in {S.A, S.B}: ...\n"),
    (every_command_of_a_page_is_typed_by_a_test, Path("docs/x.md"), "```sh\nsanderling disk list\n```\n"),
    (every_command_of_a_page_is_typed_by_a_test, Path("docs/x.md"), "<!-- typed by tests/none.py::test_it -->\n```sh\nls\n```\n"),
    (no_address_of_a_registry_or_machine_stays_behind, Path("requirements.txt"), "--index-url somewhere\n"),
    (no_address_of_a_registry_or_machine_stays_behind, Path("docs/x.md"), "cd /home/somebody/sanderling\n"),
    (no_address_of_a_registry_or_machine_stays_behind, Path("docs/x.md"), "see https://packages.example/simple/sanderling\n"),
]


@pytest.mark.parametrize("rule", list(dict.fromkeys(rule for rule, _, _ in RULES)), ids=lambda rule: rule.__name__)
def test_the_rule_holds_everywhere(rule: Rule) -> None:
    broken = [fault for path, text in tracked().items() for fault in rule(path, text)]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(("rule", "path", "text"), RULES, ids=[f"{rule.__name__}-{n}" for n, (rule, _, _) in enumerate(RULES)])
def test_the_rule_bites(rule: Rule, path: Path, text: str) -> None:
    assert list(rule(path, text))


def test_each_command_of_the_operations_guide_says_on_which_host_it_is_typed() -> None:
    assert all(step.hosts for step in guide.steps() if step.kind == "type")


def test_imports_go_down_only() -> None:
    done = _lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("sanderling/low.py", "import api\n"),
        ("api/across.py", "import conductor\n"),
        ("rpc/up.py", "import cli\n"),
        ("iscsi_worker/records.py", "import sanderling.records\n"),
    ],
)
def test_an_import_that_runs_upward_or_sideways_is_refused(tmp_path: Path, path: str, line: str) -> None:
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    for package in (*PACKAGES, "sanderling/records"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / path).write_text(line)
    done = _lint_imports(tmp_path)
    assert done.returncode != 0
    assert "BROKEN" in done.stdout


def test_every_folder_of_code_is_in_the_wheel_and_under_the_import_rules() -> None:
    folders = {path.parts[0] for path in tracked() if path.suffix == ".py" and len(path.parts) > 1} - {"tests", "bench"}
    assert folders == set(PACKAGES) == set(PROJECT["tool"]["importlinter"]["root_packages"])


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt", "requirements-build.txt"])
def test_every_pinned_requirement_has_hashes(name: str) -> None:
    lines = tracked()[Path(name)].replace("\\\n", " ").split("\n")
    pins = [line for line in lines if re.match(r"[a-z0-9]", line, re.IGNORECASE)]
    assert pins
    assert not [pin[:60] for pin in pins if "==" not in pin or "--hash=sha256:" not in pin]
    assert not re.search("WARNING", tracked()[Path(name)]), "pip-compile left something out: --allow-unsafe"


def undeclared(path: Path, text: str) -> Iterator[str]:
    """Imports of what we neither wrote nor declared: it may be here because of something else, and gone tomorrow."""
    declared = _names(PROJECT["project"]["dependencies"])
    if path.parts[0] == "tests":
        declared |= _names(PROJECT["project"]["optional-dependencies"]["dev"])
    for node in _nodes(path, text):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        for top in {module.split(".")[0] for module in modules}:
            if top in sys.stdlib_module_names or top in {*PACKAGES, "tests", "bench", *FROM_DEBIAN}:
                continue
            if not {re.sub(r"[-_.]+", "-", name).lower() for name in OWNERS.get(top, [])} & declared:
                yield f"{path}:{node.lineno}: {top} is not among the dependencies"  # type: ignore[attr-defined]


def test_whatever_is_imported_is_a_declared_dependency() -> None:
    assert not [fault for path, text in tracked().items() for fault in undeclared(path, text)]
    assert list(undeclared(PY, "import webob\n")), "installed, but by another's wish"
    assert list(undeclared(PY, "import pytest\n")), "for tests alone"


def test_every_dependency_has_its_reason() -> None:
    reasons = (ROOT / "docs/decisions/0002-dependencies.md").read_text()
    wanted = _names(PROJECT["project"]["dependencies"]) | _names(PROJECT["project"]["optional-dependencies"]["dev"])
    assert not [name for name in sorted(wanted) if f"| {name.replace('oslo-', 'oslo.')} |" not in reasons]


def _names(requirements: list[str]) -> set[str]:
    return {re.sub(r"[-_.]+", "-", re.split(r"[><=\[]", line)[0]).lower() for line in requirements}


def _nodes(path: Path, text: str) -> tuple[ast.AST, ...]:
    return _parsed(text) if path.suffix == ".py" else ()


@cache
def _parsed(text: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(text)))


def _lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run([program, "--no-cache"], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
