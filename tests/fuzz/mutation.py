"""Changes of inputs: of bytes, of the lines of texts, and of values in JSON, which random bytes rarely leave valid."""

import json
from random import Random
from typing import Any

_VALUES = (
    None, True, False, 0, 1, -1, 2, 16, 64, 65, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), 10**30, 0.0, -0.0, 0.5,
    1.0, 1e308, float("nan"), float("inf"), "", " ", "v1", "\ud800", "\0", "é", "\ufffd", "一", "x" * 300, "F32", "BF16", "F4", "current",
    [], {}, [0, 0], [0, 4], [[]],
)  # fmt: skip
_PIECES = (
    b"\0", b"\xff", b"\n", b"\r\n", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"  ", b"/", b"..", b"%", b"=", b"&", b"\xef\xbb\xbf",
    b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\xef\xbf\xbd", b"\\ud800", b"1e999", b"NaN", b"-0", b"9" * 30, b"Steps: 8, ", b"Negative prompt:",
    b"--X", b"--X--", b'Content-Disposition: form-data; name="prompt"\r\n\r\n', b"a" * 64, b"tEXt", b"iTXt", b"zTXt",
)  # fmt: skip


class _Pairs(list):
    """An object of JSON, in which a key may stand twice."""


def mutated(data: bytes, random: Random, prefix: int = 1) -> bytes:
    """Return changed bytes. The first `prefix` bytes name what the rest is, and rarely change."""
    for _ in range(random.choice((1, 1, 2, 3, 5))):
        choice = random.random()
        if choice < 0.5 and (changed := _changed_json(data[prefix:], random)) is not None:
            data = data[:prefix] + changed
        elif choice < 0.75:
            data = data[:prefix] + _changed_lines(data[prefix:], random)
        else:
            data = _changed_bytes(data, random, 0 if random.random() < 0.1 else prefix)
    return data


def _changed_json(text: bytes, random: Random) -> bytes | None:
    """Return the text with some value changed; None if it is not JSON."""
    try:
        value = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        return None
    places = list(_places(value))
    if not places:
        return _dumped(random.choice(_VALUES)).encode("utf-8", "surrogatepass")
    container, at = random.choice(places)
    is_object = isinstance(container, _Pairs)
    old = container[at][1] if is_object else container[at]
    action = random.randrange(6)
    if action == 0:
        del container[at]
    elif action == 1:
        container.insert(random.randrange(len(container) + 1), container[at])
    elif action == 2 and is_object:
        container[at] = (str(random.choice((*_VALUES, *(key for key, _ in container)))), old)
    elif action == 3:
        other, there = random.choice(places)
        taken = other[there][1] if isinstance(other, _Pairs) else other[there]
        container[at] = (container[at][0], taken) if is_object else taken
        if _is_circular(value):
            return None
    else:
        new = old + random.choice((-1, 1, 4, 2**32)) if type(old) is int and action == 4 else random.choice(_VALUES)
        container[at] = (container[at][0], new) if is_object else new
    try:
        return _dumped(value).encode("utf-8", "surrogatepass")
    except RecursionError:
        return None


def _places(value: Any) -> Any:
    if isinstance(value, list):
        for at, one in enumerate(value):
            yield value, at
            yield from _places(one[1] if isinstance(value, _Pairs) else one)


def _is_circular(value: Any, above: tuple[int, ...] = ()) -> bool:
    if not isinstance(value, list):
        return False
    inside = (one[1] for one in value) if isinstance(value, _Pairs) else value
    return id(value) in above or any(_is_circular(one, (*above, id(value))) for one in inside)


def _dumped(value: Any) -> str:
    if isinstance(value, _Pairs):
        return "{" + ", ".join(f"{json.dumps(key)}: {_dumped(one)}" for key, one in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_dumped, value)) + "]"
    return json.dumps(value)


def _changed_lines(text: bytes, random: Random) -> bytes:
    separator = random.choice((b"\n", b"\n", b"\r\n", b", ", b"&", b"\0"))
    lines = text.split(separator)
    at = random.randrange(len(lines))
    action = random.randrange(4)
    if action == 0:
        del lines[at]
    elif action == 1:
        lines.insert(random.randrange(len(lines) + 1), lines[at])
    elif action == 2:
        other = random.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    else:
        lines[at] = _changed_bytes(lines[at], random, 0)
    return separator.join(lines)


def _changed_bytes(data: bytes, random: Random, begin: int) -> bytes:
    at = random.randrange(begin, len(data) + 1) if len(data) >= begin else len(data)
    action = random.randrange(4)
    if action == 0:
        return data[:at] + random.choice(_PIECES) + data[at:]
    if action == 1:
        return data[:at] + data[at + random.choice((1, 1, 2, 8)) :]
    if action == 2:
        return data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]
    return data[:at] + random.choice(_PIECES) + data[at + random.randrange(1, 9) :]
