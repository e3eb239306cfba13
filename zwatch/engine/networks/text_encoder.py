"""The text encoder: the Qwen3 language model (arXiv:2505.09388) up to its last layer but one, whose output is the prompt.

Parameters have the names, and results the bits, of transformers' `Qwen3Model` with its attention "sdpa".
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from zwatch.engine.networks.configs import TextConfig
from zwatch.engine.networks.layers import Embedding, Linear, RMSNorm


class Attention(nn.Module):
    """Attention of each token to those before it; several query heads share a key and a value."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width, head = config.hidden_size, config.head_dim
        heads, pairs, bias = config.num_attention_heads, config.num_key_value_heads, config.attention_bias
        self.head, self.shared = head, heads // pairs
        self.q_proj = Linear(width, heads * head, bias=bias)
        self.k_proj, self.v_proj = (Linear(width, pairs * head, bias=bias) for _ in range(2))
        self.o_proj = Linear(heads * head, width, bias=bias)
        self.q_norm, self.k_norm = (RMSNorm(head, config.rms_norm_eps) for _ in range(2))

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor | None) -> Tensor:
        """Return the attention's output for x, shape (1, tokens, width). `mask` is bool, (1, 1, tokens, tokens); None: every
        token counts."""
        heads = (*x.shape[:-1], -1, self.head)
        query = _rotated(self.q_norm(self.q_proj(x).view(heads)).transpose(1, 2), cosine, sine)
        key = _rotated(self.k_norm(self.k_proj(x).view(heads)).transpose(1, 2), cosine, sine)
        value = self.v_proj(x).view(heads).transpose(1, 2)
        in_place = mask is None and self.head <= _LONGEST_SHARED and self.shared > 1
        if not in_place:
            key, value = _repeated(key, self.shared), _repeated(value, self.shared)
        found = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=self.head**-0.5, enable_gqa=in_place
        )
        result: Tensor = self.o_proj(found.transpose(1, 2).contiguous().flatten(2))
        return result


_LONGEST_SHARED = 256
"""Longest head for which torch's fast kernels take shared keys, as transformers decides."""


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return (x * cosine) + (torch.cat((-right, left), dim=-1) * sine)


def _repeated(x: Tensor, times: int) -> Tensor:
    """Repeat each head."""
    return x if times == 1 else x[:, :, None].expand(-1, -1, times, -1, -1).flatten(1, 2)


class FeedForward(nn.Module):
    """The gated network between attentions."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width, hidden = config.hidden_size, config.intermediate_size
        self.gate_proj, self.up_proj = (Linear(width, hidden, bias=False) for _ in range(2))
        self.down_proj = Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's output, of the shape of x."""
        result: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return result


class Layer(nn.Module):
    """One layer."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm, self.post_attention_layernorm = (
            RMSNorm(config.hidden_size, config.rms_norm_eps) for _ in range(2)
        )

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor | None) -> Tensor:
        """Return x, shape (1, tokens, width), after this layer."""
        x = x + self.self_attn(self.input_layernorm(x), cosine, sine, mask)
        result: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return result


class Qwen3Encoder(nn.Module):
    """The network. Built on the meta device it has no values until weights are assigned."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def encode(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return what the last layer but one makes of a prompt's tokens, shape (count, width).

        `tokens` are ids of shape (length,); `mask`, bool on the CPU, says which are the prompt's, the others are padding.
        Padding is computed, too: without it, results differ in their last bits from the libraries'.
        """
        length, device = len(tokens), tokens.device
        x: Tensor = self.embed_tokens(tokens[None])
        angles = self.angles(length, device)[None]
        angles = torch.cat((angles, angles), dim=-1)
        cosine, sine = (wave.to(x.dtype).unsqueeze(1) for wave in (angles.cos(), angles.sin()))
        places = torch.arange(length, device=device)
        seen = None if mask.all() else ((places[None] <= places[:, None]) & mask.to(device)[None])[None, None]
        for layer in self.layers[:-1]:
            x = layer(x, cosine, sine, seen)
        kept: Tensor = x[0, mask.nonzero().flatten().to(device)]
        return kept

    def angles(self, length: int, device: torch.device) -> Tensor:
        """Return how far each pair of a head is turned at each place, float32 of shape (length, head / 2)."""
        head = self.config.head_dim
        steps = torch.arange(0, head, 2, dtype=torch.float32) / head
        frequencies = (1.0 / (self.config.rope_theta**steps)).to(device, non_blocking=True)
        return torch.arange(length, device=device)[:, None].float() * frequencies
