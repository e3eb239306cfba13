"""By what a client is known: its `user` field, its header, its address; and which requests are never moved."""

import pytest
from aiohttp.test_utils import make_mocked_request

from zwatch.api.client_key import client_key, native_client
from zwatch.errors import RequestError
from zwatch.generation.request import parse_generate


def asking(**headers):
    return make_mocked_request(
        "POST", "/generate", headers={name.replace("_", "-"): value for name, value in headers.items()}
    ).clone(remote="192.0.2.1")


@pytest.mark.parametrize(
    ("user", "headers", "expected"),
    [
        ("alice", {"X_Client_Id": "page-1"}, "alice"),
        ("", {"X_Client_Id": "page-1"}, "page-1"),
        ("", {}, "192.0.2.1"),
    ],
)
def test_a_client_is_known_by_its_user_then_its_header_then_its_address(user, headers, expected):
    assert client_key(asking(**headers), "canary", user=user) == expected


def test_a_request_that_names_current_exactly_is_never_moved():
    assert client_key(asking(), "current") is None
    assert client_key(asking(), "current", is_named=False) == "192.0.2.1"
    assert native_client(asking(), parse_generate({"prompt": "a", "model": "current"})) is None
    assert native_client(asking(), parse_generate({"prompt": "a"})) == "192.0.2.1"
    assert native_client(asking(), parse_generate({"prompt": "a", "user": "bob"})) == "bob"


def test_a_request_for_another_alias_names_it_and_is_moved():
    assert native_client(asking(), parse_generate({"prompt": "a", "model": "canary"})) == "192.0.2.1"


@pytest.mark.parametrize("header", ["", "a b", "x" * 65, "\u00e4", "a,b"])
@pytest.mark.parametrize("is_named", [True, False])
def test_a_header_that_is_no_name_is_refused(header, is_named):
    with pytest.raises(RequestError, match="X-Client-Id must be 1 to 64 of") as refused:
        client_key(asking(X_Client_Id=header), "current", is_named=is_named)
    assert (refused.value.code, refused.value.param) == ("invalid_value", "X-Client-Id")


@pytest.mark.parametrize(
    ("user", "text"),
    [(7, "user must be a string, got a number"), (None, "user must be a string, got null"), ("x" * 257, "user may have 256 characters, got 257")],
)  # fmt: skip
def test_a_user_that_is_none_is_refused(user, text):
    with pytest.raises(RequestError, match=text) as refused:
        parse_generate({"prompt": "a", "user": user})
    assert refused.value.param == "user"


def test_each_of_10000_clients_has_a_key_of_its_own_however_it_names_itself():
    clients, request = [f"client-{number}" for number in range(10_000)], asking()
    assert [client_key(request, "current", user=client, is_named=False) for client in clients] == clients
    for client in clients[::500]:
        assert native_client(request, parse_generate({"prompt": "a", "user": client})) == client
        assert native_client(asking(X_Client_Id=client), parse_generate({"prompt": "a"})) == client
