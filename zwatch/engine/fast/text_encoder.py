"""The encoding of `Qwen3Encoder` without its padding, and with what lies between the products fused."""

import torch
from torch import Tensor
from torch.nn import functional

from zwatch.engine.fast.operations import Norm, Operations, Rotation
from zwatch.engine.networks.layers import RMSNorm
from zwatch.engine.networks.text_encoder import Attention, Layer, Qwen3Encoder

PAD_MULTIPLE = 32
"""Prompts are padded to a multiple of this: few lengths, for each of which a graph is recorded once. A product of 32 rows takes as
long as one of a single row, that of reading its weights."""


def padded(tokens: Tensor, count: int) -> Tensor:
    """Return the first `count` of tokens, shape (length,), and padding that changes nothing before it."""
    missing = -count % PAD_MULTIPLE
    return functional.pad(tokens[:count], (0, missing)) if missing else tokens[:count]


def waves(network: Qwen3Encoder, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of so many positions, float32 of shape (count, head / 2)."""
    angles = network.angles(count, device)
    # Rounded as the network rounds them: that is part of what was trained.
    dtype = network.embed_tokens.weight.dtype
    return angles.cos().to(dtype).float(), angles.sin().to(dtype).float()


def encode(network: Qwen3Encoder, tokens: Tensor, cosines: Tensor, sines: Tensor, *, operations: Operations) -> Tensor:
    """Return what `Qwen3Encoder.encode` does for tokens of shape (count,) that all count, with their positions' waves: shape
    (count, width)."""
    x: Tensor = network.embed_tokens(tokens[None])
    rotation = Rotation(cosines, sines, interleaved=False)
    layers: list[Layer] = list(network.layers[:-1])  # type: ignore[arg-type]
    normed = operations.norm(x, _norm(layers[0].input_layernorm))
    for number, layer in enumerate(layers):
        assert isinstance(normed, Tensor)  # not fp8
        changed = _attention(layer.self_attn, operations, normed, rotation)
        x, normed = operations.residual_norm(x, changed, None, _norm(layer.post_attention_layernorm))
        gated = operations.gated(layer.mlp.gate_proj(normed), layer.mlp.up_proj(normed))
        changed = layer.mlp.down_proj(gated)
        if number + 1 == len(layers):
            x = operations.residual(x, changed, None)
        else:
            x, normed = operations.residual_norm(x, changed, None, _norm(layers[number + 1].input_layernorm))
    return x[0]


def _attention(attention: Attention, operations: Operations, x: Tensor, rotation: Rotation) -> Tensor:
    made = (
        linear(x).unflatten(-1, (-1, attention.head))
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key, value = made
    operations.heads(query, key, (_norm(attention.q_norm), _norm(attention.k_norm)), rotation)
    found = functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2),
        is_causal=True, scale=attention.head**-0.5, enable_gqa=attention.shared > 1,
    )  # fmt: skip
    result: Tensor = attention.o_proj(found.transpose(1, 2).flatten(2))
    return result


def _norm(norm: RMSNorm) -> Norm:
    return Norm(norm.weight[None], norm.epsilon)
