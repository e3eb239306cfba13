"""OpenAI's fields and the native requests made from them."""

import pytest

from zwatch.api.openai.answers import is_due
from zwatch.api.openai.requests import ImagesRequest, images_of, with_client_names
from zwatch.errors import RequestError
from zwatch.generation.fields import validated
from zwatch.generation.request import DEFAULT_QUALITY

GOOD = {"prompt": "a cat"}


def parse_images(body, model):
    """Return the request for a body, to be served by `model`."""
    return images_of(validated(ImagesRequest, body), model)


def test_only_the_prompt_is_required():
    wanted = parse_images(GOOD, "current")
    made = wanted.generate
    assert (made.width, made.height, made.steps, made.n, made.model) == (None, None, 8, 1, "current")
    assert (made.format, made.quality, made.guidance_scale) == ("png", DEFAULT_QUALITY, 0.0)
    assert (wanted.urls, wanted.files, wanted.stream, wanted.partial_images) == (False, True, False, 0)


def test_null_stands_for_a_default():
    names = ("size", "n", "output_format", "output_compression", "response_format", "stream", "partial_images", "seed")
    wanted = parse_images({**GOOD, **dict.fromkeys((*names, "negative_prompt", "num_inference_steps"))}, "current")
    given = parse_images({**GOOD, "seed": wanted.generate.seed}, "current")
    assert wanted == given


@pytest.mark.parametrize(
    "ignored",
    [
        {"quality": "hd", "style": "vivid"},
        {"quality": "standard"},
        {"background": "transparent", "moderation": "low", "user": "u-1", "safety_identifier": "x"},
        {"quality": 7, "style": ["?"], "of_next_year": {}, "width": "wide", "steps": -1, "format": "tiff"},
    ],
)
def test_fields_without_a_meaning_here_are_ignored_whatever_their_value(ignored):
    assert parse_images({**GOOD, **ignored, "seed": 1}, "current") == parse_images({**GOOD, "seed": 1}, "current")


@pytest.mark.parametrize(
    ("size", "sides"),
    [
        ("auto", (None, None)),
        ("256x256", (256, 256)),
        ("1024x1024", (1024, 1024)),
        ("1792x1024", (1792, 1024)),
        ("1024x1536", (1024, 1536)),
    ],
)
def test_a_size_is_auto_or_two_sides(size, sides):
    made = parse_images({**GOOD, "size": size}, "current").generate
    assert (made.width, made.height) == sides


def test_the_extensions_of_zwatch_are_accepted():
    fields = {"seed": 7, "num_inference_steps": 4, "guidance_scale": 1.5, "negative_prompt": "dogs", "n": 10}
    made = parse_images({**GOOD, **fields}, "v1").generate
    assert (made.seed, made.steps, made.guidance_scale, made.negative_prompt, made.n) == (7, 4, 1.5, "dogs", 10)
    assert made.model == "v1"


@pytest.mark.parametrize(("compression", "quality"), [(100, 100), (80, 80), (1, 1), (0, 1)])
def test_a_compression_of_100_is_the_best_quality(compression, quality):
    body = {**GOOD, "output_format": "webp", "output_compression": compression}
    assert parse_images(body, "current").generate.quality == quality


def test_a_stream_always_contains_the_file():
    wanted = parse_images({**GOOD, "stream": True, "partial_images": 3, "response_format": "url"}, "current")
    assert (wanted.stream, wanted.partial_images, wanted.urls, wanted.files) == (True, 3, False, True)


@pytest.mark.parametrize(
    ("asked", "urls", "files"),
    [
        ({}, False, True),
        ({"model": "gpt-image-1"}, False, True),
        ({"model": "dall-e-3"}, True, True),
        ({"model": "dall-e-3", "response_format": "b64_json"}, False, True),
        ({"model": "dall-e-2", "response_format": "url"}, True, False),
        ({"response_format": "url"}, True, False),
    ],
)
def test_requests_for_dall_e_are_answered_with_urls_too(asked, urls, files):
    wanted = parse_images({**GOOD, **asked}, "current")
    assert (wanted.urls, wanted.files) == (urls, files)


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"prompt": None}, "prompt", "required"),
        ({"prompt": ["a"]}, "prompt", "a list"),
        ({"prompt": "x" * 10_001}, "prompt", "10001"),
        ({"size": 1024}, "size", "a number"),
        ({"size": "large"}, "size", "WIDTHxHEIGHT like 1024x1024, got 'large'"),
        ({"size": "1024 x 1024"}, "size", "1024 x 1024"),
        ({"size": "1024x1000"}, "size", "height must be a multiple of 16, got 1000"),
        ({"size": "0x64"}, "size", "width must be from 16 to 2048, got 0"),
        ({"size": "3840x2160"}, "size", "3840"),
        ({"n": 0}, "n", "from 1"),
        ({"n": "2"}, "n", "a string"),
        ({"n": 2, "stream": True}, "n", "leave out stream"),
        ({"stream": "yes"}, "stream", "a string"),
        ({"partial_images": 4}, "partial_images", "from 0 to 3, got 4"),
        ({"response_format": "hex"}, "response_format", "b64_json or url, got 'hex'"),
        ({"output_format": "gif"}, "output_format", 'png, jpeg, webp, got "gif"'),
        ({"output_compression": 101}, "output_compression", "from 0 to 100, got 101"),
        ({"num_inference_steps": 0}, "num_inference_steps", "from 1 to 100, got 0"),
        ({"guidance_scale": "strong"}, "guidance_scale", "a string"),
        ({"seed": -1}, "seed", "-1"),
        ({"negative_prompt": 5}, "negative_prompt", "a number"),
    ],
)
def test_an_error_has_the_openai_name_of_the_field(change, param, words):
    with pytest.raises(RequestError) as caught:
        parse_images({**GOOD, **change}, "current")
    error = with_client_names(caught.value)
    assert (error.status, error.code, error.param) == (400, "invalid_value", param)
    assert param in error.message
    assert words in error.message


@pytest.mark.parametrize(("wanted", "sent_at"), [(0, []), (1, [4]), (2, [3, 6]), (3, [2, 4, 6])])
def test_partial_images_are_spread_over_the_steps(wanted, sent_at):
    steps, sent = 8, []
    for step in range(1, steps):
        if is_due(step, steps, len(sent), wanted):
            sent.append(step)
    assert sent == sent_at


def test_a_late_partial_image_does_not_replace_another():
    assert is_due(6, 8, 0, 3)
    assert is_due(7, 8, 1, 3)
