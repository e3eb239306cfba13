"""The parts of a small Z-Image pipeline: diffusers' and transformers' own classes, in small."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

SIDE = 256
"""The pictures' default side in pixels."""
TEXT_DIM = 96
SHIFT = 3.0
"""Of the schedule, as in Z-Image-Turbo's scheduler_config.json."""
SCALING, OFFSET = 0.3611, 0.1159
"""The VAE's scaling_factor and shift_factor, Z-Image's own: decoder input = latent / SCALING + OFFSET."""


def new_transformer() -> ZImageTransformer2DModel:
    """3.4 M parameters: 1 noise refiner, 1 context refiner, 7 layers of width 144."""
    model = ZImageTransformer2DModel(
        in_channels=16,
        dim=144,
        n_layers=7,
        n_refiner_layers=1,
        n_heads=6,
        n_kv_heads=6,
        cap_feat_dim=TEXT_DIM,
        axes_dims=[8, 8, 8],
        axes_lens=[1024, 128, 128],
        rope_theta=256.0,
    )
    for name, p in model.named_parameters():
        if p.dim() == 2 and "pad_token" not in name:
            torch.nn.init.normal_(p, std=p.shape[1] ** -0.5)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(p)
    for p in (model.x_pad_token, model.cap_pad_token):
        torch.nn.init.normal_(p, std=0.02)
    torch.nn.init.zeros_(model.all_final_layer["2-1"].linear.weight)
    for block in (*model.noise_refiner, *model.layers):
        torch.nn.init.normal_(block.adaLN_modulation[0].weight, std=0.02)
        with torch.no_grad():  # the gates (tanh) start half open
            for k in (1, 3):
                block.adaLN_modulation[0].bias[k * 144 : (k + 1) * 144] = 0.5
    return model


def new_text_encoder(vocabulary: int) -> Qwen3Model:
    """0.4 M parameters. The pipeline reads the second to last hidden state: the last of 3 layers is idle."""
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=TEXT_DIM,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        rope_theta=10000.0,
        tie_word_embeddings=True,
    )
    model = Qwen3Model(config)
    torch.nn.init.normal_(model.embed_tokens.weight, std=1.0)
    for layer in model.layers:
        for p in layer.parameters():
            if p.dim() == 2:
                torch.nn.init.normal_(p, std=p.shape[1] ** -0.5)
    return model


def new_vae() -> AutoencoderKL:
    """1.1 M parameters, 16 latent channels, 8 times smaller latents; no attention, so all sizes are alike."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=16,
        block_out_channels=(24, 48, 64, 64),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
        sample_size=SIDE,
        scaling_factor=SCALING,
        shift_factor=OFFSET,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def new_scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SHIFT)


def save_version(
    directory: Path,
    transformer: ZImageTransformer2DModel,
    text_encoder: Qwen3Model,
    vae: AutoencoderKL,
    tokenizer: Qwen2Tokenizer,
) -> int:
    """Write a pipeline directory with bf16 weights; the models given become bf16. Returns its bytes."""
    pipeline = ZImagePipeline(
        scheduler=new_scheduler(),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )
    pipeline.to(dtype=torch.bfloat16)
    pipeline.save_pretrained(directory)
    _tidy(directory)
    return sum(f.stat().st_size for f in directory.rglob("*") if f.is_file())


def _tidy(directory: Path) -> None:
    """Take out of the configs what tells where and how they were loaded here."""
    for file in directory.rglob("*.json"):
        if file.name == "tokenizer.json":
            continue
        config = json.loads(file.read_text())
        for key in ("_name_or_path", "is_local", "local_files_only"):
            config.pop(key, None)
        file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
