"""A tiny pipeline, as its trainers saved it, and `zwatch import` in this process."""

import pytest

from zwatch import cli


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
    """An unsealed pipeline's directory in bf16. Copy before changing."""
    from random_pipeline import PRESETS, write_pipeline

    directory = tmp_path_factory.mktemp("pipeline") / "z-image"
    write_pipeline(directory, PRESETS["tiny"], 3)
    return directory


@pytest.fixture
def root(tmp_path):
    """An empty models root."""
    root = tmp_path / "models"
    root.mkdir()
    return root


class Importing:
    """Runs `zwatch import`; keeps what it printed."""

    def __init__(self, root, capsys):
        self.root, self._capsys = root, capsys
        self.out = self.error = ""

    def __call__(self, source, name, *options, status=0):
        """Import, check the exit status, and return the version's directory."""
        self._capsys.readouterr()
        found = cli.main(["import", str(source), name, "--models", str(self.root), *map(str, options)])
        self.out, self.error = self._capsys.readouterr()
        assert found == status, self.error
        return self.root / name

    def refused(self, source, name, *options):
        """Import, check that it is refused and nothing is left, and return why."""
        self(source, name, *options, status=1)
        assert not [path.name for path in self.root.iterdir() if path.name in (name, f".{name}.importing")]
        return self.error


@pytest.fixture
def importing(root, capsys):
    return Importing(root, capsys)
