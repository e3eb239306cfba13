"""`zwatch.json`: what is accepted, what is refused and with which words."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zwatch.deploy import provenance
from zwatch.deploy.provenance import Base, Conversion, MergedLora, Provenance, Source
from zwatch.errors import Rejection

HASH = "0123456789abcdef" * 4
FULL = Provenance(
    default_size=1024,
    source=Source(
        "hub", "f332072aa78be7aecdf3ee76d5c247082da564a6", "Tongyi-MAI/Z-Image-Turbo", "main", {"ae.sft": HASH}
    ),
    base=Base("v1", HASH),
    loras=(MergedLora("ink.safetensors", HASH, 0.8),),
    conversions=(Conversion("transformer", "F32", "BF16"),),
    quantization="fp8",
    tools={"torch": "2.11.0", "zwatch": "0.1.0"},
    created=datetime(2026, 11, 21, 14, 2, 11, tzinfo=UTC),
    licence="apache-2.0",
    note="für 画",
)


def refused(data: bytes) -> str:
    with pytest.raises(Rejection) as caught:
        provenance.parse(data)
    assert caught.value.code == "config_invalid"
    assert caught.value.reason.startswith("zwatch.json: ")
    assert caught.value.reason.isprintable()
    return caught.value.reason


def test_what_is_written_is_read_as_it_was():
    data = provenance.format(FULL)
    assert provenance.parse(data) == FULL
    assert provenance.format(provenance.parse(data)) == data
    assert data.decode().startswith('{\n  "default_size": 1024,\n  "source": {\n    "kind": "hub"')
    assert "für 画" in data.decode()


def test_what_is_not_known_is_left_out():
    assert provenance.format(Provenance()) == b"{}\n"
    assert provenance.format(Provenance(source=Source("lora", "ink.safetensors"))).count(b":") == 3


def test_a_time_of_another_zone_is_written_in_utc():
    there = datetime(2026, 11, 21, 15, 2, 11, tzinfo=timezone(timedelta(hours=1)))
    assert provenance.parse(provenance.format(replace(FULL, created=there))) == FULL


def test_nothing_is_written_that_would_be_refused():
    for wrong in (
        replace(FULL, default_size=100),
        replace(FULL, note="two\nlines"),
        replace(FULL, source=Source("hub", "\udcff")),
        replace(FULL, loras=(MergedLora("ink", HASH, float("nan")),)),
    ):
        with pytest.raises(Rejection):
            provenance.format(wrong)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("[]", "found a list, expected an object"),
        ("null", "found null, expected an object"),
        ('{"default_size": 64, "default_size": 128}', 'the key "default_size" is there twice'),
        ('{"source": {"kind": "hub", "kind": "lora", "name": "x"}}', 'the key "kind" is there twice'),
        ('{"default_sise": 64}', 'found "default_sise", expected only the keys default_size, source'),
        ('{"source": {"kind": "hub", "name": "x", "path": "/home"}}', 'source: found "path", expected only the keys kind'),
        ('{"default_size": 100}', "default_size: found 100, expected a multiple of 16 from 16 to 4096"),
        ('{"default_size": true}', "default_size: found true"),
        ('{"default_size": NaN}', "not JSON: NaN is no number"),
        ('{"default_size": ' + "9" * 5000 + "}", "not JSON"),
        ('{"source": {"kind": "hub"}}', "source: has no name"),
        ('{"source": {"kind": "hub", "name": "/home/me/x"}}', 'source.name: found "/home/me/x", expected a name without the dir'),
        ('{"source": {"kind": "torrent", "name": "x"}}', 'source.kind: found "torrent", expected one of diffusers, hub'),
        ('{"source": {"kind": ["hub"], "name": "x"}}', "source.kind: found a list"),
        ('{"source": {"kind": "hub", "name": "x", "repository": "a/b/c"}}', "source.repository: "),
        ('{"source": {"kind": "hub", "name": "x", "files": {"../x": "' + HASH + '"}}}', "expected a path below the source"),
        ('{"source": {"kind": "hub", "name": "x", "files": {"x": "abc"}}}', 'source.files.x: found "abc", expected 64 hex'),
        ('{"base": {"version": "../v1", "digest": "' + HASH + '"}}', "base.version: "),
        ('{"loras": [{"name": "x", "blake3": "' + HASH + '", "scale": 1e999}]}', "loras[0].scale: found Infinity"),
        ('{"loras": [{"name": "x", "blake3": "' + HASH + '", "scale": true}]}', "loras[0].scale: found true"),
        ('{"loras": {}}', "loras: found an object, expected a list"),
        ('{"conversions": ["bf16"]}', 'conversions[0]: found "bf16", expected an object'),
        ('{"conversions": [{"component": "vae", "from": "F32", "after": "BF16"}]}', 'found "after", expected only the keys'),
        ('{"quantization": "gguf"}', "expected one of fp8, int8"),
        ('{"tools": {"torch": 2}}', "tools.torch: found 2"),
        ('{"created": "2026-13-01T00:00:00Z"}', "expected a time such as 2026-11-21T14:02:11Z"),
        ('{"created": "2026-11-01T00:00:00+01:00"}', "created: "),
        ('{"licence": ""}', "a text of 1 to 200 characters"),
        ('{"note": "\\u001b[2J"}', r'note: found "\u001b[2J"'),
        ('{"note": "\\ud800"}', r'note: found "\ud800"'),
        ('{"note": "a\\u202eb"}', r'note: found "a\u202eb"'),
        ('{"note": "' + "x" * 2001 + '"}', "..."),
        ('{"\\ud800": 1}', r'found "\ud800"'),
        ("[" * 100_000, "not JSON"),
        ('{"note": ' * 500 + "1" + "}" * 500, "note: found an object"),
    ],
)  # fmt: skip
def test_each_mistake_is_refused_with_its_key(text, words):
    assert words in refused(text.encode())


_KEYS = ["default_size", "source", "kind", "name", "files", "base", "version", "digest", "loras", "scale", "conversions", "from", "to",
         "component", "tools", "created", "licence", "blake3", "x"]  # fmt: skip
_LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from(["hub", HASH, "v1", "2026-11-21T14:02:11Z"])
)  # fmt: skip


@given(
    st.recursive(
        _LEAVES, lambda some: st.lists(some) | st.dictionaries(st.sampled_from(_KEYS) | st.text(), some), max_leaves=20
    )
)
@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_whatever_is_in_the_file_it_is_read_or_refused_and_what_is_read_is_written_as_it_was(value):
    data = json.dumps(value).encode()
    try:
        found = provenance.parse(data)
    except Rejection:
        refused(data)
    else:
        assert provenance.parse(provenance.format(found)) == found


def test_only_utf8_of_a_limited_size_is_read():
    assert "not JSON" in refused(json.dumps({"default_size": 64}).encode("utf-16"))
    assert "not JSON" in refused(b'{"note": "\xff"}')
    assert "expected at most" in refused(b" " * (provenance.MAX_PROVENANCE + 1))
