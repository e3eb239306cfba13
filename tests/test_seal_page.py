"""The page that specifies the seal has test vectors: they hold."""

import re
from pathlib import Path

import pytest
from blake3 import blake3

from tests.deploy.factory import SMALL, TEXT_ENCODER, VAE, WEIGHTS
from zwatch.deploy import header, pipeline_files
from zwatch.deploy.seal import SEAL_NAME, parse_seal
from zwatch.deploy.sealing import write_seal
from zwatch.deploy.verifying import check_directory
from zwatch.errors import Rejection

PAGE = (Path(__file__).parent.parent / "docs" / "seal.md").read_text()
VECTORS = PAGE.partition("\n## Test vectors\n")[2]
TEXT = next(line.strip() for line in VECTORS.splitlines() if line.startswith('    {"__metadata__"')).encode() + b"  "
FILE = len(TEXT).to_bytes(8, "little") + TEXT + bytes.fromhex("803f0040")


def block(after):
    """Return the lines of the block that follows some words."""
    found = re.search(rf"{re.escape(after)}\n\n((?:    .+\n)+)", VECTORS)
    assert found is not None, after
    return [line[4:] for line in found[1].splitlines()]


def example(tmp_path, name):
    directory = tmp_path / name
    for path in SMALL:
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text("{}" if path != "model_index.json" else '{"_class_name": "ZImagePipeline"}')
    for path in (WEIGHTS, TEXT_ENCODER, VAE):
        (directory / path).write_bytes(FILE)
    return directory


def test_the_contents_have_these_hashes():
    rows = re.findall(r"^\| (\(empty\)|`.+`) \| ([0-9a-f]{64}) \|$", VECTORS, re.MULTILINE)
    assert len(rows) == 3
    for content, digest in rows:
        assert blake3(b"" if content == "(empty)" else content.strip("`").encode()).hexdigest() == digest


def test_the_weights_have_these_hashes_with_each_version(tmp_path):
    rows = re.findall(r"^\| ([\w-]+) \| (\d+) \| ([0-9a-f]{64}) \|$", VECTORS, re.MULTILINE)
    assert [row[0] for row in rows] == ["none", "v1", "v2-long-name"]
    directory = example(tmp_path, "v1")
    for version, begin, digest in rows:
        if version != "none":
            directory = directory.rename(tmp_path / version)
            write_seal(directory, version)
        data = (directory / WEIGHTS).read_bytes()
        assert (8 + int.from_bytes(data[:8], "little"), blake3(data).hexdigest()) == (int(begin), digest)


def test_the_example_has_this_seal_and_this_digest(tmp_path):
    directory = example(tmp_path, "v1")
    sealed = write_seal(directory, "v1")
    assert (directory / SEAL_NAME).read_text().splitlines() == block("has this seal:")
    assert f"and the digest `{sealed.digest}`." in VECTORS
    assert check_directory(directory, "v1") == []


@pytest.mark.parametrize("line", block("These lines are refused:"))
def test_these_lines_are_refused(line):
    with pytest.raises(Rejection) as caught:
        parse_seal(f"{line}\n".encode())
    assert caught.value.code == "seal_invalid"


def test_the_page_names_every_file_that_a_seal_may_name():
    names = PAGE.partition("\n## Which files it names\n")[2].partition("\n## ")[0]
    for path in [*pipeline_files.REQUIRED, *pipeline_files.OPTIONAL, *pipeline_files.WEIGHTS.values()]:
        assert path.rpartition("/")[2] in names, path
    for folder in pipeline_files.OPTIONAL_FOLDERS:
        assert folder in names or folder.partition("/")[2] in names, folder


def test_the_page_has_the_limits_of_the_code():
    assert f"over {header.MAX_TENSORS:,} tensors" in PAGE.replace("\n", " ")
    assert f"multiple of {header.BLOCK}" in PAGE
    assert f"({header.MAX_VERSION} characters)" in PAGE
