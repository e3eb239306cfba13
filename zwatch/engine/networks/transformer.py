"""The diffusion transformer of Z-Image (arXiv:2511.22699): patches of an image and the tokens of its prompt in one sequence.

Parameters have the names, and results the bits, of diffusers' `ZImageTransformer2DModel`; the calls are those of
`ZImagePipeline`. What only its other pipelines use is not here, but for what `ZImageControlNetPipeline` adds to its layers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from zwatch.engine.networks.configs import PATCH, TransformerConfig
from zwatch.engine.networks.layers import Linear, RMSNorm

PAD_MULTIPLE = 32
"""Both parts of a sequence are padded to a multiple of this (`SEQ_MULTI_OF` of the published code)."""
TIME_WIDTH = 256
"""Most channels of a time step's embedding (`ADALN_EMBED_DIM`)."""
_TIME_HIDDEN = 1024
_TIME_PERIOD = 10_000
QK_EPSILON = 1e-5
FINAL_EPSILON = 1e-6
NO_HINTS: Mapping[int, Tensor] = {}


class Attention(nn.Module):
    """Attention of all tokens to all, with rotary positions."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, self.heads = config.dim, config.n_heads
        self.to_q, self.to_k, self.to_v = (Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([Linear(width, width, bias=False)])
        self.norm_q: nn.Module | None = None
        self.norm_k: nn.Module | None = None
        if config.qk_norm:
            self.norm_q, self.norm_k = (RMSNorm(width // self.heads, QK_EPSILON) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor | None, rotations: Tensor) -> Tensor:
        """Return the attention's output for x, shape (batch, tokens, width).

        `mask` is bool, (batch, tokens); `rotations` complex64, (batch, tokens, width / heads / 2).
        """
        heads = (*x.shape[:-1], self.heads, -1)
        query, key, value = (made(x).view(heads) for made in (self.to_q, self.to_k, self.to_v))
        if self.norm_q is not None and self.norm_k is not None:
            query, key = self.norm_q(query), self.norm_k(key)
        query, key = _rotated(query, rotations), _rotated(key, rotations)
        found = functional.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2),
            attn_mask=None if mask is None else mask[:, None, None, :],
        )  # fmt: skip
        result: Tensor = self.to_out[0](found.transpose(1, 2).flatten(2))
        return result


def _rotated(x: Tensor, rotations: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotations.unsqueeze(2)).flatten(3).type_as(x)


class FeedForward(nn.Module):
    """The gated network between attentions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(width / 3 * 8)
        self.w1, self.w3 = (Linear(width, hidden, bias=False) for _ in range(2))
        self.w2 = Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's output, of the shape of x."""
        result: Tensor = self.w2(functional.silu(self.w1(x)) * self.w3(x))
        return result


class Block(nn.Module):
    """Attention and a gated network, each between two norms; with `modulated` scaled and gated by the time step."""

    def __init__(self, config: TransformerConfig, *, modulated: bool) -> None:
        super().__init__()
        width = config.dim
        self.attention = Attention(config)
        self.feed_forward = FeedForward(width)
        self.attention_norm1, self.attention_norm2 = (RMSNorm(width, config.norm_eps) for _ in range(2))
        self.ffn_norm1, self.ffn_norm2 = (RMSNorm(width, config.norm_eps) for _ in range(2))
        if modulated:
            self.adaLN_modulation = nn.Sequential(Linear(min(width, TIME_WIDTH), 4 * width))

    def forward(self, x: Tensor, mask: Tensor | None, rotations: Tensor, time: Tensor | None = None) -> Tensor:
        """Return x, shape (batch, tokens, width), after this block; `time` is (batch, 256)."""
        if time is None:
            x = x + self.attention_norm2(self.attention(self.attention_norm1(x), mask, rotations))
            plain: Tensor = x + self.ffn_norm2(self.feed_forward(self.ffn_norm1(x)))
            return plain
        scale, gate, ffn_scale, ffn_gate = self.adaLN_modulation(time).unsqueeze(1).chunk(4, dim=2)
        attended = self.attention(self.attention_norm1(x) * (1.0 + scale), mask, rotations)
        x = x + gate.tanh() * self.attention_norm2(attended)
        changed = self.ffn_norm2(self.feed_forward(self.ffn_norm1(x) * (1.0 + ffn_scale)))
        result: Tensor = x + ffn_gate.tanh() * changed
        return result


class FinalLayer(nn.Module):
    """From tokens to patches."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=FINAL_EPSILON)
        self.linear = Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(min(width, TIME_WIDTH), width))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return shape (batch, tokens, out)."""
        result: Tensor = self.linear(self.norm_final(x) * (1.0 + self.adaLN_modulation(time)).unsqueeze(1))
        return result


class TimeEmbedder(nn.Module):
    """The embedding of a time step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Linear(TIME_WIDTH, _TIME_HIDDEN), nn.SiLU(), Linear(_TIME_HIDDEN, width))

    def forward(self, time: Tensor) -> Tensor:
        """Return shape (batch, width) for times of shape (batch,)."""
        half = TIME_WIDTH // 2
        steps = torch.arange(half, dtype=torch.float32, device=time.device)
        angles = time[:, None].float() * torch.exp(-math.log(_TIME_PERIOD) * steps / half)[None]
        waves = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
        weight: Tensor = self.mlp[2].weight  # type: ignore[assignment]
        result: Tensor = self.mlp(waves.to(weight.dtype))
        return result


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the sequences of a batch: tokens (batch, most, width), their rotations, who is padding of a shorter one
    (None: nobody), and how many tokens each has."""

    tokens: Tensor
    rotations: Tensor
    mask: Tensor | None
    lengths: list[int]


class ZImageTransformer(nn.Module):
    """The network. Built on the meta device it has no values until weights are assigned."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.in_channels = config.in_channels
        width, patch = config.dim, PATCH * PATCH * config.in_channels
        self.all_x_embedder = nn.ModuleDict({"2-1": Linear(patch, width)})
        self.all_final_layer = nn.ModuleDict({"2-1": FinalLayer(width, patch)})
        self.noise_refiner = nn.ModuleList(Block(config, modulated=True) for _ in range(config.n_refiner_layers))
        self.context_refiner = nn.ModuleList(Block(config, modulated=False) for _ in range(config.n_refiner_layers))
        self.t_embedder = TimeEmbedder(min(width, TIME_WIDTH))
        self.cap_embedder = nn.Sequential(
            RMSNorm(config.cap_feat_dim, config.norm_eps), Linear(config.cap_feat_dim, width)
        )
        self.x_pad_token = nn.Parameter(torch.zeros(1, width))
        self.cap_pad_token = nn.Parameter(torch.zeros(1, width))
        self.layers = nn.ModuleList(Block(config, modulated=True) for _ in range(config.n_layers))
        self._tables: list[Tensor] = []
        self._rotations: dict[tuple[Any, ...], Tensor] = {}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that it computes in."""
        return self.x_pad_token.dtype

    def forward(
        self, x: Sequence[Tensor], t: Tensor, cap_feats: Sequence[Tensor], *, return_dict: bool = False,
        hints: Mapping[int, Tensor] = NO_HINTS,
    ) -> tuple[list[Tensor]]:  # fmt: skip
        """Return the velocity of each image of a batch, in a tuple as diffusers does with `return_dict=False`.

        `x` are latents of shape (channels, 1, h, w), all of one size; `t` is (batch,), 0 for noise and 1 for an image;
        `cap_feats` are the encoded prompts, each of shape (tokens, cap_feat_dim); `hints` are added to what the layers of these numbers
        make, shape (batch, tokens, dim).
        """
        assert not return_dict  # as the pipeline calls it
        time = self.embedded(t, x[0])
        image, prompt = self.parts(x, cap_feats)
        tokens, prompt_tokens = image.tokens, prompt.tokens
        for block in self.noise_refiner:
            tokens = block(tokens, image.mask, image.rotations, time)
        for block in self.context_refiner:
            prompt_tokens = block(prompt_tokens, prompt.mask, prompt.rotations)
        whole, rotations, mask = joined(image, tokens, prompt, prompt_tokens)
        for number, block in enumerate(self.layers):
            whole = block(whole, mask, rotations, time)
            if number in hints:
                whole = whole + hints[number]
        out = self.all_final_layer["2-1"](whole, time)
        _, frames, height, width = x[0].shape
        return ([image_of(one, (frames, height, width), self.in_channels) for one in out],)

    def embedded(self, t: Tensor, x: Tensor) -> Tensor:
        """Return the embedding of times, shape (batch, 256), in the dtype of x."""
        made: Tensor = self.t_embedder(t * self.config.t_scale)
        return made.type_as(x)

    def parts(self, x: Sequence[Tensor], cap_feats: Sequence[Tensor]) -> tuple[Part, Part]:
        """Return the embedded images and prompts, as `forward` takes them."""
        _, frames, height, width = x[0].shape
        grid = (frames, height // PATCH, width // PATCH)
        prompts = [padded(one) for one in cap_feats]
        image = self._part(
            self.all_x_embedder["2-1"], [padded(patches(one)) for one in x], [math.prod(grid)] * len(x), self.x_pad_token,
            [(grid, (len(prompt) + 1, 0, 0)) for prompt in prompts],
        )  # fmt: skip
        prompt = self._part(
            self.cap_embedder, prompts, [len(one) for one in cap_feats], self.cap_pad_token,
            [((len(prompt), 1, 1), (1, 0, 0)) for prompt in prompts],
        )  # fmt: skip
        return image, prompt

    def _part(
        self, embed: nn.Module, features: list[Tensor], lengths: list[int], pad: Tensor,
        places: list[tuple[tuple[int, int, int], tuple[int, int, int]]],
    ) -> Part:  # fmt: skip
        """Embed one part of the sequences. `lengths` are without padding, `places` are (grid, position of its first token)."""
        counts = [len(one) for one in features]
        tokens = embed(torch.cat(features))
        is_padding = [place >= length for length, all_ in zip(lengths, counts, strict=True) for place in range(all_)]
        if any(is_padding):
            tokens = torch.where(torch.tensor(is_padding, device=tokens.device).unsqueeze(-1), pad, tokens)
        rotations = [self.rotations_of(*place, count) for place, count in zip(places, counts, strict=True)]
        return Part(
            pad_sequence(list(tokens.split(counts)), batch_first=True),
            pad_sequence(rotations, batch_first=True), _mask(counts, tokens.device), counts,
        )  # fmt: skip

    def rotations_of(self, grid: tuple[int, int, int], first: tuple[int, int, int], count: int) -> Tensor:
        """Return the rotations of a grid of positions, complex64 of shape (count, head width / 2); padding is at 0, 0, 0."""
        device = self.x_pad_token.device
        if not self._tables or self._tables[0].device != device:
            self._rotations.clear()
            self._tables = [table.to(device) for table in _tables(self.config)]
        key = (grid, first, count)
        if (found := self._rotations.get(key)) is None:
            axes = [torch.arange(start, start + size, device=device) for size, start in zip(grid, first, strict=True)]
            positions = torch.stack(torch.meshgrid(axes, indexing="ij"), dim=-1).flatten(0, 2)
            positions = functional.pad(positions, (0, 0, 0, count - len(positions)))
            found = torch.cat([table[positions[:, axis]] for axis, table in enumerate(self._tables)], dim=-1)
            while len(self._rotations) >= _KEPT_ROTATIONS:
                del self._rotations[next(iter(self._rotations))]
            self._rotations[key] = found
        return found


_KEPT_ROTATIONS = 8
"""Of an image and two prompts of a request, of two requests in turns; each has up to 8 MB at 2048 x 2048."""


def _tables(config: TransformerConfig) -> list[Tensor]:
    """Return each axis' rotations by position, complex64 of shape (positions, width / 2), on the CPU."""
    tables = []
    with torch.device("cpu"):
        for width, length in zip(config.axes_dims, config.axes_lens, strict=True):
            frequencies = 1.0 / (config.rope_theta ** (torch.arange(0, width, 2, dtype=torch.float64) / width))
            angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies).float()
            tables.append(torch.polar(torch.ones_like(angles), angles))
    return tables


def padded(features: Tensor) -> Tensor:
    """Repeat the last row up to a multiple of 32 rows: what stands there is replaced."""
    missing = -len(features) % PAD_MULTIPLE
    return torch.cat([features, features[-1:].repeat(missing, 1)]) if missing else features


def _mask(lengths: list[int], device: torch.device) -> Tensor | None:
    most = max(lengths)
    if all(length == most for length in lengths):
        return None
    return mask_of(lengths, device)


def mask_of(lengths: list[int], device: torch.device) -> Tensor:
    """Return which places of sequences are no padding of a shorter one, bool of shape (batch, most)."""
    return torch.arange(max(lengths), device=device)[None] < torch.tensor(lengths, device=device)[:, None]


def joined(image: Part, tokens: Tensor, prompt: Part, prompt_tokens: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the sequences of image and prompt, their rotations and their mask."""
    lengths = list(zip(image.lengths, prompt.lengths, strict=True))

    def join(left: Tensor, right: Tensor) -> Tensor:
        rows = [torch.cat([left[row, :first], right[row, :second]]) for row, (first, second) in enumerate(lengths)]
        return pad_sequence(rows, batch_first=True)

    mask = _mask([first + second for first, second in lengths], tokens.device)
    return join(tokens, prompt_tokens), join(image.rotations, prompt.rotations), mask


def patches(image: Tensor) -> Tensor:
    """Cut latents of shape (channels, frames, h, w) into patches, shape (patches, 4 x channels)."""
    channels, frames, height, width = image.shape
    cut = image.view(channels, frames, 1, height // PATCH, PATCH, width // PATCH, PATCH)
    return cut.permute(1, 3, 5, 2, 4, 6, 0).reshape(-1, PATCH * PATCH * channels)


def image_of(patches: Tensor, size: tuple[int, int, int], channels: int) -> Tensor:
    """Undo `patches`; what follows the image's own patches is left out."""
    frames, height, width = size
    rows, columns = height // PATCH, width // PATCH
    cut = patches[: frames * rows * columns].view(frames, rows, columns, 1, PATCH, PATCH, channels)
    return cut.permute(6, 0, 3, 1, 4, 2, 5).reshape(channels, frames, height, width)
