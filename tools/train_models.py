"""Train the two small Z-Image versions, `models/v1` and `models/v2`, on pictures this script draws.

    python tools/train_models.py --out models --work /tmp/train

Needs torch with CUDA, diffusers and transformers. Everything is drawn, trained and measured here, from
nothing and in one go; seeds are fixed, and the clock (--minutes) says when each phase ends. A second process
compiles the transformer's blocks while this one draws and trains the VAE; then it trains v1 (transformer and
text encoder) and v2 (the transformer, from v1's) while this one trains the classifier. Recipe and figures:
docs/models.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
import torch.fx.experimental._config
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from drawn_world.captions import captions
from drawn_world.render import render
from drawn_world.scene import draw_scenes
from PIL import Image
from small_models.architecture import SIDE, new_text_encoder, new_transformer, save_version
from small_models.bank import SIZES, Script, Shelf, Size, fill_shelf, write_script
from small_models.batched import RunBlock, run_block
from small_models.classifier import Classifier
from small_models.flow import train_flow, warm_up
from small_models.grid import PROMPTS
from small_models.quality import generate, measure, measure_bare, train_judge
from small_models.tokenizer import train_tokenizer
from small_models.vae import encode, train_vae
from torch import Tensor
from transformers import Qwen2Tokenizer, Qwen3Model

from zwatch.deploy.sealing import write_seal

SEED = 20_26
VERSIONS = ("v1", "v2")
VAE_STEPS, VAE_BATCH, VAE_SHARE = 2_600, 48, 0.1
"""Of the VAE's training: most steps, pictures a step, and at most this share of the time."""
V1_SHARE = 0.56
"""v1's share of the time that the VAE and the drawing leave for the transformers."""
RESERVE = 0.05
"""Share of the time kept for measuring and writing."""
BATCH = 384
JUDGE_SCENES, JUDGE_STEPS = 12_000, 1_000
BARE = 64
"""Pictures measured of each bare prompt."""
T = TypeVar("T")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="where v1 and v2 are written")
    add("--work", type=Path, required=True, help="empty folder for what the phases leave")
    add("--minutes", type=float, default=20.0, help="when all is to be done; more minutes, better pictures")
    add("--prompts", type=int, default=1024, help="held-out prompts to measure")
    add("--scale", type=float, default=1.0, help="share of the pictures to draw (to try things out)")
    add("--steps", type=int, default=1_000_000, help="most steps of any training (to try things out)")
    add("--batch", type=int, default=BATCH)
    add("--began", type=float, help=argparse.SUPPRESS)  # makes this the second process
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


def drawn_sizes(args: argparse.Namespace) -> list[Size]:
    """SIZES, or with a small --scale fewer of them with fewer scenes."""
    sizes = SIZES if args.scale >= 0.01 else SIZES[:2]
    return [Size(s.height, s.width, s.share, max(16, int(s.scenes * args.scale))) for s in sizes]


def put(file: Path, content: object) -> None:
    """Save so that the file is there only when it is complete."""
    partial = file.with_suffix(".part")
    torch.save(content, partial)
    partial.rename(file)


def get_tokenizer(work: Path) -> Qwen2Tokenizer:
    return train_tokenizer(captions(draw_scenes(40_000, SEED), SEED, long_share=0.1), work / "tokenizer")


def get_vae(args: argparse.Namespace, device: torch.device, phases: Phases) -> AutoencoderKL:
    scenes = draw_scenes(max(16, int(8192 * args.scale)), SEED + 1)
    pictures = phases.run("drawing for the VAE", lambda: render(scenes, SIDE, SIDE, device))
    seconds = VAE_SHARE * 60 * args.minutes
    steps = min(args.steps, VAE_STEPS)
    vae = phases.run("VAE", lambda: train_vae(pictures, steps, VAE_BATCH, SEED + 2, seconds))
    torch.save(vae.state_dict(), args.work / "vae.pt")
    return vae.eval()


def draw_bank(
    args: argparse.Namespace, scripts: list[Future[Script]], vae: AutoencoderKL, device: torch.device
) -> None:
    """One file a size; the second process takes each as soon as it is there."""
    for k, size in enumerate(drawn_sizes(args)):
        shelf = fill_shelf(size, scripts[k].result(), lambda x: encode(vae, x), device)
        put(args.work / f"shelf-{k}.pt", shelf)


def take_shelf(file: Path, device: torch.device) -> Shelf:
    """Raises:
    SystemExit: the first process ended before it wrote the file.
    """
    first = os.getppid()
    while not file.exists():
        if os.getppid() != first:
            raise SystemExit(f"{file} will not come: the first process has ended")
        time.sleep(0.2)
    shelf: Shelf = torch.load(file, map_location=device, weights_only=False)
    file.unlink()
    return shelf


def train_versions(args: argparse.Namespace, device: torch.device) -> None:
    """What the second process does: compile, take the pictures, train v1 and then v2."""
    torch.manual_seed(SEED + 10)
    vocabulary = len(Qwen2Tokenizer.from_pretrained(args.work / "tokenizer"))
    transformer, encoder = new_transformer().to(device), new_text_encoder(vocabulary).to(device)
    phases = Phases()
    run = compiled(run_block, device)
    phases.run("compiling the blocks", lambda: warm_up(transformer, encoder, args.batch, device, run))
    bank = [take_shelf(args.work / f"shelf-{k}.pt", device) for k in range(len(drawn_sizes(args)))]
    end = args.began + 60 * args.minutes * (1 - RESERVE)
    steps = {}
    for style, share in enumerate((V1_SHARE, 1.0)):
        seconds = max(1.0, share * (end - time.time()))
        name = VERSIONS[style]
        steps[name] = phases.run(
            name,
            lambda: train_flow(
                transformer,
                encoder,
                bank,
                style,  # noqa: B023
                args.steps,
                args.batch,
                SEED + 20 + style,  # noqa: B023
                style == 0,  # noqa: B023
                run,
                seconds=seconds,  # noqa: B023
            ),
        )
        put(args.work / f"{name}.pt", {"transformer": transformer.state_dict(), "encoder": encoder.state_dict()})
    (args.work / "flow.json").write_text(json.dumps({"seconds": phases.seconds, "steps": steps}))


def compiled(function: RunBlock, device: torch.device) -> RunBlock:
    """Compile for CUDA; one graph serves all layers and all sizes."""
    return torch.compile(function, dynamic=True) if device.type == "cuda" else function


def load_models(file: Path, vocabulary: int, device: torch.device) -> tuple[ZImageTransformer2DModel, Qwen3Model]:
    saved = torch.load(file, map_location=device)
    transformer, encoder = new_transformer().to(device), new_text_encoder(vocabulary).to(device)
    transformer.load_state_dict(saved["transformer"])
    encoder.load_state_dict(saved["encoder"])
    return transformer.eval(), encoder.eval()


def train_all(
    args: argparse.Namespace, device: torch.device, phases: Phases
) -> tuple[Qwen2Tokenizer, AutoencoderKL, Classifier]:
    """All training; the versions are left in --work."""
    began = time.time()
    tokenizer = phases.run("tokenizer", lambda: get_tokenizer(args.work))
    second = subprocess.Popen([sys.executable, *sys.argv, "--began", str(began)])
    try:
        with ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as pool:
            scripts = [
                pool.submit(write_script, args.work / "tokenizer", size.scenes, SEED + 100 * (k + 1))
                for k, size in enumerate(drawn_sizes(args))
            ]
            vae = get_vae(args, device, phases)
            phases.run("drawing and encoding", lambda: draw_bank(args, scripts, vae, device))
        scenes, steps = max(64, int(JUDGE_SCENES * args.scale)), min(args.steps, JUDGE_STEPS)
        judge = phases.run("classifier", lambda: train_judge(device, scenes, steps, 384, SEED + 30))
        torch.save(judge.state_dict(), args.work / "judge.pt")
        if second.wait():
            raise SystemExit("training v1 and v2 failed: see above")
    finally:
        second.kill()
    return tokenizer, vae, judge


def measure_all(
    models: list[tuple[ZImageTransformer2DModel, Qwen3Model]],
    vae: AutoencoderKL,
    tokenizer: Qwen2Tokenizer,
    judge: Classifier,
    prompts: int,
) -> dict[str, object]:
    """Accuracies of drawn and of generated pictures; printed, and returned by name."""
    report: dict[str, object] = {}
    for style, (version, (transformer, encoder)) in enumerate(zip(VERSIONS, models, strict=True)):
        for kind, model in (("drawn", None), ("generated", transformer)):
            scores = measure(judge, model, encoder, vae, tokenizer, style, prompts, SEED + 40)
            report[f"{version} {kind}"] = scores
            for who, numbers in scores.items():
                figures = " ".join(f"{k} {v:.3f}" for k, v in numbers.items())
                print(f"{version} {kind:9} {who:16} {figures}", flush=True)
        report[f"{version} bare"] = bare = measure_bare(
            judge, transformer, encoder, vae, tokenizer, SEED + 50, min(prompts, BARE)
        )
        print(f"{version} {json.dumps(bare, ensure_ascii=False)}", flush=True)
    return report


def main() -> None:
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    torch._dynamo.config.recompile_limit = 64
    torch.fx.experimental._config.use_duck_shape = False  # else square and other pictures compile separately
    if args.began:
        train_versions(args, device)
        return
    start = time.monotonic()
    phases = Phases()
    tokenizer, vae, judge = train_all(args, device, phases)
    models = [load_models(args.work / f"{v}.pt", len(tokenizer), device) for v in VERSIONS]
    vae = vae.to(memory_format=torch.contiguous_format)
    report = phases.run("measuring", lambda: measure_all(models, vae, tokenizer, judge, args.prompts))
    save_looks(args.work, models, vae, tokenizer)
    for version, (transformer, encoder) in zip(VERSIONS, models, strict=True):
        directory = args.out / version
        report[f"{version} bytes"] = save_version(directory, transformer.cpu(), encoder.cpu(), vae.cpu(), tokenizer)
        sealed = write_seal(directory, version)
        print(f"written and sealed: {directory}, digest {sealed.digest}")
    flow = json.loads((args.work / "flow.json").read_text())
    report["seconds"] = {**phases.seconds, **flow["seconds"], "all": round(time.monotonic() - start, 1)}
    report["steps"] = flow["steps"]
    report["device"] = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    (args.work / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False))
    print(json.dumps({"seconds": report["seconds"], "steps": report["steps"]}))


def save_looks(
    folder: Path,
    models: list[tuple[ZImageTransformer2DModel, Qwen3Model]],
    vae: AutoencoderKL,
    tokenizer: Qwen2Tokenizer,
) -> None:
    """Sheets to look at: the grid's prompts, v1's row above v2's, and a few other sizes."""
    prompts = [prompt for prompt, _ in PROMPTS]
    made = [generate(prompts, t, e, vae, tokenizer, 1) for t, e in models]
    save_sheet([m[k : k + 8] for k in range(0, len(prompts), 8) for m in made], folder / "grid.png")
    for height, width in ((192, 320), (384, 384), (512, 320)):
        made = [generate(prompts[:4], t, e, vae, tokenizer, 2, height, width) for t, e in models]
        save_sheet(made, folder / f"size-{height}x{width}.png")


def save_sheet(rows: list[Tensor], file: Path) -> None:
    """Pictures uint8 [n, 3, H, W], a row each, as one PNG."""
    picture = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    Image.fromarray(picture.permute(1, 2, 0).cpu().numpy()).save(file)


if __name__ == "__main__":
    main()
