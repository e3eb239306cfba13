"""What a config's network must have is known without torch, and is what the network that is built has."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.engine.test_networks import TEXT, TRANSFORMER, VAE
from zwatch.engine import components
from zwatch.importing import fit

MODELS = Path(__file__).parents[2] / "models"
CONFIGS = {
    "transformer": TRANSFORMER | {"_class_name": "ZImageTransformer2DModel"},
    "vae": VAE | {"_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3},
    "text_encoder": TEXT | {"model_type": "qwen3", "architectures": ["Qwen3Model"]},
}
COVERED = [
    ("transformer", {}), ("transformer", {"n_refiner_layers": 2, "n_layers": 3}), ("transformer", {"in_channels": 4}),
    ("transformer", {"dim": 384, "n_heads": 4, "axes_dims": [32, 32, 32], "cap_feat_dim": 40}),
    ("vae", {"use_quant_conv": False, "use_post_quant_conv": False}), ("vae", {}), ("vae", {"use_quant_conv": False}),
    ("vae", {"layers_per_block": 2, "block_out_channels": [8, 8, 16, 16]}), ("vae", {"latent_channels": 4}),
    ("text_encoder", {}), ("text_encoder", {"head_dim": 16, "num_hidden_layers": 2}),
    ("text_encoder", {"num_key_value_heads": None, "use_cache": True, "id2label": {"0": "a"}}),
]  # fmt: skip
OTHERS = [
    ("transformer", {"qk_norm": False}), ("vae", {"mid_block_add_attention": False}), ("text_encoder", {"attention_bias": True}),
    ("text_encoder", {"layer_types": ["sliding_attention"] * 3, "use_sliding_window": True, "sliding_window": 8}),
    ("text_encoder", {"a_field_of_a_newer_library": 1}),
]  # fmt: skip


def small(component, change):
    return {f"{component}/config.json": json.dumps(CONFIGS[component] | change).encode()}


def of_the_network(component, files):
    return components.shapes(component, {"config.json": files[f"{component}/config.json"]})


@pytest.mark.parametrize(("component", "change"), COVERED + OTHERS)
def test_what_is_expected_is_what_the_network_has(component, change):
    files = small(component, change)
    assert dict(fit.expected(component, files)) == of_the_network(component, files)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("component", CONFIGS)
def test_so_it_is_for_the_models_in_the_repository(version, component):
    path = f"{component}/config.json"
    files = {path: (MODELS / version / path).read_bytes()}
    assert dict(fit.expected(component, files)) == of_the_network(component, files)


@pytest.mark.parametrize(("component", "change"), COVERED)
def test_no_network_is_built_for_what_the_tables_cover(component, change, monkeypatch):
    monkeypatch.delattr(components, "shapes")
    assert fit.expected(component, small(component, change))


def test_an_import_that_converts_nothing_needs_no_torch(pipeline, root):
    code = (
        "import sys; from zwatch import cli; status = cli.main(sys.argv[1:]);"
        "print(sorted({'torch', 'numpy', 'diffusers', 'transformers'} & set(sys.modules))); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "import", pipeline, "v1", "--models", root], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "[]"), done.stderr


def test_components_of_other_widths_are_refused(pipeline, importing, tmp_path):
    importing(pipeline, "v1")
    other = tmp_path / "encoder"
    shutil.copytree(pipeline / "text_encoder", other)
    config = json.loads((other / "config.json").read_bytes())
    width = config["hidden_size"]
    (other / "config.json").write_text(json.dumps(config | {"hidden_size": 2 * width}))
    sizes = fit.expected("text_encoder", {"text_encoder/config.json": (other / "config.json").read_bytes()})
    for path in other.glob("*.safetensors*"):
        path.unlink()
    save_file(
        {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in sizes.items()}, other / "model.safetensors"
    )
    error = importing.refused(other, "v2", "--base", "v1")
    assert f"cap_feat_dim: found {width}, expected {2 * width}, the hidden_size of text_encoder" in error


def test_a_config_that_every_load_rejects_is_refused(pipeline, importing, tmp_path):
    source = shutil.copytree(pipeline, tmp_path / "source")
    path = source / "scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"shift": "large"}))
    assert 'scheduler_config.json: shift: found "large", expected a number' in importing.refused(source, "v2")
