"""What stands before the names of a component's tensors: what training and exporting wrap around a module, and the parts of a
checkpoint that has several components."""

import re
from collections.abc import Mapping

from zwatch.deploy.header import TensorInfo
from zwatch.importing.layouts.parts import listed, quoted, refusal

WRAPPERS = (
    "module.", "_orig_mod.", "model.", "ema_model.", "online_model.", "ema.", "net.", "dit.", "pipe.", "state_dict.", "student.",
    "generator.", "diffusion_model.", "transformer.",
)  # fmt: skip
"""DistributedDataParallel, torch.compile, trainers' attributes, and averages: stripped where all names have them."""
_WITHIN = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
"""torch.compile, FSDP, activation checkpointing and Lightning's strategies wrap any module, so these stand anywhere."""
_BOOKKEEPING = re.compile(
    r"^(?:.*\.)?(?:n_averaged|initted|num_updates|optimization_step|decay|step|steps|global_step|epoch)$"
)
"""Counters of averages and of trainers: not weights. Only of one element."""

COMPONENTS = (
    ("transformer", re.compile(r"^(?:model\.diffusion_model|diffusion_model|transformer)\.")),
    ("text_encoder", re.compile(r"^(?:text_encoders\.[A-Za-z0-9_]+|text_encoder)\.")),
    ("vae", re.compile(r"^(?:vae|first_stage_model)\.")),
)
"""How checkpoints name their components: ComfyUI's (comfy/supported_models_base.py) and diffusers'."""

Names = dict[str, str]
"""The names in the file by the names without what stands before them."""


def _within(names: Mapping[str, TensorInfo]) -> Names:
    found: Names = {}
    for name in names:
        bare = _WITHIN.sub("", name)
        if bare in found:
            raise refusal(f"{quoted(found[bare])} and {quoted(name)} are one tensor; which of them is meant?")
        found[bare] = name
    return found


def unwrapped(names: Names) -> Names:
    """Return the names without the wrappers that all of them have.

    Raises:
        Rejection: the file has the weights twice, as a model and its average.
    """
    while names:
        first = next(iter(names))
        common = next((one for one in WRAPPERS if first.startswith(one)), None)
        if common is None or not all(name.startswith(common) for name in names):
            break
        names = {name[len(common) :]: stored for name, stored in names.items()}
    heads = {
        head for name in names for head in ("model.", "ema_model.", "online_model.", "ema.") if name.startswith(head)
    }
    if len(heads) > 1:
        raise refusal(
            f"the file has weights under {' and '.join(map(repr, sorted(heads)))}: a model and its average; save the one that is "
            "meant to a file of its own"
        )
    return names


def grouped(tensors: Mapping[str, TensorInfo]) -> tuple[dict[str, Names], list[str]]:
    """Return the names by component, "" where nothing says which, and those of counters that were left out.

    Raises:
        Rejection: the file has the weights twice, or tensors beside its components.
    """
    counters = [name for name, info in tensors.items() if _BOOKKEEPING.match(name) and info.end - info.begin <= 8]
    names = _within({name: info for name, info in tensors.items() if name not in set(counters)})
    groups: dict[str, Names] = {}
    for name, stored in _outer(names).items():
        for component, pattern in COMPONENTS:
            if match := pattern.match(name):
                groups.setdefault(component, {})[name[match.end() :]] = stored
                break
        else:
            groups.setdefault("", {})[name] = stored
    if "" in groups and len(groups) > 1:
        groups = _with_rest(groups)
    return {component: unwrapped(found) for component, found in groups.items()}, counters


def _outer(names: Names) -> Names:
    """Strip common wrappers, but not what names a component."""
    if any(pattern.match(name) for name in names for _, pattern in COMPONENTS):
        return names
    return unwrapped(names)


def _with_rest(groups: dict[str, Names]) -> dict[str, Names]:
    rest = [quoted(stored) for stored in groups[""].values()]
    known = ", ".join(sorted(name for name in groups if name))
    raise refusal(f"beside its {known} the file has {len(rest)} tensors that are neither: {listed(rest, 4)}")
