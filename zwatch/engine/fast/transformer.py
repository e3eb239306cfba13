"""The forward of `ZImageTransformer` for one picture's steps: what does not change between steps is computed once, and what
lies between the products is fused."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zwatch.engine.fast.attention import Attend
from zwatch.engine.fast.operations import Norm, Operations, Rotation
from zwatch.engine.fast.products import Products
from zwatch.engine.networks.layers import RMSNorm
from zwatch.engine.networks.transformer import (
    FINAL_EPSILON,
    PAD_MULTIPLE,
    PATCH,
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

    @classmethod
    def of_steps(cls, block: Block, times: Tensor) -> "list[Modulation]":
        """Return those of all steps, whose embedded times are of shape (steps, 256)."""
        scale, gate, ffn_scale, ffn_gate = block.adaLN_modulation(times).float().chunk(4, dim=1)
        factors = 1.0 + scale, gate.tanh(), 1.0 + ffn_scale, ffn_gate.tanh()
        norms = _norms(block)
        each = [(norm.weight * factor).unsqueeze(1).unbind(0) for norm, factor in zip(norms, factors, strict=True)]
        return [
            cls(*(Norm(factor, norm.epsilon) for factor, norm in zip(of_step, norms, strict=True)))
            for of_step in zip(*each, strict=True)
        ]


def _plain(norm: RMSNorm) -> Norm:
    return Norm(norm.weight[None], norm.epsilon)


def _norms(block: Block) -> tuple[RMSNorm, RMSNorm, RMSNorm, RMSNorm]:
    return block.attention_norm1, block.attention_norm2, block.ffn_norm1, block.ffn_norm2


class Steps:
    """The network for all steps of pictures of one size, whose prompts have one length when padded.

    Each number depends on its own picture alone, not on how many there are: except for what a library's product of more rows
    rounds differently.
    """

    def __init__(
        self, network: ZImageTransformer, operations: Operations, attend: Attend, products: Products,
        size: tuple[int, int], prompts: Sequence[Tensor], times: Tensor,
    ) -> None:  # fmt: skip
        """Compute what all steps share. `size` is of the latents; `prompts` are encoded, each of shape (tokens, width); `times`
        are of shape (steps,), 0 for noise and 1 for an image."""
        self._network, self._operations, self._attend, self._products = network, operations, attend, products
        self._size = size
        grid = (1, size[0] // PATCH, size[1] // PATCH)
        self._count = grid[1] * grid[2]
        length = _padded(len(prompts[0]))
        if any(_padded(len(prompt)) != length for prompt in prompts):
            raise ValueError("the prompts have different lengths: attention would need a mask")
        image = network.rotations_of(grid, (length + 1, 0, 0), _padded(self._count))
        text = network.rotations_of((length, 1, 1), (1, 0, 0), length)
        self._image_rotation = _rotation(image)
        self._rotation = _rotation(torch.cat([image, text]))
        embedded = network.t_embedder(times * network.config.t_scale).to(network.dtype)
        self._refining = [Modulation.of_steps(block, embedded) for block in _blocks(network.noise_refiner)]
        self._modulating = [Modulation.of_steps(block, embedded) for block in _blocks(network.layers)]
        final = _final_layer(network)
        factors = 1.0 + final.adaLN_modulation(embedded).float()
        self._final = [Norm(factor, FINAL_EPSILON, centred=True) for factor in factors.unsqueeze(1).unbind(0)]
        self._text = self._refined(prompts, _rotation(text))

    def velocity(self, latents: Tensor, step: int) -> Tensor:
        """Return where latents of shape (batch, channels, h, w) move at a step, in the network's dtype, of the same shape."""
        network = self._network
        x: Tensor = network.all_x_embedder["2-1"](torch.stack([patches(one.unsqueeze(1)) for one in latents]))
        x = _with_padding(x, network.x_pad_token)
        x = self._through(
            _blocks(network.noise_refiner), [steps[step] for steps in self._refining], x, self._image_rotation
        )
        x = torch.cat([x, self._text], dim=1)
        mods = [steps[step] for steps in self._modulating]
        x = self._through(_blocks(network.layers), mods, x, self._rotation)
        normed = self._operations.norm(x, self._final[step])
        assert isinstance(normed, Tensor)
        out = _final_layer(network).linear(normed[:, : self._count])
        return torch.stack([image_of(one, (1, *self._size), network.in_channels).squeeze(1) for one in out])

    def _refined(self, prompts: Sequence[Tensor], rotation: Rotation) -> Tensor:
        """Return the prompts' tokens as the layers take them, which no time step changes."""
        network = self._network
        norm, linear = network.cap_embedder
        assert isinstance(norm, RMSNorm)
        rows = []
        for prompt in prompts:
            normed = self._operations.norm(prompt[None].contiguous(), _plain(norm))
            rows.append(_with_padding(linear(normed), network.cap_pad_token))
        blocks = _blocks(network.context_refiner)
        return self._through(blocks, [Modulation.plain(block) for block in blocks], torch.cat(rows), rotation)

    def _through(self, blocks: list[Block], modulations: list[Modulation], x: Tensor, rotation: Rotation) -> Tensor:
        """Return what blocks make of x, shape (batch, tokens, width)."""
        operations, scaled = self._operations, self._products.scaled
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
        made = self._products.of(x, attention.to_q, attention.to_k, attention.to_v)
        query, key, value = (part.view(*part.shape[:-1], attention.heads, -1) for part in made)
        norms = None
        if isinstance(attention.norm_q, RMSNorm) and isinstance(attention.norm_k, RMSNorm):
            norms = _plain(attention.norm_q), _plain(attention.norm_k)
        self._operations.heads(query, key, norms, rotation)
        found = self._attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        return self._closing(found.transpose(1, 2).flatten(2), attention.to_out[0])

    def _feed_forward(self, network: FeedForward, x: Activations) -> Tensor:
        left, right = self._products.of(x, network.w1, network.w3)
        return self._products.of(self._operations.gated(left, right, scaled=self._products.scaled), network.w2)[0]

    def _closing(self, x: Tensor, linear: nn.Module) -> Tensor:
        return self._products.of(self._operations.scaled(x) if self._products.scaled else x, linear)[0]


def _padded(length: int) -> int:
    return -(-length // PAD_MULTIPLE) * PAD_MULTIPLE


def _with_padding(tokens: Tensor, pad: Tensor) -> Tensor:
    """Return tokens of shape (batch, count, width) with padding at the end."""
    missing = _padded(tokens.shape[1]) - tokens.shape[1]
    return torch.cat([tokens, pad.expand(tokens.shape[0], missing, -1)], dim=1) if missing else tokens


def _rotation(rotations: Tensor) -> Rotation:
    return Rotation(rotations.real.contiguous(), rotations.imag.contiguous(), interleaved=True)


def _final_layer(network: ZImageTransformer) -> FinalLayer:
    return network.all_final_layer["2-1"]  # type: ignore[return-value]


def _blocks(blocks: nn.ModuleList) -> list[Block]:
    return list(blocks)  # type: ignore[arg-type]
