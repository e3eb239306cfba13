"""A small byte-level BPE tokenizer in Qwen2's format, with a chat template of Qwen3's kind."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

VOCABULARY = 1408
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif %}"
    "{%- endif %}"
)


def train_tokenizer(captions: Iterable[str], directory: Path) -> Qwen2Tokenizer:
    """Learn merges from `captions` and write `directory` as `Qwen2Tokenizer` loads it.

    While learning, every Chinese character stands alone, so no merge spans two: unseen combinations of
    known characters give known tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{Han}"), behavior="isolated"),
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((*captions, *["user", "assistant"] * 50), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    result = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=merges,
        model_max_length=2048,
        additional_special_tokens=list(SPECIAL[1:]),
        chat_template=CHAT_TEMPLATE,
    )
    result.save_pretrained(directory)
    return Qwen2Tokenizer.from_pretrained(directory)


def tokenize(tokenizer: Qwen2Tokenizer, captions: list[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Captions in the chat template as `ZImagePipeline` puts them, padded to `length`.

    Returns int32 [n, length] ids and int32 [n] true lengths; a length over `length` means it did not fit.
    """
    message = [{"role": "user", "content": "CAPTION"}]
    frame = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    encoded = tokenizer([frame.replace("CAPTION", caption) for caption in captions])["input_ids"]
    ids = np.full((len(captions), length), tokenizer.pad_token_id, dtype=np.int32)
    lengths = np.array([len(e) for e in encoded], dtype=np.int32)
    for row, tokens in zip(ids, encoded, strict=True):
        row[: min(length, len(tokens))] = tokens[:length]
    return ids, lengths
