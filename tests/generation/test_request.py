"""A request's fields, one by one."""

import pytest

from zwatch.errors import RequestError
from zwatch.generation.request import parse_generate, parse_json

GOOD = {"prompt": "a cat"}


def test_only_the_prompt_is_required():
    request = parse_generate(GOOD)
    assert (request.width, request.height) == (None, None), "the version's own size"
    assert (request.steps, request.guidance_scale, request.n, request.format, request.model) == (
        8,
        0.0,
        1,
        "png",
        "current",
    )
    assert 0 <= request.seed < 2**63


def test_without_a_seed_each_request_draws_another():
    assert len({parse_generate(GOOD).seed for _ in range(20)}) == 20
    assert parse_generate({**GOOD, "seed": None}).seed != parse_generate({**GOOD, "seed": None}).seed


@pytest.mark.parametrize("asked", [{}, {"seed": None}, {"n": 16}, {"seed": None, "n": 16}])
def test_every_seed_that_is_chosen_here_is_a_number_that_javascript_has(monkeypatch, asked):
    monkeypatch.setattr("secrets.randbelow", lambda end: end - 1)
    request = parse_generate({**GOOD, **asked})
    assert request.seed + request.n <= 2**32


@pytest.mark.parametrize("seed", [0, 42, 2**63 - 1])
def test_a_given_seed_is_kept(seed):
    assert parse_generate({**GOOD, "seed": seed}).seed == seed


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"prompt": None}, "prompt", "null"),
        ({"prompt": 7}, "prompt", "a number"),
        ({"prompt": ["a"]}, "prompt", "a list"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": " \n"}, "prompt", "empty"),
        ({"prompt": "x" * 10_001}, "prompt", "10001"),
        ({"prompt": "\ud800"}, "prompt", "surrogate"),
        ({"negative_prompt": 1}, "negative_prompt", "a number"),
        ({"negative_prompt": "x" * 10_001}, "negative_prompt", "10001"),
        ({"width": 100}, "width", "multiple of 16, got 100"),
        ({"height": 0}, "height", "from 16 to 2048"),
        ({"height": -16}, "height", "-16"),
        ({"width": 4096}, "width", "4096"),
        ({"width": 256.0}, "width", "whole number"),
        ({"width": "256"}, "width", "a string"),
        ({"width": True}, "width", "a boolean"),
        ({"width": None}, "width", "null"),
        ({"steps": 0}, "steps", "from 1"),
        ({"steps": 101}, "steps", "101"),
        ({"steps": 10**4000}, "steps", "..."),
        ({"guidance_scale": "high"}, "guidance_scale", "a string"),
        ({"guidance_scale": -1}, "guidance_scale", "-1"),
        ({"guidance_scale": True}, "guidance_scale", "a boolean"),
        ({"seed": -1}, "seed", "-1"),
        ({"seed": 2**63}, "seed", str(2**63)),
        ({"seed": 1.5}, "seed", "whole number"),
        ({"seed": 2**63 - 1, "n": 2}, "seed", "2^63"),
        ({"n": 0}, "n", "from 1"),
        ({"n": 17}, "n", "17"),
        ({"format": "gif"}, "format", "png, jpeg, webp"),
        ({"format": None}, "format", "null"),
        ({"model": 3}, "model", "a number"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_found(change, param, words):
    with pytest.raises(RequestError) as caught:
        parse_generate({**GOOD, **change})
    error = caught.value
    assert (error.status, error.code, error.param) == (400, "invalid_value", param)
    assert param in error.message
    assert words in error.message


def test_the_error_for_a_missing_prompt_says_that_it_is_required():
    with pytest.raises(RequestError, match="prompt is required"):
        parse_generate({})


def test_an_unknown_field_is_refused_by_name():
    with pytest.raises(RequestError) as caught:
        parse_generate({**GOOD, "widht": 256})
    assert (caught.value.code, caught.value.param) == ("unknown_field", "widht")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe", b"[]", b'"x"', b"null", b'{"steps": NaN}', b'{"a": ' + b"[" * 100_000, b"1" * 5000],
)
def test_what_is_not_a_json_object_is_refused(body):
    with pytest.raises(RequestError) as caught:
        parse_json(body)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")
