"""`zwatch generate`: ask a service for pictures, show how far it is, write them, and show them where the terminal can."""

import base64
import binascii
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zwatch import service_commands
from zwatch.client import Service
from zwatch.errors import UsageError, ZwatchError, status_of
from zwatch.generating import terminal
from zwatch.generating.asking import Picture, body_of, read_file
from zwatch.generating.events import Drawing, Event, Refused
from zwatch.generating.output import SUFFIXES, Output, format_of, name_for

STANDARD = "-"
"""Standard input or output instead of a file."""


@dataclass(frozen=True)
class Asked:
    """What was asked for: the fields of the request, its pictures (a path, `-`, or a text such as `history:NAME`), and the output."""

    fields: Mapping[str, Any]
    pictures: Mapping[str, str | Path]
    output: str | None
    replaces: bool
    as_json: bool
    is_shown: bool

    @property
    def count(self) -> int:
        """How many pictures there will be."""
        models = self.fields.get("model")
        return (self.fields.get("n") or 1) * (len(models) if isinstance(models, list) else 1)


def generate(asked: Asked, *, url: str, token: str | None) -> int:
    """Fulfil a `zwatch generate`; return its exit status.

    Raises:
        UsageError: it cannot be asked for so, or no service answers.
        ZwatchError: a picture cannot be written.
    """
    fields, output = _completed(asked), _output(asked)
    body = body_of(fields, _pictures(asked))
    screen = terminal.find() if asked.is_shown and not asked.as_json and asked.output != STANDARD else None
    try:
        with Drawing(Service(url, token), *body) as drawing:
            done = _followed(drawing)
    except Refused as refusal:
        return service_commands.answer("/generate", 400, refusal.body, as_json=asked.as_json)
    except KeyboardInterrupt as interrupt:
        return service_commands.failed("interrupted; the request is cancelled", status_of(interrupt))
    try:
        return _deliver(done, asked, fields, output, screen)
    except (KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise UsageError(
            f"the answer to /generate is not zwatch's, or another version's ({error!r}); see --url"
        ) from None


def _completed(asked: Asked) -> dict[str, Any]:
    """Return the fields of the request, with the text of standard input as the prompt if that is `-`, and the format that the
    output's name asks for."""
    fields, named = dict(asked.fields), None
    readers = [name for name, value in {"PROMPT": fields["prompt"], **asked.pictures}.items() if value == STANDARD]
    if len(readers) > 1:
        raise UsageError(f"{' and '.join(readers)} are both {STANDARD!r}: standard input can be only one of them")
    if fields["prompt"] == STANDARD:
        fields["prompt"] = sys.stdin.buffer.read().decode("utf-8", "replace").strip()
    if asked.output not in (None, STANDARD) and not (path := Path(str(asked.output))).is_dir():
        named = format_of(path)
    if named is not None and fields.get("format") not in (None, named):
        raise UsageError(f"--format is {fields['format']}, but the name {asked.output} asks for {named}")
    return {**fields, "format": fields.get("format") or named}


def _pictures(asked: Asked) -> dict[str, Picture]:
    found: dict[str, Picture] = {}
    for name, given in asked.pictures.items():
        if given == STANDARD:
            found[name] = sys.stdin.buffer.read()
        else:
            found[name] = read_file(given) if isinstance(given, Path) else given
    return found


def _output(asked: Asked) -> Output | None:
    """Return where the pictures go; None: to standard output, as they are or in the JSON of the answer."""
    if asked.output == STANDARD:
        if asked.count > 1 or asked.as_json:
            what = "JSON" if asked.as_json else f"{asked.count} pictures"
            raise UsageError(f"standard output takes one picture, not {what}: give --output the name of a file")
        if sys.stdout.isatty():
            raise UsageError("standard output is a terminal: give --output the name of a file, or redirect it")
        return None
    if asked.output is None and asked.as_json:
        return None
    if asked.output is not None and asked.output.endswith("/") and not Path(asked.output).is_dir():
        raise UsageError(f"{asked.output}: there is no such directory")
    output = Output(None if asked.output is None else Path(asked.output), asked.count, replaces=asked.replaces)
    output.check()
    return output


def _followed(drawing: Drawing) -> dict[str, Any]:
    """Return the data of the last event. On a terminal, the progress is shown."""
    if not sys.stderr.isatty():
        return [data for _, data in drawing][-1]
    from zwatch.progress import Progress  # tqdm, for a terminal only

    with Progress("zwatch", unit="step") as progress:
        progress.step("asking")
        for event in drawing:
            _show(progress, event)
    return event[1]


def _show(progress: Any, event: Event) -> None:
    match event:
        case "queued", {"position": int(before)}:
            progress.step(f"queued, {before} before it" if before else "next")
        case "step", {"step": int(step), "steps": int(steps)}:
            progress.update(step, steps, "drawing" if step < steps else "decoding")


def _deliver(
    done: dict[str, Any],
    asked: Asked,
    fields: Mapping[str, Any],
    output: Output | None,
    screen: terminal.Screen | None,
) -> int:
    """Write the pictures, print what they are, and show them."""
    files = [base64.b64decode(image["b64_json"]) for image in done["images"]]
    if output is None and not asked.as_json:
        sys.stdout.buffer.write(files[0])
        sys.stdout.buffer.flush()
        _print(_line(STANDARD, done, done["images"][0]), to_errors=True)
        return 0
    for number, (image, file) in enumerate(zip(done["images"], files, strict=True)):
        if output is None:
            continue
        name = name_for(image.get("name"), image["seed"], SUFFIXES[fields.get("format") or "png"])
        try:
            path = output.write(number, file, name)
        except ZwatchError as error:
            kept = f"; the picture is kept by the service, at {image['url']}" if image.get("url") else ""
            raise ZwatchError(f"{error}{kept}") from None
        image["file"] = str(path)
        del image["b64_json"]
        if not asked.as_json:
            _print(_line(str(path), done, image))
            _display(screen, file)
    if asked.as_json:
        print(json.dumps(done, ensure_ascii=False))
    if done.get("truncated"):
        _print("the prompt is longer than the text encoder reads; its end has no effect", to_errors=True)
    return 0


def _line(path: str, done: Mapping[str, Any], image: Mapping[str, Any]) -> str:
    """Return the line about a picture: its file, what drew it, and how long all of them took."""
    version = image.get("version") or done["version"]
    loras = "".join(f", {one['name']} x {one['scale']:g}" for one in done.get("loras") or ())
    width, height = image.get("width", done.get("width")), image.get("height", done.get("height"))
    return f"{path}: {version}{loras}, seed {image['seed']}, {width} x {height}, {done['timings']['total']:.2f} s"


def _display(screen: terminal.Screen | None, file: bytes) -> None:
    if screen is None:
        return
    try:
        picture = terminal.shown(screen, file)
    except OSError:  # Pillow does not know it; it is written, that is what counts
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(picture)
    sys.stdout.buffer.flush()


def _print(line: str, *, to_errors: bool = False) -> None:
    print(line, file=sys.stderr if to_errors else sys.stdout)
