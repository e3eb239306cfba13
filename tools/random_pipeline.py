"""Write a genuine Z-Image pipeline with random weights, for tests and benchmarks.

    python tools/random_pipeline.py models/v3 --preset tiny --seed 3

The preset `tiny` makes 64 x 64 images within milliseconds, `full` has the published Z-Image-Turbo's sizes (20.5 GB in bf16; write it where there is room). Text encoder, VAE
and tokenizer depend on the preset alone, the transformer on the seed too, so that versions made with different seeds
share what versions in real life share.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

from zwatch.deploy.sealing import write_seal

SHARED_SEED = 0
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "a cat wearing sunglasses on a beach", "a dog and a bird under a tree at night", "two red cars in front of a house",
    "the fish swims in the sea, the boat sails by", "一只戴墨镜的猫", "a flower in the forest, detailed, flat colours",
]  # fmt: skip
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@dataclass(frozen=True)
class Preset:
    """Sizes of one pipeline. `image` is the side length in pixels that the VAE's config gives as its default."""

    image: int
    transformer: dict[str, Any]
    text_encoder: dict[str, Any]
    vae_channels: tuple[int, ...]
    vae_layers: int
    vocabulary: int


PRESETS = {
    "tiny": Preset(
        image=64,
        transformer={
            "dim": 64, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
            "axes_dims": [8, 12, 12], "axes_lens": [1024, 64, 64],
        },
        text_encoder={"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
                      "head_dim": 16, "intermediate_size": 64},
        vae_channels=(8, 8, 8, 8), vae_layers=1, vocabulary=384,
    ),
    "full": Preset(
        image=1024,
        transformer={
            "dim": 3840, "n_layers": 30, "n_refiner_layers": 2, "n_heads": 30, "n_kv_heads": 30,
            "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512],
        },
        text_encoder={"hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
                      "head_dim": 128, "intermediate_size": 9728},
        vae_channels=(128, 256, 512, 512), vae_layers=2, vocabulary=151936,
    ),
}  # fmt: skip
"""`full` as the configs published with Z-Image-Turbo say."""


def write_pipeline(directory: Path, preset: Preset, seed: int, device: str = "cpu") -> None:
    """Write an unsealed pipeline directory with random bf16 weights.

    Raises:
        OSError: it could not be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # The default dtype makes the weights bf16 from the first: `full` in fp32 would need twice the memory.
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            torch.manual_seed(SHARED_SEED)
            _text_encoder(preset).save_pretrained(directory / "text_encoder")
            _vae(preset).save_pretrained(directory / "vae")
            torch.manual_seed(SHARED_SEED + 1 + seed)
            _transformer(preset).save_pretrained(directory / "transformer")
    finally:
        torch.set_default_dtype(torch.float32)
    _tokenizer(preset).save_pretrained(directory / "tokenizer")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(directory / "scheduler")
    index = {
        "_class_name": "ZImagePipeline",
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3Model"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "ZImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (directory / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def _transformer(preset: Preset) -> ZImageTransformer2DModel:
    model = ZImageTransformer2DModel(cap_feat_dim=preset.text_encoder["hidden_size"], **preset.transformer)
    for parameter in (model.x_pad_token, model.cap_pad_token):
        torch.nn.init.normal_(parameter, std=0.02)
    return model


def _text_encoder(preset: Preset) -> Qwen3Model:
    return Qwen3Model(
        Qwen3Config(vocab_size=preset.vocabulary, max_position_embeddings=1024, dtype="bfloat16", **preset.text_encoder)
    )


def _vae(preset: Preset) -> AutoencoderKL:
    levels = len(preset.vae_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=preset.vae_channels, layers_per_block=preset.vae_layers, latent_channels=16,
        norm_num_groups=min(32, preset.vae_channels[0]), sample_size=preset.image, use_quant_conv=False,
        use_post_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159,
    )  # fmt: skip


def _tokenizer(preset: Preset) -> Qwen2Tokenizer:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = min(preset.vocabulary, 512) - len(SPECIAL)
    raw.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    learned = json.loads(raw.to_str())["model"]
    tokenizer = Qwen2Tokenizer(vocab=learned["vocab"], merges=[tuple(pair) for pair in learned["merges"]])
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def main() -> None:
    """Write and seal the pipeline that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="where the random numbers are drawn; cuda is faster for full")
    options = parser.parse_args()
    write_pipeline(options.directory, PRESETS[options.preset], options.seed, options.device)
    write_seal(options.directory, options.directory.name)


if __name__ == "__main__":
    main()
