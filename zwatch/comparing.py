"""`zwatch compare`: the same prompts by two versions of a running service, and a sheet of the pairs with their differences."""

import base64
import binascii
import json
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zwatch.client import Service, message
from zwatch.deploy import prompts
from zwatch.errors import Refused, UsageError
from zwatch.progress import Progress
from zwatch.sheets import SHEETS, Pair, make_pair

_PATIENCE_SECONDS = 600.0
"""How long a full queue is waited for."""
_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What is drawn where a prompt's line does not say it; a side of None is the version's own."""

    models: tuple[str, str]
    seed: int
    width: int | None
    height: int | None
    steps: int | None

    def body(self, line: prompts.Asked) -> dict[str, Any]:
        """Return the body of the request for one line."""
        given = {"seed": self.seed, "width": self.width, "height": self.height, "steps": self.steps, **line.fields}
        wanted = {name: value for name, value in given.items() if value is not None}
        return {"prompt": line.prompt, "model": list(self.models), "format": "png", **wanted}


def compare(asked: Asked, file: Path, sheet: Path, service: Service, *, as_json: bool) -> int:
    """Draw every prompt of a file by both models, write the sheet, and say how far they differ.

    Raises:
        UsageError: the file or the sheet's name cannot be used, or no service answers.
        Refused: the service refused a request, or the sheet could not be written.
    """
    kind = SHEETS.get(sheet.suffix.lower())
    if kind is None:
        raise UsageError(f"-o {sheet}: expected a name that ends with {' or '.join(SHEETS)}")
    _check_place(sheet)
    found = prompts.read(file, prompts.DRAWN)
    if len(found) > kind.most_pairs:
        raise UsageError(
            f"{file} has {len(found)} prompts, more than the {kind.most_pairs} of a {sheet.suffix} sheet: give -o sheet.html, or "
            "fewer prompts"
        )
    pairs = []
    try:
        with (
            kind(sheet, asked.models, asked.seed) as written,
            Progress("comparing", len(found), unit="pairs") as progress,
        ):
            for line in found:
                pair = _drawn(asked, line, service)
                written.add(pair)
                pairs.append(pair)
                progress.advance(line.prompt[:40], 1)
    except OSError as error:
        raise Refused(f"-o {sheet}: it cannot be written: {error.strerror or error}") from None
    _tell(sheet, asked, found, pairs, as_json=as_json)
    return 0


def _check_place(sheet: Path) -> None:
    """Find what is wrong with the sheet's place before anything is drawn.

    Raises:
        UsageError: it cannot be written there.
    """
    if sheet.is_dir():
        raise UsageError(f"-o {sheet}: found a folder, expected the name of a file")
    if not sheet.parent.is_dir():
        raise UsageError(f"-o {sheet}: there is no folder {sheet.parent}; make it, or name another")
    if not os.access(sheet.parent, os.W_OK | os.X_OK):
        raise UsageError(f"-o {sheet}: the folder {sheet.parent} may not be written; name another")


def _drawn(asked: Asked, line: prompts.Asked, service: Service) -> Pair:
    answer = _asked(service, asked.body(line), asked.models)
    try:
        first, second = answer["images"]
        files = tuple(base64.b64decode(one["b64_json"], validate=True) for one in (first, second))
        own = ", ".join(f"{name} {value}" for name, value in line.fields.items())  # the sheet's head has the others
        return make_pair(
            f"{line.prompt} ({own})" if own else line.prompt,
            (first["version"], second["version"]),
            (files[0], files[1]),
        )
    except (KeyError, TypeError, ValueError, binascii.Error, OSError) as error:
        raise UsageError(f"the answer to /generate is not zwatch's, or an older version's ({error!r})") from None


def _asked(service: Service, body: Mapping[str, Any], models: tuple[str, str]) -> dict[str, Any]:
    """Return the service's answer; where its queue is full, try again for some minutes."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        status, answer = service.post("/generate", dict(body))
        if status == 200:
            return answer
        code = _code(answer)
        if code != "queue_full" or time.monotonic() > end:
            break
        time.sleep(_PAUSE_SECONDS)
    if code == "model_not_found":
        raise Refused(f"{message(answer)}; {_advice(service, models)}")
    raise Refused(message(answer))


def _code(answer: Mapping[str, Any]) -> str:
    error = answer.get("error")
    return str(error.get("code")) if isinstance(error, dict) else ""


def _advice(service: Service, models: tuple[str, str]) -> str:
    """Say how a version is made resident without requests: a share of 0 %."""
    versions = service.get("/versions")[1].get("versions", [])
    known = {one["name"]: one["resident"] for one in versions if isinstance(one, dict) and {"name", "resident"} <= one.keys()}  # fmt: skip
    missing = next((model for model in models if known.get(model) is False), None)
    if missing is None:
        return "name versions that are loaded, or aliases: `zwatch list` shows them"
    return f"{missing} is there, but not loaded: `zwatch share {missing} 0` holds it ready without giving it requests"


def _tell(sheet: Path, asked: Asked, lines: list[prompts.Asked], pairs: list[Pair], *, as_json: bool) -> None:
    ratios = [pair.psnr for pair in pairs if pair.psnr is not None]
    if as_json:
        rows = [
            {
                "prompt": line.prompt,
                **line.fields,
                "versions": list(pair.versions),
                "same": pair.is_same,
                "psnr": pair.finite_psnr,
            }
            for line, pair in zip(lines, pairs, strict=True)
        ]
        found = {"sheet": str(sheet), "models": list(asked.models), "seed": asked.seed, "pairs": rows}
        print(json.dumps(found, ensure_ascii=False))
        return
    same = sum(pair.is_same for pair in pairs)
    print(f"{sheet}: {len(pairs)} pairs of {asked.models[0]} and {asked.models[1]}, {same} of them equal")
    if finite := sorted(ratio for ratio in ratios if ratio != float("inf")):
        print(
            f"PSNR of the others: {finite[0]:.1f} to {finite[-1]:.1f} dB, median {statistics.median(finite):.1f} dB (more is more alike)"
        )
