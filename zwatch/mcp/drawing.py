"""The tools that draw."""

import base64
from collections.abc import Mapping
from typing import Any

from mcp.types import ImageContent

from zwatch.client import Service
from zwatch.generating.asking import Picture, body_of
from zwatch.generating.events import BEAT, Drawing
from zwatch.generating.output import SUFFIXES, Output, name_for
from zwatch.mcp import pictures
from zwatch.mcp.places import Places
from zwatch.mcp.progress import Meter, in_thread
from zwatch.mcp.schemas import DrawArguments, Drawn, EditArguments, GuidedArguments

_SENT = ("prompt", "width", "height", "steps", "seed", "n", "model", "strength", "mask_blur", "control_scale")
"""The arguments that are fields of the request as they are."""


class Painter:
    """Draws with the service, and reads and writes pictures in the places that are allowed."""

    def __init__(self, service: Service, places: Places) -> None:
        self._service = service
        self._places = places

    async def draw(self, asked: DrawArguments, meter: Meter) -> tuple[Drawn, list[ImageContent]]:
        """Draw, or change a picture; return what was drawn, and copies to look at. Cancelling cancels the request.

        Raises:
            Refused: the service decided against it.
            UsageError: an argument is wrong, or no service answers.
        """
        fields = {name: value for name in _SENT if (value := getattr(asked, name, None)) is not None}
        if asked.loras:
            fields["loras"] = [one.model_dump() for one in asked.loras]
        output, sources = await in_thread(self._prepared, asked)
        if output is not None:
            fields["format"] = output[1]
        done = await self._fulfilled(Drawing(self._service, *body_of(fields, sources)), meter)
        return await in_thread(self._delivered, done, output)

    def _prepared(self, asked: DrawArguments) -> tuple[tuple[Output, str] | None, dict[str, Picture]]:
        given: dict[str, str | None] = {}
        if isinstance(asked, EditArguments):
            given = {"image": asked.image, "mask": asked.mask}
        elif isinstance(asked, GuidedArguments):
            given = {"control_image": asked.control_image}
        sources = {name: self._places.picture(name, text) for name, text in given.items() if text is not None}
        output = None if asked.save_as is None else self._places.output("save_as", asked.save_as, asked.n)
        return output, sources

    async def _fulfilled(self, drawing: Drawing, meter: Meter) -> dict[str, Any]:
        """Return the data of the last event, and report each of the others."""
        steps, step, what = None, 0, "asking the service"
        data: dict[str, Any] = {}
        try:
            while (event := await in_thread(next, drawing, None)) is not None:
                name, data = event
                if name == "queued":
                    what = f"queued, {data['position']} before it" if data["position"] else "next in the queue"
                elif name == "step":
                    # The first of them is the queue, the last the files.
                    step, steps = data["step"] + 1, data["steps"] + 2
                    what = f"step {data['step']} of {data['steps']}"
                if name in ("queued", "step", BEAT):
                    await meter.report(step, steps, what)
        finally:
            drawing.abort()
        return data

    def _delivered(self, done: dict[str, Any], output: tuple[Output, str] | None) -> tuple[Drawn, list[ImageContent]]:
        files = [base64.b64decode(image["b64_json"]) for image in done["images"]]
        found = []
        for number, (image, file) in enumerate(zip(done["images"], files, strict=True)):
            written = None
            if output is not None:
                name = name_for(image["name"], image["seed"], SUFFIXES[output[1]])
                written = str(output[0].write(number, file, name))
            found.append(self._described(image, done, written))
        drawn = Drawn.model_validate(
            {
                "pictures": found,
                "width": done["width"],
                "height": done["height"],
                "loras": done.get("loras") or [],
                "truncated": done["truncated"],
                "seconds": done["timings"]["total"],
            }
        )
        return drawn, pictures.contents(files)

    def _described(self, image: Mapping[str, Any], done: Mapping[str, Any], written: str | None) -> dict[str, Any]:
        return {
            "seed": image["seed"],
            "version": image.get("version") or done["version"],
            "image": None if image["name"] is None else f"history:{image['name']}",
            "url": None if image["url"] is None else f"{self._service.url}{image['url']}",
            "file": written,
        }
