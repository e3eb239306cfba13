"""What people have, built from a tiny pipeline: directories as hubs publish and cache them, and what their tools leave in them."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

REPOSITORY = "Tongyi-MAI/Z-Image-Turbo"
COMMIT = "f332072aa78be7aecdf3ee76d5c247082da564a6"
STEMS = {"transformer": "diffusion_pytorch_model", "text_encoder": "model", "vae": "diffusion_pytorch_model"}
README = "---\nlicense: apache-2.0\nlanguage:\n- en\npipeline_tag: text-to-image\n---\n\n# Z-Image\n"
ATTRIBUTES = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


def weights(directory, component):
    """Return a component's tensors, of all its files."""
    found = {}
    for path in sorted((directory / component).glob("*.safetensors")):
        found |= load_file(path)
    return found


def write_weights(directory, component, tensors, shards=1, variant="", late=False):
    """Write a component's weights as diffusers and transformers do: one file or shards with an index, and a variant in the name,
    before the number of the shard or (as older releases) after it."""
    folder, stem = directory / component, STEMS[component]
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.index*.json")]:
        path.unlink()
    dot = f".{variant}" if variant else ""
    if shards == 1:
        save_file(tensors, folder / f"{stem}{dot}.safetensors", {"format": "pt"})
        return
    names, mapping = sorted(tensors), {}
    for number in range(shards):
        count = f"-{number + 1:05}-of-{shards:05}"
        file = f"{stem}{count}{dot}.safetensors" if late else f"{stem}{dot}{count}.safetensors"
        part = names[number::shards]
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        mapping |= dict.fromkeys(part, file)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": mapping}
    (folder / f"{stem}.safetensors.index{dot}.json").write_text(json.dumps(index))


def rewritten(directory, dtype=None, components=STEMS, **how):
    """Write the weights of components anew, in another dtype or in other files."""
    for component in components:
        tensors = weights(directory, component)
        if dtype is not None:
            tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        write_weights(directory, component, tensors, **how)


def published(pipeline, target):
    """A repository as it is published: the transformer in fp32 in three shards, the text encoder in bf16 in three shards."""
    shutil.copytree(pipeline, target)
    rewritten(target, torch.float32, ["transformer"], shards=3)
    rewritten(target, None, ["text_encoder"], shards=3)
    (target / "README.md").write_text(README)
    (target / ".gitattributes").write_text(ATTRIBUTES)
    (target / "assets").mkdir()
    (target / "assets" / "showcase.jpg").write_bytes(b"\xff\xd8\xff")
    (target / "text_encoder" / "generation_config.json").write_text('{"do_sample": true}')
    return target


def local_dir(pipeline, target):
    """What `hf download --local-dir` leaves: the files, and its own notes beside them."""
    published(pipeline, target)
    for path in [path for path in target.rglob("*") if path.is_file()]:
        note = target / ".cache/huggingface/download" / f"{path.relative_to(target)}.metadata"
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(f"{COMMIT}\n{'0' * 40}\n1700000000.0\n")
        note.with_suffix(".lock").touch()
    (target / ".cache/huggingface/.gitignore").write_text("*")
    return target


def hub(pipeline, target):
    """A Hugging Face hub's cache of one model: the snapshot's files are links into `blobs`."""
    model = target / f"models--{REPOSITORY.replace('/', '--')}"
    plain = published(pipeline, target / "plain")
    (model / "blobs").mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    for path in sorted(path for path in plain.rglob("*") if path.is_file()):
        blob = model / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        link = model / "snapshots" / COMMIT / path.relative_to(plain)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    shutil.rmtree(plain)
    return model


def modelscope(pipeline, target):
    """A ModelScope cache's directory of one model."""
    model = target / "hub" / "models" / REPOSITORY.replace(".", "___")
    model.parent.mkdir(parents=True)
    published(pipeline, model)
    (model / ".mv").write_text("Revision:master,CreatedAt:1764000000")
    (model / ".msc").write_bytes(b"\x80\x04]\x94.")
    (model / ".mdl").write_bytes(b"\x80\x04}\x94.")
    (model / "configuration.json").write_text("{}")
    return model


def variants(pipeline, target):
    """Every component in fp32, and beside it as the variant bf16."""
    shutil.copytree(pipeline, target)
    for component, stem in STEMS.items():
        tensors = weights(target, component)
        write_weights(target, component, tensors, variant="bf16")
        wide = {name: tensor.float() for name, tensor in tensors.items()}
        save_file(wide, target / component / f"{stem}.safetensors", {"format": "pt"})
    return target


def only_variant(pipeline, target, late=False):
    """A directory that has the variant alone, its transformer in shards."""
    shutil.copytree(pipeline, target)
    rewritten(target, None, ["text_encoder", "vae"], variant="bf16")
    rewritten(target, None, ["transformer"], shards=2, variant="bf16", late=late)
    return target


def tree(directory: Path) -> dict[str, bytes]:
    """Return all files below a directory with their bytes."""
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}  # fmt: skip


def provenance(version):
    """What a version's `zwatch.json` says."""
    return json.loads((version / "zwatch.json").read_bytes())
