"""The rules of request fields: what each accepts, how it refuses, and that its JSON schema says the same."""

from enum import StrEnum
from typing import Annotated

import jsonschema
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from zwatch.errors import RequestError
from zwatch.generation.fields import MAX_TEXT, Converted, Flag, Number, OneOf, Text, Whole, validated


class Colour(StrEnum):
    """Some choices."""

    RED = "red"
    BLUE = "blue"


RULES = [Text(), Text(required=True), Whole(-1, 100), Whole(16, 2048, 16), Number(0.0, 20.0), Flag(), OneOf(Colour)]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-20, 2100) | st.floats(allow_nan=False) | st.text()
    | st.sampled_from(["red", "blue", "RED", " ", "\t", "\x1f", "\u3000", 16, 2048, 2047, 20.5, 0.0]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=3,
)  # fmt: skip


def model_of(rule):
    """Return a model with one field, `value`, that has this rule."""
    fields = {"value": Annotated[object, rule]}
    return type("Body", (BaseModel,), {"__annotations__": fields, "model_config": ConfigDict(extra="forbid")})


MODELS = {rule: model_of(rule) for rule in RULES}


def checked(rule, value):
    return validated(MODELS.get(rule) or model_of(rule), {"value": value}).value


def is_accepted(rule, value):
    try:
        checked(rule, value)
    except RequestError:
        return False
    return True


@pytest.mark.parametrize("rule", RULES, ids=repr)
@given(value=JSON)
@example(value="x" * MAX_TEXT)
@example(value="x" * (MAX_TEXT + 1))
@example(value=True)
@example(value=10**400)
def test_the_rule_accepts_exactly_what_its_json_schema_accepts(rule, value):
    if isinstance(rule, Whole) and isinstance(value, float):
        assert not is_accepted(rule, value), "stricter than JSON Schema, to which 1.0 is an integer"
        return
    schema = MODELS[rule].model_json_schema()["properties"]["value"]
    assert is_accepted(rule, value) == jsonschema.Draft202012Validator(schema).is_valid(value)


@pytest.mark.parametrize(
    ("rule", "value", "result"),
    [
        (Text(), "", ""),
        (Text(required=True), " x ", " x "),
        (Whole(-1, 100), -1, -1),
        (Whole(16, 2048, 16), 2048, 2048),
        (Number(0.0, 20.0), 20, 20.0),
        (Number(0.0, 20.0), 0.5, 0.5),
        (Flag(), False, False),
        (OneOf(Colour), "blue", Colour.BLUE),
    ],
)
def test_an_accepted_value_has_the_type_of_its_rule(rule, value, result):
    found = checked(rule, value)
    assert (found, type(found)) == (result, type(result))


@pytest.mark.parametrize(
    ("rule", "value", "words"),
    [
        (Text(), 5, "must be a string, got a number"),
        (Text(), None, "must be a string, got null"),
        (Text(), {}, "must be a string, got an object"),
        (Text(required=True), "\t ", "must not be empty"),
        (Text(), "x" * 10_001, "may have 10000 characters, got 10001"),
        (Text(), "\ud800", "has half of a surrogate pair, which is no character"),
        (Whole(1, 100), True, "must be a whole number, got a boolean"),
        (Whole(1, 100), 1.0, "must be a whole number, got a number"),
        (Whole(1, 100), "1", "must be a whole number, got a string"),
        (Whole(1, 100), 101, "must be from 1 to 100, got 101"),
        (Whole(1, 100), 10**400, "must be from 1 to 100, got 1" + "0" * 56 + "..."),
        (Whole(16, 2048, 16), 100, "must be a multiple of 16, got 100"),
        (Number(0.0, 20.0), [], "must be a number, got a list"),
        (Number(0.0, 20.0), 20.5, "must be from 0.0 to 20.0, got 20.5"),
        (Number(0.0, 20.0), float("inf"), "must be from 0.0 to 20.0, got Infinity"),
        (Flag(), 1, "must be true or false, got a number"),
        (OneOf(Colour), "green", 'must be one of red, blue, got "green"'),
        (OneOf(Colour), ["red"], 'must be one of red, blue, got ["red"]'),
        (OneOf(Colour), "{words}", 'must be one of red, blue, got "{words}"'),
    ],
)
def test_a_refused_value_is_described_after_the_fields_name(rule, value, words):
    with pytest.raises(RequestError) as caught:
        checked(rule, value)
    error = caught.value
    assert (error.status, error.code, error.param, error.message) == (400, "invalid_value", "value", f"value {words}")


def test_a_converted_field_accepts_more_and_its_schema_says_so():
    converted = Converted(lambda value: 7 if value is None else value, ({"type": "null"},))
    fields = {"value": Annotated[int, Whole(1, 9), converted]}
    model = type("Body", (BaseModel,), {"__annotations__": fields})
    assert validated(model, {"value": None}).value == 7
    assert model.model_json_schema()["properties"]["value"]["anyOf"] == [Whole(1, 9).schema(), {"type": "null"}]
    with pytest.raises(RequestError, match="value must be from 1 to 9, got 10"):
        validated(model, {"value": 10})


def test_a_missing_field_is_named():
    with pytest.raises(RequestError, match="value is required") as caught:
        validated(MODELS[Flag()], {})
    assert (caught.value.code, caught.value.param) == ("invalid_value", "value")


@pytest.mark.parametrize("name", ["other", "\ud800", "{words}", "n" * 300])
def test_an_unknown_field_is_named_before_any_wrong_value(name):
    with pytest.raises(RequestError) as caught:
        validated(MODELS[Flag()], {"value": 5, name: 1})
    assert (caught.value.code, caught.value.param) == ("unknown_field", name[:100])
    assert caught.value.message == f"there is no field {name[:100]!r}; there are value"
