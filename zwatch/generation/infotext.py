"""The text that AUTOMATIC1111 writes into images: prompts, and pairs of names and values in its last line."""

import json
import re

_LAST_LINE = re.compile(r"Steps: [0-9]+, ")
_PAIR = re.compile(r'\s*+([\w/-][\w /-]*+):\s*+("(?:\\.|[^\\"])*+"|[^,]*+)(?:,|$)')
"""Possessive quantifiers: a file may hold a megabyte of text that almost matches, which would backtrack for minutes."""
_SIZE = re.compile(r"([0-9]+)x([0-9]+)")
_NEGATIVE = "Negative prompt:"


def parse_infotext(infotext: str) -> dict[str, str]:
    """Parse AUTOMATIC1111's text: return the prompts and the pairs of its last line, all as strings."""
    if not infotext.strip():
        return {}
    lines = infotext.strip().split("\n")
    last = lines.pop() if _LAST_LINE.match(lines[-1]) else ""
    begin = next((number for number, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    negative = "\n".join(lines[begin:]).removeprefix(_NEGATIVE)
    found = {"Prompt": "\n".join(lines[:begin]).strip(), "Negative prompt": negative.strip()}
    position = 0
    while (pair := _PAIR.match(last, position)) is not None:
        name, value, position = pair[1].strip(), pair[2].strip(), pair.end()
        found[name] = _unquoted(value)
        if (size := _SIZE.fullmatch(value)) is not None:
            found[f"{name}-1"], found[f"{name}-2"] = size.groups()
    return found


def _unquoted(value: str) -> str:
    try:
        return str(json.loads(value)) if value.startswith('"') else value
    except ValueError:
        return value
