"""Lists of objects in a form: `loras[][name]=ink`, `loras[][scale]=0.8`, as the `openai` package sends what is in `extra_body`."""

import json
import re
from collections.abc import Container, Iterable, Iterator

from zwatch.generation.fields import invalid

_MEMBER = re.compile(r"(\w{1,64})\[\]\[(\w{1,64})\]")


def with_lists(pairs: Iterable[tuple[str, str | bytes]], fields: Container[str]) -> Iterator[tuple[str, str | bytes]]:
    """Yield the pairs of a form; the members of a list of objects, if it is one of `fields`, as one pair with the list as JSON.

    Raises:
        RequestError: 400, the objects have not the same members, so that it is not known which belong together.
    """
    lists: dict[str, dict[str, list[object]]] = {}
    for name, value in pairs:
        found = _MEMBER.fullmatch(name)
        if found is None or found[1] not in fields or isinstance(value, bytes):
            yield name, value
        else:
            lists.setdefault(found[1], {}).setdefault(found[2], []).append(_value(value))
    for name, members in lists.items():
        if len({len(values) for values in members.values()}) > 1:
            counts = ", ".join(f"{len(values)} of {member}" for member, values in members.items())
            raise invalid(name, f"{name} has {counts}: give each of them all, or send {name} as JSON in a text")
        yield name, json.dumps([dict(zip(members, one, strict=True)) for one in zip(*members.values(), strict=True)])


def _value(text: str) -> object:
    """Return a number as a number, anything else as it is."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found if type(found) in (int, float) else text
