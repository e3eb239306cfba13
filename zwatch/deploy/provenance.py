"""Provenance: the sealed file `zwatch.json` says what a version was made from, how, by which tools, and when.

Every key may be left out. A key that is not known is an error, so that a misspelled one is noticed.
"""

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

from zwatch.errors import Rejection

NAME = "zwatch.json"
MAX_PROVENANCE = 2 * 2**20
"""Largest accepted file, bytes, as of any config: a source of ten thousand files."""
KINDS = ("diffusers", "hub", "modelscope", "single_file", "transformer", "lora", "version")
"""What a source can be: a diffusers directory, a snapshot of a Hugging Face hub cache or of ModelScope's, one file with a
component or a pipeline, the transformer of a training run, a LoRA, or another version (as `zwatch quantize` takes)."""
QUANTIZATIONS = ("fp8", "int8")
"""What weights can be quantized to."""
_MOST_ENTRIES = 10_000
_MOST_SCALE = 100.0
_SHOWN = 80
"""Most characters of a wrong value that a reason repeats."""

_HASH = re.compile(r"[0-9a-f]{64}")
_REPOSITORY = re.compile(r"[A-Za-z0-9_.-]{1,96}(/[A-Za-z0-9_.-]{1,96})?")
_VERSION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_DIRECTING = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction of the text around them: a name with one looks like another name."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a version was imported from: `kind` is one of `KINDS`, `name` a file's or directory's own name, `files` the blake3
    of each file that was read, by its path below the source."""

    kind: str
    name: str
    repository: str | None = None
    revision: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Base:
    """The version that gave what the source lacks, and the digest of its seal."""

    version: str
    digest: str


@dataclass(frozen=True, slots=True)
class MergedLora:
    """A LoRA that was merged into the transformer: its file's name and hash, and the scale."""

    name: str
    blake3: str
    scale: float


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was changed of a component: `before` and `after` are short texts, such as the dtypes F32 and BF16."""

    component: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """The content of `zwatch.json`. `default_size` is in pixels, `created` in UTC; None and empty stand for keys left out."""

    default_size: int | None = None
    source: Source | None = None
    base: Base | None = None
    loras: tuple[MergedLora, ...] = ()
    conversions: tuple[Conversion, ...] = ()
    quantization: str | None = None
    tools: Mapping[str, str] = field(default_factory=dict)
    created: datetime | None = None
    licence: str | None = None
    note: str | None = None


def parse(data: bytes) -> Provenance:
    """Parse the bytes of a `zwatch.json`.

    Raises:
        Rejection: `config_invalid`, with the key, what was found and what was expected.
    """
    if len(data) > MAX_PROVENANCE:
        raise Rejection(
            "config_invalid", f"{NAME}: found {len(data)} bytes, expected at most {MAX_PROVENANCE} for a config"
        )
    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Rejection("config_invalid", f"{NAME}: not JSON: {error}") from None
    parsed: Provenance = _TOP(found, "")
    return parsed


def read(fd: int) -> Provenance:
    """Read and parse an open `zwatch.json`.

    Raises:
        Rejection: as `parse`.
        OSError: it could not be read.
    """
    with open(fd, "rb", closefd=False) as file:
        return parse(file.read(min(os.fstat(fd).st_size, MAX_PROVENANCE) + 1))


def format(provenance: Provenance) -> bytes:  # noqa: A001 (as `parse`, it is called with the module's name)
    """Return the bytes of a `zwatch.json`: JSON with two blanks of indentation, keys in the order of the documentation, files
    and tools sorted, and without what is None or empty.

    Raises:
        Rejection: `config_invalid`: `parse` would refuse it.
    """
    text = json.dumps(as_json(provenance), indent=2, ensure_ascii=False)
    data = f"{text}\n".encode(errors="surrogatepass")  # a name that is not UTF-8: the next line refuses it
    parse(data)
    return data


def as_json(provenance: Provenance) -> dict[str, Any]:
    """Return the object that `zwatch.json` has, in the order of the documentation."""
    found: dict[str, Any] = _plain(provenance)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(value, Mapping):
        return {key: value[key] for key in sorted(value)}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if is_dataclass(value):
        found = {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
        return {_KEYS.get(name, name): one for name, one in found.items() if one not in (None, {}, [])}
    return value


_KEYS = {"before": "from", "after": "to"}
"""Fields whose key has another name: `from` is a word of Python."""

Rule = Callable[[object, str], Any]
"""Takes a value and the key that it stands under, checks it and returns what the dataclass gets."""


def _wrong(key: str, found: object, expected: str) -> NoReturn:
    if isinstance(found, dict | list):
        shown = "an object" if isinstance(found, dict) else "a list"
    else:
        shown = json.dumps(found)  # escaped: it may be shown on a terminal
        shown = shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 3]}..."
    where = f"{NAME}: {key}" if key else NAME
    raise Rejection("config_invalid", f"{where}: found {shown}, expected {expected}")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {json.dumps(twice)[:_SHOWN]} is there twice")
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _is_plain_text(text: str) -> bool:
    """Say whether a text can be shown in one line of a terminal and be encoded as UTF-8."""
    return not any(unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") or one in _DIRECTING for one in text)


def _text(most: int) -> Rule:
    def check(value: object, key: str) -> str:
        if not isinstance(value, str) or not 0 < len(value) <= most or not _is_plain_text(value):
            _wrong(key, value, f"a text of 1 to {most} characters in one line")
        return value

    return check


def _own_name(value: object, key: str) -> str:
    text: str = _text(255)(value, key)
    if "/" in text:
        _wrong(key, text, "a name without the directories above it")
    return text


def _matching(pattern: re.Pattern[str], expected: str) -> Rule:
    def check(value: object, key: str) -> str:
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            _wrong(key, value, expected)
        return value

    return check


def _choice(allowed: tuple[str, ...]) -> Rule:
    def check(value: object, key: str) -> str:
        if value not in allowed or not isinstance(value, str):
            _wrong(key, value, f"one of {', '.join(allowed)}")
        return value

    return check


def _side(value: object, key: str) -> int:
    if type(value) is not int or not 16 <= value <= 4096 or value % 16:
        _wrong(key, value, "a multiple of 16 from 16 to 4096")
    return value


def _scale(value: object, key: str) -> float:
    if type(value) not in (int, float) or not abs(value) <= _MOST_SCALE:  # type: ignore[arg-type]
        _wrong(key, value, f"a number from {-_MOST_SCALE:g} to {_MOST_SCALE:g}")
    return float(value)  # type: ignore[arg-type]


def _time(value: object, key: str) -> datetime:
    try:
        if not isinstance(value, str) or not _TIME.fullmatch(value):
            raise ValueError
        return datetime.fromisoformat(value)
    except ValueError:
        _wrong(key, value, "a time such as 2026-11-21T14:02:11Z")


def _path(value: object, key: str) -> str:
    text: str = _text(1024)(value, key)
    if any(part in ("", ".", "..") for part in text.split("/")):
        _wrong(key, text, "a path below the source")
    return text


def _mapping(names: Rule, values: Rule, most: int) -> Rule:
    def check(value: object, key: str) -> dict[str, Any]:
        if not isinstance(value, dict) or len(value) > most:
            _wrong(key, value, f"an object of at most {most} entries")
        return {names(name, key): values(one, f"{key}.{name}") for name, one in value.items()}

    return check


def _list(entries: Rule, most: int) -> Rule:
    def check(value: object, key: str) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) > most:
            _wrong(key, value, f"a list of at most {most} entries")
        return tuple(entries(one, f"{key}[{number}]") for number, one in enumerate(value))

    return check


def _object(make: Callable[..., Any], rules: Mapping[str, Rule]) -> Rule:
    """Return the rule of an object that becomes a dataclass; a key is required if its field has no default."""
    needed = {one.name for one in fields(make) if one.default is MISSING and one.default_factory is MISSING}  # type: ignore[arg-type]
    by_key = {_KEYS.get(name, name): name for name in rules}

    def check(value: object, key: str) -> Any:
        if not isinstance(value, dict):
            _wrong(key, value, "an object")
        if unknown := [name for name in value if name not in by_key]:
            _wrong(key, unknown[0], f"only the keys {', '.join(by_key)}")
        for name, one in by_key.items():
            if one in needed and name not in value:
                raise Rejection("config_invalid", f"{NAME}: {key}: has no {name}")
        prefix = f"{key}." if key else ""
        return make(**{by_key[name]: rules[by_key[name]](one, f"{prefix}{name}") for name, one in value.items()})

    return check


_hash = _matching(_HASH, "64 hex digits")
_version = _matching(_VERSION, "a version's name")

_TOP = _object(
    Provenance,
    {
        "default_size": _side,
        "source": _object(
            Source,
            {
                "kind": _choice(KINDS),
                "name": _own_name,
                "repository": _matching(_REPOSITORY, "OWNER/NAME"),
                "revision": _text(128),
                "files": _mapping(_path, _hash, _MOST_ENTRIES),
            },
        ),
        "base": _object(Base, {"version": _version, "digest": _hash}),
        "loras": _list(_object(MergedLora, {"name": _own_name, "blake3": _hash, "scale": _scale}), 100),
        "conversions": _list(
            _object(Conversion, {"component": _text(64), "before": _text(200), "after": _text(200)}), 1000
        ),
        "quantization": _choice(QUANTIZATIONS),
        "tools": _mapping(_text(64), _text(64), 100),
        "created": _time,
        "licence": _text(200),
        "note": _text(2000),
    },
)
