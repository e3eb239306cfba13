"""The batched forward passes compute what diffusers' and transformers' own do."""

import pytest
import torch
from small_models.architecture import TEXT_DIM, new_text_encoder, new_transformer
from small_models.batched import from_tokens, padded, rope_table, text_forward, to_tokens, transformer_forward


def test_tokens_convert_back_to_the_same_latents() -> None:
    latents = torch.randn(2, 16, 12, 20)
    assert torch.equal(from_tokens(to_tokens(latents), 12, 20), latents)


@pytest.mark.parametrize(("h", "w", "words"), [(8, 8, 9), (12, 20, 40)])
def test_batched_transformer_equals_diffusers(h: int, w: int, words: int) -> None:
    torch.manual_seed(0)
    model = new_transformer().eval()
    torch.nn.init.normal_(model.all_final_layer["2-1"].linear.weight, std=0.1)
    latents, t = torch.randn(2, 16, h, w), torch.tensor([0.1, 0.7])
    states = [torch.randn(words, TEXT_DIM), torch.randn(words - 3, TEXT_DIM)]
    with torch.no_grad():
        theirs = torch.stack(model([x[:, None] for x in latents], t, states, return_dict=False)[0])[:, :, 0]
        length, n = padded(words), (h // 2) * (w // 2)
        text, real_text = torch.zeros(2, length, TEXT_DIM), torch.zeros(2, length, dtype=torch.bool)
        for i, s in enumerate(states):
            text[i, : len(s)], real_text[i, : len(s)] = s, True
        tokens = torch.nn.functional.pad(to_tokens(latents), (0, 0, 0, padded(n) - n))
        angles = rope_table(model, h, w, length, torch.device("cpu"))
        ours = transformer_forward(model, tokens, torch.arange(padded(n)) < n, t, text, real_text, angles)
    torch.testing.assert_close(from_tokens(ours[:, :n], h, w), theirs, atol=1e-4, rtol=1e-4)


def test_batched_text_encoder_equals_transformers() -> None:
    torch.manual_seed(0)
    model = new_text_encoder(300).eval()
    ids = torch.randint(0, 300, (2, 32))
    mask = torch.ones(2, 32, dtype=torch.bool)
    mask[1, 20:] = False
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-2]
        ours = text_forward(model, ids)
    torch.testing.assert_close(ours[mask], theirs[mask], atol=1e-4, rtol=1e-4)
