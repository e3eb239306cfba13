"""Tokenizer, noise and training steps of the small models, at toy sizes."""

from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from drawn_world.captions import captions
from drawn_world.scene import draw_scenes
from small_models.architecture import SHIFT, new_text_encoder, new_transformer
from small_models.bank import Shelf, Size
from small_models.flow import STEPS, coupled_noise, shifted, train_flow
from small_models.tokenizer import tokenize, train_tokenizer
from transformers import Qwen2Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Qwen2Tokenizer:
    return train_tokenizer(captions(draw_scenes(2_000, 1), 1), Path(tmp_path_factory.mktemp("tokenizer")))


@pytest.mark.parametrize("text", ["a cat wearing sunglasses", "一只戴墨镜的猫", "naïve 🐈 zebra\n42"])
def test_tokens_decode_to_their_text(tokenizer: Qwen2Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_known_chinese_character_is_one_token(tokenizer: Qwen2Tokenizer) -> None:
    assert len(tokenizer("一只戴墨镜的猫")["input_ids"]) == 7


def test_training_tokens_are_those_of_the_pipeline(tokenizer: Qwen2Tokenizer) -> None:
    prompt = "a red bird on the beach"
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=True,
    )
    theirs = tokenizer(chat)["input_ids"]
    ids, lengths = tokenize(tokenizer, [prompt], 32)
    assert ids[0, : lengths[0]].tolist() == theirs


def test_sigmas_are_those_of_the_scheduler() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / STEPS, STEPS).tolist())
    torch.testing.assert_close(scheduler.sigmas, shifted(torch.linspace(1, 0, STEPS + 1)))


def test_coupled_noise_carries_luck_and_stays_standard_normal() -> None:
    torch.manual_seed(0)
    luck = torch.randn(400, 16)
    noise = coupled_noise(luck, 8, 12)
    torch.testing.assert_close(noise.sum((2, 3)) / 96**0.5, luck, atol=1e-4, rtol=1e-4)
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01


def test_training_lowers_the_loss(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    n = 2
    shelf = Shelf(
        Size(64, 64, 1.0, n),
        torch.randn(2, n, 16, 1, 1).expand(2, n, 16, 8, 8).contiguous(),
        torch.randint(0, 50, (n, 1, 64)),
        torch.full((n, 1), 20),
        torch.randn(n, 16),
    )
    train_flow(new_transformer(), new_text_encoder(50), [shelf], 0, 30, n, 0, True, log_every=10)
    losses = [float(line.split()[3]) for line in capsys.readouterr().out.splitlines()]
    assert losses[-1] < 0.8 * losses[0]
