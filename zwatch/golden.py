"""`zwatch golden`: draws a version's golden images with the version itself, and seals it again with them."""

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zwatch.deploy import golden, sealing
from zwatch.deploy.durable import read_regular, sync_entries, write_durably
from zwatch.deploy.golden import Picture
from zwatch.deploy.look import has_version, open_version
from zwatch.deploy.prompts import Asked
from zwatch.deploy.resolving import Directory, FileStamp
from zwatch.deploy.seal import Known, Seal, read_seal
from zwatch.deploy.signals import Ending
from zwatch.errors import Refused, Rejection, UsageError
from zwatch.progress import Progress

if TYPE_CHECKING:
    from zwatch.engine.pipeline import Engine
    from zwatch.signing.keys import SigningKey

_RACY_NS = 10**9
"""As `zwatch.shadow.verified_files.RACY_NS`: a file that changed so shortly before it was read is read again."""
_MODE = 0o644


@dataclass(frozen=True, slots=True)
class Wish:
    """What the images have where their line does not say it; sides in pixels, None for the version's own default size."""

    size: tuple[int, int] | None
    steps: int
    seed: int
    min_psnr: float | None
    min_ssim: float | None
    """None for a floor: it is measured."""


@dataclass(frozen=True, slots=True)
class _Drawn:
    """The images and their files by path, and what the load has told: the seal, and what the files were like before it read them."""

    pictures: tuple[Picture, ...]
    files: Mapping[str, bytes]
    seal: Seal
    stamps: Mapping[str, FileStamp | None]


def make(
    models: Path, name: str, asked: Sequence[Asked], wish: Wish, *, replaces: bool, device: str, options: Mapping[str, Any],
    key: "SigningKey | None", as_json: bool, ending: Ending,
) -> None:  # fmt: skip
    """Draw the golden images that are asked for, seal the version with them, and print what was done; `options` are those of
    `zwatch.engine.opening.open_factory`.

    Raises:
        Refused, Rejection: the version cannot be loaded or sealed, or has golden images and nothing `replaces` them.
        UsageError: an image is larger than the version draws.
        OSError: a file could not be read or written.
        KeyboardInterrupt: a signal ended it. The version is as it was.
    """
    begun = time.monotonic()
    directory = models / name
    if not has_version(models, name):
        what = "is a link; name the version that it leads to" if directory.is_symlink() else "there is no such version"
        raise Refused(f"{directory}: {what}")
    if len(asked) > golden.MOST_IMAGES:
        raise UsageError(f"found {len(asked)} prompts, expected at most {golden.MOST_IMAGES}")
    with sealing.naming(directory), sealing.locked(directory):
        sealing.check_writable(directory)
        before = _present(directory, replaces=replaces)
        with Progress("golden images") as progress:
            drawn = _drawn(models, name, asked, wish, device, options, progress, ending)
        sealed = _put(directory, drawn, ending)
        _remove(directory, {*before, *_old(drawn.seal)})
        lines = _signed(directory, name, sealed, key)
    _print(directory, drawn, sealed, lines, time.monotonic() - begun, as_json=as_json)


def _present(directory: Path, *, replaces: bool) -> list[str]:
    """Return the paths of the golden images that a version has, as far as its golden.json is right.

    Raises:
        Refused: it has some and nothing `replaces` them, or what is there cannot be replaced; with what to type.
    """
    folder, file = directory / golden.FOLDER, directory / golden.NAME
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
        raise Refused(
            f"{folder}: expected a folder, found {'a link' if folder.is_symlink() else 'a file'}; move it away"
        )
    again = f"run `zwatch seal {directory}`, which seals the version without golden images"
    try:
        data = _golden_json(directory)
    except ValueError as error:
        raise Refused(f"{file}: {error}; move it away and {again}") from None
    if data is None:
        if golden.NAME in _seal(directory).files:
            raise Refused(f"{file}: the seal names it, it is not there; put it back, or {again}")
        return []
    try:
        pictures = golden.parse(data)
    except Rejection as rejection:
        if replaces:
            return []
        raise Refused(f"{directory}: {rejection.reason}; give --force to replace it") from None
    if not replaces:
        raise Refused(f"{directory}: it has {len(pictures)} golden images; give --force to replace them")
    return [picture.image for picture in pictures]


def _golden_json(directory: Path) -> bytes | None:
    """Return the bytes of a version's golden.json; None if there is none.

    Raises:
        ValueError: it is not a regular file, or it is too large.
    """
    try:
        return read_regular(directory / golden.NAME, golden.MOST_JSON)
    except FileNotFoundError:
        return None


def _seal(directory: Path) -> Seal:
    opened = open_version(directory.parent, directory.name)
    try:
        return read_seal(opened.fd)
    finally:
        opened.close()


def _old(sealed: Seal) -> list[str]:
    """Return the golden images that a seal names, by where `zwatch golden` writes them."""
    return [path for path in sealed.files if path.startswith(f"{golden.FOLDER}/") and path.endswith(".png")]


def _drawn(
    models: Path, name: str, asked: Sequence[Asked], wish: Wish, device: str, options: Mapping[str, Any],
    progress: Progress, ending: Ending,
) -> _Drawn:  # fmt: skip
    """Load the version, as `zwatch check` does, and draw the images; measure the floors that nobody said."""
    from zwatch.engine.rounding import make_ready

    opened = open_version(models, name)
    try:
        engine, seal = _loaded(opened, device, options, progress)
    finally:
        opened.close()
    pictures, files = [], {}
    planned = _pictures(asked, wish, seal, engine)
    progress.step("preparing")
    make_ready(engine, ending.check)
    for number, (picture, one) in enumerate(zip(planned, asked, strict=True), 1):
        progress.step(f"drawing {number} of {len(planned)}")
        files[picture.image] = data = _png(engine, picture, one, ending.check)
        pictures.append(_floored(engine, picture, one, wish, data, ending.check))
    return _Drawn(tuple(pictures), files, seal, engine.plan.stamps)


def _floored(
    engine: "Engine", picture: Picture, asked: Asked, wish: Wish, data: bytes, check: Callable[[], None]
) -> Picture:  # fmt: skip
    """Return an image with its floors: those of its line, else those that were asked for, else measured."""
    from zwatch.engine.rounding import measured

    given = {"min_psnr": wish.min_psnr, "min_ssim": wish.min_ssim, **asked.fields}
    said_psnr, said_ssim = given["min_psnr"], given["min_ssim"]
    if said_psnr is not None and said_ssim is not None:
        return picture
    least_psnr, least_ssim = golden.floors(*measured(engine, picture, data, check))
    return replace(
        picture,
        min_psnr=least_psnr if said_psnr is None else float(said_psnr),
        min_ssim=least_ssim if said_ssim is None else float(said_ssim),
    )


def _loaded(opened: Directory, device: str, options: Mapping[str, Any], progress: Progress) -> "tuple[Engine, Seal]":
    from zwatch.engine.golden import GoldenImages
    from zwatch.engine.opening import open_factory
    from zwatch.shadow.control import LoadControl

    seal = read_seal(opened.fd)
    progress.step("opening the device")
    factory = open_factory(device, **options)
    control = LoadControl(lambda: progress.update(control.bytes_done, control.bytes_total, "reading"))
    planned = factory.plan(opened, seal.digest, control)
    # golden.json may be wrong, and is made anew.
    rest = {path: digest for path, digest in seal.files.items() if path != golden.NAME}
    engine = factory.build(opened, replace(planned, seal=replace(planned.seal, files=rest)), control)
    engine.golden = GoldenImages()  # those that it has are made anew
    progress.step("warming")
    factory.warm(engine, control)
    return engine, seal


def _pictures(asked: Sequence[Asked], wish: Wish, sealed: Seal, engine: "Engine") -> tuple[Picture, ...]:
    """Return what is to be drawn. An image gets a name that the present seal does not have: what it names stays until the new one is
    written. Floors that have to be measured are not yet those."""
    width, height = wish.size or (engine.default_size, engine.default_size)
    least_psnr, least_ssim = (
        floor if said is None else said
        for floor, said in zip(golden.FLOORS, (wish.min_psnr, wish.min_ssim), strict=True)
    )
    usual = {"seed": wish.seed, "width": width, "height": height, "steps": wish.steps, "min_psnr": least_psnr, "min_ssim": least_ssim}  # fmt: skip
    free = (name for number in count(1) if (name := f"{golden.FOLDER}/{number}.png") not in sealed.files)
    found = []
    for one, image in zip(asked, free, strict=False):
        picture = Picture(prompt=one.prompt, image=image, **{**usual, **one.fields})
        if (side := max(picture.width, picture.height)) > engine.max_side:
            raise UsageError(
                f"line {one.line}: a side of {side} pixels is asked for, this version draws {engine.max_side} at most"
            )
        found.append(picture)
    return tuple(found)


def _png(engine: "Engine", picture: Picture, asked: Asked, check: Callable[[], None]) -> bytes:
    """Draw an image and return its file."""
    from zwatch.engine.comparing import parameters
    from zwatch.engine.warmup import fault_of
    from zwatch.generation.png import write_png

    with engine.device.beside():
        generation = engine.generate(parameters(picture), on_step=lambda done: check())
    if (fault := fault_of(generation)) is not None:
        raise Refused(f"line {asked.line}: {fault.reason.replace('the warm-up image', 'the image')}")
    return write_png(generation.images[0])


def _put(directory: Path, drawn: _Drawn, ending: Ending) -> Seal:
    """Write the images and golden.json, and seal the version with them; where that fails, all is as it was."""
    before = _golden_json(directory)
    (directory / golden.FOLDER).mkdir(exist_ok=True)
    try:
        for path, data in drawn.files.items():  # no seal names them yet
            ending.check()
            write_durably((directory / path).parent, Path(path).name, data, mode=_MODE)
        write_durably(directory, golden.NAME, golden.format_json(drawn.pictures), mode=_MODE)
        plan = sealing.prepare(directory, directory.name)
        with Progress("sealing", plan.size) as progress:
            return sealing.carry_out(plan, ending, progress.advance, _known(plan, drawn))
    except BaseException:
        if not _is_sealed(directory, drawn):
            _take_back(directory, drawn, before)
        raise


def _is_sealed(directory: Path, drawn: _Drawn) -> bool:
    """Say whether the new seal is in place: an interruption may have come after that."""
    return _seal(directory).digest != drawn.seal.digest


def _take_back(directory: Path, drawn: _Drawn, before: bytes | None) -> None:
    if before is None:
        (directory / golden.NAME).unlink(missing_ok=True)
    else:
        write_durably(directory, golden.NAME, before, mode=_MODE)
    _remove(directory, drawn.files)


def _known(plan: sealing.Plan, drawn: _Drawn) -> Known:
    """Return what the load has verified and nothing has changed since: it need not be hashed again. What has changed, apart from
    golden.json, is not what has drawn the images, and must not be sealed with them."""
    hashes = {path: digest for path, digest in drawn.seal.files.items() if path != golden.NAME}
    now = time.time_ns()
    read = []
    for path in hashes:
        if (status := plan.found.get(path)) is not None:
            is_old = now - status.st_ctime_ns > _RACY_NS
            if is_old and FileStamp.of(status) == drawn.stamps.get(path):
                read.append(path)
    return Known(hashes, read)


def _remove(directory: Path, images: Iterable[str]) -> None:
    """Remove images that nothing names any more, and their folder if it is empty then."""
    for image in images:
        with suppress(OSError):
            (directory / image).unlink()
    with suppress(OSError):
        (directory / golden.FOLDER).rmdir()
    with suppress(OSError):
        sync_entries(directory)


def _signed(directory: Path, name: str, sealed: Seal, key: "SigningKey | None") -> list[str]:
    from zwatch.signing.commands import end_seal

    return end_seal(directory, name, sealed, key)


def _print(
    directory: Path, drawn: _Drawn, sealed: Seal, lines: Sequence[str], seconds: float, *, as_json: bool
) -> None:  # fmt: skip
    count = len(drawn.pictures)
    if as_json:
        images = [picture.image for picture in drawn.pictures]
        found = {"version": directory.name, "digest": sealed.digest, "images": images, "notes": list(lines), "seconds": round(seconds, 3)}  # fmt: skip
        print(json.dumps(found, ensure_ascii=False))
        return
    what = "1 golden image" if count == 1 else f"{count} golden images"
    print(f"{directory}: {what}, sealed {directory.name}, {len(sealed.files)} files, digest {sealed.digest}")
    least, most = (pick(picture.min_psnr for picture in drawn.pictures) for pick in (min, max))
    print(
        f"floors: PSNR {least:g}{'' if least == most else f' to {most:g}'} dB, SSIM {min(picture.min_ssim for picture in drawn.pictures):g} or more"
    )
    for line in lines:
        print(line)
    print(
        "a service that follows a link to it deploys it anew now; nothing but the golden images is new, so no weights are moved"
    )
