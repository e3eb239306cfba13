"""The schedule of flow matching (arXiv:2210.02747): how noisy the image is before and after each step.

The values are those of diffusers' `FlowMatchEulerDiscreteScheduler` as `ZImagePipeline` calls it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class Timeline(Protocol):
    """The steps of one image."""

    @property
    def sigmas(self) -> Tensor:
        """The share of noise before each step and after the last, float32 of shape (steps + 1,), from 1 to 0."""

    @property
    def timesteps(self) -> Tensor:
        """1000 times the same before each step, float32 of shape (steps,)."""

    def step(self, velocity: Tensor, number: int, sample: Tensor) -> Tensor:
        """Return the latents after a step, float32, from those before it and the velocity there."""

    def after(self, number: int) -> "Timeline":
        """Return the steps from one on, which becomes step 0."""


class Schedule(Protocol):
    """Makes timelines."""

    def timeline(self, steps: int, tokens: int, device: torch.device) -> Timeline:
        """Return the steps for an image of so many patches."""


@dataclass(frozen=True, slots=True)
class EulerTimeline:
    """Steps along a straight line."""

    sigmas: Tensor
    timesteps: Tensor

    def step(self, velocity: Tensor, number: int, sample: Tensor) -> Tensor:
        """As `Timeline.step`."""
        moved: Tensor = sample.float() + (self.sigmas[number + 1] - self.sigmas[number]) * velocity
        return moved.to(velocity.dtype)

    def after(self, number: int) -> "EulerTimeline":
        """As `Timeline.after`."""
        return EulerTimeline(self.sigmas[number:], self.timesteps[number:])


@dataclass(frozen=True, slots=True)
class EulerSchedule:
    """The fields of `scheduler/scheduler_config.json`, with diffusers' defaults."""

    num_train_timesteps: int = 1000
    shift: float = 1.0
    use_dynamic_shifting: bool = False
    time_shift_type: str = "exponential"
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    shift_terminal: float | None = None
    invert_sigmas: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "EulerSchedule | None":
        """Return the schedule of a config that was checked; None if it needs what is not here: sigmas by another law, noise
        in each step."""
        others = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "stochastic_sampling")
        needed = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
        if any(config.get(name) for name in others) or any(config.get(name, 0) is None for name in needed):
            return None
        return cls(**{name: config[name] for name in cls.__dataclass_fields__ if name in config})

    def timeline(self, steps: int, tokens: int, device: torch.device) -> EulerTimeline:
        """As `Schedule.timeline`."""
        sigmas = np.array(torch.linspace(1.0, 1 / steps, steps).tolist()).astype(np.float32)
        if self.use_dynamic_shifting:
            rise = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
            mu = tokens * rise + (self.base_shift - rise * self.base_image_seq_len)
            scale = math.exp(mu) if self.time_shift_type == "exponential" else mu
            sigmas = (scale / (scale + (1 / sigmas - 1))).astype(np.float32)
        else:
            sigmas = self.shift * sigmas / (1 + (self.shift - 1) * sigmas)
        if self.shift_terminal:
            rest = 1 - sigmas
            sigmas = 1 - rest / (rest[-1] / (1 - self.shift_terminal))
        levels = torch.from_numpy(sigmas).to(device, torch.float32, non_blocking=True)
        if self.invert_sigmas:
            levels = 1.0 - levels
        end = torch.full((1,), 1.0 if self.invert_sigmas else 0.0, device=device)
        return EulerTimeline(torch.cat([levels, end]), levels * self.num_train_timesteps)
