"""The networks and the schedule give the bits of diffusers' and transformers' own, for every config that they take."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from transformers import Qwen3Config, Qwen3Model

from tests.engine.editing import build, edit_json, parameters, seal_again
from zwatch.engine import library
from zwatch.engine.factory import EngineFactory
from zwatch.engine.networks.autoencoder import Autoencoder, AutoencoderConfig
from zwatch.engine.networks.text_encoder import Qwen3Encoder, TextConfig
from zwatch.engine.networks.transformer import TransformerConfig, ZImageTransformer
from zwatch.engine.schedule import EulerSchedule
from zwatch.shadow.device import Device

TRANSFORMER = {
    "all_patch_size": [2], "all_f_patch_size": [1], "in_channels": 16, "dim": 48, "n_layers": 2, "n_refiner_layers": 1,
    "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 24, "axes_dims": [8, 8, 8], "axes_lens": [600, 64, 64],
}  # fmt: skip
VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4, "latent_channels": 16,
    "block_out_channels": [8, 16, 24, 24], "norm_num_groups": 4, "layers_per_block": 1, "scaling_factor": 0.3611,
    "shift_factor": 0.1159, "sample_size": 64,
}  # fmt: skip
TEXT = {
    "vocab_size": 100, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 600, "rope_theta": 1e6,
}  # fmt: skip
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def alike(ours, theirs, dtype):
    """Give our network the library's random weights, rounded to a dtype; return both."""
    torch.manual_seed(1)
    weights = {name: torch.randn_like(value).mul(0.3).to(dtype) for name, value in theirs.state_dict().items()}
    for module in (ours, theirs):
        module.load_state_dict(weights, assign=True)
        module.requires_grad_(False).eval()
    return ours, theirs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("change", "lengths", "size"),
    [
        ({}, [20], (8, 8)), ({}, [64], (6, 10)), ({}, [1], (16, 4)), ({}, [512], (2, 2)), ({}, [20, 70], (6, 10)),
        ({}, [33, 5], (8, 8)), ({"qk_norm": False}, [20], (8, 8)), ({"n_refiner_layers": 2, "norm_eps": 1e-3}, [9], (4, 8)),
        ({"rope_theta": 1e4, "t_scale": 10.0, "axes_dims": [4, 8, 12]}, [20, 21], (8, 8)),
    ],
)  # fmt: skip
def test_the_transformer_has_the_librarys_bits(dtype, change, lengths, size):
    config = TRANSFORMER | change
    ours, theirs = alike(
        ZImageTransformer(TransformerConfig.of(config)), ZImageTransformer2DModel.from_config(config), dtype
    )
    inputs = [torch.randn(16, 1, *size).to(dtype) for _ in lengths]
    prompts = [torch.randn(length, 24).to(dtype) for length in lengths]
    for time in (0.0, 0.3):  # again with the rotations that were kept
        times = torch.full((len(lengths),), time)
        found = ours(inputs, times, prompts)[0]
        expected = theirs(inputs, times, prompts, return_dict=False)[0]
        assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "change",
    [
        {}, {"mid_block_add_attention": False}, {"use_quant_conv": False, "use_post_quant_conv": False},
        {"layers_per_block": 2, "act_fn": "SiLU", "norm_num_groups": 2},
    ],
)  # fmt: skip
def test_the_autoencoder_has_the_librarys_bits(dtype, change):
    config = VAE | change
    ours, theirs = alike(Autoencoder(AutoencoderConfig.of(config)), AutoencoderKL.from_config(config), dtype)
    latents, image = torch.randn(1, 16, 6, 4).to(dtype), torch.randn(1, 3, 48, 32).to(dtype)
    assert torch.equal(ours.decode(latents)[0], theirs.decode(latents, return_dict=False)[0])
    assert torch.equal(ours.encoder(image), theirs.encoder(image))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "change",
    [
        {}, {"num_key_value_heads": 4}, {"num_key_value_heads": None}, {"attention_bias": True}, {"rms_norm_eps": 1e-2},
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, {"hidden_act": "swish"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("mask", [[1] * 3 + [0] * 29, [1] * 32, [0] * 20 + [1] * 12, [1] + [0] * 31])
def test_the_text_encoder_has_the_librarys_bits(dtype, change, mask):
    config = TEXT | change
    theirs = Qwen3Model(
        Qwen3Config.from_dict({name: value for name, value in config.items() if name != "rope_theta" or value})
    )
    ours, theirs = alike(Qwen3Encoder(TextConfig.of(config)), theirs, dtype)
    tokens, present = torch.randint(0, 100, (32,)), torch.tensor(mask).bool()
    assert torch.equal(ours.encode(tokens, present), library.encode(theirs, tokens, present))


SCHEDULES = [
    {}, {"shift": 3.0}, {"num_train_timesteps": 500}, {"shift_terminal": 0.02, "shift": 6.0}, {"invert_sigmas": True},
    {"use_dynamic_shifting": True}, {"use_dynamic_shifting": True, "time_shift_type": "linear", "max_shift": 2.0},
    {"use_dynamic_shifting": True, "shift_terminal": 0.1, "base_image_seq_len": 64, "base_shift": 0.2},
]  # fmt: skip
OTHER_SCHEDULES = [{"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"stochastic_sampling": True}]


@pytest.mark.parametrize("config", SCHEDULES, ids=str)
@pytest.mark.parametrize(("steps", "tokens"), [(1, 256), (2, 16), (8, 4096), (50, 1000)])
def test_the_schedule_has_the_librarys_values(config, steps, tokens):
    steps = max(steps, 2) if "shift_terminal" in config else steps  # one step divides by zero, there too
    device = torch.device("cpu")
    ours = EulerSchedule.of(config).timeline(steps, tokens, device)
    theirs = library.LibrarySchedule(config).timeline(steps, tokens, device)
    assert torch.equal(ours.sigmas, theirs.sigmas)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    sample = torch.randn(1, 16, 4, 4)
    for number in range(steps):
        velocity = torch.randn(1, 16, 4, 4)
        assert torch.equal(ours.step(velocity, number, sample), theirs.step(velocity, number, sample))


@pytest.mark.parametrize(
    ("of", "config"),
    [
        *[(EulerSchedule.of, config) for config in OTHER_SCHEDULES], (EulerSchedule.of, {"base_shift": None}),
        (TransformerConfig.of, TRANSFORMER | {"siglip_feat_dim": 8}),
        (TransformerConfig.of, TRANSFORMER | {"all_patch_size": [1, 2], "all_f_patch_size": [1, 1]}),
        (TransformerConfig.of, TRANSFORMER | {"axes_dims": [8, 8, 10]}),
        (TransformerConfig.of, TRANSFORMER | {"axes_dims": [7, 8, 9]}),
        (AutoencoderConfig.of, VAE | {"up_block_types": ["AttnUpDecoderBlock2D", *VAE["up_block_types"][1:]]}),
        (AutoencoderConfig.of, VAE | {"act_fn": "mish"}), (AutoencoderConfig.of, VAE | {"norm_num_groups": 5}),
        (TextConfig.of, TEXT | {"hidden_act": "gelu"}), (TextConfig.of, TEXT | {"use_sliding_window": True}),
        (TextConfig.of, TEXT | {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}),
        (TextConfig.of, TEXT | {"layer_types": ["sliding_attention"] * 3}), (TextConfig.of, TEXT | {"num_hidden_layers": 1}),
        (TextConfig.of, TEXT | {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    ],
)  # fmt: skip
def test_what_is_not_covered_is_left_to_the_library(of, config):
    assert of(config) is None


@pytest.mark.parametrize(
    ("path", "change", "component", "kind"),
    [
        ("transformer/config.json", {"of_a_newer_library": 1}, "transformer", ZImageTransformer2DModel),
        ("vae/config.json", {"act_fn": "mish"}, "vae", AutoencoderKL),
        ("text_encoder/config.json", {"hidden_act": "gelu"}, "text_encoder", Qwen3Model),
        ("scheduler/scheduler_config.json", {"use_karras_sigmas": True}, "scheduler", library.LibrarySchedule),
    ],
)  # fmt: skip
def test_a_version_that_needs_the_librarys_own_class_gets_it_and_draws(models, path, change, component, kind):
    edit_json(models / "v1" / path, lambda config: config.update(change))
    seal_again(models / "v1")
    engine = build(EngineFactory(Device("cpu")), models, "v1")
    assert isinstance(getattr(engine.pipeline, component), kind)
    assert engine.generate(parameters(guidance_scale=2.0)).finite


def test_the_library_is_not_imported_for_the_versions_in_the_repository(tmp_path):
    import subprocess
    import sys
    from pathlib import Path

    program = (
        "import sys; from pathlib import Path; from tests.engine.editing import build, parameters; "
        "from zwatch.engine.opening import open_factory; "
        "engine = build(open_factory('cpu'), Path(sys.argv[1]), 'v1'); "
        "assert engine.generate(parameters(steps=1)).finite; "
        "import json; print(json.dumps([name for name in sys.argv[2:] if name in sys.modules]))"
    )
    root = Path(__file__).parents[2]
    heavy = ["diffusers", "transformers", "torch._dynamo", "scipy", "sklearn", "huggingface_hub", "requests"]
    ended = subprocess.run(
        [sys.executable, "-c", program, str(root / "models"), *heavy],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(ended.stdout) == []


def test_the_schedulers_class_is_as_it_was_when_its_values_were_copied():
    assert set(FlowMatchEulerDiscreteScheduler().config) - {"_use_default_values"} >= set(
        EulerSchedule.__dataclass_fields__
    )
