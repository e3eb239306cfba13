"""What a client may ask `/generate` for, checked field by field."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from zwatch.errors import RequestError

MAX_PROMPT = 10_000
MAX_SIDE = 2048
SIDE_STEP = 16
"""The VAE shrinks 8 times, the transformer takes patches of 2 x 2 latents."""
MAX_STEPS = 100
DEFAULT_STEPS = 8
MAX_GUIDANCE = 20.0
MAX_IMAGES = 16
SEEDS = 2**63
DEFAULT_QUALITY = 92
"""Of a JPEG or WebP, of 100."""


class ImageFormat(StrEnum):
    """The formats that an image can be encoded in, by the names that requests use."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def media_type(self) -> str:
        """The format's media type, as in `Content-Type`."""
        return f"image/{self.value}"

    @property
    def suffix(self) -> str:
        """The suffix of a file's name, without the dot."""
        return "jpg" if self is ImageFormat.JPEG else self.value

    @classmethod
    def of_name(cls, name: str) -> "ImageFormat":
        """Return the format of a file by its name's suffix.

        Raises:
            ValueError: no format has this suffix.
        """
        suffix = name.rpartition(".")[2]
        return cls("jpeg" if suffix == "jpg" else suffix)


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A checked request. A side of None is the version's own default, in pixels."""

    prompt: str
    negative_prompt: str
    width: int | None
    height: int | None
    steps: int
    guidance_scale: float
    seed: int
    n: int
    format: ImageFormat
    quality: int
    model: str


def parse_json(body: bytes) -> dict[str, Any]:
    """Parse a request body, whatever its content type says.

    Raises:
        RequestError: 400 `invalid_json`.
    """
    try:
        parsed = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, "invalid_json", f"the body is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise RequestError(400, "invalid_json", f"the body must be a JSON object, got {_kind(parsed)}")
    return parsed


def refuse_unknown(body: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Refuse fields that the call does not have, so that a typing error does not pass for a default.

    Raises:
        RequestError: 400 `unknown_field`.
    """
    for name in body:
        if name not in known:
            raise RequestError(
                400,
                "unknown_field",
                f"there is no field {name[:100]!r}; there are {', '.join(known)}",
                param=name[:100],
            )


def parse_generate(body: Mapping[str, Any]) -> GenerateRequest:
    """Check the body of a `/generate`.

    Raises:
        RequestError: 400 with the field's name.
    """
    refuse_unknown(body, tuple(GenerateRequest.__dataclass_fields__))
    count = integer(body, "n", 1, 1, MAX_IMAGES)
    seed = None if body.get("seed") is None else integer(body, "seed", 0, 0, SEEDS - 1)
    if seed is not None and seed + count > SEEDS:
        raise invalid("seed", f"seed + n - 1 must stay below 2^63, got {seed} with n = {count}")
    return GenerateRequest(
        prompt=text(body, "prompt", None),
        negative_prompt=text(body, "negative_prompt", ""),
        width=_side(body, "width"),
        height=_side(body, "height"),
        steps=integer(body, "steps", DEFAULT_STEPS, 1, MAX_STEPS),
        guidance_scale=_number(body, "guidance_scale", 0.0, 0.0, MAX_GUIDANCE),
        seed=secrets.randbelow(SEEDS - count) if seed is None else seed,
        n=count,
        format=ImageFormat(_choice(body, "format", ImageFormat.PNG, tuple(ImageFormat))),
        quality=integer(body, "quality", DEFAULT_QUALITY, 1, 100),
        model=text(body, "model", "current"),
    )


def text(body: Mapping[str, Any], name: str, default: str | None) -> str:
    """Return a text field; one without a default is required and must not be empty.

    Raises:
        RequestError: 400 with the field's name.
    """
    value = body.get(name, default)
    if not isinstance(value, str):
        if name not in body:
            raise invalid(name, f"{name} is required")
        raise invalid(name, f"{name} must be a string, got {_kind(value)}")
    if default is None and not value.strip():
        raise invalid(name, f"{name} must not be empty")
    if len(value) > MAX_PROMPT:
        raise invalid(name, f"{name} may have {MAX_PROMPT} characters, got {len(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise invalid(name, f"{name} has half of a surrogate pair, which is no character") from None
    return value


def integer(body: Mapping[str, Any], name: str, default: int, least: int, most: int) -> int:
    """Return a whole number within bounds.

    Raises:
        RequestError: 400 with the field's name.
    """
    value = body.get(name, default)
    if type(value) is not int:
        raise invalid(name, f"{name} must be a whole number, got {_kind(value)}")
    if not least <= value <= most:
        raise invalid(name, f"{name} must be from {least} to {most}, got {_shortened(value)}")
    return value


def boolean(body: Mapping[str, Any], name: str, default: bool) -> bool:
    """Return true or false.

    Raises:
        RequestError: 400 with the field's name.
    """
    value = body.get(name, default)
    if type(value) is not bool:
        raise invalid(name, f"{name} must be true or false, got {_kind(value)}")
    return value


def invalid(name: str, message: str) -> RequestError:
    """Return the error for a field with a wrong value."""
    return RequestError(400, "invalid_value", message, param=name)


def _side(body: Mapping[str, Any], name: str) -> int | None:
    if name not in body:
        return None
    value = integer(body, name, 0, SIDE_STEP, MAX_SIDE)
    if value % SIDE_STEP:
        raise invalid(name, f"{name} must be a multiple of {SIDE_STEP}, got {value}")
    return value


def _number(body: Mapping[str, Any], name: str, default: float, least: float, most: float) -> float:
    value = body.get(name, default)
    if type(value) not in (int, float):
        raise invalid(name, f"{name} must be a number, got {_kind(value)}")
    if not least <= value <= most:
        raise invalid(name, f"{name} must be from {least} to {most}, got {_shortened(value)}")
    return float(value)


def _choice(body: Mapping[str, Any], name: str, default: str, choices: tuple[str, ...]) -> str:
    value = body.get(name, default)
    if value not in choices:
        raise invalid(name, f"{name} must be one of {', '.join(choices)}, got {_shortened(value)}")
    return str(value)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else kinds[type(value)]


def _shortened(value: object) -> str:
    shown = json.dumps(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
