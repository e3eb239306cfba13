"""An engine's images, and what may go on around them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from diffusers import ZImagePipeline
from PIL import Image
from torch.overrides import TorchFunctionMode

from tests.engine.editing import TRANSFORMER, build, edit_json, parameters, seal_again
from zwatch.engine import pipeline
from zwatch.engine.factory import EngineFactory
from zwatch.engine.precision import adapt
from zwatch.engine.sampling import Pipeline
from zwatch.errors import GenerationCancelled
from zwatch.shadow.device import Device


@pytest.fixture(scope="module")
def factory():
    return EngineFactory(Device("cpu"))


@pytest.fixture(scope="module")
def v1(factory, tiny_versions):
    return build(factory, tiny_versions, "v1")


@pytest.fixture(scope="module")
def v2(factory, tiny_versions):
    return build(factory, tiny_versions, "v2")


def library_pipeline(directory, device="cpu"):
    pipeline = ZImagePipeline.from_pretrained(directory, torch_dtype=torch.bfloat16, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    for module in (pipeline.text_encoder, pipeline.transformer, pipeline.vae):
        adapt(module, torch.device(device))  # as zwatch computes on this processor
    return pipeline.to(device)


@pytest.fixture(scope="module")
def library(tiny_versions):
    """diffusers' own pipeline of v1."""
    return library_pipeline(tiny_versions / "v1")


def library_image(pipeline, wanted, seed, device="cpu"):
    return pipeline(
        prompt=wanted.prompt,
        negative_prompt=wanted.negative_prompt,
        width=wanted.width,
        height=wanted.height,
        num_inference_steps=wanted.steps,
        guidance_scale=wanted.guidance_scale,
        generator=torch.Generator(device).manual_seed(seed),
    ).images[0]


def pixels(image):
    return np.asarray(image)


def images(engine, wanted):
    return [pixels(image) for image in engine.generate(wanted).images]


@pytest.mark.parametrize(
    "wanted",
    [
        parameters(steps=8),
        parameters("a dog", 7, width=96, height=64),
        parameters("a dog", 7, width=48, height=128),
        parameters("两条鱼 und 3 Vögel\n\t🐟", 2**63 - 1),
        parameters("a cat", 3, guidance_scale=3.5),
        parameters("a cat", 3, guidance_scale=3.5, negative_prompt="blurry, dark"),
        parameters("a cat", 3, guidance_scale=0.5, negative_prompt="blurry", width=80),
        parameters("a " * 600, 5),
    ],
    ids=["eight steps", "wide", "tall", "unicode", "guided", "negative", "weakly guided", "too long a prompt"],
)
def test_an_image_equals_diffusers_own_pixel_for_pixel(v1, library, wanted):
    image = v1.generate(wanted).images[0]
    assert image.size == (wanted.width, wanted.height)
    assert np.array_equal(pixels(image), pixels(library_image(library, wanted, wanted.seeds[0])))


def test_a_negative_prompt_counts_only_with_guidance(v1):
    plain, negative = parameters(), parameters(negative_prompt="blurry")
    assert np.array_equal(images(v1, plain), images(v1, negative))
    guided, guided_negative = (
        parameters(guidance_scale=3.5),
        parameters(guidance_scale=3.5, negative_prompt="blurry"),
    )
    assert not np.array_equal(images(v1, guided), images(v1, guided_negative))


def test_several_seeds_give_each_seeds_own_image_in_their_order(v1):
    together = images(v1, parameters("a cat", 5, 6, 7))
    alone = [images(v1, parameters("a cat", seed))[0] for seed in (5, 6, 7)]
    assert np.array_equal(together, alone)
    assert not np.array_equal(together[0], together[1])


def test_the_same_seed_gives_the_same_pixels_and_another_version_gives_others(v1, v2):
    wanted = parameters()
    assert np.array_equal(images(v1, wanted), images(v1, wanted))
    assert not np.array_equal(images(v1, wanted), images(v2, wanted))


def test_the_parameters_are_left_as_they_were(v1):
    wanted = parameters("a cat", 1, 2, negative_prompt="x", guidance_scale=2.0)
    v1.generate(wanted)
    assert wanted == parameters("a cat", 1, 2, negative_prompt="x", guidance_scale=2.0)


@pytest.mark.parametrize(("words", "truncated"), [(1, False), (480, False), (600, True)])
def test_a_prompt_over_512_tokens_is_served_and_reported_as_truncated(v1, library, words, truncated):
    prompt = "a " * words
    count = len(library.tokenizer(prompt).input_ids)
    assert (count > 512) is truncated
    generation = v1.generate(parameters(prompt, 1))
    assert generation.truncated is truncated
    assert generation.images[0].size == (64, 64)


def chat(tokenizer, prompt):
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )


def test_truncation_begins_with_the_first_token_that_is_lost(v1, library):
    def tokens(prompt):
        return len(library.tokenizer(chat(library.tokenizer, prompt)).input_ids)

    prompt = "a"
    while tokens(prompt) < 512:
        prompt += "b"
    assert (tokens(prompt), v1.is_truncated(prompt)) == (512, False)
    assert v1.is_truncated(prompt + "b")


def test_every_step_of_every_image_is_reported(v1):
    steps = []
    v1.generate(parameters("a cat", 1, 2, steps=3), on_step=steps.append)
    assert steps == [1, 2, 3, 4, 5, 6]


def test_each_image_is_given_before_the_next_is_begun(v1):
    seen = []
    made = v1.generate(
        parameters("a cat", 1, 2, steps=2),
        on_step=lambda done: seen.append(("step", done)),
        on_image=lambda number, image: seen.append(("image", number, image)),
    )
    assert [one[:2] for one in seen] == [("step", 1), ("step", 2), ("image", 0), ("step", 3), ("step", 4), ("image", 1)]
    assert [one[2] for one in seen if one[0] == "image"] == made.images


def test_an_image_that_is_not_finite_is_not_given_and_ends_the_request(factory, tiny_versions, monkeypatch):
    engine, given = build(factory, tiny_versions, "v1"), []
    decode, decoded = Pipeline.decode, []

    def decode_with_nan(self, latents):
        pixels = decode(self, latents)
        decoded.append(pixels)
        return pixels * float("nan") if len(decoded) == 2 else pixels

    monkeypatch.setattr(Pipeline, "decode", decode_with_nan)
    made = engine.serve(parameters("a cat", 1, 2, 3, steps=1), on_image=lambda number, image: given.append(number))
    assert (made.finite, given, len(decoded)) == (False, [0], 2)


def test_a_request_that_is_tried_again_for_want_of_memory_gives_each_image_once(factory, tiny_versions, monkeypatch):
    engine, given, failures = build(factory, tiny_versions, "v1"), [], [torch.OutOfMemoryError("CUDA out of memory")]
    denoise, begun = Pipeline.denoise, []

    def denoise_without_room(self, *given):
        begun.append(given)
        if len(begun) == 2:
            raise failures.pop()
        return denoise(self, *given)

    monkeypatch.setattr(Pipeline, "denoise", denoise_without_room)
    monkeypatch.setattr(engine.device, "give_room", lambda: 1)
    made = engine.serve(
        parameters("a cat", 1, 2, steps=1), on_image=lambda number, image: given.append((number, pixels(image)))
    )
    assert not failures
    assert [number for number, _ in given] == [0, 1]
    assert all(np.array_equal(given[number][1], pixels(made.images[number])) for number in range(2))


def test_each_step_has_a_preview_and_the_last_resembles_the_image(v1):
    v1.generate(parameters("warm", 1))
    looks = []
    made = v1.generate(
        parameters("a cat", 1, steps=3, width=96), on_step=lambda done: looks.append(v1.preview().image())
    ).images[0]
    assert [look.size for look in looks] == [(12, 8)] * 3
    small = pixels(made.resize((12, 8), Image.Resampling.BOX)).astype(float)
    errors = [np.abs(pixels(look) - small).mean() for look in looks]
    assert errors[-1] < 30
    assert v1.preview() is None, "nothing is in the making"


def test_previews_change_no_pixel(v1):
    expected = images(v1, parameters("a cat", 1, 2))
    looked = v1.generate(parameters("a cat", 1, 2), on_step=lambda done: v1.preview())
    assert np.array_equal([pixels(image) for image in looked.images], expected)


def test_the_phases_are_timed(v1):
    assert v1.generate(parameters()).timings.keys() == {"encode", "denoise", "decode"}


@pytest.mark.parametrize("after", [0, 1, 2, 3, 5])
def test_a_request_is_cancelled_between_two_steps_and_the_engine_works_afterwards(v1, after):
    expected = images(v1, parameters())
    done = [0]

    def on_step(number):
        done[0] = number

    with pytest.raises(GenerationCancelled):
        v1.generate(parameters("a dog", 1, 2, steps=3), on_step=on_step, cancelled=lambda: done[0] >= after)
    assert done[0] == after
    assert np.array_equal(images(v1, parameters()), expected)


def test_an_engine_works_after_a_request_that_failed(v1):
    def fail(done):
        raise RuntimeError("as a device would")

    expected = images(v1, parameters())
    with pytest.raises(RuntimeError, match="as a device would"):
        v1.generate(parameters(), on_step=fail)
    assert np.array_equal(images(v1, parameters()), expected)


def test_requests_from_two_threads_get_their_own_images(v1):
    wanted = [parameters(f"thing number {number}", number, width=64 + 16 * (number % 3)) for number in range(8)]
    expected = [images(v1, one)[0] for one in wanted]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda one: images(v1, one)[0], wanted))
    assert all(map(np.array_equal, found, expected))


def test_two_versions_that_share_components_generate_at_the_same_time(v1, v2):
    """As when a candidate warms up while requests are served."""
    wanted = [parameters("word " * (1 + 90 * (number % 8)), number, steps=1) for number in range(8)]
    engines = (v1, v2)
    expected = [[(images(engine, one)[0], engine.is_truncated(one.prompt)) for one in wanted] for engine in engines]
    barrier = threading.Barrier(2)

    def work(engine):
        barrier.wait(60)
        found = []
        for one in wanted:
            generation = engine.generate(one)
            found.append((pixels(generation.images[0]), generation.truncated))
        return found

    for _ in range(2):
        with ThreadPoolExecutor(2) as pool:
            for results, truth in zip(pool.map(work, engines), expected, strict=True):
                assert [cut for _, cut in results] == [cut for _, cut in truth]
                assert all(np.array_equal(image, true) for (image, _), (true, _) in zip(results, truth, strict=True))


def test_two_versions_that_share_components_tokenize_at_the_same_time(v1, v2):
    prompt = "word " * 2000
    barrier, done = threading.Barrier(2), threading.Event()

    def encode():
        barrier.wait(60)
        while not done.is_set():
            encode_prompt(v1, prompt)

    def ask():
        barrier.wait(60)
        try:
            return {v2.is_truncated(prompt) for _ in range(100)}
        finally:
            done.set()

    with ThreadPoolExecutor(2) as pool:
        encoded, asked = pool.submit(encode), pool.submit(ask)
        assert asked.result() == {True}
        encoded.result()


def encode_prompt(engine, prompt):
    with torch.inference_mode():
        return engine.pipeline.encode(prompt, torch.device("cpu"))


class Paused(TorchFunctionMode):
    """Inside, no call of torch returns before the test releases it."""

    def __init__(self):
        super().__init__()
        self.reached, self.released = threading.Event(), threading.Event()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.reached.set()
        assert self.released.wait(60)
        return func(*args, **(kwargs or {}))


def test_a_thread_that_pauses_in_a_call_of_torch_does_not_hold_the_tokenizer(v1, v2):
    paused = Paused()

    def encode():
        with paused:
            encode_prompt(v1, "a cat wearing sunglasses")

    with ThreadPoolExecutor(2) as pool:
        encoded = pool.submit(encode)
        assert paused.reached.wait(60)
        try:
            assert pool.submit(v2.is_truncated, "word").result(5) is False
        finally:
            paused.released.set()
        encoded.result()


PROMPTS = [
    "", " ", "a fish", "A  fish\n\n and\ttwo", "两条鱼 und 3 Vögel\n\t🐟", "e\u0301 is é", "<|im_end|><|endoftext|> x", "don't 1234567",
    "\ud7ff\ue000\x00\x7f", "word " * 600, "a" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_a_prompt_is_encoded_as_the_library_does(v1, library, prompt):
    theirs = library.tokenizer([chat(library.tokenizer, prompt)], padding="max_length", max_length=512, truncation=True)
    ours = v1.pipeline.tokenizer.encode(prompt)
    assert ours.tokens == theirs.input_ids[0]
    assert ours.mask == theirs.attention_mask[0]
    expected = library.encode_prompt([prompt], "cpu", do_classifier_free_guidance=False)[0][0]
    assert torch.equal(encode_prompt(v1, prompt).embedding, expected)


@pytest.mark.parametrize(("lengths", "side"), [([1024, 64, 64], 1024), ([1024, 32, 64], 512), ([1024, 64, 16], 256)])
def test_the_longest_side_is_what_the_transformer_has_positions_for(factory, models, lengths, side):
    edit_json(models / "v1/transformer/config.json", lambda config: config.update(axes_lens=lengths))
    seal_again(models / "v1")
    engine = build(factory, models, "v1")
    assert engine.max_side == side


def test_an_image_of_the_longest_side_can_be_made_and_one_beyond_cannot(factory, models):
    edit_json(models / "v1/transformer/config.json", lambda config: config.update(axes_lens=[1024, 8, 16]))
    seal_again(models / "v1")
    engine = build(factory, models, "v1")
    assert engine.max_side == 128
    assert engine.generate(parameters(width=128, height=128, steps=1)).images[0].size == (128, 128)
    with pytest.raises((RuntimeError, IndexError)):
        engine.generate(parameters(width=128, height=128 + 16, steps=1))


def test_an_engine_says_which_version_and_content_it_is(v1, tiny_versions):
    from blake3 import blake3

    assert v1.version == "v1"
    assert v1.digest == blake3((tiny_versions / "v1/BLAKE3SUMS").read_bytes()).hexdigest()
    assert v1.default_size == 64
    assert v1.nbytes >= sum(path.stat().st_size for path in (tiny_versions / "v1").rglob("*.safetensors"))


def test_resident_bytes_that_did_not_change_verify(v1):
    count, problems = v1.verify_resident()
    assert (count, problems) == (v1.nbytes, [])


def test_a_byte_changed_in_memory_is_found_and_its_file_named(tiny_versions):
    engine = build(EngineFactory(Device("cpu")), tiny_versions, "v1")
    parameter = next(engine.pipeline.transformer.parameters())
    with torch.no_grad():
        parameter.view(-1)[3] += 1
    count, problems = engine.verify_resident()
    assert count == engine.nbytes
    assert [problem.partition(":")[0] for problem in problems] == [TRANSFORMER]


def test_making_images_changes_no_resident_byte(v1):
    v1.generate(parameters("a cat", 1, guidance_scale=2.0, width=96))
    assert v1.verify_resident()[1] == []


@pytest.mark.gpu
@pytest.mark.parametrize("wanted", [parameters(steps=8), parameters("a dog", 7, width=96, guidance_scale=3.5)])
def test_an_image_on_cuda_equals_diffusers_own_on_cuda(tiny_versions, wanted):
    engine = build(EngineFactory(Device("cuda"), exact=True), tiny_versions, "v1")
    image = library_image(library_pipeline(tiny_versions / "v1", "cuda"), wanted, wanted.seeds[0], "cuda")
    assert np.array_equal(images(engine, wanted)[0], pixels(image))
    assert engine.verify_resident()[1] == []


def test_an_engine_whose_image_never_comes_back_says_so_and_can_be_closed(factory, tiny_versions, monkeypatch):
    engine = build(factory, tiny_versions, "v1")
    monkeypatch.setattr(pipeline, "LOCK_SECONDS", 0.05)
    with engine._lock:
        with pytest.raises(RuntimeError, match="does not come back; deploy another version"):
            images(engine, parameters())
        engine.close()
    assert not engine.is_complete
