"""Image to image and inpainting: diffusers' own pixels."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ZImageImg2ImgPipeline, ZImageInpaintPipeline
from PIL import Image, ImageDraw

from tests.engine.editing import build, edit_json, parameters, seal_again
from tests.engine.test_pipeline import library_pipeline
from zwatch.engine.acceleration import Acceleration
from zwatch.engine.factory import EngineFactory
from zwatch.engine.parameters import InitialImage, first_step
from zwatch.shadow.device import Device

MODELS = Path(__file__).parent.parent.parent / "models"


@pytest.fixture(scope="module")
def factory():
    return EngineFactory(Device("cpu"))


@pytest.fixture(scope="module")
def v1(factory, tiny_versions):
    return build(factory, tiny_versions, "v1")


@pytest.fixture(scope="module")
def library(tiny_versions):
    return library_pipeline(tiny_versions / "v1")


def picture(width=64, height=64):
    """Return a picture with shapes and noise."""
    noise = np.random.default_rng(5).integers(0, 60, (height, width, 3), dtype=np.uint8)
    made = Image.fromarray(noise + 90)
    ImageDraw.Draw(made).ellipse((width // 4, height // 4, width // 2, height - 8), fill=(220, 40, 30))
    return made


def half(width=64, height=64):
    """Return a mask that is not on the latents' grid."""
    made = Image.new("L", (width, height))
    ImageDraw.Draw(made).rectangle((width // 3, 5, width - 7, height // 2 + 3), fill=255)
    return made


def initial(image, strength=0.6, mask=None, blur=0):
    return InitialImage(image, mask, strength, blur, "0" * 64, mask is not None)


def drawn(engine, wanted):
    return [np.asarray(image) for image in engine.generate(wanted).images]


def library_image(pipeline, kind, wanted, seed):
    source = wanted.source
    changer = kind(**pipeline.components)
    changer.set_progress_bar_config(disable=True)
    # The library takes the image's size: it is resized by the library's own processor.
    image = changer.image_processor.resize(source.picture, wanted.height, wanted.width)
    mask = {}
    if source.mask is not None:
        blurred = changer.mask_processor.blur(source.mask, source.mask_blur) if source.mask_blur else source.mask
        mask = {"mask_image": blurred}
    return np.asarray(
        changer(
            prompt=wanted.prompt, negative_prompt=wanted.negative_prompt, image=image, strength=source.strength, **mask,
            width=wanted.width, height=wanted.height, num_inference_steps=wanted.steps, guidance_scale=wanted.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images[0]
    )  # fmt: skip


SIZES = [(64, 64), (128, 64), (96, 256)]


@pytest.mark.parametrize("strength", [0.01, 0.3, 0.6, 0.85, 1])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_an_image_is_changed_into_diffusers_own_pixels(v1, library, size, strength):
    wanted = parameters(steps=8, width=size[0], height=size[1], source=initial(picture(*size), strength))
    [found] = drawn(v1, wanted)
    assert np.array_equal(found, library_image(library, ZImageImg2ImgPipeline, wanted, wanted.seeds[0]))


@pytest.mark.parametrize("strength", [0.3, 0.6, 1])
@pytest.mark.parametrize("blur", [0, 4, 20])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_part_is_changed_into_diffusers_own_pixels(v1, library, size, blur, strength):
    source = initial(picture(*size), strength, half(*size), blur)
    wanted = parameters(steps=5, width=size[0], height=size[1], source=source)
    [found] = drawn(v1, wanted)
    assert np.array_equal(found, library_image(library, ZImageInpaintPipeline, wanted, wanted.seeds[0]))


@pytest.mark.parametrize("mask", [None, half()], ids=["whole", "part"])
@pytest.mark.parametrize("change", [{"guidance_scale": 3.5, "negative_prompt": "blurry"}, {"prompt": "两条鱼 " * 9}], ids=["guided", "long"])  # fmt: skip
def test_with_guidance_and_other_prompts(v1, library, change, mask):
    wanted = parameters(**{"prompt": "a dog"} | change, steps=4, source=initial(picture(), 0.7, mask))
    kind = ZImageImg2ImgPipeline if mask is None else ZImageInpaintPipeline
    [found] = drawn(v1, wanted)
    assert np.array_equal(found, library_image(library, kind, wanted, wanted.seeds[0]))


@pytest.mark.parametrize("mask", [None, half(50, 77)], ids=["whole", "part"])
def test_an_image_of_another_size_is_resized_as_diffusers_does(v1, library, mask):
    wanted = parameters(width=80, height=112, steps=3, source=initial(picture(50, 77), 0.5, mask))
    kind = ZImageImg2ImgPipeline if mask is None else ZImageInpaintPipeline
    [found] = drawn(v1, wanted)
    assert np.array_equal(found, library_image(library, kind, wanted, wanted.seeds[0]))


def test_each_of_several_seeds_gives_the_image_that_it_gives_alone(v1):
    source = initial(picture(), 0.6, half())
    together = drawn(v1, parameters("a cat", 5, 6, source=source))
    assert np.array_equal(together, [drawn(v1, parameters("a cat", seed, source=source))[0] for seed in (5, 6)])
    assert not np.array_equal(*together)


def test_with_a_strength_of_0_no_step_is_made_and_the_image_is_what_the_autoencoder_makes_of_it(v1, library):
    steps = []
    wanted = parameters(steps=4, source=initial(picture(), 0.0))
    [image] = v1.generate(wanted, on_step=steps.append).images
    assert steps == []
    with torch.inference_mode():
        given = ZImageImg2ImgPipeline(**library.components).image_processor.preprocess(picture()).to(torch.bfloat16)
        generator = torch.Generator("cpu").manual_seed(wanted.seeds[0])
        pixels = library.vae.decode(library.vae.encode(given).latent_dist.sample(generator)).sample
    expected = library.image_processor.postprocess(pixels)[0]
    # Scaled and scaled back in 16 bits, the latents differ in their last bits.
    assert np.abs(np.asarray(image).astype(int) - np.asarray(expected)).mean() < 1


@pytest.mark.parametrize(
    ("steps", "strength", "made"), [(8, 1.0, 8), (8, 0.6, 5), (8, 0.5, 4), (8, 0.1, 1), (8, 0.0, 0), (1, 0.3, 1), (100, 0.29, 29), (1, 1e-9, 1)],
)  # fmt: skip
def test_the_steps_that_are_made_are_those_that_are_reported(v1, steps, strength, made):
    assert steps - first_step(steps, strength) == made
    reported = []
    wanted = parameters("a cat", 1, 2, steps=steps, width=16, height=16, source=initial(picture(16, 16), strength))
    assert wanted.steps_made == made
    v1.generate(wanted, on_step=reported.append)
    assert reported == list(range(1, 2 * made + 1))


def test_the_fast_way_is_close_to_the_exact_one(v1, factory):
    fast = build_fast(v1)
    for mask in (None, half()):
        wanted = parameters(steps=4, source=initial(picture(), 0.6, mask))
        [exact], [found] = drawn(v1, wanted), drawn(fast, wanted)
        assert np.abs(exact.astype(int) - found).mean() < 4
        assert np.array_equal(found, drawn(fast, wanted)[0])


def build_fast(engine):
    """Return an engine with the same weights that computes the fast way."""
    import copy

    found = copy.copy(engine)
    found._acceleration = Acceleration(engine.device, exact=False)
    return found


def test_previews_are_of_the_image_that_is_made(v1):
    colours = v1.generate(parameters())  # the first image shows what latents stand for
    assert colours.finite
    shown = []
    wanted = parameters(steps=6, width=128, height=128, source=initial(picture(128, 128), 0.5, half(128, 128)))
    [image] = v1.generate(wanted, on_step=lambda done: shown.append(v1.preview().image())).images
    assert len(shown) == 3
    small = np.asarray(image.resize(shown[-1].size, Image.Resampling.BOX)).astype(int)
    assert np.abs(small - np.asarray(shown[-1])).mean() < 25


def test_a_file_of_an_image_survives_a_change_of_nothing(v1):
    """A picture, saved and changed by nothing, is still that picture."""
    file = io.BytesIO()
    picture(128, 128).save(file, "PNG")
    found = drawn(v1, parameters(width=128, height=128, source=initial(Image.open(file), 0.0)))[0]
    assert found.shape == (128, 128, 3)


@pytest.mark.parametrize(
    ("path", "change"),
    [("vae/config.json", {"act_fn": "mish"}), ("scheduler/scheduler_config.json", {"use_karras_sigmas": True})],
    ids=["autoencoder", "schedule"],
)  # fmt: skip
@pytest.mark.parametrize("mask", [None, half()], ids=["whole", "part"])
def test_a_version_that_needs_the_librarys_own_class_has_its_pixels_too(factory, models, path, change, mask):
    edit_json(models / "v1" / path, lambda config: config.update(change))
    seal_again(models / "v1")
    engine = build(factory, models, "v1")
    wanted = parameters("a cat", 3, 4, steps=4, source=initial(picture(), 0.6, mask))
    kind = ZImageImg2ImgPipeline if mask is None else ZImageInpaintPipeline
    theirs = library_pipeline(models / "v1")
    for found, seed in zip(drawn(engine, wanted), (3, 4), strict=True):
        assert np.array_equal(found, library_image(theirs, kind, wanted, seed))


# --- the models in the repository


@pytest.fixture(scope="module")
def cat_engine(factory):
    return build(factory, MODELS, "v1")


@pytest.fixture(scope="module")
def cat_library():
    return library_pipeline(MODELS / "v1")


@pytest.mark.parametrize("seeds", [(3,), (3, 4)], ids=str)
@pytest.mark.parametrize("kind", [ZImageImg2ImgPipeline, ZImageInpaintPipeline])
def test_the_repositorys_model_draws_diffusers_own_pixels(cat_engine, cat_library, kind, seeds):
    [first] = cat_engine.generate(parameters("a cat", 1, steps=4, width=256, height=256)).images
    mask = None if kind is ZImageImg2ImgPipeline else half(256, 256)
    wanted = parameters("a dog", *seeds, steps=4, width=256, height=256, source=initial(first, 0.7, mask, 3))
    for found, seed in zip(drawn(cat_engine, wanted), seeds, strict=True):
        assert np.array_equal(found, library_image(cat_library, kind, wanted, seed))


def test_what_is_black_in_the_mask_stays_and_what_is_white_is_drawn(cat_engine):
    [first] = cat_engine.generate(parameters("a red cat", 1, steps=6, width=128, height=128)).images
    mask = Image.new("L", first.size)
    mask.paste(255, (64, 0, 128, 128))
    wanted = parameters("a blue house", 2, steps=6, width=128, height=128, source=initial(first, 1.0, mask))
    [found] = drawn(cat_engine, wanted)
    apart = np.abs(found.astype(int) - np.asarray(first)).mean(axis=(0, 2))
    # The autoencoder sees some pixels beyond the edge.
    assert 2 * apart[:48].mean() < apart[80:].mean()
