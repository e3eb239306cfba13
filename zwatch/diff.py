"""`zwatch diff`: finds the two versions, compares them with a bar, and prints what differs."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from zwatch.deploy.difference import (
    Advance,
    ComponentDifference,
    FileDifference,
    TensorDifference,
    VersionDifference,
    as_json,
    find_difference,
)
from zwatch.deploy.sides import Side, opened_side
from zwatch.errors import UsageError
from zwatch.progress import Progress

_LINES = 20
"""How many lines a list has without --all."""
_LONGEST = 80
"""Most characters of a config's value in a line."""


def directory_of(text: str, models: Path) -> Path:
    """Return the directory of a version: of that name in the models root, or the directory itself.

    Raises:
        UsageError: there is neither.
    """
    for path in (models / text, Path(text)) if "/" not in text.rstrip("/") else (Path(text),):
        if path.is_dir():
            return path
    raise UsageError(f"{text!r} is neither a version in {models} nor a directory; see --models")


def diff(first: str, second: str, models: Path, *, is_whole: bool, is_json: bool) -> int:
    """Compare two versions and print what differs; return the exit status: 1 if a file could not be compared.

    Raises:
        UsageError: one of them does not exist.
        OSError: one of them cannot be read.
    """
    with ExitStack() as stack:
        one, other = (stack.enter_context(opened_side(text, directory_of(text, models))) for text in (first, second))

        def begin(total: int) -> Advance:
            progress = stack.enter_context(Progress("comparing", total or None))
            lock = threading.Lock()

            def advance(what: str, count: int) -> None:
                with lock:
                    progress.advance(what, count)

            return advance

        found = find_difference(one, other, begin)
    if is_json:
        print(json.dumps(as_json(found, one, other)))  # all of it ASCII: a path may have any bytes
    else:
        print("\n".join(_text(found, one, other, None if is_whole else _LINES)))
    return 1 if found.problems else 0


def _text(found: VersionDifference, first: Side, second: Side, most: int | None) -> Iterator[str]:
    for side in (first, second):
        if side.problem is not None:
            yield f"{side.name} is compared by its files: {side.problem}"
    for name, one in found.components.items():
        yield from _component(_plain(name) if name else "other files", one, most)
    yield from map(_plain, found.problems)
    if found.moved is None:
        yield "what a deploy would move is known between sealed versions only"
    else:
        yield f"a deploy of {second.name} while {first.name} serves moves {found.moved:,} of {found.total:,} bytes of weights"


def _component(name: str, found: ComponentDifference, most: int | None) -> Iterator[str]:
    count = len(found.tensors)
    if found.is_equal:
        yield f"{name}: equal" + (f", all {found.equal_tensors} tensors" if found.equal_tensors else "")
        return
    tensors = f"{count} of {count + found.equal_tensors} tensors differ" if count else "no tensor differs"
    yield f"{name}: {tensors}" if count or found.equal_tensors else f"{name}:"
    yield from _limited([f"  {_tensor(one)}" for one in found.tensors], most)
    for file in found.files:
        yield from _file(file, most)


def _limited(lines: list[str], most: int | None) -> list[str]:
    if most is None or len(lines) <= most:
        return lines
    return [*lines[:most], f"  … and {len(lines) - most} more, see --all"]


def _tensor(one: TensorDifference) -> str:
    if one.before is None:
        return f"{_plain(one.name)}: added, {_kind(one.after)}"
    if one.after is None:
        return f"{_plain(one.name)}: missing, was {_kind(one.before)}"
    kind = _kind(one.before) if one.before == one.after else f"{_kind(one.before)} -> {_kind(one.after)}"
    if (values := one.values) is None:
        return f"{_plain(one.name)}: {kind}"
    parts = [f"{_plain(one.name)}: {kind}, {values.different / max(values.elements, 1):.3%} of the values differ"]
    for what, value in (("relative", values.relative), ("max", values.maximum), ("mean", values.mean)):
        parts.append(f"{what} {'-' if value is None else f'{value:.3g}'}")
    if any(values.not_finite):
        parts.append(f"NaN or infinite: {values.not_finite[0]} -> {values.not_finite[1]}")
    return ", ".join(parts)


def _kind(kind: tuple[str, tuple[int, ...]] | None) -> str:
    return "nothing" if kind is None else f"{kind[0]} {list(kind[1])}"


def _file(one: FileDifference, most: int | None) -> Iterator[str]:
    path = _plain(one.path)
    if one.before is None or one.after is None:
        size = one.after if one.before is None else one.before
        yield f"  {path}: {'added' if one.before is None else 'missing'}, {size:,} bytes"
    elif one.keys:
        yield from _limited(
            [f"  {path}: {_plain(key)}: {_value(before)} -> {_value(after)}" for key, before, after in one.keys], most
        )
    else:
        what = "only its formatting differs" if one.keys is not None else "its bytes differ"
        yield f"  {path}: {what}, {one.before:,} -> {one.after:,} bytes"


def _plain(text: str) -> str:
    """Return a name as a terminal may show it."""
    return text if text.isprintable() else ascii(text)


def _value(value: str | None) -> str:
    if value is None:
        return "nothing"
    return value if len(value) <= _LONGEST else f"{value[: _LONGEST - 1]}…"
