"""The fast way to compute, for the networks of `zwatch.engine.networks`; others are computed exactly."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zwatch.engine.computing import EXACT, Control, Velocities
from zwatch.engine.fast import attention, autoencoder, text_encoder
from zwatch.engine.fast.controlnet import ControlledSteps
from zwatch.engine.fast.graphs import Graphs, is_recordable
from zwatch.engine.fast.operations import Operations
from zwatch.engine.fast.products import Products
from zwatch.engine.fast.transformer import Step, Steps
from zwatch.engine.networks.autoencoder import Autoencoder
from zwatch.engine.networks.text_encoder import Qwen3Encoder
from zwatch.engine.networks.transformer import PAD_MULTIPLE, ZImageTransformer
from zwatch.engine.scaled import FP8, quantized_dtype
from zwatch.engine.schedule import Timeline

RECORDING = (1, 2)
"""The steps before which something is recorded, which takes tens of milliseconds: first the step itself, which the steps that follow
repeat, then something of an earlier picture."""
DECODED_AS_A_WHOLE = 64 * 64
"""Most latents, of a picture of 512 x 512, whose decoding is recorded: a larger one takes longer than launching it does, and memory."""


def gpu_operations(rows: int | None = None) -> Operations:
    """Return the operations as Triton kernels, of which a program takes so many rows, or the usual number.

    Raises:
        ImportError: triton is not installed.
    """
    from zwatch.engine.fast.triton_operations import ROWS, TritonOperations

    return TritonOperations(rows or ROWS)


class FastComputing:
    """The same mathematics with fewer roundings: pictures differ from the exact ones as rounding differs, and a picture's own
    bits are always the same."""

    def __init__(
        self, operations: Operations, attend: str = attention.DEFAULT, products: Products | None = None, *,
        runs_ahead: bool = False, graphs: Graphs | None = None,
    ) -> None:  # fmt: skip
        """`attend` is a name in `attention.KERNELS`; `products` are of the one transformer that they were made for. With `graphs`,
        which the caller holds, what a request computes again is launched as a whole."""
        self.operations = operations
        self.name = f"fast-{operations.name}-{attend}"
        self.runs_ahead = runs_ahead
        self._attend = attention.KERNELS[attend]
        self._products = products
        self._graphs = graphs

    def encode(self, network: Any, tokens: Tensor, mask: Tensor) -> Tensor:
        """As `Computing.encode`."""
        if not isinstance(network, Qwen3Encoder):
            return EXACT.encode(network, tokens, mask)
        count = int(mask.sum())
        if not mask[:count].all():
            return EXACT.encode(network, tokens, mask)
        padded = text_encoder.padded(tokens, count)
        waves = text_encoder.waves(network, len(padded), padded.device)
        encode = partial(text_encoder.encode, operations=self.operations)
        return self._run(network, ("encode", len(padded)), encode, padded, *waves)[:count]

    def velocities(
        self,
        transformer: Any,
        timeline: Timeline,
        prompts: Sequence[Tensor],
        latents: Tensor,
        control: Control | None = None,
    ) -> Velocities:
        """As `Computing.velocities`."""
        if not isinstance(transformer, ZImageTransformer):
            return EXACT.velocities(transformer, timeline, prompts, latents, control)
        times = (1000 - timeline.timesteps) / 1000
        size = (latents.shape[2], latents.shape[3])
        # Prompts of different lengths, one by one: attention needs no mask then.
        lengths = [-(-len(prompt) // PAD_MULTIPLE) for prompt in prompts]
        groups = [prompts] if len(set(lengths)) == 1 else [[prompt] for prompt in prompts]
        products = self._products or Products(scaled=quantized_dtype(transformer) is FP8)
        step = Step(self.operations, self._attend, products, size)
        if control is None:
            steps = [Steps(transformer, step, group, times, self._run) for group in groups]
        else:
            scaled = Products(scaled=quantized_dtype(control.network) is FP8)
            own = Step(self.operations, self._attend, scaled, size)
            steps = [ControlledSteps(transformer, step, own, control, group, times, self._run) for group in groups]

        def at(latents: Tensor, number: int) -> Sequence[Tensor]:
            if number in RECORDING and self._graphs is not None:
                self._graphs.record_one(transformer)  # the device has the step before this one to do
            inputs = latents.to(transformer.dtype)
            found = [
                self._run(
                    transformer, one.key, one.run,
                    inputs.expand(len(group), -1, -1, -1), *one.inputs(number), repeats=True,
                )
                for one, group in zip(steps, groups, strict=True)
            ]  # fmt: skip
            return torch.cat(found).unsqueeze(2).unbind(0)

        return at

    def encode_image(self, vae: Any, pixels: Tensor) -> Tensor:
        """As `Computing.encode_image`. It is done once a request."""
        if not isinstance(vae, Autoencoder):
            return EXACT.encode_image(vae, pixels)
        encode = partial(autoencoder.encode, operations=self.operations)
        if pixels.shape[2] * pixels.shape[3] > DECODED_AS_A_WHOLE * 64:
            return encode(vae, pixels)
        return self._run(vae, ("encode image", pixels.shape), encode, pixels)

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """As `Computing.decode`."""
        if not isinstance(vae, Autoencoder):
            return EXACT.decode(vae, latents)
        decode = partial(autoencoder.decode, operations=self.operations)
        if latents.shape[2] * latents.shape[3] > DECODED_AS_A_WHOLE:
            return decode(vae, latents)
        return self._run(vae, ("decode", latents.shape), decode, latents)

    def _run(
        self, network: Any, key: Hashable, function: Callable[..., Tensor], *inputs: Tensor, repeats: bool = False
    ) -> Tensor:
        if self._graphs is None or not is_recordable(inputs[0]):
            return function(network, *inputs)
        return self._graphs.run(network, key, function, *inputs, repeats=repeats)
