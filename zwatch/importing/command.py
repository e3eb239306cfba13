"""`zwatch import` and `zwatch quantize` on a terminal: what it says, and its result."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from zwatch.config import lora_root
from zwatch.deploy.oserrors import user_name
from zwatch.deploy.signals import Ending
from zwatch.errors import Refused, UsageError
from zwatch.importing.loras import run_lora
from zwatch.importing.place import Place
from zwatch.importing.plans import Wish
from zwatch.importing.quantizing import quantize
from zwatch.importing.run import Imported, run

if TYPE_CHECKING:
    from zwatch.signing.keys import SigningKey


def import_version(
    source: Path, name: str, *, models: Path, base: str | None, dtype: str, keep_dtype: bool, lora: Sequence[float | tuple[Path, float]], loras: Path | None, key_file: Path | None, as_json: bool, deploys: bool, ending: Ending
) -> None:  # fmt: skip
    """Import a source, and print what was made: a version, or a LoRA where `lora` says that the source is one and there is no base.
    Signals wait from its rename on. `deploys`: standard output is for what comes after it, if that is JSON.

    Raises:
        Refused: it cannot be imported.
        UsageError: the key cannot be used.
        OSError: a file could not be read or written.
        KeyboardInterrupt: a signal ended it; there is no version.
    """
    begun = time.monotonic()
    wish = Wish(name, None if keep_dtype else dtype, *_loras(lora))
    if base is None and wish.lora_scale is not None and not wish.loras:
        _check_lora(wish, deploys=deploys)
        root = lora_root(models, loras)
        with _making(root, name, "LoRA"):
            made = run_lora(source, root, models, wish, _say, ending, _key(key_file))
        _print(made, "imported the LoRA", time.monotonic() - begun, as_json=as_json)
        return
    with _making(models, name):
        made = run(source, models, wish, base, _say, ending, _key(key_file))
    _print(made, "imported", time.monotonic() - begun, as_json=as_json, deploys=deploys)


def _loras(given: Sequence[float | tuple[Path, float]]) -> tuple[float | None, tuple[tuple[Path, float], ...]]:
    """Return the scale of the source, if it is a LoRA, and the LoRAs beside it, each with its scale."""
    scales = [one for one in given if not isinstance(one, tuple)]
    if len(scales) > 1:
        raise UsageError(
            f"--lora gives the scale of SOURCE {len(scales)} times; another LoRA is --lora=FILE or --lora FILE:SCALE"
        )
    return (scales[0] if scales else None), tuple(one for one in given if isinstance(one, tuple))


def _check_lora(wish: Wish, *, deploys: bool) -> None:
    if wish.lora_scale != 1.0:
        raise UsageError(
            f"--lora {wish.lora_scale:g} without --base: a LoRA that is kept for requests has no scale, each request says its own; "
            "leave the scale out, or name the version to merge it into: --base VERSION"
        )
    if deploys:
        raise UsageError("--deploy: a LoRA is not deployed, requests name it; leave --deploy out")


def quantize_version(
    version: str, name: str, *, kind: str, models: Path, key_file: Path | None, as_json: bool, ending: Ending
) -> None:
    """Quantize a version, and print what was made.

    Raises:
        Refused, UsageError, OSError, KeyboardInterrupt: as `import_version`.
    """
    begun = time.monotonic()
    with _making(models, name):
        made = quantize(version, models, name, kind, _say, ending, _key(key_file))
    _print(made, f"{version} in {kind} as", time.monotonic() - begun, as_json=as_json)


@contextmanager
def _making(models: Path, name: str, kind: str = "version") -> Iterator[None]:
    """Make a version inside: first its name must be free; an interruption is answered with what is left."""
    place = Place(models, name, kind)
    place.refuse_existing()  # before anything is looked at, which may take long
    try:
        yield
    except PermissionError as error:
        raise Refused(f"{error.filename or models}: {error.strerror}: {user_name()} may not access it; give this user access, or import as another") from None  # fmt: skip
    except KeyboardInterrupt:
        _say(f"interrupted; no {kind} was made; {place.remark if place.is_left else 'nothing is left'}")
        raise


def _key(file: Path | None) -> "SigningKey | None":
    if file is None:
        return None
    from zwatch.signing.commands import signing_key

    return signing_key(file)


def _print(made: Imported, what: str, seconds: float, *, as_json: bool, deploys: bool = False) -> None:
    line = (
        f"{made.directory}: {what} {made.directory.name}, {len(made.sealed.files)} files, {_came(made)}, "
        f"digest {made.sealed.digest}"
    )
    if made.signer is not None:
        line += f", signed by {made.signer}"
    if not as_json:
        print(line)
    elif deploys:
        _say(line)
    else:
        print(json.dumps(_as_json(made, seconds), ensure_ascii=False))


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _came(made: Imported) -> str:
    """Say where the bytes came from."""
    parts = [f"{made.written:,} bytes written"]
    if made.cloned:
        parts.append(f"{made.cloned:,} in blocks shared with their source")
    if made.kept:
        parts.append(f"{made.kept:,} kept of an interrupted import")
    parts += [f"{size:,} of the base by {how}" for how, size in made.shared.items()]
    return ", ".join(parts)


def _as_json(made: Imported, seconds: float) -> dict[str, object]:
    return {
        made.kind: made.directory.name,
        "digest": made.sealed.digest,
        "files": len(made.sealed.files),
        "written": made.written,
        "cloned": made.cloned,
        "kept": made.kept,
        "shared": made.shared,
        "notes": made.notes,
        "signer": made.signer,
        "seconds": round(seconds, 3),
    }
