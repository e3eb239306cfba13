"""The settings in an image file of zwatch, AUTOMATIC1111 or ComfyUI, as far as a request can have them."""

import io
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NotRequired

from PIL import Image
from typing_extensions import TypedDict

from zwatch.errors import RequestError
from zwatch.generation.comfyui import graph_of_workflow, settings_of_graph
from zwatch.generation.fields import invalid
from zwatch.generation.image_details import Details, exif_texts, json_object, read_details
from zwatch.generation.infotext import parse_infotext
from zwatch.generation.kept_image import digest_of
from zwatch.generation.lora_fields import without_tags
from zwatch.generation.request import ImageRequest, parse_generate
from zwatch.generation.sides import SIDE_STEP

_GRAPHS = ("prompt", "workflow")
_TOGETHER = ("width", "height")


class LoraFound(TypedDict):
    """A LoRA, as a `/generate` names it."""

    name: str
    scale: float


class FoundSettings(TypedDict):
    """Fields of a `/generate` that were found and are valid."""

    prompt: NotRequired[str]
    negative_prompt: NotRequired[str]
    width: NotRequired[int]
    height: NotRequired[int]
    steps: NotRequired[int]
    guidance_scale: NotRequired[float]
    seed: NotRequired[int]
    strength: NotRequired[float]
    mask_blur: NotRequired[int]
    loras: NotRequired[list[LoraFound]]


class PictureSettings(TypedDict):
    """The settings in an image file, and the program that wrote them. `version` and `digest` are those of zwatch."""

    source: Literal["zwatch", "automatic1111", "comfyui"]
    version: str | None
    digest: str | None
    settings: FoundSettings


def picture_settings(file: bytes) -> PictureSettings:
    """Return the settings in an image file. To be called in a thread.

    Raises:
        RequestError: 400, it is not an image, or there are no settings in it.
    """
    try:
        details = read_details(file)
        graphs = _graphs(file)
    except (OSError, ValueError, SyntaxError):
        raise invalid("image", "the body is no PNG, JPEG or WebP file: send the file itself") from None
    if details.version or details.request:
        found = _checked({**_of_infotext(details.parameters), **_given(details.request)})
        if found:
            return {
                "source": "zwatch",
                "version": details.version or None,
                "digest": digest_of(details),
                "settings": found,
            }
    for source, values in (("automatic1111", _of_infotext(details.parameters)), ("comfyui", _of_graphs(graphs))):
        values["guidance_scale"] = _guidance(values.get("guidance_scale"))
        values |= {side: _rounded(values.get(side)) for side in _TOGETHER}
        if found := _checked(values):
            return {"source": source, "version": None, "digest": None, "settings": found}  # type: ignore[typeddict-item]
    raise invalid(
        "image", f"{_reason(details, graphs)}: drop the original file, as zwatch, AUTOMATIC1111 or ComfyUI wrote it"
    )


def _reason(details: Details, graphs: Mapping[str, Any]) -> str:
    if graphs:
        return "the picture has a ComfyUI workflow, but no settings were found in it"
    if details.parameters:
        return "the picture has a text, but no settings were found in it"
    return "the picture has no settings in it; screenshots, edited pictures and those of many websites have lost them"


def _given(request: Mapping[str, Any]) -> dict[str, Any]:
    # A long prompt is left out of a JPEG's request, and is in the text.
    return {name: value for name, value in request.items() if value != ""}


def _of_infotext(text: str) -> dict[str, Any]:
    pairs = parse_infotext(text)
    if "Steps" not in pairs:  # any text of another program
        return {}
    names = {
        "steps": "Steps", "guidance_scale": "CFG scale", "seed": "Seed", "width": "Size-1", "height": "Size-2",
        "strength": "Denoising strength", "mask_blur": "Mask blur",
    }  # fmt: skip
    prompt, loras = _of_tags(pairs["Prompt"])
    return {
        "prompt": prompt,
        "loras": loras or None,
        "negative_prompt": pairs["Negative prompt"],
        **{name: _number(pairs.get(theirs)) for name, theirs in names.items()},
    }


def loras_of(request: ImageRequest) -> list[LoraFound]:
    """Return the LoRAs that a request names."""
    return [{"name": wish.name, "scale": wish.scale} for wish in request.loras]


def _of_tags(prompt: str) -> tuple[str, list[dict[str, Any]]]:
    """Return a prompt without its tags, and the LoRAs that they name; a prompt with a tag that is wrong stays as it is."""
    try:
        rest, wishes = without_tags(prompt)
    except ValueError:
        return prompt, []
    return rest, [{"name": wish.name, "scale": wish.scale} for wish in wishes]


def _of_graphs(graphs: Mapping[str, Any]) -> dict[str, Any]:
    for name, graph in graphs.items():
        found = settings_of_graph(graph if name == "prompt" else graph_of_workflow(graph))
        if found:
            return {**found, "guidance_scale": found.get("cfg")}
    return {}


def _guidance(scale: Any) -> Any:
    """Return the guidance for a scale of theirs, where 1 is none."""
    return 0.0 if type(scale) in (int, float) and 0 <= scale <= 1 else scale


def _rounded(side: Any) -> Any:
    """Return the nearest side that a request may have: theirs need not be multiples of 16."""
    if type(side) is not int or side <= 0:
        return side
    return max(SIDE_STEP, (side + SIDE_STEP // 2 - 1) // SIDE_STEP * SIDE_STEP)


def _number(text: str | None) -> int | float | None:
    try:
        return None if text is None else int(text) if text.isdigit() else float(text)
    except ValueError:
        return None


def _checked(values: Mapping[str, Any]) -> FoundSettings:
    """Return the values that a request may have. A side alone would be another shape: both or none."""
    found = {}
    for name in FoundSettings.__annotations__:
        value = values.get(name)
        if value is None:
            continue
        try:
            checked = parse_generate({"prompt": "x", name: value})
            found[name] = loras_of(checked) if name == "loras" else getattr(checked, name)
        except RequestError:
            continue
    if not all(name in found for name in _TOGETHER):
        found = {name: value for name, value in found.items() if name not in _TOGETHER}
    return found  # type: ignore[return-value]


def _graphs(file: bytes) -> dict[str, Any]:
    """Return ComfyUI's graph and workflow: in a PNG as texts, in JPEG and WebP as EXIF texts that begin with their names, or as
    one JSON object with both."""
    with Image.open(io.BytesIO(file), formats=("PNG", "JPEG", "WEBP")) as image:
        if image.format == "PNG":
            return _objects((name, str(image.info[name])) for name in _GRAPHS if name in image.info)
        texts = exif_texts(image)
    pairs = [(name, text) for text in texts for name, _, text in [text.partition(":")]]
    together = [pair for text in texts for pair in json_object(text).items()]
    return _objects([(name.strip().lower(), text) for name, text in pairs]) or _objects(together)


def _objects(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found = {name: value if isinstance(value, dict) else json_object(value) for name, value in pairs if name in _GRAPHS}
    return {name: found[name] for name in _GRAPHS if found.get(name)}
