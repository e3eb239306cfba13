"""The OpenAPI document of a small table of calls."""

from typing import Annotated

import pytest
from openapi_spec_validator import validate
from pydantic import Field
from typing_extensions import TypedDict

from zwatch.api.openapi import document
from zwatch.api.schema import EVENT_STREAM, Answer, Call, LenientRequest, Number, Parameter, Request, choice
from zwatch.generation.fields import Flag, Text, Whole


class Wish(Request):
    """What is wanted."""

    name: Annotated[str, Text(required=True)]
    count: Annotated[int, Whole(1, 9), Field(description="How many.")] = 3


class LenientWish(LenientRequest):
    """The same for clients of other services."""

    name: Annotated[str, Text(required=True)]
    count: Annotated[int, Whole(1, 9), Field(description="How many.")] = 3
    loud: Annotated[bool | None, Flag()] = None


class Thing(TypedDict):
    """A thing."""

    state: Annotated[str, choice("new", "old")]
    size: Number | None


async def handler(request):
    raise NotImplementedError


def call(method, path, name, **more):
    return Call(method, path, handler, "things", name, "Do it", **{"answers": {200: Answer("A thing.", Thing)}, **more})


TABLE = (
    call("POST", "/things", "make", body=Wish, errors=(404, 429), error_texts={404: "No such thing."}),
    call("GET", "/things", "list", parameters=(Parameter("limit", "At most.", Annotated[int, Field(ge=1)], 50),)),
    call("GET", "/things/{id}", "show", errors=(409,), parameters=(Parameter("id", "Its id.", example="t-1"),)),
    call("POST", "/sdapi/things", "make_theirs", body=LenientWish, body_required=False),
    call("GET", "/things/events", "follow", answers={200: Answer("Events.", media_types=(EVENT_STREAM,))}),
    call("GET", "/health", "health", is_open=True, checks_host=False),
)
DOCUMENT = document(TABLE, needs_token=True)


def operation(path, method="get"):
    return DOCUMENT["paths"][path][method]


def references(path, method="get"):
    """Return {status: name of the shared response} of a call."""
    found = operation(path, method)["responses"]
    return {status: one["$ref"].rpartition("/")[2] for status, one in found.items() if "$ref" in one}


def test_the_document_is_valid():
    validate(DOCUMENT)


def test_the_body_of_a_native_call_is_strict():
    assert operation("/things", "post")["requestBody"] == {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Wish"}}},
    }
    found = DOCUMENT["components"]["schemas"]["Wish"]
    assert (found["additionalProperties"], found["required"], found["description"]) == (
        False, ["name"], "What is wanted.",
    )  # fmt: skip
    assert found["properties"]["count"] == {
        "type": "integer", "minimum": 1, "maximum": 9, "default": 3, "description": "How many.",
    }  # fmt: skip


def test_the_optional_fields_of_a_lenient_call_may_be_null():
    assert operation("/sdapi/things", "post")["requestBody"]["required"] is False
    found = DOCUMENT["components"]["schemas"]["LenientWish"]
    assert "additionalProperties" not in found
    assert "anyOf" not in found["properties"]["name"], "null stands for a default, of which it has none"
    assert found["properties"]["count"] == {
        "anyOf": [{"type": "integer", "minimum": 1, "maximum": 9}, {"type": "null"}],
        "default": 3,
        "description": "How many.",
    }
    assert found["properties"]["loud"] == {"anyOf": [{"type": "boolean"}, {"type": "null"}]}


def test_answers_are_described_by_their_types():
    assert operation("/things/{id}")["responses"]["200"]["content"] == {
        "application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}
    }
    found = DOCUMENT["components"]["schemas"]["Thing"]
    assert found["properties"]["state"] == {"type": "string", "enum": ["new", "old"]}
    assert "title" not in found


def test_parameters_are_in_the_path_or_in_the_query():
    [limit], [identity] = operation("/things")["parameters"], operation("/things/{id}")["parameters"]
    assert limit == {
        "name": "limit", "in": "query", "description": "At most.",
        "schema": {"type": "integer", "minimum": 1, "default": 50},
    }  # fmt: skip
    assert identity == {
        "name": "id", "in": "path", "required": True, "description": "Its id.",
        "schema": {"type": "string", "examples": ["t-1"]},
    }  # fmt: skip


def test_a_call_has_its_own_errors_and_the_shared_ones():
    assert references("/things") == {"401": "Error401", "403": "Error403", "500": "Error500"}
    assert references("/things", "post").keys() == {"400", "401", "403", "408", "413", "415", "429", "500"}
    own = operation("/things", "post")["responses"]["404"]
    assert own["description"] == "No such thing."
    assert references("/health") == {"500": "Error500"}


def test_the_errors_below_sdapi_have_a_detail():
    assert set(references("/sdapi/things", "post").values()) == {
        f"Error{status}Detailed" for status in (400, 401, 403, 408, 413, 415, 500)
    }


def test_a_rejection_and_a_retry_are_described():
    responses = DOCUMENT["components"]["responses"]
    assert responses["Error409"]["content"]["application/json"]["schema"]["$ref"].endswith("/Rejected")
    assert "Retry-After" in responses["Error429"]["headers"]
    assert "Retry-After" not in responses["Error404"]["headers"]


def test_only_open_calls_need_no_token():
    assert operation("/health")["security"] == []
    assert "security" not in operation("/things")
    assert DOCUMENT["security"] == [{"bearer": []}, {"basic": []}, {"cookie": []}]
    assert "security" not in document(TABLE, needs_token=False)


def test_a_call_streams_if_it_answers_with_events_only():
    assert [one.name for one in TABLE if one.streams] == ["follow"]


@pytest.mark.parametrize(
    ("other", "words"),
    [(call("GET", "/other", "list"), "name: list"), (call("GET", "/things", "other"), "method and path: GET /things")],
)
def test_two_calls_with_one_name_or_one_route_are_refused(other, words):
    with pytest.raises(ValueError, match=f"the same {words}"):
        document((*TABLE, other), needs_token=False)
