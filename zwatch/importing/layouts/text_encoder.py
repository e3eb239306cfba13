"""Z-Image's text encoder, Qwen3-4B: transformers' names, with and without what a language model has around them, and
llama.cpp's."""

import re
from collections.abc import Collection, Mapping

from zwatch.importing.layouts.parts import Component, Piece, Rename, Shape, Shapes, blocks_of, by_sizes, size_of

_INNER = re.compile(r"^(?:transformer\.)?(?:model\.)?((?:layers\.[0-9]{1,4}|embed_tokens|norm)\..+)$")
_DROPPED = re.compile(r"^(?:transformer\.)?(?:lm_head\.weight|model\.rotary_emb\.inv_freq|rotary_emb\.inv_freq)$|^logit_scale$|^output\.weight$|^rope_freqs\.weight$")  # fmt: skip
"""The language head and the table of frequencies, which the encoder does without; ComfyUI's checkpoints add a `logit_scale`,
GGUF files of language models name the head `output.weight`."""
_LLAMA_CPP = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
"""gguf's constants.py, MODEL_ARCH.QWEN3: its tensors are stored as transformers has them, not permuted as Llama's are."""
_LLAMA_CPP_BLOCK = re.compile(r"^blk\.([0-9]{1,4})\.([a-z_]+)\.weight$")
_LLAMA_CPP_OUTER = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}


def _pieces(name: str) -> tuple[Piece, ...]:
    if _DROPPED.match(name):
        return ()
    if name in _LLAMA_CPP_OUTER:
        return (Piece(_LLAMA_CPP_OUTER[name]),)
    if (block := _LLAMA_CPP_BLOCK.match(name)) and block[2] in _LLAMA_CPP:
        return (Piece(f"layers.{block[1]}.{_LLAMA_CPP[block[2]]}.weight"),)
    inner = _INNER.match(name)
    return (Piece(inner[1] if inner else name),)


def _renaming(names: Collection[str]) -> Rename:
    return _pieces


def sizes(shapes: Shapes) -> dict[str, int]:
    """Return what transformers' config calls the sizes, from the shapes of a Qwen3 encoder's tensors.

    Raises:
        Rejection: a tensor that they are read from is missing or odd.
    """
    vocabulary, hidden = size_of(shapes, "embed_tokens.weight", 2)
    (head_dim,) = size_of(shapes, "layers.0.self_attn.q_norm.weight", 1)
    queries, _ = size_of(shapes, "layers.0.self_attn.q_proj.weight", 2)
    keys, _ = size_of(shapes, "layers.0.self_attn.k_proj.weight", 2)
    inner, _ = size_of(shapes, "layers.0.mlp.gate_proj.weight", 2)
    return {
        "vocab_size": vocabulary, "hidden_size": hidden, "head_dim": head_dim, "num_attention_heads": queries // head_dim,
        "num_key_value_heads": keys // head_dim, "intermediate_size": inner,
        "num_hidden_layers": blocks_of(shapes, "layers"),
    }  # fmt: skip


def tensors(of: Mapping[str, int]) -> dict[str, Shape]:
    """Return the tensors of an encoder of these `sizes`, as `Qwen3Model.state_dict` names them."""
    hidden, head, inner = of["hidden_size"], of["head_dim"], of["intermediate_size"]
    queries, keys = of["num_attention_heads"] * head, of["num_key_value_heads"] * head
    layer: dict[str, Shape] = {
        "self_attn.q_proj.weight": (queries, hidden), "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden), "self_attn.o_proj.weight": (hidden, queries),
        "self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,),
        "mlp.gate_proj.weight": (inner, hidden), "mlp.up_proj.weight": (inner, hidden), "mlp.down_proj.weight": (hidden, inner),
        "input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,),
    }  # fmt: skip
    table: dict[str, Shape] = {"embed_tokens.weight": (of["vocab_size"], hidden), "norm.weight": (hidden,)}
    for index in range(of["num_hidden_layers"]):
        table |= {f"layers.{index}.{name}": shape for name, shape in layer.items()}
    return table


TEXT_ENCODER = Component(
    name="text_encoder",
    title="a Qwen3 text encoder",
    renaming=_renaming,
    expected=by_sizes(sizes, tensors),
    known=re.compile(
        r"^layers\.[0-9]{1,4}\.(?:self_attn\.(?:[qkvo]_proj|[qk]_norm)|mlp\.(?:gate|up|down)_proj"
        r"|(?:input|post_attention)_layernorm)\.weight$|^embed_tokens\.weight$|^norm\.weight$"
    ),
    reshaped=re.compile(r"(?!)"),
)
