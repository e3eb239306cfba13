"""The ControlNet of a version that is imported: what its config and the pipeline's index say, where the source says nothing."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from zwatch.deploy import pipeline_files
from zwatch.deploy.pipeline_files import CONTROL_CONFIG, CONTROLNET
from zwatch.engine.allowed import ALLOWED
from zwatch.errors import Refused
from zwatch.importing import reading
from zwatch.importing.layouts import controlnet
from zwatch.importing.plans import Plan
from zwatch.importing.weights import Weights

_CHUNK = 2**20
[CLASS] = ALLOWED[CONTROLNET]
"""Library and class."""
_PLACES = {(30, 3): (0, 14, 28)}
"""The layers that get hints, by how many layers the transformer and the ControlNet have: of the published checkpoints, those of the lite ones
are not as far apart as their number says."""


def without_unused(weights: Weights, latents: int) -> Weights:
    """Return a lone file's ControlNet without what is not used of it. In version 2.0 of the published checkpoint the blocks of the refiner are there,
    but untrained: those of the layers are used in their place. The two have the same names; diffusers tells them by whether the first
    weight is all zeros, too. `latents` is how many channels the transformer takes."""
    sizes = controlnet.sizes({one.name: one.shape for one in weights.made})
    if not sizes["n_refiner_layers"]:
        return weights
    if sizes["refiner_hints"]:
        is_used = any(one.compute is not None for one in weights.made) or not _is_zero(weights)
    else:
        is_used = sizes["control_in_dim"] == latents  # version 1.0, whose refiner gives no hints
    if is_used:
        return weights
    kept = tuple(one for one in weights.made if not one.name.startswith(f"{controlnet.REFINER}."))
    layout = weights.layout or "a ControlNet for Z-Image, version 2.0"
    return replace(
        weights,
        made=kept,
        layout=layout,
        notes=(*weights.notes, "left out, as it is not trained: control_noise_refiner"),
    )


def _is_zero(weights: Weights) -> bool:
    """Return whether the weight that tells the versions apart is all zeros."""
    [made] = [one for one in weights.made if one.name == controlnet.BEFORE]
    file, info = weights.table[made.sources[0]]
    with reading.opened(file) as fd:
        for begin in range(info.begin, info.end, _CHUNK):
            data = os.pread(fd, min(_CHUNK, info.end - begin), begin)
            if data.count(0) < len(data):
                return False
    return True


def complete(plan: Plan, weights: Mapping[str, Weights]) -> None:
    """Add a ControlNet's config and its entry in the index, where neither is the source's.

    Raises:
        Refused: it does not fit the transformer beside it.
    """
    if CONTROLNET not in weights or pipeline_files.INDEX not in plan.small:
        return
    index = json.loads(plan.small[pipeline_files.INDEX])
    if not pipeline_files.names_control(index):
        _replace(plan, pipeline_files.INDEX, {**index, CONTROLNET: list(CLASS)})
    if CONTROL_CONFIG not in plan.small:
        transformer = json.loads(plan.small["transformer/config.json"])
        _replace(plan, CONTROL_CONFIG, _config(weights[CONTROLNET], transformer))


def _replace(plan: Plan, path: str, value: Mapping[str, Any]) -> None:
    """Let a version have JSON that is made here, instead of what the source or the base has."""
    plan.texts[path] = plan.small[path] = f"{json.dumps(value, indent=2, ensure_ascii=False)}\n".encode()
    plan.shared.pop(path, None)
    plan.outputs = [output for output in plan.outputs if output.path != path]


def _config(weights: Weights, transformer: Mapping[str, Any]) -> dict[str, Any]:
    sizes = controlnet.sizes({one.name: one.shape for one in weights.made})
    layers, count = transformer.get("n_layers", 30), sizes["n_control_layers"]
    if count > layers or (layers % count and (layers, count) not in _PLACES):
        raise Refused(
            f"{weights.files[0][1].path}: a ControlNet of {count} layers for a transformer of {layers}: which of them get its hints is not "
            "known; import a directory that has its config.json beside the weights"
        )
    refining = transformer.get("n_refiner_layers", 2)
    kind = None if sizes["n_refiner_layers"] else "control_layers"
    if sizes["refiner_hints"]:
        kind, refining = "control_noise_refiner", sizes["n_refiner_layers"]
    elif kind is None:
        refining = sizes["n_refiner_layers"]
    return {
        "_class_name": CLASS[1],
        "add_control_noise_refiner": kind,
        "all_f_patch_size": [1],
        "all_patch_size": [2],
        "control_in_dim": sizes["control_in_dim"],
        "control_layers_places": list(_PLACES.get((layers, count), range(0, layers, layers // count))),
        "control_refiner_layers_places": None
        if kind is None
        else list(range(min(refining, count) if kind == "control_layers" else refining)),
        "dim": sizes["dim"],
        "n_heads": sizes["n_heads"],
        "n_kv_heads": sizes["n_heads"],
        "n_refiner_layers": refining,
        "norm_eps": 1e-05,
        "qk_norm": True,
    }
