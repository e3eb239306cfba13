"""Images that are to be changed, and their masks: files of strangers, which are bombs until they are decoded.

What is checked before anything is decoded bounds the memory and the time: the format, the number of pixels, and the scans of a JPEG.
"""

import base64
import io
import math
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
"""Of an image: more than the cameras of telephones make. Decoded it takes up to 4 bytes a pixel; what is made of it
is made of bands, and takes little more."""
MAX_SIDE = 4096
"""Longest side that is kept, pixels: a larger image is reduced to it, of which no image that is generated shows anything."""
MOST_HELD = 2**30
"""Bytes of the images that requests which have not ended hold, decoded: some dozens of the largest that are kept."""
MAX_SCANS = 100
"""Of a JPEG: each costs a pass over all pixels, and a file of some kilobytes can have thousands. Cameras and programs write about 10."""
_BAND_PIXELS = 2**20
"""Of the bands in which a picture is converted and reduced."""
_ORIENTATION = 0x0112
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
    """An image that is to be changed, or one that `guides` what is drawn: upright RGB; its mask (L; white is painted anew) or None; and the blake3 of the image's
    file, in hex. `kept` are the bytes of files that its request keeps. Where there is a `canvas`, what is drawn is put into that; `notes` are pairs for the text in the
    image's file."""

    picture: "Image"
    mask: "Image | None"
    digest: str
    canvas: "Canvas | None" = None
    notes: Mapping[str, int | str] = field(default_factory=dict)
    kept: int = 0
    guides: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of its pixels, and of the files that are kept with it."""
        held = self.kept + 3 * _pixels(self.picture) + (0 if self.mask is None else _pixels(self.mask))
        return held if self.canvas is None else held + 4 * _pixels(self.canvas.picture)


def _pixels(picture: "Image") -> int:
    return picture.width * picture.height


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

    A mask of another size stays as it is: it is blurred before it is resized. Transparent parts of an image become white, those of a mask black: they stay.

    Raises:
        RequestError: 400 with `image` or `mask`, it is not an image that can be used.
    """
    from blake3 import blake3

    picture = _flat(open_picture(image, "image"), "RGB", "white")
    found = None if mask is None else _flat(open_picture(mask, "mask"), "L", "black")
    return Source(picture, found, blake3(image).hexdigest())


def read_control(image: bytes) -> Source:
    """Decode the file of an image that guides what is drawn. To be called in a thread, for few at a time. Transparent parts become black, as
    is what such images have nothing to say about.

    Raises:
        RequestError: 400 with `control_image`, it is not an image that can be used.
    """
    from blake3 import blake3

    picture = _flat(open_picture(image, "control_image"), "RGB", "black")
    return Source(picture, None, blake3(image).hexdigest(), guides=True)


def file_of(text: str, param: str, *, others: str = "") -> bytes:
    """Return the file that a text has: base64, or a data URL of that. To be called in a thread. `others` ends the sentence that says what
    could be sent.

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
            f"{param} is not base64: send the file in base64, or as a data URL{others}",
        ) from None


def open_picture(file: bytes, param: str) -> "Image":
    """Decode an image file: upright, of 8 bits a channel, in mode L, LA, RGB or RGBA, and with sides of
    `MAX_SIDE` at most. Of an animation it is the first image.

    Raises:
        RequestError: 400 with `param`.
    """
    import warnings

    from PIL import Image, UnidentifiedImageError

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
            return _upright(_reduced(opened), opened)
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
        if isinstance(error, ValueError) and ("MAX_TEXT_" in str(error) or "text chunks" in str(error)):
            message = f"{param} has text or a colour profile beside its pixels that is too large to be read: save it without metadata"
            raise invalid(param, message) from None
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
    kind = next(
        (f"{'an' if name[0] in 'AS' else 'a'} {name} file" for name, begins in _KINDS if begins.match(file)), "no image"
    )
    return invalid(param, f"{param} is {kind}: send a PNG, JPEG, WebP or GIF file")


def _upright(picture: "Image", opened: "Image") -> "Image":
    """Turn a picture as the EXIF orientation of the file says; where that is broken it stays as it is."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
    }  # fmt: skip
    try:
        turn = turns.get(opened.getexif().get(_ORIENTATION, 1))
    except Exception:
        turn = None
    return picture if turn is None else picture.transpose(turn)


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
    """Return a picture in L, LA, RGB or RGBA, whose sides are `MAX_SIDE` at most. It is made in bands: a copy of all of it in other
    numbers would take up to 16 bytes a pixel."""
    from PIL import Image

    width, height = picture.size
    scale = min(1.0, MAX_SIDE / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if scale == 1.0 and picture.mode in ("L", "LA", "RGB", "RGBA"):
        return picture
    ratio = height / size[1]
    margin = math.ceil(3 * ratio) + 1  # Lanczos looks at 3 pixels of the result on each side
    rows = max(1, int(_BAND_PIXELS / (width * ratio)))
    found = None
    for top in range(0, size[1], rows):
        bottom = min(top + rows, size[1])
        upper, lower = top * ratio, min(bottom * ratio, height)
        first, last = max(0, math.floor(upper) - margin), min(height, math.ceil(lower) + margin)
        band = _in_eight_bits(picture.crop((0, first, width, last)))
        if scale == 1.0:
            band = band.crop((0, top - first, width, bottom - first))
        else:
            if band.has_transparency_data and band.mode in ("L", "RGB"):
                band = band.convert("RGBA")  # one colour stands for what is transparent
            box = (0, upper - first, width, lower - first)
            band = band.resize((size[0], bottom - top), Image.Resampling.LANCZOS, box=box)
        if found is None:
            found = Image.new(band.mode, size)
            found.info = dict(band.info)
        found.paste(band, (0, top))
    assert found is not None  # a picture has a row
    return found
