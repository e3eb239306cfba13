"""Files of prompts: one a line, as plain text or as a JSON object with the other fields of the image that is asked for."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zwatch.deploy import golden
from zwatch.errors import UsageError

MOST_BYTES = 16 * 2**20
NEWLINE = b"\n"
DRAWN = ("prompt", "seed", "width", "height", "steps")
"""The fields that say what is drawn."""
FIELDS = (*DRAWN, "min_psnr", "min_ssim")
"""All of them: the last two say how like it a golden image must be."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One line: its number, from 1, the prompt, and those of the other fields that it gives (`seed`, `width` …)."""

    line: int
    prompt: str
    fields: Mapping[str, Any]


def read(path: Path, allowed: Collection[str] = FIELDS) -> list[Asked]:
    """Read a file of prompts, or a pipe of them. `allowed` are the fields that a line may have here.

    Raises:
        UsageError: it cannot be read, or a line is wrong; with the line's number.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"--prompts {path}: {error.strerror or error}; expected a text file with one prompt a line"
        ) from None
    if len(data) > MOST_BYTES:
        raise UsageError(
            f"--prompts {path}: found more than {MOST_BYTES // 2**20} MiB, expected a text file with one prompt a line"
        )
    return parse(data, f"--prompts {path}", allowed)


def parse(data: bytes, name: str, allowed: Collection[str] = FIELDS) -> list[Asked]:
    """Parse the bytes of a file of prompts; `name` is for errors. Empty lines are skipped; a line that begins with a brace is JSON.

    Raises:
        UsageError: as `read`.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: line {data.count(NEWLINE, 0, error.start) + 1}: not UTF-8") from None
    found = [
        _parsed(f"{name}: line {number}", number, line.strip(), allowed)
        for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1)
        if line.strip()
    ]
    if not found:
        raise UsageError(f"{name}: it has no prompt, expected one a line")
    return found


def _parsed(where: str, number: int, line: str, allowed: Collection[str]) -> Asked:
    fields: Any = {"prompt": line}
    if line.startswith("{"):
        try:
            fields = json.loads(line, object_pairs_hook=golden.no_duplicates)
        except (ValueError, RecursionError) as error:
            raise UsageError(
                f"{where}: it begins with a brace and is no JSON object: {error}; a prompt that begins so is written as "
                '{"prompt": "…"}'
            ) from None
    if "prompt" not in fields:
        raise UsageError(f"{where}: prompt: found nothing, expected {golden.field_problem('prompt', None)}")
    for field, value in fields.items():
        if field not in FIELDS:
            raise UsageError(f"{where}: {field[:60]!r} is an unknown field, expected {', '.join(allowed)}")
        if field not in allowed:
            raise UsageError(f"{where}: {field} has no meaning here, only for `zwatch golden`; remove it")
        if (expected := golden.field_problem(field, value)) is not None:
            raise UsageError(f"{where}: {field}: found {json.dumps(value)[:60]}, expected {expected}")
    return Asked(number, fields["prompt"], {field: value for field, value in fields.items() if field != "prompt"})
