"""The VAE's training: pictures to 16 channels of unit normal latents, 8 times smaller, and back."""

from __future__ import annotations

import math
import time

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from .architecture import OFFSET, SCALING, new_vae

CROP = 128
NOISE = 0.25
"""Standard deviation of the noise the decoder must bear, in units of the latents' own deviation.

The more it bears, the less the latents can tell, and the less the transformer has to learn."""


def to_unit(pictures: Tensor) -> Tensor:
    """uint8 to -1..1."""
    return pictures.float() / 127.5 - 1


def _crops(pictures: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n random crops of both styles: [n, 3, CROP, CROP] in -1..1, half of them mirrored."""
    device = pictures.device
    height, width = pictures.shape[-2:]

    def below(limit: int) -> Tensor:
        return torch.randint(limit, (n,), generator=generator, device=device)

    style, which, y, x = below(2), below(pictures.shape[1]), below(height - CROP + 1), below(width - CROP + 1)
    steps = torch.arange(CROP, device=device)
    rows, columns = (y[:, None] + steps)[:, :, None], (x[:, None] + steps)[:, None, :]
    crops = pictures.permute(0, 1, 3, 4, 2)[style[:, None, None], which[:, None, None], rows, columns]
    crops = torch.where((below(2) == 0)[:, None, None, None], crops.flip(2), crops)
    return to_unit(crops.permute(0, 3, 1, 2))


def _edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[:, :, 1:] - x[:, :, :-1], x[:, :, :, 1:] - x[:, :, :, :-1]


def reconstruction_loss(out: Tensor, x: Tensor) -> Tensor:
    """Absolute error of pixels and of their differences, so that edges stay sharp, and squared error."""
    edge = sum((a - b).abs().mean() for a, b in zip(_edges(out), _edges(x), strict=True))
    return (out - x).abs().mean() + edge + (out - x).square().mean()


def train_vae(
    pictures: Tensor, steps: int, batch: int, seed: int, seconds: float = float("inf"), rate: float = 2e-3
) -> AutoencoderKL:
    """Train on uint8 pictures [2, n, 3, H, W].

    Each latent channel is normalised with its mean and deviation over the batch (running ones in the last
    fifth, as the decoder will see them); at the end they are folded into the encoder's last layer, so
    that encoded pictures, scaled as the pipeline does, have mean 0 and deviation 1 in every channel.
    `seconds` ends it early on a slower machine, the learning rate falling in time.
    """
    device = pictures.device
    torch.manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    vae = new_vae().to(device, memory_format=torch.channels_last)
    encoder, decoder = vae.encoder, vae.decoder
    optimizer = torch.optim.AdamW(vae.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=1e-3)
    start = time.monotonic()
    mean, std = torch.zeros(16, device=device), torch.ones(16, device=device)
    channel = (1, -1, 1, 1)
    for step in range(steps):
        done = max(step / steps, (time.monotonic() - start) / seconds)
        if done >= 1:
            break
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * done))
        x = _crops(pictures, batch, generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            m = encoder(x)[:, :16].float()
            if done < 0.8:
                now_mean, now_std = m.mean((0, 2, 3)), m.std((0, 2, 3)) + 1e-5
                keep = min(0.99, step / (step + 10))
                mean.lerp_(now_mean.detach(), 1 - keep)
                std.lerp_(now_std.detach(), 1 - keep)
            else:
                now_mean, now_std = mean, std
            z = (m - now_mean.view(channel)) / now_std.view(channel)
            z = z + NOISE * torch.randn(z.shape, generator=generator, device=device)
            loss = reconstruction_loss(decoder(z / SCALING + OFFSET).float(), x)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % 250 == 0:
            print(f"vae {step} loss {loss.item():.4f} {time.monotonic() - start:.0f} s", flush=True)
    _fold(vae, mean, std)
    return vae.eval()


@torch.no_grad()
def _fold(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Put normalisation, SCALING and OFFSET into the last encoder layer; variances become NOISE squared."""
    last = vae.encoder.conv_out
    last.weight[:16] /= (std * SCALING).view(-1, 1, 1, 1)
    last.bias[:16] = (last.bias[:16] - mean) / (std * SCALING) + OFFSET
    last.weight[16:] = 0
    last.bias[16:] = 2 * math.log(NOISE / SCALING)


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor, batch: int = 256) -> Tensor:
    """uint8 [n, 3, H, W] to latents bf16 [n, 16, H/8, W/8], scaled as the transformer sees them."""
    parts = []
    for part in pictures.split(max(1, batch * 65536 // (pictures.shape[-1] * pictures.shape[-2]))):
        x = to_unit(part).contiguous(memory_format=torch.channels_last)
        with torch.autocast(pictures.device.type, torch.bfloat16, enabled=pictures.device.type == "cuda"):
            m = vae.encoder(x)[:, :16].float()
        parts.append(((m - OFFSET) * SCALING).to(torch.bfloat16))
    return torch.cat(parts)


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor, batch: int = 64) -> Tensor:
    """Latents [n, 16, h, w] to uint8 [n, 3, 8h, 8w], as the pipeline decodes."""
    parts = []
    for part in latents.split(max(1, batch * 1024 // (latents.shape[-1] * latents.shape[-2]))):
        dtype = next(vae.parameters()).dtype
        x = vae.decoder((part.float() / SCALING + OFFSET).to(dtype)).float()
        parts.append(((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8))
    return torch.cat(parts)
