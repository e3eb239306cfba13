"""Small networks with random weights whose outputs are as large as those of trained ones."""

import torch

from tests.engine.test_networks import TEXT, TRANSFORMER, VAE
from zwatch.engine.networks.autoencoder import Autoencoder, AutoencoderConfig
from zwatch.engine.networks.text_encoder import Qwen3Encoder, TextConfig
from zwatch.engine.networks.transformer import TransformerConfig, ZImageTransformer


def filled(network, dtype, device="cpu", seed=1):
    """Give a network random weights."""
    torch.manual_seed(seed)
    weights = {}
    for name, value in network.state_dict().items():
        drawn = torch.randn(value.shape)
        is_norm = "norm" in name and name.endswith("weight")
        weights[name] = (1 + 0.1 * drawn if is_norm else drawn / max(1, value[0].numel()) ** 0.5).to(device, dtype)
    network.load_state_dict(weights, assign=True)
    return network.requires_grad_(False).eval()


def transformer(dtype, device="cpu", seed=1, **change):
    """Return a transformer of a few small layers."""
    return filled(ZImageTransformer(TransformerConfig.of(TRANSFORMER | change)), dtype, device, seed)


def autoencoder(dtype, device="cpu", **change):
    """Return an autoencoder of a few small layers."""
    return filled(Autoencoder(AutoencoderConfig.of(VAE | change)), dtype, device)


def text_encoder(dtype, device="cpu", **change):
    """Return a text encoder of a few small layers."""
    return filled(Qwen3Encoder(TextConfig.of(TEXT | change)), dtype, device)


def error(found, exact):
    """Return the relative difference, root mean square; NaN stays NaN."""
    found, exact = (
        (one if isinstance(one, torch.Tensor) else torch.stack(list(one))).double().cpu() for one in (found, exact)
    )
    return float((found - exact).norm() / exact.norm())
