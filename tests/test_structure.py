"""The house: which way imports go, and what is not imported too early."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "zwatch"
ORDER = ["deploy", "shadow", "engine", "rollout", "generation", "api"]


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


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("zwatch", ["torch", "aiohttp", "watchdog"]),
        ("zwatch.deploy.look", ["torch", "aiohttp", "numpy"]),
        ("zwatch.app", ["torch", "diffusers", "transformers", "numpy"]),
        ("zwatch.cli", ["torch", "aiohttp", "diffusers"]),
    ],
)
def test_importing_it_does_not_import_what_takes_seconds(module, forbidden):
    check = f"import sys, {module}; print([name for name in {forbidden} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
