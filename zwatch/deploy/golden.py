"""`golden.json`: what a version must draw, as the machine drew it where it was made.

    {"images": [{"prompt": "a cat", "seed": 1, "width": 1024, "height": 1024, "steps": 8,
                 "image": "golden/1.png", "min_psnr": 40.0, "min_ssim": 0.98}]}

Every field is required, none other is allowed: floors that a release fills in would judge a sealed version anew. What is wrong is
found from the bytes of golden.json, the seal's names and the first bytes of the images, before any weights are read.
"""

import json
import math
import os
import struct
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NoReturn

from zwatch.deploy import seal
from zwatch.errors import Rejection

NAME = "golden.json"
FOLDER = "golden"
"""Where `zwatch golden` writes the images. Any other folder of the version may have them."""
CODE = "golden_invalid"
MOST_IMAGES = 100
MOST_JSON = 4 * 2**20
"""Longest accepted golden.json, bytes: a hundred prompts of 10,000 characters, each of up to four bytes."""
MOST_IMAGE_BYTES = 64 * 2**20
"""Largest accepted image, bytes. An image of 2048 x 2048 has 12 MiB uncompressed."""
MOST_BYTES = 256 * 2**20
"""Most bytes of all images together: they are kept in memory until they are checked."""
MAX_PROMPT, MAX_SIDE, SIDE_STEP, MAX_STEPS, SEEDS = 10_000, 2048, 16, 100, 2**63
"""As requests have them: `zwatch.generation.request`."""
MAX_PSNR = 100.0
"""Highest floor, decibels; 8 bits end at 94.25 dB (one value of an image of 1024 x 1024 differs by 1), equal images have more."""
FLOORS = (40.0, 0.98)
"""PSNR and SSIM that an image must reach where nobody said and nothing was measured."""
BELOW = 6.0
"""How far below the rounding that was measured a floor is, decibels: the same picture's rounding on another device, or another way, differs
by less (docs/trials.md, "Floors, and other machines"). Of the mean square error it is a factor of 4, and of 1 - SSIM too."""
MOST_FLOORS = (47.0, 0.998)
"""Highest floors by measuring: just below the worst rounding of the repository's v1 in 100 pictures (47.9 dB on a CPU, 48.6 dB and 0.9989 on
an H200; docs/drawing.md), above what a wrong scheduler does there (43.6 dB)."""
QUANTIZED_FLOORS = {"fp8": (18.0, 0.8), "int8": (27.0, 0.95)}
"""Highest floors, PSNR and SSIM, where weights are quantized that were not when the images were drawn. Of 200 images of the repository's
versions the worst have 20.0 dB and 0.883 in fp8, 29.7 dB and 0.986 in int8 (docs/drawing.md, "What a way changes in a picture")."""
QUANTIZED_DTYPES = ("F8_E4M3", "I8")
"""The dtypes of quantized weights in a file."""
_SHOWN = 60

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">8sI4sIIBBBBB")
"""PNG's signature and its first chunk (https://www.w3.org/TR/png-3/#11IHDR): length, type, width, height, bit depth, colour type,
compression, filter, interlace."""
HEADER_BYTES = _HEADER.size
_RGB = (8, 2)
"""Bit depth and colour type of an RGB image of 8 bits, without alpha."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One golden image: what it is drawn from (sizes in pixels), its file's path below the version, and the least PSNR (decibels) and
    SSIM (0 to 1) of what a version draws."""

    prompt: str
    seed: int
    width: int
    height: int
    steps: int
    image: str
    min_psnr: float
    min_ssim: float

    @property
    def work(self) -> float:
        """Megapixels x steps."""
        return self.width * self.height / 1e6 * self.steps


def parse(data: bytes) -> tuple[Picture, ...]:
    """Parse the bytes of a golden.json.

    Raises:
        Rejection: `golden_invalid`, with the field, what was found and what was expected.
    """
    if len(data) > MOST_JSON:
        raise Rejection(CODE, f"{NAME}: found {len(data)} bytes, expected at most {MOST_JSON}")
    try:
        found = json.loads(data.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        raise Rejection(CODE, f"{NAME}: not JSON: {error}") from None
    _check_keys("", found, {"images"})
    images = found["images"]
    if not isinstance(images, list) or not 0 < len(images) <= MOST_IMAGES:
        size = f"a list of {len(images)}" if isinstance(images, list) else _shown(images)
        _refuse("images", size, f"a list of 1 to {MOST_IMAGES} images")
    pictures = tuple(_picture(f"images[{number}]", one) for number, one in enumerate(images))
    numbers: dict[str, int] = {}
    for number, picture in enumerate(pictures):
        if (other := numbers.setdefault(picture.image, number)) != number:
            _refuse(f"images[{number}].image", _shown(picture.image), f"another file than that of images[{other}]")
    return pictures


def format_json(pictures: Collection[Picture]) -> bytes:
    """Return the bytes of a golden.json with these images."""
    text = json.dumps({"images": [asdict(picture) for picture in pictures]}, indent=2, ensure_ascii=False)
    return f"{text}\n".encode()


def read(small: Mapping[str, bytes]) -> tuple[Picture, ...]:
    """Return the golden images that the sealed files of a version, by path, name; none if it has no golden.json.

    Raises:
        Rejection: golden.json is wrong, the seal does not name an image, or one is no such PNG as it says.
    """
    if NAME not in small:
        return ()
    pictures = _sealed(parse(small[NAME]), small)
    for picture in pictures:
        check_image(picture, small[picture.image][:HEADER_BYTES], len(small[picture.image]))
    if (total := sum(len(small[picture.image]) for picture in pictures)) > MOST_BYTES:
        _refuse("images", f"{total} bytes of images", f"at most {MOST_BYTES} together")
    return pictures


def floors(psnr: float, ssim: float) -> tuple[float, float]:
    """Return the floors of an image that rounding changes by so much, PSNR in decibels and SSIM: 6 dB below, and at most `MOST_FLOORS`.
    An infinite PSNR is that of equal pictures, of which no rounding is known: they get `FLOORS`."""
    if math.isinf(psnr):
        return FLOORS
    most_psnr, most_ssim = MOST_FLOORS
    least_psnr, least_ssim = psnr - BELOW, 1 - 10 ** (BELOW / 10) * (1 - ssim)
    # Rounded down: 0.1 dB and 0.0001
    return (
        math.floor(10 * max(0.0, min(least_psnr, most_psnr))) / 10,
        math.floor(10_000 * max(0.0, min(least_ssim, most_ssim))) / 10_000,
    )


def for_quantized(picture: Picture, kind: str) -> Picture:
    """Return a golden image with floors that a right quantization, `fp8` or `int8`, of the weights that drew it reaches."""
    least_psnr, least_ssim = QUANTIZED_FLOORS[kind]
    return replace(picture, min_psnr=min(picture.min_psnr, least_psnr), min_ssim=min(picture.min_ssim, least_ssim))


def check_files(directory_fd: int, data: bytes, files: Collection[str]) -> None:
    """Check a golden.json, and the first bytes of the images that it names, in an opened version; `files` are those that the
    version's seal names.

    Raises:
        Rejection: as `read`, or a file is not there.
        OSError: a file could not be read.
    """
    for picture in _sealed(parse(data), files):
        with seal.opened_file(directory_fd, picture.image) as fd:
            check_image(picture, os.pread(fd, HEADER_BYTES, 0), os.fstat(fd).st_size)


def check_image(picture: Picture, head: bytes, size: int) -> None:
    """Check the first `HEADER_BYTES` bytes of an image's file, which has `size` bytes.

    Raises:
        Rejection: `golden_invalid`: it is no PNG of 8 bits RGB, has other sides, or too many bytes.
    """
    path = picture.image
    if size > MOST_IMAGE_BYTES:
        raise Rejection(CODE, f"{path}: found {size} bytes, expected at most {MOST_IMAGE_BYTES} for a golden image")
    if len(head) < HEADER_BYTES or not head.startswith(_SIGNATURE) or head[12:16] != b"IHDR":
        raise Rejection(CODE, f"{path}: found no PNG, expected the image that {NAME} names as a PNG of 8 bits RGB")
    _, _, _, width, height, depth, colour, *_ = _HEADER.unpack(head[:HEADER_BYTES])
    if (depth, colour) != _RGB:
        raise Rejection(
            CODE, f"{path}: found a PNG of {depth} bits and colour type {colour}, expected 8 bits RGB (colour type 2)"
        )
    if (width, height) != (picture.width, picture.height):
        raise Rejection(
            CODE, f"{path}: found {width} x {height} pixels, {NAME} says {picture.width} x {picture.height}"
        )


def field_problem(field: str, value: object) -> str | None:
    """Return what is expected of a field of an image, if a value is not that; None if it is."""
    match field:
        case "prompt":
            is_good = isinstance(value, str) and bool(value.strip()) and len(value) <= MAX_PROMPT and _is_utf8(value)
            return None if is_good else f"text of 1 to {MAX_PROMPT} characters, not only white space"
        case "seed":
            return None if _is_whole(value, 0, SEEDS - 1) else "a whole number from 0 to 2^63 - 1"
        case "width" | "height":
            is_good = _is_whole(value, SIDE_STEP, MAX_SIDE) and int(str(value)) % SIDE_STEP == 0
            return None if is_good else f"a multiple of {SIDE_STEP} from {SIDE_STEP} to {MAX_SIDE}"
        case "steps":
            return None if _is_whole(value, 1, MAX_STEPS) else f"a whole number from 1 to {MAX_STEPS}"
        case "min_psnr":
            return None if _is_number(value, 0, MAX_PSNR) else f"a number from 0 to {MAX_PSNR:g}"
        case "min_ssim":
            return None if _is_number(value, 0, 1) else "a number from 0 to 1"
    return _path_problem(value)


def _path_problem(value: object) -> str | None:
    """Return what is expected of an image's path, if a value is not that."""
    wanted = f"a path below the version that ends in .png, such as {FOLDER}/1.png"
    if not isinstance(value, str) or not value.endswith(".png"):
        return wanted
    if (problem := seal.path_problem(value)) is not None:
        return f"{wanted}: this one {problem}"
    if any(part.startswith(".") for part in value.split("/")):
        return f"{wanted}: this one is hidden, and hidden files are never sealed"
    return None


def _sealed(pictures: tuple[Picture, ...], files: Collection[str]) -> tuple[Picture, ...]:
    """Return golden images if the files have all of them."""
    for number, picture in enumerate(pictures):
        if picture.image not in files:
            what = "a path that the seal names; run `zwatch seal` when the file is there"
            _refuse(f"images[{number}].image", _shown(picture.image), what)
    return pictures


_FIELDS = tuple(Picture.__dataclass_fields__)


def _picture(where: str, found: Any) -> Picture:
    _check_keys(where, found, set(_FIELDS))
    for name in _FIELDS:
        if (expected := field_problem(name, found[name])) is not None:
            _refuse(f"{where}.{name}", _shown(found[name]), expected)
    return Picture(**{**found, "min_psnr": float(found["min_psnr"]), "min_ssim": float(found["min_ssim"])})


def _check_keys(where: str, found: Any, expected: set[str]) -> None:
    if not isinstance(found, dict):
        _refuse(where, _shown(found), "a JSON object")
    prefix = f"{where}." if where else ""
    for name in sorted(expected - found.keys()):
        _refuse(f"{prefix}{name}", "nothing", field_problem(name, None) or "it")
    for name in sorted(found.keys() - expected):
        _refuse(f"{prefix}{name[:_SHOWN]}", "an unknown field", f"only {', '.join(sorted(expected))}")


def _refuse(field: str, found: str, expected: str) -> NoReturn:
    where = f"{NAME}: {field}" if field else NAME
    raise Rejection(CODE, f"{where}: found {found}, expected {expected}")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of a JSON object, for `json.loads`.

    Raises:
        ValueError: one is there twice.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {_shown(twice)} is there twice")
    return found


def _is_whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: object, least: float, most: float) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and least <= value <= most  # type: ignore[arg-type, operator]


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _shown(value: object) -> str:
    try:
        shown = json.dumps(value)  # all of it ASCII: half of a surrogate pair could not be printed
    except ValueError:  # a whole number of thousands of digits
        shown = "a very long number"
    return shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 3]}..."
