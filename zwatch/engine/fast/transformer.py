"""The forward of `ZImageTransformer` for one picture's steps: what does not change between steps is computed once, and what
lies between the products is fused."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from zwatch.engine.fast.attention import Attend
from zwatch.engine.fast.graphs import Computed
from zwatch.engine.fast.operations import Norm, Operations, Rotation
from zwatch.engine.fast.products import Products
from zwatch.engine.networks.configs import PATCH
from zwatch.engine.networks.layers import RMSNorm
from zwatch.engine.networks.transformer import (
    FINAL_EPSILON,
    PAD_MULTIPLE,
    Attention,
    Block,
    FeedForward,
    FinalLayer,
    ZImageTransformer,
    image_of,
    patches,
)
from zwatch.engine.scaled import Activations


@dataclass(frozen=True, slots=True)
class Modulation:
    """The four norms of a block at one step, with what the time step scales and gates them by."""

    attention: Norm
    attention_change: Norm
    feed_forward: Norm
    feed_forward_change: Norm

    @classmethod
    def plain(cls, block: Block) -> "Modulation":
        """Return the norms of a block that no time step modulates."""
        return cls(*map(_plain, _norms(block)))


def _plain(norm: RMSNorm) -> Norm:
    return Norm(norm.weight[None], norm.epsilon)


def _norms(block: Block) -> tuple[RMSNorm, RMSNorm, RMSNorm, RMSNorm]:
    return block.attention_norm1, block.attention_norm2, block.ffn_norm1, block.ffn_norm2


def factors_of(blocks: Sequence[Block], times: Tensor) -> Tensor:
    """Return what the blocks' norms multiply with, float32 of shape (steps, 4 * blocks, width), for embedded times of shape
    (steps, 256). All blocks together: few launches, which the device waits for."""
    width = blocks[0].attention_norm1.weight.shape[0]
    made = torch.stack([block.adaLN_modulation(times) for block in blocks], dim=1)
    scales, gates = made.view(len(times), len(blocks), 2, 2, width).float().unbind(3)
    factors = torch.stack([1.0 + scales, gates.tanh()], dim=3).flatten(1, 3)
    return torch.stack([norm.weight for block in blocks for norm in _norms(block)]) * factors


def modulations_of(blocks: Sequence[Block], factors: Tensor) -> list[Modulation]:
    """Return the norms of blocks at one step, with what they multiply with, of shape (4 * blocks, width)."""
    of_blocks = factors.view(len(blocks), 4, 1, -1)
    return [
        Modulation(*(Norm(row, norm.epsilon) for row, norm in zip(rows.unbind(0), _norms(block), strict=True)))
        for rows, block in zip(of_blocks.unbind(0), blocks, strict=True)
    ]


def rotations_of(waves: Sequence[Tensor]) -> tuple[Rotation, Rotation]:
    """Return the rotations of the image's positions and of all."""
    return Rotation(waves[0], waves[1], interleaved=True), Rotation(waves[2], waves[3], interleaved=True)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of pictures of a size, in latents: all that is known of a picture comes as tensors, so that it can be recorded."""

    operations: Operations
    attend: Attend
    products: Products
    size: tuple[int, int]

    def __call__(
        self, network: ZImageTransformer, latents: Tensor, text: Tensor, factors: Tensor, *waves: Tensor
    ) -> Tensor:
        """Return where latents of shape (batch, channels, h, w) move, in the network's dtype, of the same shape.

        `text` are the prompts' tokens, of shape (batch, tokens, width); `factors` what the norms multiply with, of shape (norms,
        width); `waves` the cosines and sines of the image's positions, and of all.
        """
        blocks = modulated(network)
        modulations = modulations_of(blocks, factors[:-1])
        image, whole = rotations_of(waves)
        refining = len(network.noise_refiner)
        x = self.tokens(network, latents)
        x = self.through(blocks[:refining], modulations[:refining], x, image)
        x = torch.cat([x, text], dim=1)
        x = self.through(blocks[refining:], modulations[refining:], x, whole)
        return self.image(network, x, factors)

    def tokens(self, network: ZImageTransformer, latents: Tensor) -> Tensor:
        """Return the embedded patches of latents, shape (batch, tokens, width)."""
        x: Tensor = network.all_x_embedder["2-1"](torch.stack([patches(one.unsqueeze(1)) for one in latents]))
        return with_padding(x, network.x_pad_token)

    def image(self, network: ZImageTransformer, x: Tensor, factors: Tensor) -> Tensor:
        """Return where latents move for what the layers made."""
        normed = self.operations.norm(x, Norm(factors[-1:], FINAL_EPSILON, centred=True))
        assert isinstance(normed, Tensor)
        out = _final_layer(network).linear(normed[:, : _places(self.size)])
        return torch.stack([image_of(one, (1, *self.size), network.in_channels).squeeze(1) for one in out])

    def refined(
        self, network: ZImageTransformer, prompts: Tensor, is_token: Tensor, cosines: Tensor, sines: Tensor
    ) -> Tensor:
        """Return the prompts' tokens as the layers take them, which no time step changes: shape (batch, tokens, width).

        `prompts` are encoded, of shape (batch, tokens, encoder's width), `is_token`, of shape (batch, tokens, 1), is false where
        padding stands; the cosines and sines are those of their positions.
        """
        norm, linear = network.cap_embedder
        assert isinstance(norm, RMSNorm)
        x = torch.where(is_token, linear(self.operations.norm(prompts, _plain(norm))), network.cap_pad_token)
        blocks = _blocks(network.context_refiner)
        rotation = Rotation(cosines, sines, interleaved=True)
        return self.through(blocks, [Modulation.plain(block) for block in blocks], x, rotation)

    def through(
        self, blocks: Sequence[Block], modulations: Sequence[Modulation], x: Tensor, rotation: Rotation
    ) -> Tensor:
        """Return what blocks make of x, shape (batch, tokens, width)."""
        operations, scaled = self.operations, self.products.scaled
        for number, (block, norms) in enumerate(zip(blocks, modulations, strict=True)):
            if number == 0:
                normed = operations.norm(x, norms.attention, scaled=scaled)
            changed = self._attention(block.attention, normed, rotation)
            x, normed = operations.residual_norm(x, changed, norms.attention_change, norms.feed_forward, scaled=scaled)
            changed = self._feed_forward(block.feed_forward, normed)
            if number + 1 == len(blocks):
                return operations.residual(x, changed, norms.feed_forward_change)
            following = modulations[number + 1].attention
            x, normed = operations.residual_norm(x, changed, norms.feed_forward_change, following, scaled=scaled)
        return x

    def _attention(self, attention: Attention, x: Activations, rotation: Rotation) -> Tensor:
        made = self.products.of(x, attention.to_q, attention.to_k, attention.to_v)
        query, key, value = (part.view(*part.shape[:-1], attention.heads, -1) for part in made)
        norms = None
        if isinstance(attention.norm_q, RMSNorm) and isinstance(attention.norm_k, RMSNorm):
            norms = _plain(attention.norm_q), _plain(attention.norm_k)
        self.operations.heads(query, key, norms, rotation)
        found = self.attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        return self._closing(found.transpose(1, 2).flatten(2), attention.to_out[0])

    def _feed_forward(self, network: FeedForward, x: Activations) -> Tensor:
        left, right = self.products.of(x, network.w1, network.w3)
        return self.products.of(self.operations.gated(left, right, scaled=self.products.scaled), network.w2)[0]

    def _closing(self, x: Tensor, linear: nn.Module) -> Tensor:
        return self.products.of(self.operations.scaled(x) if self.products.scaled else x, linear)[0]


def factors(network: ZImageTransformer, times: Tensor) -> Tensor:
    """Return what the norms of all steps multiply with, float32 of shape (steps, norms, width), the final layer's last; `times` are
    of shape (steps,), 0 for noise and 1 for an image."""
    embedded = network.t_embedder(times * network.config.t_scale).to(network.dtype)
    final = 1.0 + _final_layer(network).adaLN_modulation(embedded).float()
    return torch.cat([factors_of(modulated(network), embedded), final.unsqueeze(1)], dim=1)


class Run(Protocol):
    """Computes something with a network and tensors, or does it again as a whole; the key tells functions and shapes apart."""

    def __call__(self, network: nn.Module, key: Hashable, function: Computed, *inputs: Tensor) -> Tensor:
        """Return the function's result for the network and the inputs."""


def directly(network: nn.Module, key: Hashable, function: Computed, *inputs: Tensor) -> Tensor:
    """Compute it, as a `Run` that keeps nothing."""
    return function(network, *inputs)


class Steps:
    """The network for all steps of pictures of one size, whose prompts have one length when padded.

    Each number depends on its own picture alone, not on how many there are: except for what a library's product of more rows
    rounds differently.
    """

    def __init__(
        self, network: ZImageTransformer, step: Step, prompts: Sequence[Tensor], times: Tensor, run: Run = directly
    ) -> None:
        """Compute what all steps share, by `run`: many small launches, which the device waits for. `prompts` are encoded, each of
        shape (tokens, width); `times` are as for `factors`."""
        self.step = step
        self.run: Callable[..., Tensor] = step
        """Computes a step of a network, latents and the inputs."""
        self._network = network
        places = _places(step.size)
        length = _padded(len(prompts[0]))
        if any(_padded(len(prompt)) != length for prompt in prompts):
            raise ValueError("the prompts have different lengths: attention would need a mask")
        grid = (1, step.size[0] // PATCH, step.size[1] // PATCH)
        image = network.rotations_of(grid, (length + 1, 0, 0), _padded(places))
        text = network.rotations_of((length, 1, 1), (1, 0, 0), length)
        self._factors = run(network, ("factors", len(times)), factors, times)
        numbers = torch.arange(length, device=times.device).unsqueeze(1)
        is_token = torch.stack([numbers < len(prompt) for prompt in prompts])
        rows = torch.stack([functional.pad(prompt, (0, 0, 0, length - len(prompt))) for prompt in prompts])
        self._text = run(network, ("text", len(prompts), length), step.refined, rows, is_token, *_waves(text))
        self._waves = *_waves(image), *_waves(torch.cat([image, text]))

    @property
    def key(self) -> tuple[object, ...]:
        """What tells the steps apart that can be recorded of a network."""
        return "step", self.step.size, *self._text.shape[:2]

    def embedded(self, times: Tensor) -> Tensor:
        """Return the embedding of times, shape (steps, 256)."""
        made: Tensor = self._network.t_embedder(times * self._network.config.t_scale)
        return made.to(self._network.dtype)

    def inputs(self, number: int) -> tuple[Tensor, ...]:
        """Return what a step takes beside the latents."""
        return self._text, self._factors[number], *self._waves

    def velocity(self, latents: Tensor, number: int) -> Tensor:
        """Return where latents of shape (batch, channels, h, w) move at a step, in the network's dtype, of the same shape."""
        return self.run(self._network, latents, *self.inputs(number))


def _padded(length: int) -> int:
    return -(-length // PAD_MULTIPLE) * PAD_MULTIPLE


def with_padding(tokens: Tensor, pad: Tensor) -> Tensor:
    """Return tokens of shape (batch, count, width) with padding at the end."""
    missing = _padded(tokens.shape[1]) - tokens.shape[1]
    return torch.cat([tokens, pad.expand(tokens.shape[0], missing, -1)], dim=1) if missing else tokens


def _places(size: tuple[int, int]) -> int:
    """Return the number of patches of latents."""
    return (size[0] // PATCH) * (size[1] // PATCH)


def _waves(rotations: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of rotations."""
    return rotations.real.contiguous(), rotations.imag.contiguous()


def _final_layer(network: ZImageTransformer) -> FinalLayer:
    return network.all_final_layer["2-1"]  # type: ignore[return-value]


def modulated(network: ZImageTransformer) -> list[Block]:
    """Return the blocks that a time step modulates."""
    return _blocks(network.noise_refiner) + _blocks(network.layers)


def _blocks(blocks: nn.ModuleList) -> list[Block]:
    return list(blocks)  # type: ignore[arg-type]
