"""The LoRAs that a request names: as a field of the native calls, and as tags in a prompt of AUTOMATIC1111's."""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from zwatch.deploy.versions import is_version_name
from zwatch.generation.fields import Rule, kind_of, refused, shortened

MAX_LORAS = 8
MAX_SCALE = 2.0
"""Scales are from minus this to this: what is far beyond 1 draws noise, and a negative one draws the opposite of a style."""
_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}"
_TAG = re.compile(r"<lora:([^<>]*)>")
_SPACES = re.compile(r"  +")
_AT_ENDS = re.compile(r" +$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class LoraWish:
    """A LoRA that a request names, and by how much its product counts."""

    name: str
    scale: float = 1.0

    @property
    def tag(self) -> str:
        """Return how AUTOMATIC1111 writes it into a prompt."""
        return f"<lora:{self.name}:{self.scale:g}>"


class LoraList(Rule):
    """A list of `{"name", "scale"}`, each name once, or the same as JSON in a form's text; null stands for none. It becomes a tuple."""

    def check(self, value: Any) -> tuple[LoraWish, ...]:
        """Return the wishes."""
        if isinstance(value, str):
            value = _parsed(value)
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            raise refused(f"must be a list such as {_EXAMPLE}, got {kind_of(value)}")
        if len(value) > MAX_LORAS:
            raise refused(f"may be a list of up to {MAX_LORAS}, got {len(value)}")
        wishes = tuple(_wish(number, one) for number, one in enumerate(value))
        if (twice := _twice(wish.name for wish in wishes)) is not None:
            raise refused(f"has {shortened(twice)} twice: give it one scale")
        return wishes

    def schema(self) -> dict[str, Any]:
        """Describe it."""
        one = {
            "type": "object",
            "properties": {
                "name": {"type": "string", "pattern": f"^{_NAME}$", "examples": ["ink"]},
                "scale": {"type": "number", "minimum": -MAX_SCALE, "maximum": MAX_SCALE, "default": 1.0},
            },
            "required": ["name"],
            "additionalProperties": False,
        }
        return {"anyOf": [{"type": "array", "items": one, "maxItems": MAX_LORAS}, {"type": "null"}]}


_EXAMPLE = '[{"name": "ink", "scale": 0.8}]'


def _parsed(text: str) -> Any:
    try:
        return json.loads(text) if text.strip() else None
    except (ValueError, RecursionError):
        raise refused(f"must be JSON such as {_EXAMPLE}") from None


def _wish(number: int, value: Any) -> LoraWish:
    where = f"[{number}]"
    if isinstance(value, LoraWish):
        return value
    if not isinstance(value, dict):
        raise refused(f'{where} must be an object such as {{"name": "ink", "scale": 0.8}}, got {kind_of(value)}')
    if (unknown := next((name for name in value if name not in ("name", "scale")), None)) is not None:
        raise refused(f"{where} has an unknown field {shortened(unknown)}; there are name and scale")
    if (name := value.get("name")) is None:
        raise refused(f"{where} has no name")
    scale = value.get("scale", 1.0)
    if not isinstance(name, str):
        raise refused(f"{where} must have a string as its name, got {kind_of(name)}")
    if (problem := name_problem(name)) is not None:
        raise refused(f"{where} {problem}")
    if type(scale) not in (int, float):
        raise refused(f"{where} must have a number as its scale, got {kind_of(scale)}")
    if (problem := scale_problem(scale)) is not None:
        raise refused(f"{where} {problem}")
    return LoraWish(name, float(scale))


def name_problem(name: str) -> str | None:
    """Return why a text cannot be the name of a LoRA; None if it can."""
    if is_version_name(name):
        return None
    return f"has the name {shortened(name)}; a LoRA's has 1-64 of A-Za-z0-9._- and begins with neither . nor -"


def scale_problem(scale: float) -> str | None:
    """Return why a number cannot be a scale; None if it can."""
    if -MAX_SCALE <= scale <= MAX_SCALE:
        return None
    # A whole number of JSON may be too great for a float.
    shown = shortened(scale) if isinstance(scale, int) else f"{scale:g}"
    return f"has the scale {shown}, it must be from {-MAX_SCALE:g} to {MAX_SCALE:g}"


def _twice(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def without_tags(prompt: str) -> tuple[str, tuple[LoraWish, ...]]:
    """Return a prompt without AUTOMATIC1111's tags, and the LoRAs that they name: `<lora:NAME>`, `<lora:NAME:SCALE>`, or with a
    second scale, which is that of the transformer (the first one is of text encoders, which have no LoRAs here). A LoRA that is named
    twice counts with the sum.

    Raises:
        ValueError: a tag is wrong; the message repeats it.
    """
    scales: dict[str, float] = {}
    for found in _TAG.finditer(prompt):
        name, scale = _read_tag(found[1], found[0])
        scales[name] = scales.get(name, 0.0) + scale
        if (problem := scale_problem(scales[name])) is not None:
            raise ValueError(f"{_shown(found[0])} {problem}")
    if len(scales) > MAX_LORAS:
        raise ValueError(f"may name up to {MAX_LORAS} LoRAs, got {len(scales)}")
    if not scales:
        return prompt, ()
    rest = _AT_ENDS.sub("", _SPACES.sub(" ", _TAG.sub("", prompt))).strip()
    return rest, tuple(LoraWish(name, scale) for name, scale in scales.items())


def _read_tag(text: str, tag: str) -> tuple[str, float]:
    name, *rest = (part.strip() for part in text.split(":"))
    if (problem := name_problem(name)) is not None:
        raise ValueError(f"{_shown(tag)} {problem}")
    named = {key.strip(): value for key, _, value in (part.partition("=") for part in rest) if value}
    places = [part for part in rest if "=" not in part]
    given = named.get("unet", places[1] if len(places) > 1 else places[0] if places else named.get("te", "1"))
    try:
        scale = float(given or "1")
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise ValueError(
            f"{_shown(tag)} has {shortened(given)} for a scale, expected a number such as <lora:{name}:0.8>"
        )
    return name, scale


def _shown(tag: str) -> str:
    return tag if len(tag) <= 100 else f"{tag[:97]}..."
