"""Train the two small LoRAs, `loras/ink` and `loras/night`, for the transformer of `models/v1`, on pictures this script draws.

    nice -n 19 python tools/train_loras.py --model models/v1 --out loras --work /tmp/train-loras

Runs on one core of a CPU, some ten minutes a LoRA; seeds are fixed. It draws the scenes that the versions were trained on in
a third and a fourth style (drawn_world/restyled.py), trains factors beside the frozen weights, and imports them with
`zwatch import --lora`. In --work it leaves a sheet a LoRA to look at: prompts that were not drawn, at the scales
0, 0.5 and 1. docs/models.md has the figures.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from drawn_world.restyled import STYLES
from PIL import Image
from safetensors.torch import save_file
from small_models.bank import Shelf, Size, write_script
from small_models.grid import PROMPTS
from small_models.lora import merge, train_lora
from small_models.quality import generate
from small_models.vae import encode
from torch import Tensor
from transformers import Qwen2Tokenizer, Qwen3Model

from zwatch.cli import main as zwatch

SEED = 20_27
SIZES = (Size(256, 256, 0.8, 640), Size(192, 320, 0.1, 96), Size(320, 192, 0.1, 96))
SCALES = (0.0, 0.5, 1.0)
BLOCK, ENCODED = 64, 8
"""Pictures drawn, and encoded, at a time."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("names", nargs="*", default=list(STYLES), help="which of them; all if none is named")
    add("--model", type=Path, required=True, help="the version that is changed")
    add("--out", type=Path, required=True, help="where the LoRAs are written")
    add("--work", type=Path, required=True, help="folder for the sheets")
    add("--rank", type=int, default=8)
    add("--steps", type=int, default=600)
    add("--batch", type=int, default=8)
    add("--scale", type=float, default=1.0, help="share of the pictures to draw (to try things out)")
    add("--threads", type=int, default=1)
    return parser.parse_args()


def draw_bank(style: str, model: Path, vae: AutoencoderKL, scale: float) -> list[Shelf]:
    """Scenes in one style, encoded; one shelf a size."""
    bank = []
    for k, size in enumerate(SIZES):
        script = write_script(model / "tokenizer", max(16, int(size.scenes * scale)), SEED + 100 * (k + 1))
        parts = []
        for start in range(0, len(script.scenes), BLOCK):
            part = script.scenes[slice(start, start + BLOCK)]
            parts.append(encode(vae, STYLES[style](part, size.height, size.width), ENCODED))
        tables = (torch.from_numpy(one) for one in (script.ids, script.lengths, script.scenes.luck))
        bank.append(Shelf(size, torch.cat(parts)[None], *tables))
    return bank


def save_sheet(rows: list[Tensor], file: Path) -> None:
    """Pictures uint8 [n, 3, H, W], a row each, as one PNG."""
    picture = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file)


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    transformer = ZImageTransformer2DModel.from_pretrained(args.model / "transformer", torch_dtype=torch.float32).eval()
    encoder = Qwen3Model.from_pretrained(args.model / "text_encoder", dtype=torch.float32).eval()
    vae = AutoencoderKL.from_pretrained(args.model / "vae", torch_dtype=torch.float32).eval()
    tokenizer = Qwen2Tokenizer.from_pretrained(args.model / "tokenizer")
    prompts = [prompt for prompt, _ in PROMPTS[::3]]
    for name in args.names:
        start = time.monotonic()
        bank = draw_bank(name, args.model, vae, args.scale)
        print(f"{name}: drawn in {time.monotonic() - start:.0f} s", flush=True)
        factors = train_lora(transformer, encoder, bank, args.rank, args.steps, args.batch, SEED)
        factors = {key: factor.to(torch.bfloat16) for key, factor in factors.items()}
        save_file(factors, args.work / f"{name}.safetensors", {"format": "pt"})
        rows = []
        for scale in SCALES:
            merge(transformer, factors, scale)
            rows.append(generate(prompts, transformer, encoder, vae, tokenizer, 7))
            merge(transformer, factors, -scale)
        save_sheet(rows, args.work / f"{name}.png")
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
        source = str(args.work / f"{name}.safetensors")
        if status := zwatch(["import", source, name, "--lora", "--loras", str(args.out)]):
            raise SystemExit(status)


if __name__ == "__main__":
    main()
