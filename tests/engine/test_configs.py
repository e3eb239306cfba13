"""The check of configs: what models have passes, and what no model can mean is refused with the file and the field."""

import copy
import errno
import json
from pathlib import Path

import pytest
import torch

from tests.controlnets import add_control
from tests.engine.editing import TRANSFORMER, build, edit_json, edit_tensors, parameters, rejection_of, seal_again
from zwatch.deploy.pipeline_files import CONTROL_CONFIG
from zwatch.engine.components import _as_rejection_of
from zwatch.engine.config_fields import FIELDS
from zwatch.engine.configs import check_configs
from zwatch.engine.factory import EngineFactory
from zwatch.errors import REJECTION_CODES, Rejection
from zwatch.shadow.device import Device
from zwatch.shadow.loader import LoadControl

VAE, TEXT, TRANS = "vae/config.json", "text_encoder/config.json", "transformer/config.json"
SCHEDULER, TOKENIZER = "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"
PUBLISHED = {
    CONTROL_CONFIG: {
        "_class_name": "ZImageControlNetModel", "_diffusers_version": "0.37.0.dev0", "add_control_noise_refiner": "control_noise_refiner",
        "all_f_patch_size": [1], "all_patch_size": [2], "control_in_dim": 33, "control_layers_places": [*range(0, 30, 2)],
        "control_refiner_layers_places": [0, 1], "dim": 3840, "n_heads": 30, "n_kv_heads": 30, "n_refiner_layers": 2, "norm_eps": 1e-05,
        "qk_norm": True,
    },
    SCHEDULER: {
        "_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.36.0.dev0", "num_train_timesteps": 1000,
        "use_dynamic_shifting": False, "shift": 3.0,
    },
    TEXT: {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2560, "initializer_range": 0.02,
        "intermediate_size": 9728, "max_position_embeddings": 40960, "max_window_layers": 36, "model_type": "qwen3",
        "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
        "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False,
        "vocab_size": 151936,
    },
    TOKENIZER: {
        "add_bos_token": False, "add_prefix_space": False,
        "added_tokens_decoder": {"151643": {"content": "<|endoftext|>", "lstrip": False, "normalized": False, "special": True}},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "bos_token": None, "chat_template": "{{ messages }}",
        "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "errors": "replace", "model_max_length": 131072,
        "pad_token": "<|endoftext|>", "split_special_tokens": False, "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    },
    TRANS: {
        "_class_name": "ZImageTransformer2DModel", "_diffusers_version": "0.36.0.dev0", "all_f_patch_size": [1],
        "all_patch_size": [2], "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512], "cap_feat_dim": 2560, "dim": 3840,
        "in_channels": 16, "n_heads": 30, "n_kv_heads": 30, "n_layers": 30, "n_refiner_layers": 2, "norm_eps": 1e-05,
        "qk_norm": True, "rope_theta": 256.0, "t_scale": 1000.0,
    },
    VAE: {
        "_class_name": "AutoencoderKL", "_diffusers_version": "0.36.0.dev0", "_name_or_path": "flux-dev", "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4, "force_upcast": True,
        "in_channels": 3, "latent_channels": 16, "latents_mean": None, "latents_std": None, "layers_per_block": 2,
        "mid_block_add_attention": True, "norm_num_groups": 32, "out_channels": 3, "sample_size": 1024,
        "scaling_factor": 0.3611, "shift_factor": 0.1159, "up_block_types": ["UpDecoderBlock2D"] * 4,
        "use_post_quant_conv": False, "use_quant_conv": False,
    },
}  # fmt: skip
"""The configs of the published Z-Image-Turbo; of the tokenizer's, a part. And that of the published ControlNet, 2.1."""


def small(configs):
    return {path: json.dumps(config).encode() for path, config in configs.items()}


def refusal(call):
    """Return the code and the reason of the rejection that a call raises; None if it raises none."""
    try:
        call()
    except Rejection as rejection:
        return rejection.code, rejection.reason
    return None


def reason_for(path, changes):
    """Return why the published configs with these changes are refused; None if they are not."""
    found = refusal(lambda: check_configs(small({**PUBLISHED, path: {**PUBLISHED[path], **changes}})))
    assert found is None or found[0] == "config_invalid"
    return found and found[1]


def test_the_published_configs_pass():
    check_configs(small(PUBLISHED))


@pytest.mark.parametrize("version", ["v1", "v2"])  # what users add beside them does not matter here
def test_the_configs_in_the_repository_pass(version):
    root = Path(__file__).parents[2] / "models" / version
    check_configs({path: (root / path).read_bytes() for path in FIELDS if path != CONTROL_CONFIG})


def test_fields_of_newer_libraries_pass():
    for path in FIELDS:
        assert reason_for(path, {"a_new_field": {"any": ["thing", None]}}) is None, path


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        (SCHEDULER, {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256}),
        (SCHEDULER, {"use_dynamic_shifting": True, "time_shift_type": "linear", "shift_terminal": 0.02}),
        (TEXT, {"rope_theta": 5000000.0, "max_position_embeddings": 262144}),
        (TEXT, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}),
        (TEXT, {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}, "eos_token_id": [1, 2], "dtype": "float32"}),
        (TEXT, {"layer_types": ["full_attention"] * 36, "num_key_value_heads": None}),
        (TEXT, {"use_sliding_window": True, "sliding_window": 4096, "layer_types": ["sliding_attention"] * 36}),
        (TOKENIZER, {"model_max_length": 1000000000000000019884624838656, "extra_special_tokens": {}}),
        (TOKENIZER, {"eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "lstrip": False}, "vocab_file": None}),
        (VAE, {"latents_mean": [0.0] * 16, "act_fn": "swish", "use_quant_conv": True}),
        (VAE, {"act_fn": "SiLU", "sample_size": [1024, 768]}),
        (TEXT, {"hidden_act": "gelu_pytorch_tanh", "rope_theta": None, "rope_parameters": {"rope_theta": 1e6}}),
        (SCHEDULER, {"use_dynamic_shifting": None, "stochastic_sampling": None, "use_karras_sigmas": None}),
        (TOKENIZER, {"model_max_length": 77}),
        (TRANS, {"siglip_feat_dim": None, "all_patch_size": [2, 4], "all_f_patch_size": [1, 1]}),
    ],
)  # fmt: skip
def test_what_other_models_have_passes(path, changes):
    assert reason_for(path, changes) is None


@pytest.mark.parametrize(
    ("path", "changes", "found"),
    [
        (VAE, {"scaling_factor": "0.36"}, 'scaling_factor: found "0.36", expected a number from 0.001 to 1000'),
        (VAE, {"scaling_factor": 0}, "scaling_factor: found 0"),
        (VAE, {"scaling_factor": float("nan")}, "scaling_factor: found NaN"),
        (VAE, {"scaling_factor": 1e400}, "scaling_factor: found Infinity"),
        (VAE, {"scaling_factor": 10**4000}, "scaling_factor: found 1000"),
        (VAE, {"scaling_factor": True}, "scaling_factor: found true"),
        (VAE, {"shift_factor": None}, "shift_factor: found null, expected a number"),
        (VAE, {"block_out_channels": [128, 256, 512]}, "block_out_channels: found [128, 256, 512], expected a list of 4"),
        (VAE, {"norm_num_groups": 48}, "norm_num_groups: found 48, expected a divisor"),
        (VAE, {"latent_channels": 16.0}, "latent_channels: found 16.0, expected a whole number"),
        (TEXT, {"max_position_embeddings": 10**12}, "max_position_embeddings: found 1000000000000"),
        (TEXT, {"max_position_embeddings": 16}, "max_position_embeddings: found 16, expected a whole number from 512"),
        (TEXT, {"rope_theta": 0}, "rope_theta: found 0, expected a number from 1"),
        (TEXT, {"rope_parameters": {"rope_theta": 0}}, "rope_parameters.rope_theta: found 0"),
        (TEXT, {"rope_scaling": {"rope_type": "yarn", "factor": 0}}, "rope_scaling.factor: found 0"),
        (TEXT, {"rope_scaling": {"rope_type": "my_rope"}}, 'rope_scaling.rope_type: found "my_rope"'),
        (TEXT, {"rms_norm_eps": -1e-6}, "rms_norm_eps: found -1e-06"),
        (TEXT, {"num_hidden_layers": 10**6}, "num_hidden_layers: found 1000000"),
        (TEXT, {"num_key_value_heads": 5}, "num_key_value_heads: found 5, expected a divisor of num_attention_heads, 32"),
        (TEXT, {"head_dim": 127}, "head_dim: found 127, expected an even number"),
        (TEXT, {"layer_types": ["full_attention"]}, "layer_types: found 1, expected one for each of num_hidden_layers, 36"),
        (TEXT, {"layer_types": ["sliding_attention"] * 36}, 'layer_types: found "sliding_attention"'),
        (TEXT, {"pad_token_id": 151936}, "pad_token_id: found 151936, expected less than vocab_size"),
        (TEXT, {"model_type": "llama"}, 'model_type: found "llama", expected "qwen3"'),
        (TRANS, {"axes_lens": [1024, 512]}, "axes_lens: found [1024, 512], expected a list of 3"),
        (TRANS, {"axes_lens": [10**12, 512, 512]}, "axes_lens: found [1000000000000, 512, 512]"),
        (TRANS, {"axes_lens": [64, 512, 512]}, "axes_lens: found 64 positions for the prompt, expected at least 514"),
        (TRANS, {"axes_dims": [32, 48, 47]}, "axes_dims: found [32, 48, 47], expected even numbers with the sum dim / n_heads"),
        (TRANS, {"all_patch_size": [4]}, "all_patch_size: found [4]"),
        (TRANS, {"_class_name": "FluxTransformer2DModel"}, '_class_name: found "FluxTransformer2DModel"'),
        (SCHEDULER, {"shift": "3.0"}, 'shift: found "3.0"'),
        (SCHEDULER, {"num_train_timesteps": 10**12}, "num_train_timesteps: found 1000000000000"),
        (SCHEDULER, {"base_image_seq_len": 4096}, "max_image_seq_len: found 4096, expected more than base_image_seq_len"),
        (SCHEDULER, {"use_dynamic_shifting": True, "max_shift": 40}, "max_shift: found 40, with which the shift"),
        (SCHEDULER, {"use_karras_sigmas": True, "use_beta_sigmas": True}, "use_beta_sigmas: found true, expected false"),
        (TOKENIZER, {"pad_token": None}, "pad_token: found null"),
        (TOKENIZER, {"tokenizer_file": "/etc/passwd"}, 'tokenizer_file: found "/etc/passwd", expected null'),
        (TOKENIZER, {"extra_special_tokens": [5]}, "extra_special_tokens: found [5]"),
        (TOKENIZER, {"model_max_length": -1}, "model_max_length: found -1"),
    ],
)  # fmt: skip
def test_what_no_model_can_mean_is_refused_with_the_file_the_field_and_what_was_expected(path, changes, found):
    reason = reason_for(path, changes)
    assert reason is not None
    assert reason.startswith(f"{path}: {found}")
    assert "expected" in reason


ODD = ["x", "", -1, 0, 0.5, 1e12, 10**40, 1e400, float("nan"), [], {}, None, True, [1], [["x"]], {"a": 1}]


def leaves(value, path=()):
    """Yield the path of every value in a JSON value, itself included."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from leaves(inner, (*path, key))


def changed(value, path, new):
    """Return a copy of a JSON value with another value at a path."""
    if not path:
        return new
    copied = copy.deepcopy(value)
    place = copied
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    return copied


@pytest.mark.parametrize("path", FIELDS)
def test_any_value_in_any_place_passes_or_is_refused_with_the_file_and_the_field(path):
    refused = 0
    for leaf in leaves(PUBLISHED[path]):
        for odd in ODD:
            configs = {**PUBLISHED, path: changed(PUBLISHED[path], leaf, odd)}
            if (found := refusal(lambda configs=configs: check_configs(small(configs)))) is not None:
                code, reason = found
                refused += 1
                assert (code, reason.startswith(f"{path}: ")) == ("config_invalid", True)
                assert not leaf or str(leaf[0]) in reason, (leaf, odd, reason)
    assert refused > 50


# --- with the real libraries


@pytest.fixture
def factory():
    return EngineFactory(Device("cpu"))


def warmed(factory, models):
    """Seal v1 again, load it and draw with it; return the image."""
    seal_again(models / "v1")
    engine = build(factory, models, "v1")
    factory.warm(engine, LoadControl())
    generation = engine.generate(parameters())
    assert generation.finite
    return generation.images[0].tobytes()


@pytest.mark.parametrize(
    ("path", "change", "found"),
    [
        (VAE, {"scaling_factor": "0.36"}, "vae/config.json: scaling_factor"),
        (TEXT, {"max_position_embeddings": 10**12}, "text_encoder/config.json: max_position_embeddings"),
        (TEXT, {"rope_parameters": {"rope_theta": 0, "rope_type": "default"}}, "text_encoder/config.json: rope_parameters"),
        (TRANS, {"axes_lens": [1024, 2, 64]}, "transformer/config.json: axes_lens: found 2 x 64 positions"),
        (TOKENIZER, {"unk_token": "<|unknown|>"}, "tokenizer/tokenizer_config.json: unk_token: found the token"),
        (TOKENIZER, {"pad_token": 5}, "tokenizer/tokenizer_config.json: pad_token"),
        (SCHEDULER, {"shift": [3]}, "scheduler/scheduler_config.json: shift"),
    ],
)  # fmt: skip
def test_a_version_with_such_a_config_is_refused(factory, models, path, change, found):
    edit_json(models / "v1" / path, lambda config: config.update(change))
    code, reason = rejection_of(lambda: warmed(factory, models))
    assert code == "config_invalid"
    assert reason.startswith(found), reason


def test_configs_are_checked_before_weights_are_read(factory, models):
    edit_json(models / "v1" / VAE, lambda config: config.update(scaling_factor="0.36"))
    seal_again(models / "v1")
    control = LoadControl()
    assert rejection_of(lambda: build(factory, models, "v1", control))[0] == "config_invalid"
    assert control.bytes_done < (models / "v1" / TRANSFORMER).stat().st_size


def test_a_component_that_was_made_for_another_text_encoder_is_refused(factory, models):
    edit_json(models / "v1" / TRANS, lambda config: config.update(cap_feat_dim=16))

    def narrowed(tensors):
        return tensors | {
            "cap_embedder.0.weight": tensors["cap_embedder.0.weight"][:16].clone(),
            "cap_embedder.1.weight": tensors["cap_embedder.1.weight"][:, :16].clone(),
        }

    edit_tensors(models / "v1" / TRANSFORMER, narrowed)
    code, reason = rejection_of(lambda: warmed(factory, models))
    assert (code, reason) == (
        "config_invalid",
        "transformer/config.json: cap_feat_dim: found 16, expected 32, the hidden_size of text_encoder/config.json",
    )


def test_how_a_library_is_called_is_not_the_configs_to_say(factory, models):
    expected = warmed(factory, models)
    edit_json(
        models / "v1" / TEXT,
        lambda config: config.update(
            attn_implementation="someone/kernels", _attn_implementation="flash_attention_2", return_dict=False,
            output_attentions=True, num_labels=10**9,
        ),
    )  # fmt: skip
    assert warmed(factory, models) == expected


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (VAE, {"sample_size": [64, 32], "act_fn": "SiLU"}),
        (TEXT, {"rope_theta": None, "hidden_act": "gelu_pytorch_tanh"}),
        (SCHEDULER, {"use_dynamic_shifting": None, "invert_sigmas": None}),
        (TOKENIZER, {"model_max_length": 77}),
    ],
)
def test_what_diffusers_itself_takes_draws(factory, models, path, change):
    edit_json(models / "v1" / path, lambda config: config.update(change))
    warmed(factory, models)


@pytest.mark.parametrize("extra", [True, None, "text", 0.875, [None, None]])
def test_a_setting_of_the_pipeline_besides_its_components_is_left_alone(factory, models, extra):
    edit_json(models / "v1/model_index.json", lambda index: index.update(a_setting=extra))
    warmed(factory, models)


def chained(error, cause):
    """Return an error that a library raised because of another."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (TypeError("dim"), Rejection), (OSError("can't load the tokenizer"), Rejection),
        (OSError(errno.ENOENT, "No such file"), Rejection), (OSError(errno.EMFILE, "Too many open files"), OSError),
        (MemoryError(), MemoryError), (torch.OutOfMemoryError("CUDA"), torch.OutOfMemoryError),
        (chained(OSError("can't load"), OSError(errno.EIO, "Input/output error")), OSError),
        (chained(RuntimeError("tokenizer"), MemoryError()), RuntimeError),
    ],
)  # fmt: skip
def test_a_lack_of_memory_or_descriptors_while_a_component_is_built_is_not_the_configs_fault(error, raised):
    with pytest.raises(raised), _as_rejection_of("vae/config.json"):
        raise error


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{% if %}", "", "{{ messages | no_such_filter }}"])
def test_a_chat_template_that_makes_no_prompt_is_refused_when_the_tokenizer_is_built(factory, models, template):
    (models / "v1/tokenizer/chat_template.jinja").write_text(template)
    code, reason = rejection_of(lambda: warmed(factory, models))
    assert (code, reason.startswith("tokenizer: ")) == ("config_invalid", True)


@pytest.mark.parametrize("path", [*FIELDS, "model_index.json"])
def test_a_version_with_any_value_in_any_place_is_refused_or_draws(factory, models, path):
    """One odd value for each place, in turn. All of them take ten minutes; none is an internal error."""
    if path == CONTROL_CONFIG:
        add_control(models / "v1", "2.1")
        seal_again(models / "v1")
    original = (models / "v1" / path).read_text()
    config = json.loads(original)
    allowed = {code for code in REJECTION_CODES if code.endswith(("_invalid", "_mismatch"))} | {"class_not_allowed"}
    _kept = build(factory, models, "v1")  # so that only what is changed is built
    for number, leaf in enumerate(leaves(config)):
        odd = ODD[number % len(ODD)]
        (models / "v1" / path).write_text(json.dumps(changed(config, leaf, odd)))
        found = refusal(lambda: warmed(factory, models))
        assert found is None or found[0] in allowed, (leaf, odd, found)
