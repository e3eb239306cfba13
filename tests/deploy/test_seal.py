"""The seal: its rules over paths and lines, and versions that differ from it."""

import os
import shutil
import socket
import stat

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.deploy.factory import AS_ROOT, VAE, WEIGHTS, framed, reseal_by_hand, weights, write_version
from tests.descriptors import assert_none_left, descriptors
from zwatch.deploy import seal
from zwatch.deploy.seal import SEAL_NAME, SIGNATURE_NAME
from zwatch.deploy.verifying import check_directory
from zwatch.errors import Rejection, Retry

HASH = "ab" * 32
OTHER = "cd" * 32


@pytest.fixture
def version(tmp_path):
    return write_version(tmp_path, "v2")


def read(directory):
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return seal.read_seal(fd)
    finally:
        os.close(fd)


def refusal(directory):
    with pytest.raises(Rejection) as caught:
        read(directory)
    return caught.value


# Lines.


def test_a_seal_is_hashes_by_path_and_its_digest_is_the_blake3_of_its_bytes():
    data = f"{HASH}  a.json\n{OTHER}  transformer/b c.safetensors\n".encode()
    found = seal.parse_seal(data)
    assert found.files == {"a.json": HASH, "transformer/b c.safetensors": OTHER}
    assert found.digest == blake3(data).hexdigest()


LINES = {
    "a digit that is no hex": (f"{'xy' * 32}  b", "expected 64 hex digits, two spaces and a path"),
    "a hash too short": (f"{HASH[:-1]}  b", "expected 64 hex digits"),
    "a hash too long": (f"{HASH}a  b", "expected 64 hex digits"),
    "upper case hex": (f"{HASH.upper()}  b", "expected 64 hex digits"),
    "one space": (f"{HASH} b", "expected 64 hex digits, two spaces"),
    "binary mode's star": (f"{HASH} *b", "expected 64 hex digits, two spaces"),
    "no path": (f"{HASH}  ", "two spaces and a path"),
    "an empty line": ("", "expected 64 hex digits"),
    "a comment": ("# made by hand", "found '# made by hand'"),
    "a path upwards": (f"{HASH}  ../v1/b", "'../v1/b' is not a normalised path below the version"),
    "a path upwards in the middle": (f"{HASH}  a/../../b", "is not a normalised path"),
    "a path that ends upwards": (f"{HASH}  a/..", "is not a normalised path"),
    "a dot": (f"{HASH}  ./b", "'./b' is not a normalised path"),
    "a doubled slash": (f"{HASH}  a//b", "'a//b' is not a normalised path"),
    "a slash at the end": (f"{HASH}  a/", "'a/' is not a normalised path"),
    "an absolute path": (f"{HASH}  /etc/passwd", "'/etc/passwd' is absolute; sealed paths are relative"),
    "a second time": (f"{HASH}  first", "'first' is listed a second time"),
    "a second time, other hash": (f"{OTHER}  first", "'first' is listed a second time"),
    "a carriage return": (f"{HASH}  b\r", "has a control character or a backslash"),
    "a backslash": (f"{HASH}  a\\b", "has a control character or a backslash"),
    "a NUL": (f"{HASH}  a\0b", "has a control character"),
    "a character for which b3sum refuses a seal": (f"{HASH}  a\ufffdb", "has the replacement character U+FFFD"),
    "what b3sum reads from its standard input": (f"{HASH}  -", "is what b3sum takes for its standard input"),
    "the seal itself": (f"{HASH}  {SEAL_NAME}", "is the seal itself or its signature"),
    "the signature": (f"{HASH}  {SIGNATURE_NAME}", "is the seal itself or its signature"),
}


@pytest.mark.parametrize(("line", "words"), LINES.values(), ids=LINES)
def test_a_bad_line_is_refused_with_its_number(line, words):
    with pytest.raises(Rejection) as caught:
        seal.parse_seal(f"{HASH}  first\n{line}\n{HASH}  last\n".encode())
    assert caught.value.code == "seal_invalid"
    assert f"{SEAL_NAME} line 2: " in caught.value.reason
    assert words in caught.value.reason


@pytest.mark.parametrize("line", ["x" * 10**6, f"{HASH}  ../{'x' * 10**6}", f"{HASH}  {'x' * 10**6}\n" * 2])
def test_a_reason_stays_short_for_any_line(line):
    with pytest.raises(Rejection) as caught:
        seal.parse_seal(f"{line}\n".encode())
    assert len(caught.value.reason) < 1000


def test_bytes_that_are_not_utf8_are_refused_with_their_line():
    with pytest.raises(Rejection, match=f"{SEAL_NAME} line 2: not UTF-8 at byte 72") as caught:
        seal.parse_seal(f"{HASH}  first\n".encode() + b"\xff\xfe\n")
    assert caught.value.code == "seal_invalid"


def test_a_last_line_that_does_not_end_is_refused_as_a_copy_in_progress():
    with pytest.raises(Rejection, match=f"{SEAL_NAME} line 2: the last line has no line end; is the copy complete"):
        seal.parse_seal(f"{HASH}  first\n{HASH}  sec".encode())


def test_an_empty_seal_is_refused_with_what_to_do():
    with pytest.raises(Rejection, match=f"{SEAL_NAME} is empty; run `zwatch seal`") as caught:
        seal.parse_seal(b"")
    assert caught.value.code == "seal_invalid"


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\\ufffd"), min_size=1, max_size=6)
PATHS = (
    st.lists(NAMES.filter(lambda name: name not in (".", "..")), min_size=1, max_size=3)
    .map("/".join)
    .filter(lambda path: path != "-")
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(PATHS, st.binary(min_size=32, max_size=32).map(bytes.hex), min_size=1, max_size=5))
def test_a_formatted_seal_parses_to_the_same_files_sorted_by_path(files):
    found = seal.parse_seal(seal.format_seal(files))
    assert found.files == files
    assert list(found.files) == sorted(files)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.lists(PATHS | st.just("../x"), max_size=3).map(
    lambda paths: "".join(f"{HASH}  {path}\n" for path in paths).encode()
))  # fmt: skip
def test_random_bytes_are_parsed_or_refused(data):
    found = refused = None
    try:
        found = seal.parse_seal(data)
    except Rejection as rejection:
        refused = rejection
    if refused is not None:
        assert refused.code == "seal_invalid"
        return
    assert found.files
    assert not any(part in ("", ".", "..") for path in found.files for part in path.split("/"))


# Reading a seal that is not what it should be.


def test_a_missing_seal_is_refused_with_what_to_do(version):
    (version / SEAL_NAME).unlink()
    refused = refusal(version)
    assert (refused.code, refused.retry) == ("seal_missing", Retry.NEVER)
    assert refused.reason == f"there is no {SEAL_NAME}; run `zwatch seal`"


def make_fifo(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as unix:
        here = os.open(path.parent, os.O_RDONLY)
        unix.bind(f"/proc/self/fd/{here}/{path.name}")  # a socket's own path is at most 107 bytes long
        os.close(here)


def make_device(path):
    if not AS_ROOT:
        pytest.skip("needs root")
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("needs the right to make a device")


KINDS = {
    "a symlink": lambda path: path.symlink_to("config.json"),
    "a FIFO": make_fifo,
    "a socket": make_socket,
    "a device": make_device,
    "a directory": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_seal_that_is_not_a_regular_file_is_refused(version, kind):
    (version / SEAL_NAME).unlink()
    KINDS[kind](version / SEAL_NAME)
    refused = refusal(version)
    assert refused.code == "seal_invalid"
    assert refused.reason == f"{SEAL_NAME}: expected a regular file, found {kind}"


def test_a_seal_over_16_mb_is_refused(version):
    with open(version / SEAL_NAME, "wb") as file:
        file.truncate(seal.MAX_SEAL + 1)
    refused = refusal(version)
    assert refused.code == "seal_invalid"
    assert "longer than 16777216 bytes" in refused.reason


# Sealed files that are not what they should be.


def opening(directory, path):
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with seal.opened_file(fd, path) as file:
            return os.pread(file, 100, 0)
    finally:
        os.close(fd)


def test_a_sealed_file_is_opened_below_the_version(version):
    assert opening(version, "transformer/config.json") == b"{}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_sealed_path_that_is_not_a_regular_file_is_refused_by_its_kind(version, kind):
    path = version / "transformer" / "odd"
    KINDS[kind](path)
    with pytest.raises(Rejection) as caught:
        opening(version, "transformer/odd")
    assert caught.value.code == "file_not_regular"
    assert caught.value.reason == f"transformer/odd: expected a regular file, found {kind}"


@pytest.mark.parametrize("kind", ["a symlink", "a FIFO", "a regular file"])
def test_a_folder_of_a_sealed_path_that_is_not_a_directory_is_refused_by_its_kind(version, kind):
    shutil.rmtree(version / "vae")
    if kind == "a regular file":
        (version / "vae").touch()
    else:
        KINDS[kind](version / "vae")
    with pytest.raises(Rejection) as caught:
        opening(version, "vae/diffusion_pytorch_model.safetensors")
    assert caught.value.code == "file_not_regular"
    assert caught.value.reason == f"vae/diffusion_pytorch_model.safetensors: vae is {kind}, expected a directory"


def test_a_symlinked_folder_is_not_followed_even_inside_the_version(version):
    (version / "transformer").rename(version / "real")
    (version / "transformer").symlink_to("real")
    with pytest.raises(Rejection, match="transformer is a symlink, expected a directory"):
        opening(version, WEIGHTS)


@pytest.mark.parametrize("path", ["gone.json", "gone/config.json", "vae/gone.json"])
def test_a_sealed_file_that_is_not_there_is_refused(version, path):
    with pytest.raises(Rejection) as caught:
        opening(version, path)
    assert (caught.value.code, caught.value.retry) == ("file_missing", Retry.ON_CHANGE)
    assert caught.value.reason == f"{path}: the seal names it, it is not there"


def test_opening_sealed_files_leaks_no_descriptor(version):
    os.mkfifo(version / "vae" / "pipe")
    before = descriptors()
    for path in ("gone", "gone/x", "vae/pipe", "vae", WEIGHTS):
        try:
            opening(version, path)
        except Rejection:
            continue
    assert_none_left(before)


def findings(directory, name="v2"):
    found = check_directory(directory, name)
    assert len(found) == 1, found
    return found[0]


def test_a_file_of_other_bytes_is_found_with_both_hashes(version):
    path = version / "model_index.json"
    expected = blake3(path.read_bytes()).hexdigest()
    path.write_text("[]")
    reason = findings(version)
    assert reason == f"model_index.json: blake3 is {blake3(b'[]').hexdigest()}, the seal says {expected}"


@pytest.mark.parametrize("change", [-1, 1], ids=["shorter", "longer"])
def test_a_file_of_another_length_is_found(version, change):
    size = (version / WEIGHTS).stat().st_size
    os.truncate(version / WEIGHTS, size + change)
    assert WEIGHTS in findings(version)


def test_every_file_that_differs_is_found(version):
    (version / "model_index.json").unlink()
    (version / "transformer" / "config.json").write_text("[]")
    found = check_directory(version, "v2")
    assert len(found) == 2
    assert found[0].startswith("model_index.json: the seal names it")
    assert found[1].startswith("transformer/config.json: blake3 is")


def test_the_right_hashes_of_the_wrong_version_are_found(tmp_path):
    write_version(tmp_path, "v1").rename(tmp_path / "v2")
    assert "the header has version 'v1', the directory is 'v2'" in findings(tmp_path / "v2")


def test_a_sealed_header_that_is_bad_is_found(version):
    data = framed({"a": {"dtype": "U8", "shape": [9], "data_offsets": [0, 4]}}, b"1234")
    (version / VAE).write_bytes(data)
    lines = (version / SEAL_NAME).read_text().splitlines()
    assert lines[-1].endswith("  vae/diffusion_pytorch_model.safetensors")
    lines[-1] = f"{blake3(data).hexdigest()}  vae/diffusion_pytorch_model.safetensors"
    reseal_by_hand(version, *lines)
    assert findings(version) == "vae/diffusion_pytorch_model.safetensors: tensor 'a' spans 4 bytes, U8 [9] needs 9"


def test_a_seal_that_names_no_transformer_is_found(version):
    line = next(line for line in (version / SEAL_NAME).read_text().splitlines() if line.endswith("model_index.json"))
    reseal_by_hand(version, line)
    assert findings(version) == f"{SEAL_NAME}: names no transformer/*.safetensors"


def test_a_file_that_the_seal_does_not_name_is_no_finding(version):
    (version / "README.md").write_text("added later")
    (version / "vae" / "extra.safetensors").write_bytes(weights())
    assert check_directory(version, "v2") == []


def test_a_bad_seal_is_the_only_finding(version):
    reseal_by_hand(version, f"{HASH}  ../v1/{WEIGHTS}")
    assert findings(version).startswith(f"{SEAL_NAME} line 1: '../v1/")
