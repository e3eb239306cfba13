"""Versions with golden images that they have drawn themselves, and faults that only pictures show."""

import shutil
from pathlib import Path

import torch
from PIL import Image, ImageOps

from tests.engine.editing import VAE, edit_json, edit_tensors
from zwatch import cli
from zwatch.deploy.sealing import write_seal

PROMPTS = ("a cat wearing sunglasses", "a red house by the sea", "a bowl of fruit")


def add(models: Path, name: str, *options: str, prompts: tuple[str, ...] = PROMPTS) -> Path:
    """Let a version draw golden images, by `zwatch golden` in this process; return its directory."""
    file = models.parent / "prompts.txt"
    file.write_text("\n".join(prompts))
    given = ["golden", name, "--models", str(models), "--prompts", str(file), "--device", "cpu", *options]
    assert cli.main(given) == 0
    return models / name


def copied(models: Path, name: str, new: str, *, has_golden: bool = True) -> Path:
    """Copy a version under a new name, not sealed yet."""
    directory = shutil.copytree(models / name, models / new)
    if not has_golden:
        (directory / "golden.json").unlink()
    return directory


def mix_scales(version: Path) -> None:
    """Give each row of a quantized version's matrices the scale of another row, as a wrong layout does."""

    def change(tensors):
        return {name: value.flip(0) if name.endswith("weight_scale") else value for name, value in tensors.items()}

    edit_tensors(version / "transformer/diffusion_pytorch_model.safetensors", change)


def change_shift(version: Path, shift: float = 1.0) -> None:
    """Change the scheduler's config; it is 3."""
    edit_json(version / "scheduler/scheduler_config.json", lambda config: config.update(shift=shift))


def invert(version: Path, image: str) -> None:
    """Replace a golden image by its negative."""
    with Image.open(version / image) as found:
        ImageOps.invert(found).save(version / image)


def change_vae(version: Path) -> None:
    """Give it another autoencoder: one whose decoder was trained a little differently."""

    def other(value):
        return value * (1 + 0.1 * torch.randn(value.shape)).to(value.dtype)

    def change(tensors):
        torch.manual_seed(0)
        return {
            name: other(value) if name.startswith("decoder") and value.ndim == 4 else value
            for name, value in tensors.items()
        }

    edit_tensors(version / VAE, change)


def seal(version: Path) -> Path:
    """Seal a version under its directory's name."""
    write_seal(version, version.name)
    return version
