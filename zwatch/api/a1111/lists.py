"""AUTOMATIC1111's lists that are the same for every version: what there is one of, and what there is none of.

Clients ask for them when they start. What this service does not do (ControlNet, interrogation, extras) has no call at all:
clients take the 404 for a missing extension.
"""

from typing import Annotated

from aiohttp import web
from aiohttp.typedefs import Handler
from typing_extensions import TypedDict

from zwatch.api.a1111.txt2img import SAMPLER
from zwatch.api.answers import answer
from zwatch.api.schema import choice


class Sampler(TypedDict):
    """A sampler."""

    name: Annotated[str, choice(SAMPLER)]
    aliases: list[str]
    options: dict[str, str]


class Scheduler(TypedDict):
    """A scheduler."""

    name: str
    label: str
    aliases: list[str] | None
    default_rho: float
    need_inner_model: bool


class Upscaler(TypedDict):
    """An upscaler."""

    name: str
    model_name: str | None
    model_path: str | None
    model_url: str | None
    scale: float


class EmptyObject(TypedDict):
    """An object without fields."""


class Scripts(TypedDict):
    """The names of scripts, by what they can be used for: there are none."""

    txt2img: list[str]
    img2img: list[str]


class Embeddings(TypedDict):
    """Textual inversions by name: there are none."""

    loaded: EmptyObject
    skipped: EmptyObject


class CmdFlags(TypedDict):
    """AUTOMATIC1111's command line flags, as far as they have a meaning here."""

    api: bool
    nowebui: bool


NONE = (
    ("latent-upscale-modes", "latent upscale modes"),
    ("sd-vae", "VAEs to choose from"),
    ("hypernetworks", "hypernetworks"),
    ("face-restorers", "face restorers"),
    ("realesrgan-models", "Real-ESRGAN models"),
    ("prompt-styles", "prompt styles"),
    ("script-info", "scripts"),
    ("extensions", "extensions"),
)
"""Lists that are empty: the last part of the path, and of what there is none."""
REFRESHED = ("checkpoints", "vae")
"""What clients ask to be read again. The lists are never old, so nothing is done."""


def _constant(body: object) -> Handler:
    """Return the handler of a constant answer."""

    async def constant(request: web.Request) -> web.Response:
        return answer(body)

    return constant


_SAMPLER: Sampler = {"name": SAMPLER, "aliases": ["k_euler"], "options": {}}
_SCHEDULER: Scheduler = {
    "name": "automatic", "label": "Automatic", "aliases": None, "default_rho": -1.0, "need_inner_model": False,
}  # fmt: skip
_UPSCALER: Upscaler = {"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 4.0}
_SCRIPTS: Scripts = {"txt2img": [], "img2img": []}
_EMBEDDINGS: Embeddings = {"loaded": {}, "skipped": {}}
_FLAGS: CmdFlags = {"api": True, "nowebui": True}

SAMPLERS = _constant([_SAMPLER])
SCHEDULERS = _constant([_SCHEDULER])
UPSCALERS = _constant([_UPSCALER])
SCRIPTS = _constant(_SCRIPTS)
EMBEDDINGS = _constant(_EMBEDDINGS)
CMD_FLAGS = _constant(_FLAGS)
EMPTY_LIST = _constant([])
EMPTY = _constant({})
NOTHING = _constant(None)
