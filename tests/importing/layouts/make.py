"""Files of weights in the layouts that people have, of small random tensors, and recipes carried out on tensors in memory.

The layouts are written down here from the programs that save them, apart from the code under test: ComfyUI's transformer as
https://huggingface.co/Comfy-Org/z_image_turbo/blob/main/z_image_convert_original_to_comfy.py makes it, the VAE as FLUX.1's
modules/autoencoder.py names its modules.
"""

import json
from functools import cache

import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from random_pipeline import PRESETS
from transformers import Qwen3Config, Qwen3Model

from zwatch.deploy.header import TensorInfo

NAMES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64", torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2", torch.uint8: "U8", torch.int8: "I8", torch.int64: "I64", torch.int32: "I32", torch.bool: "BOOL",
}  # fmt: skip
DTYPES = {name: dtype for dtype, name in NAMES.items()}


def header(state):
    """Return the table of a file with these tensors, one behind the other."""
    table, position = {}, 0
    for name, tensor in state.items():
        size = tensor.numel() * tensor.element_size()
        table[name] = TensorInfo(NAMES[tensor.dtype], tuple(tensor.shape), position, position + size)
        position += size
    return table


def carried_out(translation, *states):
    """Return the tensors that a recipe makes of the tensors of a file, or of the base's and those of LoRAs."""
    sources = dict(states[0])
    for number, state in enumerate(states[1:]):
        sources |= {f"lora{number}:{name}": tensor for name, tensor in state.items()}
    made, before = {}, {name: tensor.clone() for name, tensor in sources.items() if tensor.device.type != "meta"}
    for one in translation.made:
        inputs = [sources[name] for name in one.sources]
        if one.compute is not None:
            assert one.rows is None
            tensor = one.compute(inputs)
        else:
            [tensor] = inputs
            if one.rows is not None:
                tensor = tensor[one.rows[0] : one.rows[1]]
            tensor = tensor.reshape(one.shape)
        assert one.name not in made
        assert (NAMES[tensor.dtype], tuple(tensor.shape)) == (one.dtype, one.shape), one.name
        made[one.name] = tensor
    for name, tensor in before.items():
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), sources[name].reshape(-1).view(torch.uint8)), (
            f"the source {name} was changed"
        )
    return made


def random_like(shapes, seed=0, dtype=torch.bfloat16):
    """Return random tensors of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


@cache
def models(preset):
    """Return the shapes of the transformer, the text encoder and the VAE of a preset, as the libraries' classes name them."""
    sizes = PRESETS[preset]
    with torch.device("meta"):
        made = {
            "transformer": ZImageTransformer2DModel(cap_feat_dim=sizes.text_encoder["hidden_size"], **sizes.transformer),
            "text_encoder": Qwen3Model(Qwen3Config(vocab_size=sizes.vocabulary, **sizes.text_encoder)),
            "vae": AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=sizes.vae_channels, layers_per_block=sizes.vae_layers, latent_channels=16,
                norm_num_groups=min(32, sizes.vae_channels[0]), use_quant_conv=False, use_post_quant_conv=False,
            ),
        }  # fmt: skip
    return {name: {key: tuple(value.shape) for key, value in one.state_dict().items()} for name, one in made.items()}


def diffusers(component, preset="tiny", seed=0, dtype=torch.bfloat16):
    """Return a component's random tensors in diffusers' layout."""
    return random_like(models(preset)[component], seed, dtype)


def comfy_transformer(state):
    """Return a transformer's tensors in ComfyUI's layout."""
    made = {}
    for name, tensor in state.items():
        new = name.replace("all_final_layer.2-1.", "final_layer.").replace("all_x_embedder.2-1.", "x_embedder.")
        new = new.replace(".attention.to_out.0.", ".attention.out.")
        new = new.replace(".attention.norm_q.", ".attention.q_norm.").replace(
            ".attention.norm_k.", ".attention.k_norm."
        )
        if ".attention.to_q." in name:
            three = [state[name.replace(".to_q.", f".to_{part}.")] for part in "qkv"]
            made[name.replace(".to_q.", ".qkv.")] = torch.cat(three)
        elif ".attention.to_k." not in name and ".attention.to_v." not in name:
            made[new] = tensor
    return made


def ldm_vae_shapes(preset):
    """Return the shapes of FLUX.1's VAE as modules/autoencoder.py names them."""
    channels, layers = PRESETS[preset].vae_channels, PRESETS[preset].vae_layers
    top, shapes = channels[-1], {}

    def conv(name, out, into, width=3):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into, width, width), (out,)

    def norm(name, size):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (size,), (size,)

    def resnet(name, into, out):
        norm(f"{name}.norm1", into)
        conv(f"{name}.conv1", out, into)
        norm(f"{name}.norm2", out)
        conv(f"{name}.conv2", out, out)
        if into != out:
            conv(f"{name}.nin_shortcut", out, into, 1)

    def middle(name):
        resnet(f"{name}.block_1", top, top)
        norm(f"{name}.attn_1.norm", top)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.attn_1.{part}", top, top, 1)
        resnet(f"{name}.block_2", top, top)

    conv("encoder.conv_in", channels[0], 3)
    now = channels[0]
    for level, size in enumerate(channels):
        for block in range(layers):
            resnet(f"encoder.down.{level}.block.{block}", now, size)
            now = size
        if level < len(channels) - 1:
            conv(f"encoder.down.{level}.downsample.conv", now, now)
    middle("encoder.mid")
    norm("encoder.norm_out", top)
    conv("encoder.conv_out", 32, top)
    conv("decoder.conv_in", top, 16)
    middle("decoder.mid")
    for level in reversed(range(len(channels))):
        for block in range(layers + 1):
            resnet(f"decoder.up.{level}.block.{block}", now, channels[level])
            now = channels[level]
        if level:
            conv(f"decoder.up.{level}.upsample.conv", now, now)
    norm("decoder.norm_out", now)
    conv("decoder.conv_out", 3, now)
    return shapes


def ldm_vae(preset="tiny", seed=0, dtype=torch.float32):
    """Return FLUX.1's VAE in its own layout, as `ae.safetensors`, of random tensors."""
    return random_like(ldm_vae_shapes(preset), seed, dtype)


def prefixed(state, prefix):
    """Return the tensors with a prefix before their names."""
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def all_in_one(seed=0):
    """Return a checkpoint of all three, as ComfyUI saves it."""
    return {
        **prefixed(comfy_transformer(diffusers("transformer", seed=seed)), "model.diffusion_model."),
        **prefixed(diffusers("text_encoder", seed=seed), "text_encoders.qwen3_4b.transformer.model."),
        "text_encoders.qwen3_4b.logit_scale": torch.tensor(4.6),
        **prefixed(ldm_vae(seed=seed, dtype=torch.bfloat16), "vae."),
    }


def fp8(state, style, dtype=torch.float8_e4m3fn):
    """Return a file with the matrices of blocks in fp8, in one of the styles: `cast`, `scaled_fp8`, `comfy_quant`, `rows`."""
    made = {}
    for name, tensor in state.items():
        if tensor.dim() != 2 or "layers." not in name:
            made[name] = tensor
            continue
        most = tensor.float().abs().amax(dim=1, keepdim=True) if style == "rows" else tensor.float().abs().max()
        scale = most / torch.finfo(dtype).max if style != "cast" else torch.ones(())
        made[name] = (tensor.float() / scale).to(dtype)
        layer = name.removesuffix(".weight")
        if style == "scaled_fp8":
            made[f"{layer}.scale_weight"] = scale.reshape(1)
            made[f"{layer}.scale_input"] = torch.ones(1)
        elif style != "cast":
            made[f"{layer}.weight_scale"] = scale
        if style == "comfy_quant":
            made[f"{layer}.input_scale"] = torch.tensor(0.5)
            text = json.dumps({"format": "float8_e4m3fn" if dtype == torch.float8_e4m3fn else "float8_e5m2"}).encode()
            made[f"{layer}.comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
    if style == "scaled_fp8":
        made["scaled_fp8"] = torch.empty(2, dtype=dtype)
    return made


def dequantized(state):
    """Return the values of such a file in bf16, computed one tensor at a time without the code under test."""
    made = {}
    for name, tensor in state.items():
        if name.endswith(("scale_weight", "weight_scale", "scale_input", "input_scale", "comfy_quant", "scaled_fp8")):
            continue
        layer = name.removesuffix(".weight")
        scale = state.get(f"{layer}.weight_scale", state.get(f"{layer}.scale_weight", torch.ones(())))
        made[name] = (tensor.float() * scale.float()).to(torch.bfloat16)
    return made


def lora(modules, rank=4, names="diffusers", alpha=None, seed=5, dtype=torch.float32, transform=lambda module: module):
    """Return a LoRA for modules, {name: (out, in)}, with the names that a trainer writes."""
    generator = torch.Generator().manual_seed(seed)
    down_name, up_name, prefix = {
        "diffusers": (".lora_A.weight", ".lora_B.weight", "transformer."),
        "ai-toolkit": (".lora_A.weight", ".lora_B.weight", "diffusion_model."),
        "peft": (".lora_A.weight", ".lora_B.weight", "base_model.model."),
        "default": (".lora_A.default.weight", ".lora_B.default.weight", ""),
        "kohya": (".lora_down.weight", ".lora_up.weight", "lora_unet_"),
        "dots": (".lora.down.weight", ".lora.up.weight", "diffusion_model."),
    }[names]
    state = {}
    for module, (out, into) in modules.items():
        name = f"{prefix}{transform(module)}"
        if names == "kohya":
            name = prefix + transform(module).replace(".", "_")
        state[f"{name}{down_name}"] = torch.randn(rank, into, generator=generator).mul(0.1).to(dtype)
        state[f"{name}{up_name}"] = torch.randn(out, rank, generator=generator).mul(0.1).to(dtype)
        if alpha is not None:
            state[f"{name}.alpha"] = torch.tensor(float(alpha))
    return state


def lokr(modules, form, alpha=None, seed=6, prefix="diffusion_model.", first=(2, 4)):
    """Return a LoKr for modules, {name: (out, in)}; `form` says which factors are products: "", "w1", "w2" or "w1w2",
    `first` is the shape of w1."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for module, (out, into) in modules.items():
        name = f"{prefix}{module}" if prefix.endswith(".") else prefix + module.replace(".", "_")
        for part, shape in (("w1", first), ("w2", (out // first[0], into // first[1]))):
            if part in form:
                state[f"{name}.lokr_{part}_a"] = torch.randn(shape[0], 2, generator=generator) * 0.1
                state[f"{name}.lokr_{part}_b"] = torch.randn(2, shape[1], generator=generator) * 0.1
            else:
                state[f"{name}.lokr_{part}"] = torch.randn(shape, generator=generator) * 0.1
        if alpha is not None:
            state[f"{name}.alpha"] = torch.tensor(float(alpha))
    return state
