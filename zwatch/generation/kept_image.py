"""An image in the history as a list shows it, read from its file."""

import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from zwatch.deploy.shares import parse_share
from zwatch.generation.image_details import Details, details_of_png, read_details
from zwatch.generation.image_index import opened
from zwatch.generation.image_order import created, order
from zwatch.generation.infotext import parse_infotext
from zwatch.generation.png_text import png_texts
from zwatch.generation.request import SEEDS, ImageFormat

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MOST_TRIAL = 300  # characters of a trial's id: the name of a link, of 255 bytes at most, and a time


class VotesView(TypedDict):
    """The votes on an image; `mine` is the asking client's own: 1, -1, or 0 if it has none."""

    up: int
    down: int
    mine: int


class LoraView(TypedDict):
    """A LoRA that an image was drawn with."""

    name: str
    scale: float
    digest: Annotated[str, Field(pattern=_DIGEST.pattern)]


class KeptImage(TypedDict):
    """An image in the history, with what it was made from; `model` and `quality` are as requested, `trial` is null unless votes on
    it count in a trial; `source` is the digest of the image that was changed, null if none was, and `mask` whether a part of it was; `control` is the digest of the image that guided it. If another program wrote the file, all fields but `name`, `url`, `format` and `bytes` may be null."""

    name: str
    url: str
    version: str | None
    digest: str | None
    share: str | None
    trial: str | None
    seed: int | None
    prompt: str | None
    negative_prompt: str | None
    width: int | None
    height: int | None
    steps: int | None
    guidance_scale: float | None
    source: str | None
    mask: bool
    strength: float | None
    mask_blur: int | None
    control: str | None
    control_scale: float | None
    model: str | None
    format: ImageFormat
    quality: int | None
    loras: list[LoraView]
    bytes: int
    created: str | None
    votes: NotRequired[VotesView]


class HistoryPage(TypedDict):
    """A page of the history, newest first; `next` is the next page's `before`, `offset` how many images are newer than its first.
    Of a search, `total` is the number of images found, and `indexed` how much of the history was searched, from 0 to 1: less than 1 while new images are being read."""

    images: list[KeptImage]
    next: str | None
    offset: int
    total: int
    indexed: NotRequired[float]


class HistoryView(TypedDict):
    """The history's part of the status; `newest` is the name of an image, `fault` says why images cannot be kept, or old ones
    not be deleted, or that the disk with their thumbnails is not mounted."""

    directory: str
    images: int
    newest: str | None
    bytes: int
    fault: str | None


def read_kept_image(path: Path) -> KeptImage | None:
    """Return the list's entry for an image, read from the start of its file; None if the file was removed."""
    size = 0
    try:
        with opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            texts = png_texts(file)
            if texts is not None:
                details = details_of_png(texts)
            else:
                file.seek(0)
                details = read_details(file)
    except FileNotFoundError:
        return None
    except Exception:  # the library raises many types for a broken file of another program
        details = Details("", "", "", {})
    return _kept_image(path.name, size, details)


def digest_of(details: Details) -> str | None:
    """Return the digest in an image's details; None if it is none."""
    return details.digest if _DIGEST.fullmatch(details.digest) else None


def _kept_image(name: str, size: int, details: Details) -> KeptImage:
    moment, request, found = created(name), details.request, order(name)
    prompt, negative_prompt = _prompts(details)
    return {
        "name": name,
        "url": f"/history/{name}",
        "version": details.version or None,
        "digest": digest_of(details),
        "share": details.share if parse_share(details.share) is not None else None,
        "trial": details.trial if 0 < len(details.trial) <= _MOST_TRIAL else None,
        "seed": _whole(request.get("seed", found[1] if found else None)),
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "width": _whole(request.get("width")),
        "height": _whole(request.get("height")),
        "steps": _whole(request.get("steps")),
        "guidance_scale": _number(request.get("guidance_scale")),
        "source": details.source if _DIGEST.fullmatch(details.source) else None,
        "mask": details.mask == "yes",
        "strength": _number(request.get("strength")),
        "mask_blur": _whole(request.get("mask_blur")),
        "control": details.control if _DIGEST.fullmatch(details.control) else None,
        "control_scale": _number(request.get("control_scale")),
        "model": _text(request.get("model")),
        "format": ImageFormat.of_name(name),
        "quality": _whole(request.get("quality")),
        "loras": [{"name": lora.name, "scale": lora.scale, "digest": lora.digest} for lora in details.loras],
        "bytes": size,
        "created": None if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _prompts(details: Details) -> tuple[str | None, str | None]:
    """Return the prompt and the negative prompt. Where the request has none, because they are too long for a JPEG, the text
    in AUTOMATIC1111's format has them."""
    prompt, negative = _text(details.request.get("prompt")), _text(details.request.get("negative_prompt"))
    if prompt or not details.version:
        return prompt, negative
    text = parse_infotext(details.parameters)
    return text.get("Prompt", prompt), text.get("Negative prompt", negative)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _whole(value: Any) -> int | None:
    """Return a valid whole number; None for any other value that a file contains."""
    return value if type(value) is int and 0 <= value < SEEDS else None


def _number(value: Any) -> float | None:
    return value if type(value) in (int, float) and math.isfinite(value) else None
