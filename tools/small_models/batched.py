"""Forward passes of the transformer and the text encoder over whole batches.

diffusers' `ZImageTransformer2DModel.forward` takes lists and loops over them in Python. Here every
picture of a batch has the same size and every caption the same padded length, so the same computation
over the same parameters is plain tensor work that `torch.compile` takes in one graph. The tests hold
both against the originals.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import ZImageTransformer2DModel
from torch import Tensor
from transformers import Qwen3Model

RunBlock = Callable[..., Tensor]

MULTIPLE = 32
"""Z-Image pads picture tokens and caption tokens to multiples of this (SEQ_MULTI_OF in diffusers)."""


def padded(n: int) -> int:
    return n + (-n) % MULTIPLE


def to_tokens(latents: Tensor) -> Tensor:
    """Latents [B, C, h, w] to tokens of 2×2: [B, h/2 * w/2, 4 C], in the order of `_patchify_image`."""
    b, c, h, w = latents.shape
    x = latents.view(b, c, h // 2, 2, w // 2, 2)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, (h // 2) * (w // 2), 4 * c)


def from_tokens(tokens: Tensor, h: int, w: int) -> Tensor:
    """The inverse of `to_tokens`."""
    b, _, d = tokens.shape
    x = tokens.view(b, h // 2, w // 2, 2, 2, d // 4)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, d // 4, h, w)


def rope_table(model: ZImageTransformer2DModel, h: int, w: int, caption: int, device: torch.device) -> Tensor:
    """Angles [padded picture tokens + caption, head_dim / 2] for latents h×w and a padded caption length.

    Positions as in `patchify_and_embed`: captions at (1.., 0, 0), the picture at (caption + 1, y, x), its
    padding at (0, 0, 0). Frequencies as in `RopeEmbedder.precompute_freqs_cis`.
    """
    ys, xs = torch.meshgrid(torch.arange(h // 2), torch.arange(w // 2), indexing="ij")
    picture = torch.stack((torch.full_like(ys, caption + 1), ys, xs), dim=-1).view(-1, 3)
    filler = torch.zeros(padded(len(picture)) - len(picture), 3, dtype=picture.dtype)
    words = torch.zeros(caption, 3, dtype=picture.dtype)
    words[:, 0] = torch.arange(1, caption + 1)
    positions = torch.cat((picture, filler, words)).double()
    angles = []
    for axis, d in enumerate(model.axes_dims):
        frequencies = 1.0 / model.rope_theta ** (torch.arange(0, d, 2, dtype=torch.float64) / d)
        angles.append(positions[:, axis : axis + 1] * frequencies)
    return torch.cat(angles, dim=1).float().to(device)


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return (y * weight).to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring pairs of x [B, N, heads, d] by angles given as cos, sin [N, d / 2]."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[None, :, None], sin[None, :, None]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).to(x.dtype)


def _attention(block: torch.nn.Module, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a = block.attention
    weight = torch.cat((a.to_q.weight, a.to_k.weight, a.to_v.weight))
    q, k, v = F.linear(x, weight).unflatten(-1, (3, a.heads, -1)).unbind(2)
    q = _rotate(_rms(q, a.norm_q.weight, a.norm_q.eps), cos, sin)
    k = _rotate(_rms(k, a.norm_k.weight, a.norm_k.eps), cos, sin)
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return F.linear(out.transpose(1, 2).flatten(2), a.to_out[0].weight)


def _feed_forward(block: torch.nn.Module, x: Tensor) -> Tensor:
    f = block.feed_forward
    gate, up = F.linear(x, torch.cat((f.w1.weight, f.w3.weight))).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, f.w2.weight)


def run_block(block: torch.nn.Module, x: Tensor, cos: Tensor, sin: Tensor, time: Tensor | None) -> Tensor:
    """`ZImageTransformerBlock.forward` without masks."""
    n1, n2, m1, m2 = block.attention_norm1, block.attention_norm2, block.ffn_norm1, block.ffn_norm2
    h, m = _rms(x, n1.weight, n1.eps), None
    if time is not None:
        mod = block.adaLN_modulation[0]
        scale_a, gate_a, scale_m, gate_m = F.linear(time, mod.weight, mod.bias)[:, None].chunk(4, dim=-1)
        h = h * (1 + scale_a)
    h = _rms(_attention(block, h, cos, sin), n2.weight, n2.eps)
    x = x + h if time is None else x + torch.tanh(gate_a) * h
    m = _rms(x, m1.weight, m1.eps)
    if time is not None:
        m = m * (1 + scale_m)
    m = _rms(_feed_forward(block, m), m2.weight, m2.eps)
    return x + m if time is None else x + torch.tanh(gate_m) * m


def transformer_forward(
    model: ZImageTransformer2DModel,
    tokens: Tensor,
    real: Tensor,
    t: Tensor,
    text: Tensor,
    text_real: Tensor,
    angles: Tensor,
    run: RunBlock = run_block,
) -> Tensor:
    """What the transformer predicts: tokens [B, N, 64].

    tokens: noisy latents as tokens, padded to N [B, N, 64]; real: which of the N are no padding, bool [N].
    t: [B], 1 - sigma. text: the encoder's states [B, L, TEXT_DIM]; text_real: which are real, bool [B, L].
    angles: of `rope_table`, [N + L, head_dim / 2]. run: `run_block`, or that function compiled.
    """
    n = tokens.shape[1]
    cos, sin = torch.cos(angles), torch.sin(angles)
    half = model.t_embedder.frequency_embedding_size // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t.device) / half)
    arguments = (t.float() * model.t_scale)[:, None] * frequencies
    mlp = model.t_embedder.mlp
    time = F.silu(F.linear(torch.cat((arguments.cos(), arguments.sin()), -1), mlp[0].weight, mlp[0].bias))
    time = F.linear(time, mlp[2].weight, mlp[2].bias)

    embed = model.all_x_embedder["2-1"]
    x = F.linear(tokens, embed.weight, embed.bias)
    x = torch.where(real[None, :, None], x, model.x_pad_token.to(x.dtype))
    for block in model.noise_refiner:
        x = run(block, x, cos[:n], sin[:n], time)

    norm, linear = model.cap_embedder
    words = F.linear(_rms(text, norm.weight, norm.eps), linear.weight, linear.bias)
    words = torch.where(text_real[:, :, None], words, model.cap_pad_token.to(words.dtype))
    for block in model.context_refiner:
        words = run(block, words, cos[n:], sin[n:], None)

    x = torch.cat((x, words.to(x.dtype)), dim=1)
    for block in model.layers:
        x = run(block, x, cos, sin, time)

    final = model.all_final_layer["2-1"]
    modulation = final.adaLN_modulation[1]
    scale = 1 + F.linear(F.silu(time), modulation.weight, modulation.bias)
    x = F.layer_norm(x[:, :n].float(), (model.dim,), eps=final.norm_final.eps) * scale[:, None]
    return F.linear(x, final.linear.weight, final.linear.bias)


def text_forward(model: Qwen3Model, ids: Tensor) -> Tensor:
    """The second to last hidden state of `Qwen3Model`: [B, L, hidden] for ids [B, L].

    Attention is causal and padding comes last, so real tokens never see it and no mask is needed.
    """
    c = model.config
    x = model.embed_tokens(ids)
    half = c.head_dim // 2
    theta = c.rope_parameters["rope_theta"]
    frequencies = 1.0 / theta ** (torch.arange(half, device=ids.device).float() / half)
    angles = torch.arange(ids.shape[1], device=ids.device).float()[:, None] * frequencies
    cos, sin = angles.cos()[None, :, None], angles.sin()[None, :, None]

    def rotate(y: Tensor) -> Tensor:
        a, b = y.float().chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(y.dtype)

    for layer in model.layers[:-1]:
        a = layer.self_attn
        h = _rms(x, layer.input_layernorm.weight, c.rms_norm_eps)
        q = F.linear(h, a.q_proj.weight).unflatten(-1, (c.num_attention_heads, c.head_dim))
        k = F.linear(h, a.k_proj.weight).unflatten(-1, (c.num_key_value_heads, c.head_dim))
        v = F.linear(h, a.v_proj.weight).unflatten(-1, (c.num_key_value_heads, c.head_dim))
        q, k = (
            rotate(_rms(q, a.q_norm.weight, c.rms_norm_eps)),
            rotate(_rms(k, a.k_norm.weight, c.rms_norm_eps)),
        )
        repeat = c.num_attention_heads // c.num_key_value_heads
        k, v = k.repeat_interleave(repeat, dim=2), v.repeat_interleave(repeat, dim=2)
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
        x = x + F.linear(out.transpose(1, 2).flatten(2), a.o_proj.weight)
        h = _rms(x, layer.post_attention_layernorm.weight, c.rms_norm_eps)
        m = layer.mlp
        x = x + F.linear(F.silu(F.linear(h, m.gate_proj.weight)) * F.linear(h, m.up_proj.weight), m.down_proj.weight)
    return x
