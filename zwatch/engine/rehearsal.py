"""A picture by networks of a few layers, whose only purpose is that CUDA loads its libraries and kernels.

That takes a second, which a start spends beside the reading of the weights. If the kernels of the fast way were compiled by an earlier
start, it is they that are loaded, by networks as wide as those of the versions; else the networks are tiny, and computed exactly.
"""

import logging
import sys
import threading
from contextlib import suppress

import torch

from zwatch.engine.kernels import Kernels
from zwatch.engine.networks.autoencoder import Autoencoder
from zwatch.engine.networks.configs import AutoencoderConfig, TextConfig, TransformerConfig
from zwatch.engine.networks.text_encoder import Qwen3Encoder
from zwatch.engine.networks.transformer import ZImageTransformer
from zwatch.engine.preview import LatentColours
from zwatch.engine.sampling import Pipeline, image_of
from zwatch.engine.schedule import EulerSchedule
from zwatch.lanes import start_thread
from zwatch.shadow.device import Device

_log = logging.getLogger(__name__)

SWITCH_SECONDS = 0.0005
"""Longest wait for the interpreter's lock meanwhile; 5 ms is usual."""
SIDE = 128
"""Of the picture, pixels."""
_TOKENS = 512
_TEXT = TextConfig(
    vocab_size=64, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
)  # fmt: skip
_TRANSFORMER = TransformerConfig(dim=256, n_layers=1, n_refiner_layers=1, n_heads=2, cap_feat_dim=256)
_VAE = AutoencoderConfig(block_out_channels=(128, 256), shift_factor=0.0, latent_channels=16, use_quant_conv=False)


def begin(device: Device, kernels: Kernels | None) -> None:
    """Begin it in a thread, on a GPU; a CPU has nothing to load. Without `kernels` pictures are drawn exactly."""
    if device.torch_device.type == "cuda":
        thread = threading.Thread(target=_rehearse, args=(device, kernels), name="zwatch-rehearsal", daemon=True)
        with suppress(OSError):  # without it the first picture takes longer
            start_thread(thread)
            device.preparing.append(thread)


def _rehearse(device: Device, kernels: Kernels | None) -> None:
    # The thread that sends weights to the device asks for the interpreter's lock at each of them, and gets it so late.
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        with device.on_serving_stream(), torch.inference_mode():
            if kernels is None or not kernels.rehearse():
                draw(device.torch_device)
            show(device.torch_device)
    except Exception:  # it has no other purpose: the warm-up and requests say what does not work
        _log.debug("the rehearsal failed", exc_info=True)
    finally:
        sys.setswitchinterval(before)


def draw(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> None:
    """Make a picture of noise on a device."""
    with torch.device("meta"):
        made = Qwen3Encoder(_TEXT), ZImageTransformer(_TRANSFORMER), Autoencoder(_VAE)
    for network in made:
        network.to_empty(device=device).to(dtype).eval()
    text, transformer, vae = made
    pipeline = Pipeline(None, text, transformer, vae, EulerSchedule())  # type: ignore[arg-type]  # no prompt is read
    mask = torch.arange(_TOKENS) < 16
    prompt = text.encode(torch.zeros(_TOKENS, dtype=torch.int64).to(device), mask)
    noise = pipeline.noise(SIDE, SIDE, torch.Generator(device).manual_seed(0))
    timeline = pipeline.timeline(noise, 2)
    latents = pipeline.denoise(noise, timeline, [prompt], 0.0, lambda number, before, after: None)
    pipeline.encode_image(pipeline.decode(latents))


def show(device: torch.device) -> None:
    """Make a picture, and a preview, of latents and pixels."""
    latents, pixels = (
        torch.zeros(1, 16, SIDE // 8, SIDE // 8, device=device),
        torch.zeros(1, 3, SIDE, SIDE, device=device),
    )
    torch.isfinite(pixels).all().item()
    image_of(torch.nan_to_num(pixels))
    timeline = EulerSchedule().timeline(2, latents.shape[2] * latents.shape[3] // 4, device)
    colours = LatentColours(torch.zeros(3, 16, device=device), torch.zeros(3, 1, device=device))
    colours.preview(latents, latents, *timeline.sigmas[:2]).image()
