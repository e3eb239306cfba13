"""Train the two small Z-Image versions, `models/v1` and `models/v2`, on pictures this script draws.

    python tools/train_models.py --out models --work /tmp/train

Needs torch with CUDA, diffusers and transformers. Everything is drawn, trained and measured here; seeds
are fixed. Phases leave their result in --work and are skipped when it is there: tokenizer, VAE, v1
(transformer and text encoder), v2 (the transformer, from v1's), then both transformers on, in two processes
at once (on one GPU, or on one each), then classifier and report. Recipe and figures: docs/models.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.fx.experimental._config
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from drawn_world.captions import captions
from drawn_world.render import render
from drawn_world.scene import draw_scenes
from PIL import Image
from small_models.architecture import SIDE, new_text_encoder, new_transformer, new_vae, save_version
from small_models.bank import SIZES, Shelf, Size, fill_bank
from small_models.batched import RunBlock, run_block
from small_models.classifier import Classifier
from small_models.flow import train_flow, warm_up
from small_models.grid import PROMPTS
from small_models.quality import generate, measure, train_judge
from small_models.tokenizer import train_tokenizer
from small_models.vae import encode, train_vae
from torch import Tensor
from transformers import Qwen2Tokenizer, Qwen3Model

from zwatch.deploy.seal import write_seal

SEED = 20_26
VERSIONS = ("v1", "v2")
T = TypeVar("T")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="where v1 and v2 are written")
    add("--work", type=Path, required=True, help="folder for the phases' results")
    add("--vae-steps", type=int, default=3_200)
    add("--vae-batch", type=int, default=48)
    add("--v1-steps", type=int, default=2_400, help="steps that train v1 and the text encoder")
    add("--v2-steps", type=int, default=1_500, help="steps from v1 to v2")
    add("--more-steps", type=int, default=4_000, help="steps of each afterwards, text encoder frozen")
    add("--batch", type=int, default=256)
    add("--more-batch", type=int, default=384)
    add("--scale", type=float, default=1.0, help="share of the pictures to draw (to try things out)")
    add("--prompts", type=int, default=1024, help="held-out prompts to measure")
    add("--judge-steps", type=int, default=1_000)
    add("--until", type=float, default=float("inf"), help="UNIX time at which training ends early")
    add("--more", choices=VERSIONS, help=argparse.SUPPRESS)
    return parser.parse_args()


class Phases:
    """Times each phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, name: str, work: Callable[[], T]) -> T:
        start = time.monotonic()
        result = work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[name] = round(time.monotonic() - start, 1)
        print(f"== {name}: {self.seconds[name]} s", flush=True)
        return result


def get_tokenizer(work: Path) -> Qwen2Tokenizer:
    folder = work / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        train_tokenizer(captions(draw_scenes(40_000, SEED), SEED, long_share=0.1), folder)
    return Qwen2Tokenizer.from_pretrained(folder)


def get_vae(args: argparse.Namespace, device: torch.device) -> AutoencoderKL:
    file = args.work / "vae.pt"
    if not file.exists():
        pictures = render(draw_scenes(int(8192 * args.scale), SEED + 1), SIDE, SIDE, device)
        vae = train_vae(pictures, args.vae_steps, args.vae_batch, SEED + 2, args.until - time.time())
        torch.save(vae.state_dict(), file)
    vae = new_vae()
    vae.load_state_dict(torch.load(file, map_location="cpu"))
    return vae.to(device, memory_format=torch.channels_last).eval()


def draw_bank(
    args: argparse.Namespace, tokenizer: Qwen2Tokenizer, vae: AutoencoderKL, device: torch.device
) -> list[Shelf]:
    sizes = tuple(Size(s.height, s.width, s.share, max(16, int(s.scenes * args.scale))) for s in SIZES)
    if args.scale < 0.01:
        sizes = sizes[:2]
    bank = fill_bank(tokenizer, lambda x: encode(vae, x), device, SEED + 3, sizes)
    partial = args.work / "bank.part"
    torch.save(bank, partial)
    partial.rename(args.work / "bank.pt")
    return bank


def load_models(file: Path, vocabulary: int, device: torch.device) -> tuple[ZImageTransformer2DModel, Qwen3Model]:
    saved = torch.load(file, map_location=device)
    transformer, encoder = new_transformer().to(device), new_text_encoder(vocabulary).to(device)
    transformer.load_state_dict(saved["transformer"])
    encoder.load_state_dict(saved["encoder"])
    return transformer.eval(), encoder.eval()


def save_models(file: Path, transformer: ZImageTransformer2DModel, encoder: Qwen3Model) -> None:
    partial = file.with_suffix(".part")
    torch.save({"transformer": transformer.state_dict(), "encoder": encoder.state_dict()}, partial)
    partial.rename(file)


def train_first(
    args: argparse.Namespace,
    style: int,
    bank: list[Shelf],
    vocabulary: int,
    device: torch.device,
    run: RunBlock,
) -> None:
    """v1 with the text encoder from nothing, or v2's transformer from v1's."""
    torch.manual_seed(SEED + 10)
    transformer, encoder = new_transformer().to(device), new_text_encoder(vocabulary).to(device)
    if style == 1:
        transformer, encoder = load_models(args.work / "v1-first.pt", vocabulary, device)
    steps = (args.v1_steps, args.v2_steps)[style]
    train_flow(
        transformer,
        encoder,
        bank,
        style,
        steps,
        args.batch,
        SEED + 20 + style,
        style == 0,
        run,
        seconds=args.until - time.time(),
    )
    save_models(args.work / f"{VERSIONS[style]}-first.pt", transformer, encoder)


def train_more(args: argparse.Namespace, device: torch.device) -> None:
    """What the process of one version does: compile while the pictures are drawn, then train on."""
    style = VERSIONS.index(args.more)
    vocabulary = len(get_tokenizer(args.work))
    transformer, encoder = load_models(args.work / f"{args.more}-first.pt", vocabulary, device)
    run = compiled(run_block, device)
    warm_up(transformer, encoder, args.more_batch, device, run)
    print(f"{args.more} is ready to train on", flush=True)
    while not (args.work / "bank.pt").exists():
        time.sleep(0.2)
    bank = torch.load(args.work / "bank.pt", map_location=device, weights_only=False)
    train_flow(
        transformer,
        encoder,
        bank,
        style,
        args.more_steps,
        args.more_batch,
        SEED + 40 + style,
        False,
        run,
        muon_rate=0.008,
        seconds=args.until - time.time(),
    )
    save_models(args.work / f"{args.more}.pt", transformer, encoder)


def compiled(function: RunBlock, device: torch.device) -> RunBlock:
    """Compile for CUDA; one graph serves all layers and all sizes."""
    return torch.compile(function, dynamic=True) if device.type == "cuda" else function


def start_more(version: str) -> subprocess.Popen[bytes]:
    """Start a version's own process; on a machine with several GPUs each has one to itself."""
    gpu = VERSIONS.index(version) % max(1, torch.cuda.device_count())
    command = [sys.executable, *sys.argv, "--more", version]
    return subprocess.Popen(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": str(gpu)})


def finish(directory: Path) -> None:
    """Stamp and seal a written version, so that it can be served."""
    sealed = write_seal(directory, directory.name)
    print(f"written and sealed: {directory}, digest {sealed.digest}")


def train_all(
    args: argparse.Namespace, device: torch.device, phases: Phases
) -> tuple[Qwen2Tokenizer, AutoencoderKL, Classifier]:
    """All training; the versions are left in --work."""
    tokenizer = phases.run("tokenizer", lambda: get_tokenizer(args.work))
    missing = [v for v in VERSIONS if not (args.work / f"{v}.pt").exists()]
    firsts = [v for v in VERSIONS if not (args.work / f"{v}-first.pt").exists()]
    helpers = [] if firsts else [start_more(v) for v in missing]
    vae = phases.run("vae", lambda: get_vae(args, device))
    if missing:
        (args.work / "bank.pt").unlink(missing_ok=True)
        bank = phases.run("drawing and encoding", lambda: draw_bank(args, tokenizer, vae, device))
        run = compiled(run_block, device)
        for v in firsts:
            style = VERSIONS.index(v)
            phases.run(f"{v}, first", lambda: train_first(args, style, bank, len(tokenizer), device, run))  # noqa: B023
        del bank
        helpers = helpers or [start_more(v) for v in missing]
    start = time.monotonic()
    judge = phases.run(
        "classifier",
        lambda: train_judge(device, int(12_000 * min(1, 4 * args.scale)), args.judge_steps, 384, SEED + 30),
    )
    torch.save(judge.state_dict(), args.work / "judge.pt")
    if any(helper.wait() for helper in helpers):
        raise SystemExit("training on failed: see above")
    phases.seconds["v1 and v2, on (classifier beside it)"] = round(time.monotonic() - start, 1)
    return tokenizer, vae, judge


def main() -> None:
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    torch._dynamo.config.recompile_limit = 64
    torch.fx.experimental._config.use_duck_shape = False  # else square and other pictures compile separately
    if args.more:
        train_more(args, device)
        return
    phases = Phases()
    tokenizer, vae, judge = train_all(args, device, phases)
    models = [load_models(args.work / f"{v}.pt", len(tokenizer), device) for v in VERSIONS]
    transformers, encoder = [m[0] for m in models], models[0][1]
    vae = vae.to(memory_format=torch.contiguous_format)
    report: dict[str, object] = {"device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu"}
    for style, version in enumerate(VERSIONS):
        for kind, model in (("drawn", None), ("generated", transformers[style])):
            scores = measure(judge, model, encoder, vae, tokenizer, style, args.prompts, SEED + 40)
            report[f"{version} {kind}"] = scores
            for who, numbers in scores.items():
                figures = " ".join(f"{k} {v:.3f}" for k, v in numbers.items())
                print(f"{version} {kind:9} {who:16} {figures}", flush=True)
    save_looks(args.work, transformers, encoder, vae, tokenizer)
    for version, transformer in zip(VERSIONS, transformers, strict=True):
        directory = args.out / version
        report[f"{version} bytes"] = save_version(directory, transformer.cpu(), encoder.cpu(), vae.cpu(), tokenizer)
        finish(directory)
    report["seconds"] = phases.seconds
    (args.work / "report.json").write_text(json.dumps(report, indent=1))
    print(json.dumps(report["seconds"]))


def save_looks(
    folder: Path,
    transformers: list[ZImageTransformer2DModel],
    encoder: Qwen3Model,
    vae: AutoencoderKL,
    tokenizer: Qwen2Tokenizer,
) -> None:
    """Sheets to look at: the grid's prompts, v1's row above v2's, and a few other sizes."""
    prompts = [prompt for prompt, _ in PROMPTS]
    made = [generate(prompts, t, encoder, vae, tokenizer, 1) for t in transformers]
    save_sheet([m[k : k + 8] for k in range(0, len(prompts), 8) for m in made], folder / "grid.png")
    for height, width in ((192, 320), (384, 384), (512, 320)):
        made = [generate(prompts[:4], t, encoder, vae, tokenizer, 2, height, width) for t in transformers]
        save_sheet(made, folder / f"size-{height}x{width}.png")


def save_sheet(rows: list[Tensor], file: Path) -> None:
    """Pictures uint8 [n, 3, H, W], a row each, as one PNG."""
    picture = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    Image.fromarray(picture.permute(1, 2, 0).cpu().numpy()).save(file)


if __name__ == "__main__":
    main()
