"""Flow matching as `ZImagePipeline` samples it.

sigma goes from 1 (noise) to 0 with the pipeline's shift; x = (1 - sigma) x0 + sigma noise; the transformer is
given t = 1 - sigma and predicts x0 - noise (the pipeline negates it and steps by the change of sigma).

Noise and picture are coupled: a scene's `luck` (16 standard normal numbers; some settle where things stand) is written into the channel means of its noise. The noise stays exactly
standard normal, but prompt and noise now determine the picture, so few steps suffice and both versions
draw the same scene from the same seed. (Stochastic interpolants with data-dependent couplings: Albergo et
al., arXiv:2310.03725.)
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor
from transformers import Qwen3Model

from .architecture import SHIFT
from .bank import LENGTHS, Shelf
from .batched import (
    RunBlock,
    from_tokens,
    padded,
    rope_table,
    run_block,
    text_forward,
    to_tokens,
    transformer_forward,
)
from .optim import Optimizer, split

STEPS = 8


def shifted(u: Tensor) -> Tensor:
    """sigma for u in 0..1: SHIFT u / (1 + (SHIFT - 1) u), as FlowMatchEulerDiscreteScheduler shifts."""
    return SHIFT * u / (1 + (SHIFT - 1) * u)


def coupled_noise(luck: Tensor, h: int, w: int, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise [B, 16, h, w] whose channel sums over sqrt(h w) are `luck` [B, 16]."""
    noise = torch.randn(*luck.shape, h, w, device=luck.device, generator=generator)
    wanted = luck[:, :, None, None] / (h * w) ** 0.5
    return noise - noise.mean((2, 3), keepdim=True) + wanted


@dataclass
class Batch:
    """A batch of one picture size and one caption length."""

    tokens: Tensor
    target: Tensor
    real: Tensor
    t: Tensor
    ids: Tensor
    text_real: Tensor
    angles: Tensor


class Batches:
    """Random training batches of one style, every step of one picture size."""

    def __init__(self, model: ZImageTransformer2DModel, bank: list[Shelf], style: int, batch: int, seed: int) -> None:
        self.model, self.bank, self.style, self.batch = model, bank, style, batch
        self.device = bank[0].luck.device
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.host = torch.Generator().manual_seed(seed)
        self.shares = torch.tensor([float(shelf.size.share) for shelf in bank])
        self.angles: dict[tuple[int, int, int], Tensor] = {}

    def next(self) -> Batch:
        shelf = self.bank[int(torch.multinomial(self.shares, 1, generator=self.host))]
        long = int(torch.rand((), generator=self.host) < 0.08 and len(shelf.fitting[1]) > 0)
        length, fitting = LENGTHS[long], shelf.fitting[long]
        h, w = shelf.latents.shape[-2:]
        n = padded((h // 2) * (w // 2))
        size = max(2, self.batch * 288 // (n + length) // 16 * 16 if self.batch >= 32 else self.batch)
        g, device = self.generator, self.device
        pick = fitting[torch.randint(len(fitting), (size,), generator=g, device=device)]
        wordings = shelf.ids.shape[1]
        scene, wording = pick // wordings, pick % wordings
        x0 = shelf.latents[self.style, scene].float()
        noise = coupled_noise(shelf.luck[scene], h, w, g)
        sigma = self._sigmas(size).view(-1, 1, 1, 1)
        x, target = (1 - sigma) * x0 + sigma * noise, x0 - noise
        extra = (0, 0, 0, n - (h // 2) * (w // 2))
        key = (h, w, length)
        if key not in self.angles:
            self.angles[key] = rope_table(self.model, h, w, length, device)
        text_real = torch.arange(length, device=device) < shelf.lengths[scene, wording][:, None]
        return Batch(
            tokens=torch.nn.functional.pad(to_tokens(x), extra),
            target=torch.nn.functional.pad(to_tokens(target), extra),
            real=torch.arange(n, device=device) < (h // 2) * (w // 2),
            t=1 - sigma.view(-1),
            ids=shelf.ids[scene, wording, :length].long(),
            text_real=text_real,
            angles=self.angles[key],
        )

    def _sigmas(self, n: int) -> Tensor:
        """Half of them the pipeline's own 8, the others spread over all values."""
        u = (torch.arange(n, device=self.device) + torch.rand(n, generator=self.generator, device=self.device)) / n
        exact = torch.rand(n, generator=self.generator, device=self.device) < 0.5
        return shifted(torch.where(exact, torch.ceil(u * STEPS).clamp(min=1) / STEPS, u))


def flow_loss(model: ZImageTransformer2DModel, encoder: Qwen3Model, b: Batch, run: RunBlock = run_block) -> Tensor:
    text = text_forward(encoder, b.ids)
    out = transformer_forward(model, b.tokens, b.real, b.t, text, b.text_real, b.angles, run)
    error = (out.float() - b.target).square().mean(-1)
    return (error * b.real).sum() / (b.real.sum() * len(error))


def trapezoid(step: int, done: float, warm: int = 100, fall: float = 0.5) -> float:
    """Learning rate factor: up over `warm` steps, level, then straight to 0 over the last part `fall`."""
    return min(1.0, (step + 1) / warm, max(0.0, (1 - done) / fall))


def train_flow(
    model: ZImageTransformer2DModel,
    encoder: Qwen3Model,
    bank: list[Shelf],
    style: int,
    steps: int,
    batch: int,
    seed: int,
    train_text: bool,
    run: RunBlock = run_block,
    muon_rate: float = 0.006,
    adam_rate: float = 2e-3,
    average: float = 0.998,
    log_every: int = 500,
    seconds: float = float("inf"),
) -> int:
    """Train in place, at the end the weights are their exponential average; returns the steps made.

    `seconds` ends it early on a slower machine, the learning rate falling in time.
    """
    device = bank[0].luck.device
    encoder.requires_grad_(train_text)
    modules = [model, encoder] if train_text else [model]
    parameters = [p for m in modules for p in m.parameters()]
    for p in encoder.layers[-1].parameters():
        p.requires_grad_(False)  # idle: see new_text_encoder
    encoder.norm.requires_grad_(False)
    optimizer = Optimizer(*split(modules), muon_rate=muon_rate, adam_rate=adam_rate)
    averages = [p.detach().clone() for p in parameters]
    batches = Batches(model, bank, style, batch, seed)
    total, start, made = torch.zeros((), device=device), time.monotonic(), 0
    for step in range(steps):
        done = max(step / steps, (time.monotonic() - start) / seconds)
        if done >= 1:
            break
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = flow_loss(model, encoder, batches.next(), run)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(trapezoid(step, done))
        keep = min(average, (step + 1) / (step + 10))
        torch._foreach_lerp_(averages, [p.detach() for p in parameters], 1 - keep)
        total += loss.detach()
        made = step + 1
        if made % log_every == 0:
            mean, speed = total.item() / log_every, made / (time.monotonic() - start)
            print(f"v{style + 1} {made} loss {mean:.4f} {speed:.1f} steps/s", flush=True)
            total.zero_()
    with torch.no_grad():
        torch._foreach_copy_(parameters, averages)
    return made


def warm_up(
    model: ZImageTransformer2DModel, encoder: Qwen3Model, batch: int, device: torch.device, run: RunBlock
) -> None:
    """Compile `run` for training on a made-up batch; no weight changes."""
    encoder.requires_grad_(False)
    for h, w in ((32, 32), (24, 40)):
        n = padded((h // 2) * (w // 2))
        made_up = Batch(
            tokens=torch.randn(batch, n, 64, device=device),
            target=torch.randn(batch, n, 64, device=device),
            real=torch.ones(n, dtype=torch.bool, device=device),
            t=torch.rand(batch, device=device),
            ids=torch.zeros(batch, LENGTHS[0], dtype=torch.long, device=device),
            text_real=torch.ones(batch, LENGTHS[0], dtype=torch.bool, device=device),
            angles=rope_table(model, h, w, LENGTHS[0], device),
        )
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            flow_loss(model, encoder, made_up, run).backward()
    model.zero_grad(set_to_none=True)


@torch.no_grad()
def sample(
    model: ZImageTransformer2DModel,
    encoder: Qwen3Model,
    ids: Tensor,
    lengths: Tensor,
    noise: Tensor,
    batch: int = 256,
    steps: int = STEPS,
) -> Tensor:
    """Latents [n, 16, h, w] from `noise` of that shape, by the pipeline's Euler steps. ids [n, 32 or 64]."""
    device, (h, w) = noise.device, noise.shape[-2:]
    n = padded((h // 2) * (w // 2))
    real = torch.arange(n, device=device) < (h // 2) * (w // 2)
    angles = rope_table(model, h, w, ids.shape[1], device)
    sigmas = shifted(torch.linspace(1, 0, steps + 1, device=device))
    results = []
    for start in range(0, len(ids), batch):
        part = slice(start, start + batch)
        x = noise[part].float()
        text_real = torch.arange(ids.shape[1], device=device) < lengths[part, None]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            text = text_forward(encoder, ids[part].long())
            for i in range(steps):
                tokens = torch.nn.functional.pad(to_tokens(x), (0, 0, 0, n - (h // 2) * (w // 2)))
                t = (1 - sigmas[i]).expand(len(x))
                out = transformer_forward(model, tokens, real, t, text, text_real, angles)
                velocity = from_tokens(out[:, : (h // 2) * (w // 2)].float(), h, w)
                x = x + (sigmas[i] - sigmas[i + 1]) * velocity
        results.append(x)
    return torch.cat(results)
