"""Previews: a small version of the image that is being made."""

import numpy as np
import pytest
import torch

from zwatch.engine.preview import LatentColours

SIGMAS = torch.tensor([1.0, 0.75, 0.4, 0.0])


@pytest.fixture
def world():
    """A VAE that really is linear: latents, and the pixels of 8 x 8 a latent that they stand for."""
    generator = torch.Generator().manual_seed(1)
    weights, bias = torch.randn(3, 16, generator=generator) / 12, torch.tensor([[0.1], [-0.2], [0.3]])

    def draw(latents):
        colours = torch.einsum("kc,chw->khw", weights, latents[0]) + bias[:, :, None]
        return colours[None].repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)

    return draw, torch.randn(1, 16, 12, 20, generator=generator)


def test_the_fit_finds_the_map_of_a_linear_decoder(world):
    draw, latents = world
    colours = LatentColours.fit(latents, draw(latents))
    other = torch.randn(1, 16, 6, 4, generator=torch.Generator().manual_seed(2))
    preview = colours.preview(other * 2, other, torch.tensor(1.0), torch.tensor(0.0))
    expected = ((draw(other)[0, :, ::8, ::8] + 1) * 127.5).clamp(0, 255).permute(1, 2, 0).numpy()
    assert np.abs(np.asarray(preview.image(), dtype=float) - expected).max() <= 2


@pytest.mark.parametrize("step", [0, 1, 2])
def test_every_step_of_a_straight_flow_shows_the_end(world, step):
    draw, clean = world
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
    before, after = ((1 - sigma) * clean + sigma * noise for sigma in SIGMAS[step : step + 2])
    colours = LatentColours.fit(clean, draw(clean))
    shown = colours.preview(before, after, SIGMAS[step], SIGMAS[step + 1]).image()
    end = colours.preview(before, clean, SIGMAS[step], torch.tensor(0.0)).image()
    assert shown.size == (20, 12)
    assert np.abs(np.asarray(shown, dtype=int) - np.asarray(end, dtype=int)).max() <= 1


def test_one_colour_alone_can_be_fitted(world):
    """The normal equations of a constant image are singular."""
    colours = LatentColours.fit(torch.zeros(1, 16, 4, 4), torch.full((1, 3, 32, 32), 0.5))
    shown = colours.preview(torch.ones(1, 16, 4, 4), torch.zeros(1, 16, 4, 4), SIGMAS[0], SIGMAS[3]).image()
    assert set(np.asarray(shown).ravel()) <= {190, 191}


@pytest.mark.gpu
def test_a_gpu_shows_the_same_and_arrives_by_itself(world):
    draw, clean = world
    before = torch.randn(clean.shape, generator=torch.Generator().manual_seed(4))
    shown = []
    for device in ("cpu", "cuda"):
        latents, start, sigmas = clean.to(device), before.to(device), SIGMAS.to(device)
        colours = LatentColours.fit(latents, draw(clean).to(device))
        preview = colours.preview(start, latents, sigmas[1], sigmas[2])
        assert not preview.pixels.is_cuda
        shown.append(np.asarray(preview.image(), dtype=int))
    assert np.abs(shown[0] - shown[1]).max() <= 1
