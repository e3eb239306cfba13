"""Decoding pictures on a device with little memory: at once, or, where that does not fit, in bands."""

import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor

from zwatch.engine.networks import banded
from zwatch.engine.networks.autoencoder import Autoencoder
from zwatch.engine.sampling import Pipeline
from zwatch.shadow.device import Device
from zwatch.shadow.faults import is_memory_short

_log = logging.getLogger(__name__)


class Decoding:
    """How one engine decodes. A size for which memory ran out is decoded in the next way from then on: to try again would cost time,
    and the same request gives the same picture."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._too_large = [math.inf] * (len(_WAYS) - 1)
        """The fewest places of latents for which memory ran out, for each way but the last."""

    def decode(self, pipeline: Pipeline, latents: Tensor) -> Tensor:
        """As `Pipeline.decode`.

        Raises:
            torch.OutOfMemoryError, MemoryError: there is not enough memory in any way.
        """
        places = latents.shape[2] * latents.shape[3]
        for number, (what, way) in enumerate(_WAYS[:-1]):
            if places >= self._too_large[number]:
                continue
            if (pixels := _tried(way, pipeline, latents)) is not None:
                return pixels
            # What is kept for the next version is worth less than decoding at once, each time.
            if number == 0 and self._device.give_room() and (pixels := _tried(way, pipeline, latents)) is not None:
                return pixels
            self._too_large[number] = places
            self._device.forget_peak()
            _log.warning(
                "memory ran out when a picture of %d x %d was decoded %s; from now on such pictures are decoded %s, which takes longer",
                8 * latents.shape[3], 8 * latents.shape[2], what, _WAYS[number + 1][0],
            )  # fmt: skip
        return _WAYS[-1][1](pipeline, latents)


def _tried(way: "_Way", pipeline: Pipeline, latents: Tensor) -> Tensor | None:
    """Return the pixels; None if memory ran out. The error is gone then: its frames hold what left no room."""
    try:
        return way(pipeline, latents)
    except (RuntimeError, MemoryError) as error:
        if not is_memory_short(error):
            raise
        return None


def _at_once(pipeline: Pipeline, latents: Tensor) -> Tensor:
    return pipeline.decode(latents)


def _in_bands(pipeline: Pipeline, latents: Tensor, store: torch.device | None = None) -> Tensor:
    """Decode in bands, with whole images in the memory of `store`, by default the device's."""
    scaled = pipeline.scaled(latents)
    if isinstance(pipeline.vae, Autoencoder):
        return banded.decode(pipeline.vae, scaled, store or latents.device)
    found: Tensor = pipeline.vae.tiled_decode(scaled, return_dict=False)[0]  # the library's
    return found


def _in_bands_from_host(pipeline: Pipeline, latents: Tensor) -> Tensor:
    return _in_bands(pipeline, latents, torch.device("cpu"))


_Way = Callable[[Pipeline, Tensor], Tensor]
_WAYS: tuple[tuple[str, _Way], ...] = (
    ("at once", _at_once), ("in bands", _in_bands), ("in bands, with the rest in host memory", _in_bands_from_host),
)  # fmt: skip
"""From the fastest to the one that takes the least memory, with what they are called."""
