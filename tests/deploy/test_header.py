"""Strict reading of safetensors headers, and the version stamp."""

import json
import os
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save_file

from tests.deploy.factory import framed, tensor, weights
from zwatch.deploy import header
from zwatch.errors import Rejection, Retry

LONGEST_REASON = 1000  # characters; it goes into a status and a log line


@contextmanager
def as_file(data):
    fd = os.memfd_create("weights")
    try:
        os.write(fd, data)
        yield fd
    finally:
        os.close(fd)


def read(data, path="transformer/x.safetensors"):
    with as_file(data) as fd:
        return header.read_header(fd, path)


def refusal(data):
    with pytest.raises(Rejection) as caught:
        read(data)
    return caught.value


def assert_covers(found, size):
    """Every byte behind the header belongs to exactly one tensor."""
    position = found.data_start
    for info in sorted(found.tensors.values(), key=lambda info: (info.begin, info.end)):
        assert info.begin == position
        position = info.end
    assert position == size == found.file_size


ARRAYS = {
    "bool": np.array([True, False]),
    "u8": np.arange(7, dtype=np.uint8),
    "i16": np.arange(-3, 3, dtype=np.int16).reshape(2, 3),
    "f16": np.ones((2, 2), np.float16),
    "f32": np.linspace(0, 1, 6, dtype=np.float32).reshape(1, 2, 3),
    "f64": np.array(2.5),
    "i64": np.array([2**62], np.int64),
    "empty": np.zeros((0, 4), np.float32),
    "ein Grüß, ☃": np.zeros(3, np.int8),
}


def test_a_file_written_by_safetensors_is_read_to_the_same_tensors(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(ARRAYS, path, metadata={"version": "v7", "format": "np"})
    data = path.read_bytes()
    found = read(data)
    assert found.metadata == {"version": "v7", "format": "np"}
    assert found.version == "v7"
    assert found.raw == data[: found.data_start]
    assert set(found.tensors) == set(ARRAYS)
    for name, array in ARRAYS.items():
        info = found.tensors[name]
        assert info.shape == array.shape
        assert data[info.begin : info.end] == array.tobytes()
    assert_covers(found, len(data))


@pytest.mark.parametrize("dtype", sorted(header.ITEM_BITS))
def test_every_dtype_has_the_size_that_safetensors_gives_it(dtype):
    size = 6 * header.ITEM_BITS[dtype] // 8
    data = framed({"x": tensor(0, size, dtype, [2, 3])}, bytes(size))
    [(name, theirs)] = deserialize(data)
    ours = read(data).tensors[name]
    assert (ours.dtype, list(ours.shape), ours.end - ours.begin) == (dtype, theirs["shape"], len(theirs["data"]))


def test_a_file_without_tensors_or_metadata_is_accepted():
    found = read(framed("{}"))
    assert (found.tensors, found.metadata, found.version) == ({}, {}, None)


def test_spaces_behind_the_json_are_accepted():
    assert set(read(framed('{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}   ', b"x")).tensors) == {"a"}


ONE = json.dumps(tensor(0, 4))
BAD = {
    "an empty file": (b"", "0 bytes, too short"),
    "less than a length": (b"\x01\0\0", "3 bytes, too short"),
    "a header over 16 MB": ((header.MAX_HEADER + 1).to_bytes(8, "little") + b"{}", "16777217 bytes long, the limit is"),
    "a header longer than the file": ((100).to_bytes(8, "little") + b"{}", "100 bytes long, the file has only 10"),
    "the largest length": (b"\xff" * 8 + b"{}", "the limit is 16777216"),
    "a header of no bytes": (framed(b""), "not JSON"),
    "text that is no JSON": (framed("hello"), "not JSON"),
    "JSON cut short": (framed('{"a": '), "not JSON"),
    "two JSON texts": (framed("{}{}"), "not JSON"),
    "bytes that are no UTF-8": (framed(b'{"\xff": 1}'), "not JSON"),
    "a byte order mark": (framed(b"\xef\xbb\xbf{}"), "not JSON"),
    "brackets without end": (framed("[" * 200_000), "not JSON"),
    "a number of 5,000 digits": (framed('{"a": ' + "9" * 5000 + "}"), "not JSON"),
    "a list": (framed("[]"), "JSON list, expected an object"),
    "a number": (framed("7"), "JSON int, expected an object"),
    "the same tensor twice": (framed(f'{{"a": {ONE}, "a": {ONE}}}', b"1234"), "key 'a' twice"),
    "the same tensor, once escaped": (framed(f'{{"a": {ONE}, "\\u0061": {ONE}}}', b"1234"), "key 'a' twice"),
    "two versions": (framed('{"__metadata__": {"version": "v1", "version": "v2"}}'), "key 'version' twice"),
    "two equal versions": (framed('{"__metadata__": {"version": "v1", "version": "v1"}}'), "key 'version' twice"),
    "__metadata__ twice": (framed('{"__metadata__": {}, "__metadata__": {}}'), "key '__metadata__' twice"),
    "dtype twice": (framed('{"a": {"dtype": "U8", "dtype": "I8"}}'), "key 'dtype' twice"),
    "metadata that is no object": (framed('{"__metadata__": []}'), "__metadata__ must be an object of strings"),
    "metadata with a number": (framed('{"__metadata__": {"version": 2}}'), "__metadata__ must be an object of strings"),
    "a tensor that is no object": (framed('{"a": 1}'), "'a' must have exactly dtype, shape and data_offsets"),
    "a tensor without a shape": (framed('{"a": {"dtype": "U8", "data_offsets": [0, 0]}}'), "'a' must have exactly"),
    "a tensor with more": (framed({"a": tensor(0, 0) | {"x": 1}}), "'a' must have exactly"),
    "an unknown dtype": (framed({"a": tensor(0, 4, "F33")}, b"1234"), "'a' has the unknown dtype 'F33'"),
    "a dtype below a byte": (framed({"a": tensor(0, 1, "F4", [2])}, b"1"), "unknown dtype 'F4'"),
    "a dtype that is no string": (framed({"a": tensor(0, 4) | {"dtype": ["U8"]}}, b"1234"), "unknown dtype ['U8']"),
    "a negative size": (framed({"a": tensor(0, 4, shape=[-1, -4])}, b"1234"), "'a' has the shape [-1, -4]"),
    "a size that is a fraction": (framed({"a": tensor(0, 4, shape=[4.0])}, b"1234"), "'a' has the shape [4.0]"),
    "a size that is true": (framed({"a": tensor(0, 1, shape=[True])}, b"1"), "'a' has the shape [True]"),
    "a size of not-a-number": (framed('{"a": {"dtype": "U8", "shape": [NaN], "data_offsets": [0, 0]}}'), "the shape"),
    "a shape that is no list": (framed({"a": tensor(0, 4) | {"shape": 4}}, b"1234"), "'a' has the shape 4"),
    "offsets in the wrong order": (framed({"a": tensor(4, 0, shape=[4])}, b"1234"), "'a' has the data_offsets [4, 0]"),
    "three offsets": (framed({"a": tensor(0, 4) | {"data_offsets": [0, 2, 4]}}, b"1234"), "data_offsets [0, 2, 4]"),
    "a negative offset": (framed({"a": tensor(-4, 0, shape=[4])}, b"1234"), "data_offsets [-4, 0]"),
    "an offset beyond 63 bits": (framed({"a": tensor(0, 2**63)}, b""), "'a' has the"),
    "bytes that are not shape x dtype": (framed({"a": tensor(0, 4, "F32", [2])}, b"1234"), "'a' spans 4 bytes, F32 [2]"),
    "a size that overflows 64 bits": (framed({"a": tensor(0, 0, shape=[2**32, 2**32])}), "'a' spans 0 bytes"),
    "a size of 5,000 digits": (framed({"a": tensor(0, 4, shape=[2**62] * 300)}, b"1234"), "'a' "),
    "half of a surrogate pair in a name": (framed('{"\\ud800": ' + ONE + "}", b"1234"), "half of a surrogate pair"),
    "half of a surrogate pair in the metadata": (framed('{"__metadata__": {"version": "\\udc00"}}'), "half of a surrogate"),
    "a size of minus zero": (framed('{"a": {"dtype": "U8", "shape": [-0], "data_offsets": [0, 0]}}'), "-0 is no size"),
    "an empty tensor of a size beyond 64 bits": (framed({"a": tensor(0, 0, shape=[2**62, 2**62, 0])}), "which no file can hold"),
    "tensors that overlap": (framed({"a": tensor(0, 4), "b": tensor(2, 6)}, b"123456"), "'b' overlaps"),
    "a tensor inside another": (framed({"a": tensor(0, 6), "b": tensor(2, 4)}, b"123456"), "'b' overlaps"),
    "two tensors of the same bytes": (framed({"a": tensor(0, 4), "b": tensor(0, 4)}, b"1234"), "'b' overlaps"),
    "a gap between tensors": (framed({"a": tensor(0, 2), "b": tensor(4, 6)}, b"123456"), "'b' leaves a gap"),
    "a gap before the first": (framed({"a": tensor(2, 6)}, b"123456"), "'a' leaves a gap"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "words"), BAD.values(), ids=BAD)
def test_a_bad_header_is_refused_with_the_path_and_what_is_wrong(data, words):
    refused = refusal(data)
    assert refused.code == "header_invalid"
    assert refused.retry is Retry.ON_CHANGE
    assert refused.reason.startswith("transformer/x.safetensors: ")
    assert words in refused.reason


UNSIZED = {
    "bytes behind the last tensor": (framed({"a": tensor(0, 4)}, b"12345"), 1),
    "bytes behind a header of none": (framed("{}", b"12345"), 5),
    "a tensor beyond the end": (framed({"a": tensor(0, 4)}, b"12"), -2),
    "no tensor bytes at all": (framed({"a": tensor(0, 4)}), -4),
}


@pytest.mark.parametrize(("data", "over"), UNSIZED.values(), ids=UNSIZED)
def test_a_file_that_its_header_does_not_cover_is_refused_with_both_sizes(data, over):
    refused = refusal(data)
    assert refused.code == "size_mismatch"
    assert "transformer/x.safetensors" in refused.reason
    assert f"{len(data)} bytes" in refused.reason
    assert f"accounts for {len(data) - over}" in refused.reason


def test_100_000_tensors_are_accepted_and_one_more_is_not():
    entry = json.dumps(tensor(0, 0))
    text = ", ".join(f'"{number}": {entry}' for number in range(header.MAX_TENSORS))
    assert len(read(framed(f"{{{text}}}")).tensors) == header.MAX_TENSORS
    assert "100001 tensors, the limit is 100000" in refusal(framed(f'{{{text}, "x": {entry}}}')).reason


def test_a_header_of_exactly_16_mb_is_accepted():
    assert read(framed(b"{}" + b" " * (header.MAX_HEADER - 2))).tensors == {}


def test_a_file_that_shrinks_while_its_header_is_read_is_refused(monkeypatch):
    data = weights()
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, count, offset: pread(fd, count, offset) if offset < 8 else b"")
    assert "ends inside its header" in refusal(data).reason


LONG = "x" * 100_000
WORDY = {
    "dtype": framed({"a": tensor(0, 0, LONG)}),
    "dtype that is a list": framed({"a": tensor(0, 0) | {"dtype": list(range(10_000))}}),
    "shape": framed({"a": tensor(0, 0, shape=[-1] * 10_000)}),
    "shape of right sizes": framed({"a": tensor(0, 0, shape=[1] * 10_000)}),
    "data_offsets": framed({"a": tensor(0, 0) | {"data_offsets": [0] * 10_000}}),
    "name": framed({LONG: 1}),
    "key twice": framed(f'{{"{LONG}": 1, "{LONG}": 1}}'),
}


@pytest.mark.parametrize("data", WORDY.values(), ids=WORDY)
def test_a_reason_stays_short_for_any_header(data):
    assert len(refusal(data).reason) < LONGEST_REASON


def test_a_reason_stays_short_for_any_version_in_the_header():
    with pytest.raises(Rejection) as caught:
        header.check_version(read(weights(version=LONG)), "v2", "transformer/x.safetensors")
    assert len(caught.value.reason) < LONGEST_REASON


@pytest.mark.parametrize(
    ("stamped", "words"),
    [(None, "the header has no version"), ("v1", "the header has version 'v1'"), ("", "version ''")],
)
def test_a_file_with_no_or_another_version_is_refused_with_what_to_do(stamped, words):
    with pytest.raises(Rejection) as caught:
        header.check_version(read(weights(version=stamped)), "v2", "transformer/x.safetensors")
    assert caught.value.code == "version_mismatch"
    assert "transformer/x.safetensors" in caught.value.reason
    assert words in caught.value.reason
    assert "the directory is 'v2'" in caught.value.reason
    assert "run `zwatch seal`" in caught.value.reason


def test_a_file_with_the_directory_s_version_passes():
    header.check_version(read(weights(version="v2")), "v2", "transformer/x.safetensors")


@pytest.mark.parametrize(
    ("path", "carries"),
    [
        ("transformer/diffusion_pytorch_model.safetensors", True),
        ("transformer/diffusion_pytorch_model-00001-of-00002.safetensors", True),
        ("transformer/config.json", False),
        ("text_encoder/model.safetensors", False),
        ("vae/transformer/model.safetensors", False),
        ("transformer.safetensors", False),
    ],
)
def test_only_the_transformer_s_weights_carry_the_version(path, carries):
    assert header.carries_version(path) is carries


# Fuzz: for any bytes, the result is a header that covers the file, or a Rejection.

JSONS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5) | st.just("F32"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
SIZES = st.integers(-2, 9) | st.sampled_from([2**31, 2**62, 2**63, 2**64])
TENSORS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*header.ITEM_BITS, "F4", "f32", ""]) | JSONS,
        "shape": st.lists(SIZES, max_size=4) | JSONS,
        "data_offsets": st.lists(SIZES, min_size=2, max_size=2) | JSONS,
    }
)
TABLES = st.dictionaries(st.sampled_from(["a", "b", "c", "\ud800"]), TENSORS | JSONS, max_size=3)


def check_whatever(data):
    found = refused = None
    try:
        found = read(data)
    except Rejection as rejection:
        refused = rejection
    if refused is not None:
        assert refused.code in ("header_invalid", "size_mismatch")
        assert len(refused.reason) < LONGEST_REASON
        return
    assert_covers(found, len(data))
    assert found.raw + data[found.data_start :] == data


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_are_read_or_refused(data):
    check_whatever(data)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=100), st.binary(max_size=20))
def test_random_header_texts_are_read_or_refused(text, data):
    check_whatever(framed(text, data))


@settings(max_examples=150, deadline=None)
@given(TABLES, st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2) | JSONS, st.binary(max_size=20))
def test_random_tables_are_read_or_refused(table, metadata, data):
    check_whatever(framed(table | {"__metadata__": metadata}, data))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_changed_good_file_is_read_or_refused_and_what_is_read_safetensors_reads_too(data):
    mutated = bytearray(weights(version="v1"))
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.integers(0, len(mutated) - 1))
        mutated[where : where + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        if not mutated:
            break
    check_whatever(bytes(mutated))
    try:
        ours = read(bytes(mutated))
    except Rejection:
        return
    try:
        theirs = dict(deserialize(bytes(mutated)))
    except SafetensorError:
        return  # it may be stricter than we are, never laxer about what we accept
    assert {name: bytes(mutated[info.begin : info.end]) for name, info in ours.tensors.items()} == {
        name: bytes(entry["data"]) for name, entry in theirs.items()
    }
