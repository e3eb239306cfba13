"""The house: which way imports go, how long modules and functions are, and what is not imported too early."""

import ast
import graphlib
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "zwatch"
ORDER = ["deploy", "signing", "shadow", "engine", "importing", "fleet", "rollout", "generation", "api"]
MODULES = sorted(PACKAGE.rglob("*.py"))
LONGEST_MODULE, LONGEST_FUNCTION = 350, 50
LONG = re.compile(r"# Long: .+")
"""A comment that gives the reason, directly above what is longer."""


def imported(path: Path) -> set[str]:
    """Return the modules of ours that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("folder", ORDER)
def test_a_folder_imports_only_what_stands_before_it(folder):
    later = {f"zwatch.{name}" for name in ORDER[ORDER.index(folder) + 1 :]}
    for path in (PACKAGE / folder).rglob("*.py"):
        wrong = {name for name in imported(path) if any(name == one or name.startswith(f"{one}.") for one in later)}
        assert not wrong, f"{path.name} imports {wrong}"


def name_of(path: Path) -> str:
    """Return a module's name."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_the_sdk_of_mcp_is_imported_by_its_folder_only():
    users = {
        path.parent.name for path in MODULES if {"mcp", "mcp_types"} & {name.split(".")[0] for name in imported(path)}
    }
    assert users == {"mcp"}


def test_ray_is_imported_by_two_modules_only():
    users = {name_of(path) for path in MODULES if "ray" in {name.split(".")[0] for name in imported(path)}}
    assert users == {"zwatch.fleet.cluster", "zwatch.fleet.local"}


def test_no_module_imports_itself_by_way_of_others():
    names = {name_of(path) for path in MODULES}
    graph = {name_of(path): imported(path) & names - {name_of(path)} for path in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize(
    ("folder", "library"),
    [
        ("deploy", "torch"), ("deploy", "aiohttp"), ("deploy", "pydantic"), ("signing", "torch"), ("signing", "aiohttp"), ("signing", "pydantic"),
        ("shadow", "aiohttp"), ("engine", "aiohttp"), ("importing", "aiohttp"),
        ("rollout", "aiohttp"), ("generation", "aiohttp"),
    ],
)  # fmt: skip
def test_a_folder_does_without_a_library(folder, library):
    for path in (PACKAGE / folder).rglob("*.py"):
        assert not {name for name in imported(path) if name.split(".")[0] == library}, path


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_and_functions_are_short_or_say_why_not(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= LONGEST_MODULE or LONG.search(lines[0] + lines[1]), f"{len(lines)} lines"
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            above = lines[min([node.lineno, *(one.lineno for one in node.decorator_list)]) - 2]
            assert length <= LONGEST_FUNCTION or LONG.search(above), f"{node.name} has {length} lines"


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("zwatch", ["torch", "aiohttp", "watchdog"]),
        ("zwatch.deploy.sealing", ["torch", "aiohttp", "numpy", "pydantic", "asyncio"]),
        ("zwatch.deploy.verifying", ["torch", "aiohttp", "numpy", "pydantic", "asyncio"]),
        ("zwatch.deploy.look", ["torch", "aiohttp", "numpy", "pydantic"]),
        ("zwatch.serving", ["torch", "diffusers", "transformers", "numpy", "ray", "zwatch.fleet.fleet"]),
        ("zwatch.cli", ["torch", "aiohttp", "diffusers", "pydantic"]),
        ("zwatch.generating.command", ["torch", "aiohttp", "pydantic", "mcp", "PIL", "numpy", "tqdm", "asyncio"]),
        ("zwatch.mcp.command", ["torch", "aiohttp", "mcp"]),
        ("zwatch.mcp.server", ["torch", "aiohttp", "PIL", "numpy"]),
        ("zwatch.signing.commands", ["torch", "aiohttp", "cryptography", "sigstore", "pydantic"]),
        ("zwatch.rollout.supervisor", ["cryptography", "sigstore"]),
        ("zwatch.config", ["torch", "aiohttp", "pydantic"]),
        ("zwatch.diff", ["torch", "aiohttp", "pydantic"]),
        ("zwatch.prune", ["torch", "aiohttp", "pydantic", "numpy"]),
        ("zwatch.offline", ["torch", "aiohttp", "pydantic", "numpy"]),
    ],
)
def test_importing_it_does_not_import_what_takes_seconds(module, forbidden):
    check = f"import sys, {module}; print([name for name in {forbidden} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sorted((PACKAGE.parent / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_what_a_benchmark_imports_exists(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "zwatch":
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
