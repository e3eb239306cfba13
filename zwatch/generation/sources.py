"""Images that are to be changed, and their masks: files of strangers, which are bombs until they are decoded.

What is checked before anything is decoded bounds the memory and the time: the format, the number of pixels, and the scans of a JPEG.
"""

import base64
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

from zwatch.errors import RequestError
from zwatch.generation.fields import invalid

if TYPE_CHECKING:
    from PIL.Image import Image

    from zwatch.generation.inpainting import Canvas

MAX_PIXELS = 2**26
"""Of an image: more than the cameras of telephones make. Decoded it takes up to 4 bytes a pixel."""
MAX_SIDE = 4096
"""Longest side that is kept, pixels: a larger image is reduced to it, of which no image that is generated shows anything."""
MOST_HELD = 2**30
"""Bytes of the images that requests which have not ended hold, decoded: some dozens of the largest that are kept."""
MAX_SCANS = 100
"""Of a JPEG: each costs a pass over all pixels, and a file of some kilobytes can have thousands. Cameras and programs write about 10."""
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
_JPEG = ("JPEG", "MPO")
"""MPO is what PIL calls a JPEG with more images behind the first, as telephones write them."""
_PLUGINS = ("Png", "Jpeg", "Mpo", "WebP", "Gif")
"""Of PIL: each registers a format when it is imported."""
_URL_SAFE = str.maketrans("-_", "+/")
_SCAN = b"\xff\xda"
_KINDS = (
    ("HEIC", re.compile(rb"....ftyp(?:hei|mif1|msf1)", re.DOTALL)),
    ("AVIF", re.compile(rb"....ftypavi", re.DOTALL)),
    ("JPEG XL", re.compile(rb"\xff\x0a|....JXL ", re.DOTALL)),
    ("TIFF", re.compile(rb"II\*\x00|MM\x00\*")),
    ("BMP", re.compile(rb"BM")),
    ("SVG", re.compile(rb"\s*<(?:svg|\?xml)")),
    ("PDF", re.compile(rb"%PDF")),
)
"""What people send, by how such files begin."""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """An image that is to be changed: upright RGB; its mask (L, of the same size; white is painted anew) or None; and the blake3
    of the image's file, in hex. Where there is a `canvas`, what is drawn is put into that; `notes` are pairs for the text in the
    image's file."""

    picture: "Image"
    mask: "Image | None"
    digest: str
    canvas: "Canvas | None" = None
    notes: Mapping[str, int | str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of its pixels."""
        width, height = self.picture.size
        held = width * height * (3 if self.mask is None else 4)
        if self.canvas is None:
            return held
        width, height = self.canvas.picture.size
        return held + width * height * 4


def too_much_held(new: Source, others: Iterable[Source | None]) -> str | None:
    """Return why an image cannot be held beside those of other requests; None if it can. A request alone always can."""
    held = {id(source): source.nbytes for source in (*others, new) if source is not None}
    if len(held) == 1 or (size := sum(held.values())) <= MOST_HELD:
        return None
    return (
        f"with yours, the images of requests that have not ended would take {size} bytes, at most {MOST_HELD} are held: send a "
        "smaller one, or try again later"
    )


def read_source(image: bytes, mask: bytes | None) -> Source:
    """Decode an image file and that of its mask, if there is one. To be called in a thread, for few at a time.

    A mask of another size is resized to the image's. Transparent parts of an image become white, those of a mask black: they stay.

    Raises:
        RequestError: 400 with `image` or `mask`, it is not an image that can be used.
    """
    from blake3 import blake3
    from PIL.Image import Resampling

    # Reduced first: what is done then takes a fraction of the memory.
    picture = _flat(_reduced(open_picture(image, "image")), "RGB", "white")
    found = None if mask is None else _flat(_reduced(open_picture(mask, "mask")), "L", "black")
    if found is not None and found.size != picture.size:
        found = found.resize(picture.size, Resampling.LANCZOS)
    return Source(picture, found, blake3(image).hexdigest())


def file_of(text: str, param: str) -> bytes:
    """Return the file that a text has: base64, or a data URL of that. To be called in a thread.

    Raises:
        RequestError: 400 with `param`.
    """
    begin = text[:64].lstrip().lower()
    if begin.startswith(("http://", "https://")):
        raise invalid(param, f"{param} is a URL, which is not fetched: send the file itself, in base64")
    if begin.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.rstrip().lower().endswith(";base64"):
            raise invalid(param, f"{param} is a data URL without base64: send data:image/png;base64,...")
    compact = "".join(text.split()).translate(_URL_SAFE)
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except ValueError:  # also for what is not ASCII
        raise invalid(
            param,
            f"{param} is not base64: send the file in base64, as a data URL, or history:NAME for one in the history",
        ) from None


def open_picture(file: bytes, param: str) -> "Image":
    """Decode an image file: upright, of 8 bits a channel, in mode L, LA, RGB or RGBA. Of an animation it is the first image.

    Raises:
        RequestError: 400 with `param`.
    """
    import warnings

    from PIL import Image, ImageOps, UnidentifiedImageError

    for plugin in _PLUGINS:
        import_module(f"PIL.{plugin}ImagePlugin")
    if not file:
        raise invalid(param, f"{param} is an empty file: send a PNG, JPEG, WebP or GIF file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the number of pixels is checked here
            opened = Image.open(io.BytesIO(file), formats=_FORMATS)
            _check_size(opened, file, param)
            if opened.format in _JPEG:
                opened.draft(None, (MAX_SIDE, MAX_SIDE))  # decodes an enormous one at a half or less of its sides
            opened.load()
            upright = _upright(opened, ImageOps)
        return _in_eight_bits(upright)
    except RequestError:
        raise
    except Image.DecompressionBombError:
        raise invalid(
            param, f"{param} has more pixels than the {MAX_PIXELS} that are decoded: send a smaller one"
        ) from None
    except UnidentifiedImageError:
        raise _unknown(file, param) from None
    except MemoryError:
        raise invalid(param, f"{param} takes more memory to decode than there is: send a smaller one") from None
    except Exception as error:  # the decoders raise nearly everything for broken files
        message = f"{param} cannot be decoded, its file is damaged or incomplete ({type(error).__name__}: {error})"
        raise invalid(param, message[:300]) from None


def _check_size(opened: "Image", file: bytes, param: str) -> None:
    width, height = opened.size
    if width * height > MAX_PIXELS:
        text = f"{param} has {width} x {height}, more pixels than the {MAX_PIXELS} that are decoded: send a smaller one"
        raise invalid(param, text)
    if opened.format in _JPEG and (scans := file.count(_SCAN)) > MAX_SCANS:
        raise invalid(
            param, f"{param} is a JPEG of {scans} scans, at most {MAX_SCANS} are decoded: save it without progression"
        )


def _unknown(file: bytes, param: str) -> RequestError:
    kind = next((f"a {name} file" for name, begins in _KINDS if begins.match(file)), "no image")
    return invalid(param, f"{param} is {kind}: send a PNG, JPEG, WebP or GIF file")


def _upright(opened: "Image", operations: object) -> "Image":
    """Turn a picture as its EXIF orientation says; one whose EXIF is broken stays as it is."""
    try:
        return operations.exif_transpose(opened)  # type: ignore[attr-defined, no-any-return]
    except Exception:
        return opened


def _in_eight_bits(picture: "Image") -> "Image":
    """Return a picture in L, LA, RGB or RGBA, whatever it is stored in."""
    from PIL import Image

    if picture.mode in ("L", "LA", "RGB", "RGBA"):
        return picture
    if picture.mode.startswith(("I", "F")):
        import numpy as np

        # PIL would cut off what is over 255. The upper byte is what it takes of 16 bits a channel in RGB.
        return Image.fromarray((np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if picture.mode == "CMYK":
        return _of_inks(picture)
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")


def _of_inks(picture: "Image") -> "Image":
    """Return the colours of a CMYK picture: by its profile if it has one, else as if the inks were ideal."""
    from PIL import ImageCms

    if profile := picture.info.get("icc_profile"):
        try:
            converted = ImageCms.profileToProfile(
                picture, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            converted = None
        if converted is not None:
            return converted
    return picture.convert("RGB")


def _flat(picture: "Image", mode: str, ground: str) -> "Image":
    """Return a picture without transparency, on a ground of one colour."""
    from PIL import Image

    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        whole = Image.new("RGBA", layer.size, ground)
        whole.alpha_composite(layer)
        picture = whole
    return picture if picture.mode == mode else picture.convert(mode)


def _reduced(picture: "Image") -> "Image":
    """Return a picture whose sides are `MAX_SIDE` at most."""
    from PIL.Image import Resampling

    longest = max(picture.size)
    if longest <= MAX_SIDE:
        return picture
    width, height = (max(1, round(side * MAX_SIDE / longest)) for side in picture.size)
    return picture.resize((width, height), Resampling.LANCZOS)
