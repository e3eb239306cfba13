"""Authorization: the token, host names, origins, and session cookies."""

import base64

import pytest

from tests.api.conftest import tiny_config
from zwatch.api.sessions import SESSION_SECONDS, Sessions
from zwatch.config import is_loopback, read_token
from zwatch.errors import UsageError

TOKEN = "correct horse"


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("", 401),
        ("Bearer wrong", 401),
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        (basic(TOKEN), 200),
        (basic("wrong"), 401),
        ("Basic !!!", 401),
        (f"Digest {TOKEN}", 401),
    ],
)
async def test_with_a_token_every_call_but_health_needs_it(start, header, status):
    async with start(token=TOKEN) as client:
        headers = {} if header is None else {"Authorization": header}
        found, _, body = await client.call("GET", "/status", headers=headers)
        assert found == status
        assert status == 200 or body["error"]["code"] == "unauthorized"
        assert (await client.call("GET", "/health/live"))[0] == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:7860", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("models.example", 200),
        ("evil.example", 403),
        ("[", 403),
    ],
)
async def test_an_unknown_host_name_is_refused(start, host, status):
    async with start(allowed_hosts=("models.example",)) as client:
        found, _, body = await client.call("GET", "/status", headers={"Host": host})
        assert found == status
        assert status == 200 or body["error"]["code"] == "forbidden_host"
        assert (await client.call("GET", "/health/live", headers={"Host": host}))[0] == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 409),
        ("own", 409),
        ("http://evil.example", 403),
        ("null", 403),
        ("http://127.0.0.1:9", 403),
        ("http://models.example", 409),
    ],
)
async def test_a_page_of_another_origin_may_not_change_state(start, origin, status):
    async with start(allowed_hosts=("models.example",)) as client:
        headers = {} if origin is None else {"Origin": client.url if origin == "own" else origin}
        found, _, body = await client.call("POST", "/api/rollback", headers=headers)
        assert found == status, "409: nothing to roll back to"
        assert status != 403 or body["error"]["code"] == "forbidden_origin"
        assert (await client.call("GET", "/status", headers=headers))[0] == 200


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("example", False),
    ],
)
def test_loopback_addresses_are_recognised(host, loopback):
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(("given", "token"), [("x", "x"), (" x\n", "x"), ("", None), (" ", None)])
def test_white_space_around_the_token_is_stripped(monkeypatch, given, token):
    """Tokens that clients send are stripped too, so otherwise it could never match."""
    monkeypatch.setenv("ZWATCH_TOKEN", given)
    assert read_token(None) == token


def test_the_token_may_be_a_systemd_credential(monkeypatch, tmp_path):
    """`LoadCredential=zwatch-token:FILE` in the unit."""
    monkeypatch.delenv("ZWATCH_TOKEN", raising=False)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read_token(None) is None, "the unit has other credentials only"
    (tmp_path / "zwatch-token").write_text("from systemd\n")
    assert read_token(None) == "from systemd"
    monkeypatch.setenv("ZWATCH_TOKEN", "from the environment")
    assert read_token(None) == "from the environment"
    (tmp_path / "file").write_text("from the file")
    assert read_token(tmp_path / "file") == "from the file"


def test_an_empty_credential_is_an_error(monkeypatch, tmp_path):
    monkeypatch.delenv("ZWATCH_TOKEN", raising=False)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "zwatch-token").write_text("")
    with pytest.raises(UsageError, match="zwatch-token is empty"):
        read_token(None)


@pytest.mark.parametrize(("token", "insecure", "fine"), [(None, False, False), ("x", False, True), (None, True, True)])
def test_a_public_address_needs_a_token_or_an_explicit_option(tmp_path, token, insecure, fine):
    config = tiny_config(tmp_path, tmp_path, host="0.0.0.0", token=token, insecure_no_token=insecure)
    if fine:
        config.check()
    else:
        with pytest.raises(UsageError, match="--token-file"):
            config.check()


@pytest.mark.parametrize("header", [b"Authorization: Bearer \xff", b"Authorization: Basic \xc3\xa9"])
async def test_invalid_bytes_in_a_token_are_a_wrong_token(start, header):
    async with start(token="secret") as client:
        line = await client.first_line(b"GET /status HTTP/1.1\r\nHost: localhost\r\n" + header + b"\r\n\r\n")
    assert line == b"HTTP/1.1 401 Unauthorized"


def test_a_session_ends_after_30_days_and_with_the_token():
    now = [1000.0]
    sessions = Sessions(TOKEN, lambda: now[0])
    value = sessions.begin()
    assert sessions.is_valid(value)
    assert Sessions(TOKEN, lambda: now[0]).is_valid(value), "a restart does not end it"
    assert not Sessions("another", lambda: now[0]).is_valid(value)
    end, _, signature = value.partition(".")
    assert not sessions.is_valid(f"{int(end) + 1}.{signature}"), "its end cannot be moved"
    now[0] += SESSION_SECONDS
    assert not sessions.is_valid(value)


def test_a_session_that_was_ended_is_not_revived_by_a_clock_that_was_ahead(tmp_path):
    now = [1000.0]
    sessions = Sessions(TOKEN, lambda: now[0], tmp_path)
    value = sessions.begin()
    assert sessions.end(value)
    now[0] += 2 * SESSION_SECONDS
    assert sessions.end(sessions.begin()), "another logout, while the clock is ahead"
    sessions.save()
    now[0] -= 2 * SESSION_SECONDS
    assert not sessions.is_valid(value)
    assert not Sessions(TOKEN, lambda: now[0], tmp_path).is_valid(value), "nor by a restart"


@pytest.mark.parametrize(
    "value", ["", ".", "1.2", "-1.x", "9" * 15 + ".00", "9" * 400 + ".00", "\u00b2." + "0" * 64, "\udcff"]
)
def test_a_malformed_session_cookie_is_not_valid(value):
    assert not Sessions(TOKEN).is_valid(value)


def test_the_session_cookie_does_not_contain_the_token():
    assert TOKEN not in Sessions(TOKEN).begin()
    assert Sessions(TOKEN, lambda: 0.0).begin() != Sessions("another", lambda: 0.0).begin()
