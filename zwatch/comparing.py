"""`zwatch compare`: the same prompts by two versions of a running service, and a sheet of the pairs with their differences."""

import base64
import binascii
import json
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zwatch.client import Service, message
from zwatch.errors import Refused, UsageError
from zwatch.progress import Progress
from zwatch.sheets import SHEETS, Pair, make_pair

MAX_PROMPT = 10_000
"""Characters, as the service says too."""
_MOST_FILE = 2**24
_PATIENCE_SECONDS = 600.0
"""How long a full queue is waited for."""
_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What is drawn for each prompt; a side of None is the version's own."""

    models: tuple[str, str]
    seed: int
    width: int | None
    height: int | None
    steps: int | None

    def body(self, prompt: str) -> dict[str, Any]:
        """Return the body of the request for one prompt."""
        given = {"width": self.width, "height": self.height, "steps": self.steps}
        wanted = {name: value for name, value in given.items() if value is not None}
        return {"prompt": prompt, "seed": self.seed, "model": list(self.models), "format": "png", **wanted}


def compare(asked: Asked, prompts: Path, sheet: Path, service: Service, *, as_json: bool) -> int:
    """Draw every prompt of a file by both models, write the sheet, and say how far they differ.

    Raises:
        UsageError: the file or the sheet's name cannot be used, or no service answers.
        Refused: the service refused a request.
    """
    found = read_prompts(prompts)
    kind = SHEETS.get(sheet.suffix.lower())
    if kind is None:
        raise UsageError(f"-o {sheet}: expected a name that ends with {' or '.join(SHEETS)}")
    if len(found) > kind.most_pairs:
        raise UsageError(
            f"{prompts} has {len(found)} prompts, more than the {kind.most_pairs} of a {sheet.suffix} sheet: give -o sheet.html, or "
            "fewer prompts"
        )
    with kind(sheet, asked.models, asked.seed) as written, Progress("comparing", len(found), unit="pairs") as progress:
        pairs = []
        for prompt, pair in _drawn(asked, found, service):
            written.add(pair)
            pairs.append(pair)
            progress.advance(prompt[:40], 1)
    _tell(sheet, asked, pairs, as_json=as_json)
    return 0


def read_prompts(file: Path) -> list[str]:
    """Return the prompts in a file: one a line, without blank lines and the blanks around each.

    Raises:
        UsageError: there is no such file, or it has no usable prompts.
    """
    try:
        with file.open("rb") as opened:
            raw = opened.read(_MOST_FILE + 1)
    except OSError as error:
        raise UsageError(f"--prompts {file}: {error.strerror}") from None
    if len(raw) > _MOST_FILE:
        raise UsageError(f"--prompts {file}: it is longer than {_MOST_FILE // 2**20} MiB; expected one prompt a line")
    prompts = []
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            prompt = line.decode().strip()
        except UnicodeDecodeError:
            raise UsageError(f"--prompts {file}: line {number} is not UTF-8") from None
        if len(prompt) > MAX_PROMPT:
            raise UsageError(
                f"--prompts {file}: line {number} has {len(prompt)} characters, a prompt at most {MAX_PROMPT}"
            )
        prompts += [prompt] if prompt else []
    if not prompts:
        raise UsageError(f"--prompts {file}: there are no prompts in it; write one a line")
    return prompts


def _drawn(asked: Asked, prompts: list[str], service: Service) -> Iterator[tuple[str, Pair]]:
    for prompt in prompts:
        answer = _asked(service, asked.body(prompt), asked.models)
        try:
            first, second = answer["images"]
            files = tuple(base64.b64decode(one["b64_json"], validate=True) for one in (first, second))
            yield prompt, make_pair(prompt, (first["version"], second["version"]), (files[0], files[1]))
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


def _tell(sheet: Path, asked: Asked, pairs: list[Pair], *, as_json: bool) -> None:
    ratios = [pair.psnr for pair in pairs if pair.psnr is not None]
    if as_json:
        rows = [{"prompt": pair.prompt, "versions": list(pair.versions), "same": pair.is_same, "psnr": pair.finite_psnr} for pair in pairs]  # fmt: skip
        found = {"sheet": str(sheet), "models": list(asked.models), "seed": asked.seed, "pairs": rows}
        print(json.dumps(found, ensure_ascii=False))
        return
    same = sum(pair.is_same for pair in pairs)
    print(f"{sheet}: {len(pairs)} pairs of {asked.models[0]} and {asked.models[1]}, {same} of them equal")
    if finite := sorted(ratio for ratio in ratios if ratio != float("inf")):
        print(
            f"PSNR of the others: {finite[0]:.1f} to {finite[-1]:.1f} dB, median {statistics.median(finite):.1f} dB (more is more alike)"
        )
