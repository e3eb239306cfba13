"""The calls that Open WebUI and SillyTavern send, and the parts of the answers that they use.

Taken from their sources:
- Open WebUI: `backend/open_webui/routers/images.py` at 02530d501461.
- SillyTavern: `src/endpoints/stable-diffusion.js` at 02903fdd3ad3 (and, the same but for what is marked, at 1.12.6,
  ba6f7b7a98cf), the request's body from `public/scripts/extensions/stable-diffusion/index.js`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Call:
    """One call. `body` may be a function of the answers so far, by path; `uses` are the places that the client reads, with
    `*` for each entry of a list; with `may_fail`, the client accepts an error."""

    method: str
    path: str
    body: Any = None
    uses: tuple[str, ...] = ()
    may_fail: bool = False


@dataclass(frozen=True)
class Recording:
    """A client's calls in order, with the headers of all of them."""

    headers: dict[str, str]
    calls: list[Call] = field(default_factory=list)


def found_in(answer: Any, path: str) -> list[Any]:
    """Return the values at a place of an answer.

    Raises:
        KeyError, IndexError: the place does not exist.
    """
    found = [answer]
    for part in path.split("."):
        if part == "*":
            found = [entry for one in found for entry in one]
        else:
            found = [one[int(part)] if isinstance(one, list) else one[part] for one in found]
    return found


Options = Callable[[dict[str, Any]], Any]


def choosing(title: str) -> Options:
    """Return the body of Open WebUI: all options that it received, with another checkpoint."""
    return lambda answers: {**answers["/sdapi/v1/options"], "sd_model_checkpoint": title}


def open_webui(title: str) -> list[Call]:
    """An administrator connects, chooses a checkpoint and saves; then a user has an image made."""
    options = Call("GET", "/sdapi/v1/options", uses=("sd_model_checkpoint",))
    return [
        Call("GET", "/sdapi/v1/options"),  # "verify connection" checks the status only
        Call("GET", "/sdapi/v1/sd-models", uses=("*.title", "*.model_name")),
        options,
        Call("POST", "/sdapi/v1/options", choosing(title)),
        options,
        Call(
            "POST",
            "/sdapi/v1/txt2img",
            {"prompt": "a cat", "batch_size": 1, "width": 512, "height": 512, "steps": 50, "negative_prompt": "blurry"},
            uses=("images.*", "info"),
        ),
    ]


OPEN_WEBUI_HEADERS = {"User-Agent": "Python/3.11 aiohttp/3.13.2"}
OPEN_WEBUI_AUTH = {"without a password": "Basic ", "with a password": "Basic YWRtaW46c2VzYW1l"}


def sillytavern(title: str) -> list[Call]:
    """A user connects, which fills all the lists; chooses a checkpoint; has an image made; and stops it."""
    return [
        Call("GET", "/sdapi/v1/options"),
        Call("GET", "/sdapi/v1/samplers", uses=("*.name",)),
        Call("GET", "/sdapi/v1/options", uses=("sd_model_checkpoint",)),
        Call("GET", "/sdapi/v1/sd-models", uses=("*.title",)),
        Call("GET", "/sdapi/v1/upscalers", uses=("*.name",)),
        Call("GET", "/sdapi/v1/latent-upscale-modes", uses=("*.name",)),
        Call("GET", "/sdapi/v1/schedulers", uses=("*.name",)),
        Call("GET", "/sdapi/v1/sd-vae", uses=("*.model_name",)),
        Call("GET", "/sdapi/v1/sd-modules", may_fail=True),  # not in 1.12.6; Forge alone has it
        Call("POST", "/sdapi/v1/options", {"sd_model_checkpoint": title}),
        Call("GET", "/sdapi/v1/progress", uses=("progress", "state.job_count")),
        Call("GET", "/sdapi/v1/options"),  # not in 1.12.6; looks for `forge_preset`
        Call("POST", "/sdapi/v1/txt2img", SILLYTAVERN_BODY, uses=("images.0",)),
        Call("POST", "/sdapi/v1/interrupt"),
    ]


SILLYTAVERN_HEADERS = {
    "User-Agent": "node-fetch",
    "Accept": "*/*",
    "Accept-Encoding": "gzip, deflate, br",
    "Connection": "close",
}
SILLYTAVERN_AUTH = {"without a password": "Basic ", "with a password": "Basic OnNlc2FtZQ=="}
SILLYTAVERN_BODY = {
    "url": "http://localhost:7860",
    "auth": "",
    "prompt": "best quality, absurdres, aesthetic, a cat",
    "negative_prompt": "lowres, bad anatomy, bad hands, text, error, cropped, worst quality",
    "sampler_name": "DDIM",
    "scheduler": "normal",
    "steps": 20,
    "cfg_scale": 7,
    "width": 512,
    "height": 512,
    "restore_faces": False,
    "enable_hr": False,
    "hr_upscaler": "Latent",
    "hr_scale": 2,
    "hr_additional_modules": [],  # later than 1.12.6
    "denoising_strength": 0.7,
    "hr_second_pass_steps": 0,
    "override_settings": {"CLIP_stop_at_last_layers": 1},
    "override_settings_restore_afterwards": True,
    "clip_skip": 1,
    "save_images": True,
    "send_images": True,
    "do_not_save_grid": False,
    "do_not_save_samples": False,
    "alwayson_scripts": {"ADetailer": {"args": [True, True, {"ad_model": "face_yolov8n.pt"}]}},  # if it is switched on
}
