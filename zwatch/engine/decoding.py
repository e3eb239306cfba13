"""Decoding pictures on a device with little memory: at once, or, where that does not fit, in bands."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zwatch.engine.networks import banded
from zwatch.engine.networks.autoencoder import Autoencoder
from zwatch.engine.sampling import Pipeline
from zwatch.shadow.device import Device
from zwatch.shadow.faults import is_memory_short

_log = logging.getLogger(__name__)

MORE = 256 * 2**20
"""Bytes that have to be free beyond those that were not enough, for another try: what is free differs a little each time."""


@dataclass(frozen=True, slots=True)
class _Shortage:
    """Memory ran out for so many places of latents although so many bytes were free."""

    places: int
    free: int

    def covers(self, other: "_Shortage") -> bool:
        return self.places <= other.places and other.free <= self.free


class Decoding:
    """How one engine decodes. A size for which memory ran out is decoded in the next way until clearly more memory is free: to try
    again each time would cost time."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._shortages: list[list[_Shortage]] = [[] for _ in _WAYS[:-1]]
        """Those of each way but the last."""

    def decode(self, pipeline: Pipeline, latents: Tensor) -> Tensor:
        """As `Pipeline.decode`.

        Raises:
            torch.OutOfMemoryError, MemoryError: there is not enough memory in any way.
        """
        places = latents.shape[2] * latents.shape[3]
        for number, (what, way) in enumerate(_WAYS[:-1]):
            if self._is_known(number, places):
                continue
            if (pixels := _tried(way, pipeline, latents)) is not None:
                return pixels
            # What is kept for the next version is worth less than decoding at once, each time.
            if number == 0 and self._device.give_room() and (pixels := _tried(way, pipeline, latents)) is not None:
                return pixels
            free = self._note(number, places)
            self._device.forget_peak()
            _log.warning(
                "memory ran out when a picture of %d x %d was decoded %s, with %d bytes free; it is decoded %s, which takes longer",
                8 * latents.shape[3], 8 * latents.shape[2], what, free, _WAYS[number + 1][0],
            )  # fmt: skip
        return _WAYS[-1][1](pipeline, latents)

    def _is_known(self, number: int, places: int) -> bool:
        """Return whether memory would run out again."""
        known = self._shortages[number]
        return bool(known) and any(one.covers(_Shortage(places, self._device.unused - MORE)) for one in known)

    def _note(self, number: int, places: int) -> int:
        """Note that memory ran out; return what is free."""
        new = _Shortage(places, self._device.unused)
        others = [one for one in self._shortages[number] if not new.covers(one)]
        self._shortages[number] = [*others, new]
        return new.free


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
