"""Image details: the text and fields that record what an image was made from, written into its file and read back."""

import io
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image, PngImagePlugin

from zwatch.engine.parameters import UsedLora
from zwatch.generation.lora_fields import MAX_LORAS, LoraWish, name_problem, scale_problem
from zwatch.generation.request import GenerateRequest
from zwatch.rollout.lifecycle import VersionKey

if TYPE_CHECKING:
    from zwatch.engine.parameters import GenerationParameters

Pairs = Mapping[str, float | int | str]
"""Names and values in the last line of AUTOMATIC1111's text."""
_EXIF_IFD = 0x8769
_USER_COMMENT = 0x9286
_MAKER_NOTE = 0x927C
_EXIF_VERSION = 0x9000
_EXIF_HEADER = b"Exif\0\0"
_TIFF = b"MM\0*\0\0\0\x08"
"""The header of a big-endian TIFF file whose first directory follows at once."""
_NO_MORE = b"\0\0\0\0"
"""The offset of a directory's next one: there is none."""
_UNDEFINED, _LONG = 7, 4
"""Types of TIFF tags."""
_UNICODE = b"UNICODE\0"
"""The EXIF standard's prefix of a comment in UTF-16."""
_MARK = "Steps: "
"""Every text in the format of AUTOMATIC1111 contains this."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
LORA_HASH = 12
"""Digits of a LoRA's digest in that text: so many has a hash of AUTOMATIC1111's."""
_JPEG_EXIF = 65_000
"""Most bytes of text in the EXIF of a JPEG: the whole segment is limited to 65,533 bytes."""


@dataclass(frozen=True, slots=True)
class Details:
    """The details in an image file. `parameters` is the text in AUTOMATIC1111's format, `request` the body of a `/generate`
    call that makes this image again. A detail that a file lacks is empty."""

    parameters: str
    version: str
    digest: str
    request: dict[str, Any]
    signer: str = ""
    """Who signed the version, where a signature was required."""
    share: str = ""
    """The share by which the version was chosen, such as `current@10`."""
    trial: str = ""
    """The trial in which votes on the image count."""
    source: str = ""
    """The blake3 of the file of the image that was changed."""
    mask: str = ""
    """`yes` if there was a mask."""
    loras: tuple[UsedLora, ...] = ()
    """The LoRAs that it was drawn with."""
    control: str = ""
    """The blake3 of the file of the image that guided it."""


def details_of(
    asked: GenerateRequest,
    parameters: "GenerationParameters",
    key: VersionKey,
    seed: int,
    signer: str | None = None,
    share: str | None = None,
    trial: str = "",
    notes: Pairs | None = None,
) -> Details:
    """Return the details of the image of one seed, by a version that `signer` signed, chosen by a `share`, of a `trial`; `notes` are
    further pairs of the text."""
    request = {
        "prompt": parameters.prompt,
        "negative_prompt": parameters.negative_prompt,
        "width": parameters.width,
        "height": parameters.height,
        "steps": parameters.steps,
        "guidance_scale": parameters.guidance_scale,
        "seed": seed,
        "format": asked.format,
        "quality": asked.quality,
        "model": asked.model,
    }
    if parameters.loras:
        request["loras"] = [{"name": lora.name, "scale": lora.scale} for lora in parameters.loras]
    source = parameters.source
    if source is not None:
        request |= {"strength": source.strength, "mask_blur": source.mask_blur}
    if (control := parameters.control) is not None:
        request["control_scale"] = control.scale
    text = _a1111_text(parameters, key, seed, share, notes or {})
    return Details(
        text, key.version, str(key.digest), request, signer or "", share or "", trial,
        "" if source is None else source.digest, "yes" if source is not None and source.has_mask else "",
        parameters.loras, "" if control is None else control.digest,
    )  # fmt: skip


def _a1111_text(parameters: "GenerationParameters", key: VersionKey, seed: int, share: str | None, notes: Pairs) -> str:
    by_share = "" if share is None else f", Share: {share}"
    pairs = "".join(f", {name}: {value}" for name, value in {**_changed(parameters), **notes}.items())
    negative = f"\nNegative prompt: {parameters.negative_prompt}" if parameters.negative_prompt else ""
    tags = "".join(f" {LoraWish(lora.name, lora.scale).tag}" for lora in parameters.loras)
    hashes = ", ".join(f"{lora.name}: {lora.digest[:LORA_HASH]}" for lora in parameters.loras)
    by_loras = f', Lora hashes: "{hashes}"' if hashes else ""
    return (
        f"{parameters.prompt}{tags}{negative}\nSteps: {parameters.steps}, Sampler: Euler, CFG scale: {parameters.guidance_scale}, "
        f"Seed: {seed}, Size: {parameters.width}x{parameters.height}, Model hash: {str(key.digest)[:10]}, Model: {key.version}{pairs}{by_loras}{by_share}"
    )


def _changed(parameters: "GenerationParameters") -> Pairs:
    """Return how an image was changed, in AUTOMATIC1111's words, and from which; or what guided it."""
    source, control = parameters.source, parameters.control
    if control is not None:
        return {"Control scale": f"{control.scale:g}", "Control": control.digest}
    if source is None:
        return {}
    blur = {"Mask blur": source.mask_blur} if source.has_mask else {}
    return {"Denoising strength": f"{source.strength:g}", **blur, "Source": source.digest}


def png_chunks(details: Details) -> PngImagePlugin.PngInfo:
    """Return the text chunks of a PNG: tEXt, or iTXt for text that Latin-1 cannot encode."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", details.parameters)
    chunks.add_text("zwatch_version", details.version)
    chunks.add_text("zwatch_digest", details.digest)
    if details.signer:
        chunks.add_text("zwatch_signer", details.signer)
    if details.share:
        chunks.add_text("zwatch_share", details.share)
    if details.trial:
        chunks.add_text("zwatch_trial", details.trial)
    if details.loras:
        chunks.add_text("zwatch_loras", json.dumps([asdict(lora) for lora in details.loras]))
    if details.source:
        chunks.add_text("zwatch_source", details.source)
    if details.mask:
        chunks.add_text("zwatch_mask", details.mask)
    if details.control:
        chunks.add_text("zwatch_control", details.control)
    chunks.add_text("zwatch_request", json.dumps(details.request, ensure_ascii=False))
    return chunks


def exif(details: Details, *, jpeg: bool) -> bytes:
    """Return the EXIF of JPEG and WebP: AUTOMATIC1111's text as the user comment, where AUTOMATIC1111 writes it too, and the
    rest as JSON in the maker note. If this is too long for a JPEG, the request is left out first: it repeats the prompt."""
    ours: dict[str, Any] = {"version": details.version, "digest": details.digest}
    if details.signer:
        ours["signer"] = details.signer
    if details.share:
        ours["share"] = details.share
    if details.trial:
        ours["trial"] = details.trial
    if details.loras:
        ours["loras"] = [asdict(lora) for lora in details.loras]
    if details.source:
        ours["source"] = details.source
    if details.mask:
        ours["mask"] = details.mask
    if details.control:
        ours["control"] = details.control
    comment = _UNICODE + details.parameters.encode("utf-16-be")
    note = _json({**ours, "request": details.request})
    if jpeg and len(comment) + len(note) > _JPEG_EXIF:
        note = _json(ours)
    if jpeg and len(comment) + len(note) > _JPEG_EXIF:
        note = _json({**ours, "request": {**details.request, "negative_prompt": "", "prompt": ""}})
        comment = _UNICODE + _cut(details.parameters, _JPEG_EXIF - len(_UNICODE) - len(note))
    return _exif_block({_MAKER_NOTE: note, _USER_COMMENT: comment})


def _cut(parameters: str, most: int) -> bytes:
    """Return a text in UTF-16 with at most `most` bytes, by leaving out the end of its prompts."""
    prompts, mark, rest = parameters.rpartition(f"\n{_MARK}")
    tail = f"…{mark}{rest}".encode("utf-16-be")
    head = prompts.encode("utf-16-be")[: (most - len(tail)) // 2 * 2]
    return head.decode("utf-16-be", "ignore").encode("utf-16-be") + tail  # without half of a surrogate pair


def _exif_block(tags: dict[int, bytes]) -> bytes:
    """Return an EXIF block, a TIFF file without an image, with these tags of type UNDEFINED, of more than 4 bytes each.

    By hand: Pillow writes bytes as type BYTE, which the standard does not allow here and piexif reads as a tuple. Big-endian,
    as the text in the user comment: readers take the byte order of one from the other.
    """
    entries = [(_EXIF_VERSION, b"0232"), *sorted(tags.items())]
    first = len(_TIFF) + _ifd_size(1)
    place = first + _ifd_size(len(entries))
    table, data = struct.pack(">H", len(entries)), b""
    for tag, value in entries:
        inline = len(value) <= 4
        table += struct.pack(
            ">HHI4s", tag, _UNDEFINED, len(value), value if inline else struct.pack(">I", place + len(data))
        )
        data += b"" if inline else value + b"\0" * (len(value) % 2)  # values begin at even offsets
    pointer = struct.pack(">HHHII", 1, _EXIF_IFD, _LONG, 1, first)
    return b"".join((_EXIF_HEADER, _TIFF, pointer, _NO_MORE, table, _NO_MORE, data))


def _ifd_size(entries: int) -> int:
    """Return the bytes of a TIFF directory: a count, 12 for each entry, and the offset of the next directory."""
    return 2 + 12 * entries + len(_NO_MORE)


def read_details(file: BinaryIO | bytes) -> Details:
    """Read the details of an image file, which another program may have written; only the start of the file is read.

    Raises:
        OSError, ValueError, SyntaxError: it is not an image, it is damaged, or it says that it is enormous.
    """
    try:
        opened = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=("PNG", "JPEG", "WEBP"))
    except Image.DecompressionBombError as error:  # which is an Exception, and no more
        raise ValueError(str(error)) from None
    with opened as image:
        if image.format == "PNG":
            # Only the chunks before the pixels: the property `text` would read the whole file.
            return details_of_png(
                {str(name): str(value) for name, value in image.info.items() if isinstance(value, str)}
            )
        tags = image.getexif().get_ifd(_EXIF_IFD)
    note = json_object(_text(tags.get(_MAKER_NOTE)))
    request = note.get("request")
    return Details(
        _text(tags.get(_USER_COMMENT)), str(note.get("version", "")), str(note.get("digest", "")),
        request if isinstance(request, dict) else {}, str(note.get("signer", "")), str(note.get("share", "")),
        str(note.get("trial", "")), str(note.get("source", "")), str(note.get("mask", "")), _loras(note.get("loras")),
        str(note.get("control", "")),
    )  # fmt: skip


def details_of_png(texts: Mapping[str, str]) -> Details:
    """Return the details in the text chunks of a PNG."""
    return Details(
        texts.get("parameters", ""), texts.get("zwatch_version", ""), texts.get("zwatch_digest", ""),
        json_object(texts.get("zwatch_request", "")), texts.get("zwatch_signer", ""), texts.get("zwatch_share", ""),
        texts.get("zwatch_trial", ""), texts.get("zwatch_source", ""), texts.get("zwatch_mask", ""),
        _loras(_json_value(texts.get("zwatch_loras", ""))), texts.get("zwatch_control", ""),
    )  # fmt: skip


def _loras(value: Any) -> tuple[UsedLora, ...]:
    """Return the LoRAs in a detail; none if it is not what zwatch writes."""
    if not isinstance(value, list) or len(value) > MAX_LORAS:
        return ()
    found = []
    for one in value:
        fields = one if isinstance(one, dict) else {}
        name, scale, digest = (fields.get(field) for field in ("name", "scale", "digest"))
        if not isinstance(name, str) or name_problem(name) is not None:
            return ()
        if not isinstance(scale, int | float) or scale_problem(scale) is not None:
            return ()
        if not isinstance(digest, str) or _DIGEST.fullmatch(digest) is None:
            return ()
        found.append(UsedLora(name, float(scale), digest))
    return tuple(found)


def exif_texts(image: Image.Image) -> list[str]:
    """Return all texts in the EXIF of an image."""
    found = image.getexif()
    values = [*found.values(), *found.get_ifd(_EXIF_IFD).values()]
    return [text for value in values if (text := _text(value))]


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def json_object(text: Any) -> dict[str, Any]:
    """Return the JSON object in a text; empty if it is no text, or has none."""
    found = _json_value(text)
    return found if isinstance(found, dict) else {}


def _json_value(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None


def _text(value: object) -> str:
    """Return an EXIF text in any of the usual encodings."""
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        return ""
    if value.startswith(_UNICODE):
        raw = value.removeprefix(_UNICODE)
        # The standard does not define the byte order; most programs write big-endian. The mark that all these texts
        # contain decides; without it, the position of Latin letters' zero bytes. These alone are not reliable: read in the
        # other byte order, 一 (U+4E00) is an N.
        big, little = raw.decode("utf-16-be", "replace"), raw.decode("utf-16-le", "replace")
        looks_little = _MARK in little or raw[1::2].count(0) > raw[0::2].count(0)
        return little if looks_little and _MARK not in big else big
    return value.removeprefix(b"ASCII\0\0\0").decode("utf-8", "replace")
