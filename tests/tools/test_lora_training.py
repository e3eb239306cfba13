"""The two looks that LoRAs are trained on, and the training of factors, at toy sizes."""

import pytest
import torch
from drawn_world.render import render
from drawn_world.restyled import STYLES, ink, night
from drawn_world.scene import draw_scenes
from small_models.architecture import new_text_encoder, new_transformer
from small_models.bank import Shelf, Size
from small_models.lora import linears, merge, train_lora


def test_ink_is_ink_on_paper_where_v2_has_colours() -> None:
    scenes = draw_scenes(4, 5)
    coloured, drawn = render(scenes, 64, 64)[1].float(), ink(scenes, 64, 64).float()
    assert drawn.shape == (4, 3, 64, 64)
    spread = [(one.amax(1) - one.amin(1)).mean() for one in (coloured, drawn)]
    assert spread[1] < 0.5 * spread[0]
    assert torch.equal(ink(scenes, 64, 64), ink(scenes, 64, 64))


def test_night_is_dark_and_blue_with_a_moon() -> None:
    scenes = draw_scenes(4, 5)
    day, dark = render(scenes, 64, 64)[0].float(), night(scenes, 64, 64).float()
    assert dark.mean() < 0.6 * day.mean()
    assert dark[:, 2].mean() > 1.5 * dark[:, 0].mean()
    assert dark.amax() > 220


def toy() -> Shelf:
    n = 2
    return Shelf(
        Size(64, 64, 1.0, n),
        torch.randn(1, n, 16, 1, 1).expand(1, n, 16, 8, 8).contiguous(),
        torch.randint(0, 50, (n, 1, 64)),
        torch.full((n, 1), 20),
        torch.randn(n, 16),
    )


def test_training_factors_lowers_the_loss_and_leaves_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model, encoder, shelf = new_transformer(), new_text_encoder(50), toy()
    torch.nn.init.normal_(model.all_final_layer["2-1"].linear.weight, std=0.05)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    factors = train_lora(model, encoder, [shelf], 4, 30, 2, 0, log_every=10)
    losses = [float(line.split()[2]) for line in capsys.readouterr().out.splitlines()]
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert set(factors) == {f"{name}.lora_{kind}.weight" for name, _ in linears(model) for kind in "AB"}
    merge(model, factors, 1.0)
    name = "layers.0.attention.to_q"
    added = factors[f"{name}.lora_B.weight"] @ factors[f"{name}.lora_A.weight"]
    torch.testing.assert_close(model.state_dict()[f"{name}.weight"], before[f"{name}.weight"] + added)


def test_the_same_seed_gives_the_same_factors() -> None:
    torch.manual_seed(0)
    model, encoder, shelf = new_transformer(), new_text_encoder(50), toy()
    first, second = (train_lora(model, encoder, [shelf], 2, 3, 2, 7) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_style_is_a_lora_of_the_repository() -> None:
    assert list(STYLES) == ["ink", "night"]
