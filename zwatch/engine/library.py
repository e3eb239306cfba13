"""Components in diffusers' and transformers' own classes, for configs that `zwatch.engine.networks` does not cover.

Importing them takes several times as long as everything else at a start, so it is done when a version first needs it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

Config = Mapping[str, Any]


def transformer(config: Config) -> nn.Module:
    """Return diffusers' transformer; to be called on the meta device."""
    from diffusers import ZImageTransformer2DModel

    made: nn.Module = ZImageTransformer2DModel.from_config(config)
    return made


def autoencoder(config: Config) -> nn.Module:
    """Return diffusers' autoencoder; to be called on the meta device."""
    from diffusers import AutoencoderKL

    made: nn.Module = AutoencoderKL.from_config(config)
    return made


def text_encoder(config: Config) -> nn.Module:
    """Return transformers' Qwen3 model; to be called on the meta device."""
    from transformers import Qwen3Config, Qwen3Model

    # No token follows the prompt: a cache of its keys and values would cost time and 72 MiB for Qwen3-4B.
    made: nn.Module = Qwen3Model(Qwen3Config.from_dict({**config, "use_cache": False}))
    return made


def place_frequencies(model: Any, device: torch.device) -> None:
    """Compute the rotary frequencies of transformers' model on a device: they are not stored, and have no values on meta."""
    model.rotary_emb = type(model.rotary_emb)(model.config).to(device)


def encode(model: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """As `Qwen3Encoder.encode`, by transformers' model."""
    present = mask.to(tokens.device)
    found = model(input_ids=tokens[None], attention_mask=present[None], output_hidden_states=True)
    hidden: Tensor = found.hidden_states[-2][0][present]
    return hidden


class LibrarySchedule:
    """diffusers' scheduler."""

    def __init__(self, config: Config) -> None:
        from diffusers import FlowMatchEulerDiscreteScheduler

        self._made: Any = FlowMatchEulerDiscreteScheduler.from_config(config)

    def timeline(self, steps: int, tokens: int, device: torch.device) -> "LibraryTimeline":
        """As `Schedule.timeline`."""
        from diffusers.pipelines.z_image.pipeline_z_image import calculate_shift

        scheduler = type(self._made).from_config(self._made.config)  # it counts steps
        defaults = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
        mu = calculate_shift(tokens, *(scheduler.config.get(name, default) for name, default in defaults.items()))
        sigmas = torch.linspace(1.0, 1 / steps, steps).tolist()
        scheduler.set_timesteps(sigmas=sigmas, device=device, mu=mu)
        return LibraryTimeline(scheduler)


class LibraryTimeline:
    """The steps of one image by diffusers' scheduler."""

    def __init__(self, scheduler: Any, begin: int = 0) -> None:
        self._scheduler = scheduler
        self.sigmas: Tensor = scheduler.sigmas[begin:]
        self.timesteps: Tensor = scheduler.timesteps[begin:]
        scheduler.set_begin_index(begin)

    def after(self, number: int) -> "LibraryTimeline":
        """As `Timeline.after`; this one can no longer be used."""
        return LibraryTimeline(self._scheduler, number)

    def step(self, velocity: Tensor, number: int, sample: Tensor) -> Tensor:
        """As `Timeline.step`."""
        made: Tensor = self._scheduler.step(velocity, self.timesteps[number], sample, return_dict=False)[0]
        return made
