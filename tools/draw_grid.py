"""Draw the picture of the README: 24 held-out prompts, each by v1 and by v2 from the same seed.

    python tools/draw_grid.py --models models --out docs/images/grid.png

Runs on a CPU with diffusers' own `ZImagePipeline`. No combination of subject, colour, worn things and place
on it was drawn for training; of a lion with sunglasses, a penguin with a crown, a frog with headphones and a bear
with a scarf not even the pair.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import ZImagePipeline
from PIL import Image, ImageDraw, ImageFont
from small_models.grid import PROMPTS, check_held_out

SIDE, LABEL, GAP, COLUMNS, SEED = 160, 24, 8, 4, 7
FONTS = ("wqy-microhei.ttc", "NotoSansCJK-Regular.ttc", "DejaVuSans.ttf")
"""Fonts to look for; without a Chinese one, Chinese labels show boxes."""


def find_font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    for name in FONTS:
        try:
            return ImageFont.truetype(name, 14)
        except OSError:
            continue
    return ImageFont.load_default()


def pictures(directory: Path, prompts: list[str], seed: int) -> list[Image.Image]:
    """One 256×256 picture a prompt: 8 steps, guidance 0, bf16."""
    pipeline = ZImagePipeline.from_pretrained(directory, torch_dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    results = []
    for prompt in prompts:
        generator = torch.Generator().manual_seed(seed)
        out = pipeline(prompt, height=256, width=256, num_inference_steps=8, guidance_scale=0.0, generator=generator)
        results.append(out.images[0])
    return results


def compose(prompts: list[str], versions: list[list[Image.Image]]) -> Image.Image:
    """Cells of v1 | v2 with the prompt below."""
    font = find_font()
    width, height = 2 * SIDE + GAP, SIDE + LABEL
    rows = -(-len(prompts) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (width + GAP) + GAP, rows * (height + GAP) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, prompt in enumerate(prompts):
        x, y = GAP + (i % COLUMNS) * (width + GAP), GAP + (i // COLUMNS) * (height + GAP)
        for k, images in enumerate(versions):
            sheet.paste(images[i].resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x + k * SIDE, y))
        draw.text((x + SIDE, y + SIDE + LABEL // 2), prompt, fill="black", font=font, anchor="mm")
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder with v1 and v2")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    check_held_out()
    prompts = [prompt for prompt, _ in PROMPTS]
    sheet = compose(prompts, [pictures(args.models / v, list(prompts), args.seed) for v in ("v1", "v2")])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet = sheet.point(lambda value: min(255, 4 * round(value / 4)))  # 6 bits a channel: a third smaller
    sheet.save(args.out, optimize=True)
    print(f"{args.out}: {sheet.size[0]}×{sheet.size[1]}, {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
