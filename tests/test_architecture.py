"""The promises of the tree itself: who may import whom, what loads what, how large things are."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from shutil import copy2, copytree, ignore_patterns

import pytest

from tacit.core import errors

ROOT = Path(__file__).parent.parent
FOLDERS = (
    "core",
    "protos",
    "privacy",
    "learning",
    "attacks",
    "evaluators",
    "audit",
    "server",
    "client",
    "simulation",
    "cli",
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def sources() -> list[Path]:
    """Every file of code that people wrote."""
    return [
        path
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not path.stem.endswith(("_pb2", "_pb2_grpc"))
    ]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_imports_point_down_only() -> None:
    """The layers of docs/architecture.md hold: import-linter keeps every contract."""
    linter = Path(sys.executable).with_name("lint-imports")
    command = [str(linter), "--no-cache", "--config", str(ROOT / "pyproject.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_folders_are_named_the_same_everywhere() -> None:
    """setup.py, the links for static tools and import-linter list one and the same tree."""
    linked = {path.name for path in (ROOT / ".typing" / "tacit").iterdir()}
    linted = {
        name.removeprefix("tacit.") for name in PROJECT["tool"]["importlinter"]["root_packages"]
    }
    packaged = set(re.findall(r'^    "(\w+)",$', (ROOT / "setup.py").read_text(), re.MULTILINE))
    assert linked == linted == packaged == set(FOLDERS)


LOADED = """
import importlib, sys
importlib.import_module(sys.argv[1])
names = {name.partition(".")[0] for name in sys.modules}
print(sorted(names & set(sys.argv[2].split(","))))
"""


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("tacit.server.daemon", "torch,opacus,flwr"),
        ("tacit.client.daemon", "torch,opacus,flwr"),
        ("tacit.cli.main", "torch,opacus,flwr,grpc,numpy,sqlalchemy,rich"),
        ("tacit.cli.server", "torch,opacus,flwr"),
        ("tacit.cli.client", "torch,opacus,flwr"),
        ("tacit.cli.ledger", "torch,opacus,flwr,dp_accounting,matplotlib"),
        ("tacit.privacy.ledger", "torch,opacus,flwr,grpc,dp_accounting,scipy"),
        ("tacit.privacy.secagg.client", "torch,opacus,flwr,grpc,dp_accounting,scipy"),
        ("tacit.privacy.secagg.server", "torch,opacus,flwr,grpc,dp_accounting,scipy"),
        ("tacit.cli.login", "torch,opacus,flwr"),
        ("tacit.cli.config", "torch,opacus,flwr,grpc"),
        ("tacit.cli.audit", "torch,opacus,flwr,grpc,numpy,scipy,rich,matplotlib"),
        ("tacit.cli.privacy", "torch,opacus,flwr,grpc,numpy"),
        ("tacit.privacy.lint_source", "torch,opacus,flwr,grpc"),
        ("tacit.attacks.binned", "torch,opacus,flwr,grpc"),
        ("tacit.attacks.bounds.one_run", "torch,opacus,flwr,grpc,dp_accounting"),
        ("tacit.core.identity", "torch,opacus,flwr,grpc,numpy,sqlalchemy"),
    ],
)
def test_daemons_and_command_line_stay_light(module: str, forbidden: str) -> None:
    """A fresh interpreter finds no training library behind the daemons and the command line."""
    command = [sys.executable, "-c", LOADED, module, forbidden]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_exit_codes_by_family() -> None:
    """The table of exit codes is part of the public interface."""
    table = {
        name: family.exit_code
        for name, family in inspect.getmembers(errors, inspect.isclass)
        if issubclass(family, errors.TacitError)
    }
    assert table == {
        "TacitError": 1,
        "UsageError": 2,
        "ConfigError": 3,
        "DataError": 3,
        "RefusedError": 4,
        "BudgetError": 4,
        "TrustError": 5,
        "UnavailableError": 6,
        "AuditError": 7,
        "ProtocolError": 1,
        "AppError": 1,
    }
    drawn = re.findall(r"[|`]- (\w+) ", errors.__doc__ or "")
    assert set(drawn) == set(table) - {"TacitError"}


@pytest.mark.parametrize("path", sources(), ids=relative)
def test_nothing_reads_pickles(path: Path) -> None:
    """Data never becomes code: no pickle, in any of its disguises."""
    tree = ast.parse(path.read_text())
    banned = {"pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not banned & {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in banned
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) != ("torch", "load")
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is False


@pytest.mark.parametrize("path", sources(), ids=relative)
def test_files_and_functions_keep_their_size(path: Path) -> None:
    """A file has at most 500 lines, a function at most 60: beyond that nobody reads it whole."""
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if "migrations" in path.parts:  # one step of a schema is one list of tables
                continue
            start = node.body[0].end_lineno or 0 if ast.get_docstring(node) else node.lineno
            assert (node.end_lineno or 0) - start <= 60, node.name


@pytest.mark.parametrize("path", sources(), ids=relative)
def test_every_file_says_what_it_is(path: Path) -> None:
    """Every module opens with a docstring; every error code has the public form."""
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    families = {name for name, _ in inspect.getmembers(errors, inspect.isclass)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            first = node.args[0] if node.args else None
            if node.func.id in families and isinstance(first, ast.Constant):
                assert re.fullmatch(r"E(-[A-Z0-9]+)+", str(first.value)), node.lineno


def test_there_is_no_insecure_switch() -> None:
    """No option, in any file, is called --insecure."""
    switch = "--in" + "secure"
    assert not [relative(path) for path in sources() if switch in path.read_text()]


@pytest.mark.slow
def test_the_wheel_holds_the_tree(tmp_path: Path) -> None:
    """What is installed is the tree: every module and data file, and nothing beside it."""
    project = tmp_path / "project"
    project.mkdir()
    leave = ignore_patterns("__pycache__", "*.pyc")
    for folder in FOLDERS:
        copytree(ROOT / folder, project / folder, ignore=leave)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        copy2(ROOT / name, project / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-q", str(project)]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    (wheel,) = (project / "dist").glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == expected_files()


def expected_files() -> set[str]:
    return {
        f"tacit/{relative(path)}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
