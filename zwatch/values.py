"""What the numbers and sizes of options may be. Each parser raises ValueError with the sentence that says what was expected."""

import math
import re
from collections.abc import Callable
from pathlib import Path

_SIZE = re.compile(r"(?P<number>.*?) ?(?P<prefix>[KMGT]?)(?P<unit>IB|I|B)?", re.DOTALL)
_WHOLE = re.compile(r"\s*[+-]?[0-9]{1,19}\s*")  # not all that Python takes, such as 78_60


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return the parser of a whole number from `least` to `most`."""
    allowed = f"of at least {least}" if most is None else f"from {least} to {most}"

    def parse(text: str) -> int:
        number = int(text) if _WHOLE.fullmatch(str(text)) else least - 1
        if number < least or (most is not None and number > most):
            raise ValueError(f"expected a whole number {allowed}, got {str(text)!r}")
        return number

    return parse


def positive(unit: str) -> Callable[[str], float]:
    """Return the parser of a number above 0 of this unit. Infinity is allowed, NaN is not."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not number > 0:
            raise ValueError(f"expected a number of {unit} above 0, got {text!r}")
        return number

    return parse


def number(least: float, most: float) -> Callable[[str], float]:
    """Return the parser of a number from `least` to `most`."""

    def parse(text: str) -> float:
        if not is_number(text) or not least <= float(text) <= most:
            raise ValueError(f"expected a number from {least:g} to {most:g}, got {text!r}")
        return float(text)

    return parse


def image_size(text: str) -> tuple[int, int]:
    """Return the width and the height of an image in pixels: `1024` is 1024 x 1024, or `1024x768`."""
    sides = text.lower().split("x")
    found = [int(side) for side in sides if side.isdecimal() and side.isascii() and len(side) <= 4]
    if len(sides) > 2 or len(found) != len(sides) or any(not 16 <= side <= 2048 or side % 16 for side in found):
        raise ValueError(f"expected a multiple of 16 from 16 to 2048, or two such as 1024x768, got {text!r}")
    return found[0], found[-1]


def seconds(text: str) -> float:
    """Return a number of seconds, at least 0. Infinity is allowed, NaN is not."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not number >= 0:
        raise ValueError(f"expected a number of seconds of at least 0, got {text!r}")
    return number


def is_number(text: str) -> bool:
    """Say whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def scale(text: str) -> float:
    """Return how strong a LoRA is: a number from -100 to 100, and not 0."""
    if not is_number(text) or not 0 < abs(float(text)) <= 100:
        raise ValueError(f"expected a number from -100 to 100 that is not 0, got {text!r}")
    return float(text)


def lora(text: str) -> float | tuple[Path, float]:
    """Return what `--lora` of an import says: the scale of SOURCE, or another LoRA, FILE or FILE:SCALE."""
    if is_number(text):
        return scale(text)
    file, _, number = text.rpartition(":")
    if file and is_number(number) and not 0 < abs(float(number)) <= 100:
        raise ValueError(f"expected a scale from -100 to 100 that is not 0 behind the file's name, got {text!r}")
    found = (Path(file), float(number)) if file and is_number(number) else (Path(text), 1.0)
    if not text or not found[0].exists():
        raise ValueError(
            f"expected a scale, or a LoRA's file such as ink.safetensors:0.8, got {text!r}, which is not there"
        )
    return found


def is_lora_value(text: str) -> bool:
    """Say whether a text behind a `--lora` belongs to it: a scale, or FILE:SCALE."""
    return is_number(text.rpartition(":")[2])


def size(text: str) -> int:
    """Return a number of bytes, at least 1: `60G` and `60GiB` are 60 x 2**30, `60GB` is 60 x 10**9."""
    found = _SIZE.fullmatch(text.upper())
    assert found is not None  # any text matches
    base = 1000 if found["prefix"] and found["unit"] == "B" else 1024
    try:
        number = int(float(found["number"]) * base ** " KMGT".index(found["prefix"] or " "))
    except (ValueError, OverflowError):
        number = 0
    if number < 1 or (found["unit"] in ("I", "IB") and not found["prefix"]):
        raise ValueError(f"expected bytes such as 60G, 60GiB or 60GB, at least 1, got {text!r}")
    return number
