"""Files of prompts: one a line, as plain text or as a JSON object with the other fields of the image that is asked for."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zwatch.deploy import golden
from zwatch.deploy.durable import read_regular
from zwatch.errors import UsageError

MOST_BYTES = 16 * 2**20
NEWLINE = b"\n"
_FIELDS = ("prompt", "seed", "width", "height", "steps", "min_psnr", "min_ssim")


@dataclass(frozen=True, slots=True)
class Asked:
    """One line: its number, from 1, the prompt, and those of the other fields that it gives (`seed`, `width` …)."""

    line: int
    prompt: str
    fields: Mapping[str, Any]


def read(path: Path) -> list[Asked]:
    """Read a file of prompts.

    Raises:
        UsageError: it cannot be read, or a line is wrong; with the line's number.
    """
    try:
        data = read_regular(path, MOST_BYTES)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    return parse(data, str(path))


def parse(data: bytes, name: str) -> list[Asked]:
    """Parse the bytes of a file of prompts; `name` is for errors. Empty lines are skipped; a line that begins with a brace is JSON.

    Raises:
        UsageError: as `read`.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: line {data.count(NEWLINE, 0, error.start) + 1}: not UTF-8") from None
    found = [
        _parsed(name, number, line.strip())
        for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1)
        if line.strip()
    ]
    if not found:
        raise UsageError(f"{name}: it has no prompt, expected one a line")
    return found


def _parsed(name: str, number: int, line: str) -> Asked:
    fields: Any = {"prompt": line}
    if line.startswith("{"):
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(
                f"{name}: line {number}: it begins with a brace and is not JSON: {error}; a prompt that begins so is "
                'written as {"prompt": "…"}'
            ) from None
    if "prompt" not in fields:
        raise UsageError(
            f"{name}: line {number}: prompt: found nothing, expected {golden.field_problem('prompt', None)}"
        )
    for field, value in fields.items():
        if field not in _FIELDS:
            raise UsageError(
                f"{name}: line {number}: {field[:60]!r} is an unknown field, expected {', '.join(_FIELDS)}"
            )
        if (expected := golden.field_problem(field, value)) is not None:
            raise UsageError(f"{name}: line {number}: {field}: found {json.dumps(value)[:60]}, expected {expected}")
    return Asked(number, fields["prompt"], {field: value for field, value in fields.items() if field != "prompt"})
