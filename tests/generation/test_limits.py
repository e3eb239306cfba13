"""What one request may ask for."""

from types import SimpleNamespace

import pytest

from zwatch.errors import RequestError
from zwatch.generation.fitting import fitted
from zwatch.generation.request import parse_generate

ENGINE = SimpleNamespace(version="v1", default_size=256, max_side=1024)


def fit(max_work=10.0, **fields):
    return fitted(parse_generate({"prompt": "x", **fields}), ENGINE, max_work)


def test_unset_fields_take_the_versions_defaults():
    found = fit(seed=5, n=2)
    assert (found.width, found.height, found.seeds) == (256, 256, (5, 6))


def test_a_side_beyond_the_versions_positions_is_refused():
    with pytest.raises(RequestError, match="width may be 1024 at most with version v1, got 1040") as caught:
        fit(width=1040)
    assert (caught.value.status, caught.value.param) == (400, "width")


@pytest.mark.parametrize(
    ("fields", "param", "advice"),
    [
        ({"n": 16, "steps": 10}, "n", "n may be 15 at most with these"),
        ({"n": 2, "steps": 100, "width": 512}, "steps", "steps may be 76 at most with n = 1"),
        ({"width": 1024, "height": 1024, "max_work": 1.0}, "width", "too large even for one step"),
    ],
)
def test_too_much_is_refused_with_the_field_that_would_make_it_fit(fields, param, advice):
    with pytest.raises(RequestError, match=advice) as caught:
        fit(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_just_enough_is_not_too_much():
    assert len(fit(n=15, steps=10).seeds) == 15
