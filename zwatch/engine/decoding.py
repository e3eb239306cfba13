"""Decoding and encoding pictures on a device with little memory: at once, or, where that does not fit, in bands."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zwatch.engine.config_fields import LATENT_SCALE
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


class _Ways:
    """How one engine decodes or encodes. A size for which memory ran out is done in the next way until clearly more memory is free:
    to try again each time would cost time."""

    def __init__(self, device: Device, done: str, ways: "Sequence[_NamedWay]") -> None:
        """`done` is what is done to a picture; the ways are from the fastest to the one that takes the least memory."""
        self._device = device
        self._done, self._ways = done, ways
        self._shortages: list[list[_Shortage]] = [[] for _ in ways[:-1]]
        """Those of each way but the last."""

    def _found(self, pipeline: Pipeline, given: Tensor, height: int, width: int) -> Tensor:
        """Return what the first way makes that has enough memory, for a picture of a size in pixels.

        Raises:
            torch.OutOfMemoryError, MemoryError: there is not enough memory in any way.
        """
        places = height * width // LATENT_SCALE**2
        for number, (what, way) in enumerate(self._ways[:-1]):
            if self._is_known(number, places):
                continue
            if (made := _tried(way, pipeline, given)) is not None:
                return made
            # What is kept for the next version is worth less than decoding at once, each time.
            if number == 0 and self._device.give_room() and (made := _tried(way, pipeline, given)) is not None:
                return made
            free = self._note(number, places)
            self._device.forget_peak()
            _log.warning(
                "memory ran out when a picture of %d x %d was %s %s, with %d bytes free; it is %s %s, which takes longer",
                width, height, self._done, what, free, self._done, self._ways[number + 1][0],
            )  # fmt: skip
        return self._ways[-1][1](pipeline, given)

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


class Decoding(_Ways):
    """How one engine decodes."""

    def __init__(self, device: Device) -> None:
        super().__init__(device, "decoded", _DECODING)

    def decode(self, pipeline: Pipeline, latents: Tensor) -> Tensor:
        """As `Pipeline.decode`.

        Raises:
            torch.OutOfMemoryError, MemoryError: there is not enough memory in any way.
        """
        return self._found(pipeline, latents, latents.shape[2] * LATENT_SCALE, latents.shape[3] * LATENT_SCALE)


class Decoded:
    """The pixels of one picture: as soon as the device can be given the work, or when they are asked for."""

    def __init__(self, decoding: Decoding, pipeline: Pipeline) -> None:
        self._decoding, self._pipeline = decoding, pipeline
        self._pixels: Tensor | None = None

    def launch(self, latents: Tensor) -> None:
        """Begin to decode latents; errors as for `Decoding.decode`."""
        self._pixels = self._decoding.decode(self._pipeline, latents)

    def pixels(self, latents: Tensor) -> Tensor:
        """Return the pixels of the latents, which were launched or are decoded now; errors as for `Decoding.decode`."""
        if self._pixels is None:
            self.launch(latents)
        assert self._pixels is not None
        return self._pixels


class Encoding(_Ways):
    """How one engine encodes."""

    def __init__(self, device: Device) -> None:
        super().__init__(device, "encoded", _ENCODING)

    def encode(self, pipeline: Pipeline, pixels: Tensor) -> Tensor:
        """As `Pipeline.encode_image`.

        Raises:
            torch.OutOfMemoryError, MemoryError: there is not enough memory in any way.
        """
        return self._found(pipeline, pixels, pixels.shape[2], pixels.shape[3])


def _decoded_at_once(pipeline: Pipeline, latents: Tensor) -> Tensor:
    return pipeline.decode(latents)


def _decoded_in_bands(pipeline: Pipeline, latents: Tensor, store: torch.device | None = None) -> Tensor:
    """Decode in bands, with whole images in the memory of `store`, by default the device's."""
    scaled = pipeline.scaled(latents)
    if isinstance(pipeline.vae, Autoencoder):
        return banded.decode(pipeline.vae, scaled, store or latents.device)
    found: Tensor = pipeline.vae.tiled_decode(scaled, return_dict=False)[0]  # the library's
    return found


def _decoded_from_host(pipeline: Pipeline, latents: Tensor) -> Tensor:
    return _decoded_in_bands(pipeline, latents, torch.device("cpu"))


def _encoded_at_once(pipeline: Pipeline, pixels: Tensor) -> Tensor:
    return pipeline.encode_image(pixels)


def _encoded_in_bands(pipeline: Pipeline, pixels: Tensor, store: torch.device | None = None) -> Tensor:
    """Encode in bands, with whole images in the memory of `store`, by default the device's."""
    taken = pixels.to(pipeline.vae.dtype)
    if isinstance(pipeline.vae, Autoencoder):
        return banded.encode(pipeline.vae, taken, store or pixels.device)
    found: Tensor = pipeline.vae._tiled_encode(taken)  # noqa: SLF001 (the library's; its public one draws a sample)
    return found


def _encoded_from_host(pipeline: Pipeline, pixels: Tensor) -> Tensor:
    return _encoded_in_bands(pipeline, pixels, torch.device("cpu"))


_Way = Callable[[Pipeline, Tensor], Tensor]
_NamedWay = tuple[str, _Way]
_NAMES = "at once", "in bands", "in bands, with the rest in host memory"
_DECODING: Sequence[_NamedWay] = tuple(
    zip(_NAMES, (_decoded_at_once, _decoded_in_bands, _decoded_from_host), strict=True)
)
_ENCODING: Sequence[_NamedWay] = tuple(
    zip(_NAMES, (_encoded_at_once, _encoded_in_bands, _encoded_from_host), strict=True)
)
