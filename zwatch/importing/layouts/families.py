"""Other models' files, told by names of tensors that only they have."""

import re
from collections.abc import Collection

_FAMILIES = (
    (r"(?:^|\.)siglip_(?:embedder|refiner|pad_token)", "Z-Image-Omni or Z-Image-Edit, which take pictures; only Z-Image's text-to-image transformer is served"),
    (r"^(?:conditioner\.embedders|cond_stage_model)\.", "a checkpoint of Stable Diffusion"),
    (r"(?:^|\.)(?:input_blocks|output_blocks|middle_block)\.\d", "the U-Net of Stable Diffusion"),
    (r"(?:^|\.)down_blocks\.\d+\.attentions\.\d+\.transformer_blocks\.", "the U-Net of Stable Diffusion"),
    (r"(?:^|\.)joint_blocks\.\d|(?:^|\.)transformer_blocks\.\d+\.ff_context\.net\.", "Stable Diffusion 3 or FLUX.1 in diffusers' layout"),
    (r"(?:^|\.)distilled_guidance_layer\.", "Chroma"),
    (r"(?:^|\.)double_stream_modulation_img\.", "FLUX.2"),
    (r"(?:^|\.)double_blocks\.\d+\.img_attn_qkv\.|individual_token_refiner", "HunyuanVideo"),
    (r"(?:^|\.)(?:double_blocks|single_blocks)\.\d|(?:^|\.)single_transformer_blocks\.\d", "FLUX"),
    (r"(?:^|\.)transformer_blocks\.\d+\.(?:img|txt)_mod\.", "Qwen-Image"),
    (r"(?:^|\.)patchify_proj\.|(?:^|\.)transformer_blocks\.\d+\.scale_shift_table", "LTX-Video or PixArt"),
    (r"(?:^|\.)blocks\.\d+\.(?:cross_attn|self_attn)\.", "Wan or another video model"),
    (r"(?:^|\.)encoder\.block\.\d+\.layer\.|(?:^|\.)SelfAttention\.q\.", "a T5 text encoder"),
    (r"(?:^|\.)text_model\.encoder\.layers\.", "a CLIP text encoder"),
    (r"(?:^|\.)vision_model\.encoder\.layers\.", "a vision encoder (CLIP or SigLIP)"),
    (r"(?:^|\.)visual\.(?:blocks|merger|patch_embed)\.", "a Qwen-VL model, which sees pictures"),
    (r"(?:^|\.)(?:encoder\.downsamples|decoder\.upsamples|decoder\.middle)\.", "the VAE of Wan or Qwen-Image"),
    (r"(?:^|\.)taesd_|^(?:encoder|decoder)\.layers\.\d+\.(?:conv|weight|bias)", "a tiny autoencoder (TAESD), which draws previews"),
    (r"^(?:encoder|decoder)\.\d+\.(?:conv\.|weight|bias)", "a tiny autoencoder (TAESD), which draws previews"),
    (r"(?:^|\.)(?:exp_avg|exp_avg_sq|optimizer)\b", "the state of an optimizer, not weights"),
    (r"\.base_layer\.(?:weight|bias)$", "a model with adapters that are not merged (PEFT's base_layer); merge and save it, or import the LoRA with --base"),
)  # fmt: skip
"""The first pattern that a name matches gives the file its name."""
_COMPILED = tuple((re.compile(pattern), title) for pattern, title in _FAMILIES)


def family_of(names: Collection[str]) -> tuple[str, str] | None:
    """Return the name of the model that a file is of, if it is one that is known and not served, and the tensor that tells."""
    for pattern, title in _COMPILED:
        for name in names:
            if pattern.search(name):
                return title, name
    return None
