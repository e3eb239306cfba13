"""ControlNets with random weights, none of them zero, for the tiny pipeline."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import ZImageControlNetModel
from safetensors.torch import save_file

from zwatch.deploy.sealing import write_seal

KINDS = {
    "1.0": {"control_layers_places": [0], "control_in_dim": 16, "add_control_noise_refiner": None},
    "2.0": {
        "control_layers_places": [0, 1], "control_refiner_layers_places": [0], "control_in_dim": 33,
        "add_control_noise_refiner": "control_layers",
    },
    "2.1": {
        "control_layers_places": [0, 1], "control_refiner_layers_places": [0], "control_in_dim": 33,
        "add_control_noise_refiner": "control_noise_refiner",
    },
}  # fmt: skip
"""Configs as the published union checkpoint's versions have them, for a transformer of two layers."""


def controlnet(kind: str, seed: int = 7, **changes) -> ZImageControlNetModel:
    """Return a ControlNet whose hints are large enough to be seen; diffusers makes them zero."""
    torch.manual_seed(seed)
    made = ZImageControlNetModel(
        **{"dim": 64, "n_heads": 2, "n_kv_heads": 2, "n_refiner_layers": 1, **KINDS[kind], **changes}
    )
    for name, parameter in made.named_parameters():
        if "_proj." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return made


def write_controlled(models: Path, name: str, base: str = "v1", kind: str = "2.1", **changes) -> Path:
    """Seal a copy of a version with a ControlNet, without importing it; return its directory."""
    version = models / name
    shutil.copytree(models / base, version)
    add_control(version, kind, **changes)
    (version / "BLAKE3SUMS").unlink()
    write_seal(version, name)
    return version


def add_control(version: Path, kind: str, **changes) -> None:
    """Put a ControlNet into a pipeline's directory."""
    controlnet(kind, **changes).to(torch.bfloat16).save_pretrained(version / "controlnet")
    index = json.loads((version / "model_index.json").read_text())
    index["controlnet"] = ["diffusers", "ZImageControlNetModel"]
    (version / "model_index.json").write_text(json.dumps(index))


def write_checkpoint(path: Path, kind: str, **changes) -> Path:
    """Write a ControlNet as the published union checkpoint: one file, of the names that its authors gave."""
    tensors = {
        name: tensor.contiguous()
        for name, tensor in controlnet(kind, **changes).to(torch.bfloat16).state_dict().items()
    }
    if kind == "2.0":  # its refiner's blocks are there, untrained: they were left out by mistake
        beside = controlnet("2.1", **changes).to(torch.bfloat16).state_dict()
        left = {name: tensor for name, tensor in beside.items() if name.startswith("control_noise_refiner.")}
        tensors |= {name: torch.zeros_like(tensor) if "_proj." in name else tensor for name, tensor in left.items()}
    save_file(tensors, path)
    return path
