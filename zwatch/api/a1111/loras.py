"""AUTOMATIC1111's list of LoRAs: those that `<lora:NAME:SCALE>` in a prompt can name."""

from aiohttp import web
from typing_extensions import TypedDict

from zwatch.api.answers import answer
from zwatch.api.native.loras import looked
from zwatch.api.services import SERVICES
from zwatch.deploy.loras import WEIGHTS


class SdLoraMetadata(TypedDict):
    """What is known of a LoRA: AUTOMATIC1111 has the header of its file here."""

    digest: str | None
    rank: int


class SdLora(TypedDict):
    """A LoRA. `path` is relative to the LoRA root: where that is on the server is nobody's business."""

    name: str
    alias: str
    path: str
    metadata: SdLoraMetadata


async def list_loras(request: web.Request) -> web.Response:
    """List the LoRAs that can be used."""
    services = request.app[SERVICES]
    await looked(services)
    body: list[SdLora] = [
        {"name": one.name, "alias": one.name, "path": f"{one.name}/{WEIGHTS}", "metadata": {"digest": one.digest, "rank": one.rank}}
        for one in services.loras.seen
        if one.problem is None
    ]  # fmt: skip
    return answer(body)


async def refresh(request: web.Request) -> web.Response:
    """Look for LoRAs now."""
    await looked(request.app[SERVICES])
    return answer(None)
