"""Login and logout, and which calls need the token."""

import asyncio
import os
import re

import aiohttp
import pytest

from tests.harness import Server
from zwatch.api.schema import COOKIE, MARK_COOKIE
from zwatch.api.sessions import Sessions

TOKEN = "correct horse"


@pytest.fixture
async def locked(start):
    async with start(token=TOKEN) as client:
        yield client


async def logged_in(client, **headers):
    """Log in; return the session cookie with its attributes."""
    async with client.http.post(client.url + "/login", json={"token": TOKEN}, headers=headers) as response:
        assert response.status == 200
        return response.cookies[COOKIE]


async def test_a_login_sets_a_cookie_that_authorizes_every_call(locked):
    cookie = await logged_in(locked)
    headers = {"Cookie": f"{COOKIE}={cookie.value}"}
    assert (await locked.call("GET", "/status", headers=headers))[0] == 200
    assert (await locked.call("POST", "/api/rollback", headers=headers))[0] == 409, "nothing to roll back to"


async def test_a_logout_ends_the_session_on_the_server_also_after_a_restart(start):
    async with start(token=TOKEN) as client:
        cookie, other = (await logged_in(client)).value, (await logged_in(client)).value
        sent = {"Cookie": f"{COOKIE}={cookie}"}
        assert (await client.call("GET", "/attempts", headers=sent))[0] == 200
        assert (await client.call("DELETE", "/login", headers=sent))[0] == 200
        assert (await client.call("GET", "/attempts", headers=sent))[0] == 401
        assert (await client.call("GET", "/attempts", headers={"Cookie": f"{COOKIE}={other}"}))[0] == 200
    async with start(token=TOKEN) as client:
        assert (await client.call("GET", "/attempts", headers=sent))[0] == 401
        assert (await client.call("GET", "/attempts", headers={"Cookie": f"{COOKIE}={other}"}))[0] == 200


@pytest.mark.parametrize("content", [b"", b"[]", b'{"x": []}', b'{"x": 1e999}', b"\xff", b"[" * 100_000])
def test_whatever_lies_in_place_of_the_ended_sessions_is_put_aside(tmp_path, content, caplog):
    (tmp_path / "ended-sessions.json").write_bytes(content)
    ends_sessions_for_good(tmp_path, caplog)
    assert (tmp_path / "ended-sessions.json.bad").read_bytes() == content


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: (path / "x").mkdir(parents=True), lambda path: path.symlink_to("nothing")]
)
def test_anything_but_a_file_in_place_of_the_ended_sessions_is_put_aside(tmp_path, make, caplog):
    make(tmp_path / "ended-sessions.json")
    ends_sessions_for_good(tmp_path, caplog)
    assert os.path.lexists(tmp_path / "ended-sessions.json.bad")


def ends_sessions_for_good(state_dir, caplog):
    """Check that a session which is ended stays ended, and that the log says what was wrong."""
    sessions = Sessions(TOKEN, state_dir=state_dir)
    assert "it is renamed to ended-sessions.json.bad" in caplog.text
    value = sessions.begin()
    assert sessions.is_valid(value)
    assert not sessions.end("1.x.y"), "only a session of ours can be ended"
    assert sessions.end(value)
    sessions.save()
    assert not Sessions(TOKEN, state_dir=state_dir).is_valid(value)


def test_what_a_crash_in_the_middle_of_a_logout_left_is_removed_at_the_start(tmp_path):
    (tmp_path / ".ended-sessions.json.x1").touch()
    Sessions(TOKEN, state_dir=tmp_path)
    assert not list(tmp_path.iterdir())


async def test_the_cookie_authorizes_an_event_stream(locked):
    cookie = await logged_in(locked)
    async with locked.http.get(locked.url + "/events", cookies={COOKIE: cookie.value}) as response:
        assert response.status == 200
        assert await asyncio.wait_for(response.content.readline(), 60) == b"event: status\n"


async def test_the_cookie_is_not_available_to_scripts_and_other_sites(locked):
    cookie = await logged_in(locked)
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Strict", "/")
    assert not cookie["secure"], "a browser would not send it over http"
    assert (await logged_in(locked, **{"X-Forwarded-Proto": "https"}))["secure"]


async def test_the_cookie_does_not_contain_the_token(locked):
    cookie = await logged_in(locked)
    assert TOKEN not in cookie.OutputString()
    assert cookie.value != Sessions("another").begin()


@pytest.mark.parametrize("token", ["wrong", "correct horsE", "x" * 10_000, "日本"])
async def test_a_wrong_token_gets_no_cookie(locked, token):
    status, headers, body = await locked.call("POST", "/login", json={"token": token})
    assert (status, body["error"]["code"]) == (401, "unauthorized")
    assert "Set-Cookie" not in headers


@pytest.mark.parametrize("body", [b"", b"[]", b'{"token": ""}', b'{"token": 1}', b'{"token": "x", "name": "y"}'])
async def test_an_invalid_login_body_is_a_400(locked, body):
    assert (await locked.call("POST", "/login", data=body))[0] == 400


async def test_a_page_of_another_site_cannot_log_in(locked):
    headers = {"Origin": "http://evil.example"}
    assert (await locked.call("POST", "/login", json={"token": TOKEN}, headers=headers))[0] == 403


@pytest.mark.parametrize("value", ["", "x", "1.2", "9" * 15 + ".00", f"{'9' * 400}.00", "²." + "0" * 64, TOKEN])
async def test_a_forged_cookie_is_refused(locked, value):
    headers = {"Cookie": f"{COOKIE}={value}"}
    assert (await locked.call("GET", "/status", headers=headers))[0] == 401


async def test_a_logout_deletes_the_cookies(locked):
    async with locked.http.delete(locked.url + "/login") as response:
        assert response.status == 200
        for name in (COOKIE, MARK_COOKIE):
            assert (response.cookies[name].value, response.cookies[name]["max-age"]) == ("", "0")


async def test_a_page_can_read_that_there_is_a_token_but_not_the_session(locked):
    async with locked.http.post(locked.url + "/login", json={"token": TOKEN}) as response:
        session, mark = response.cookies[COOKIE], response.cookies[MARK_COOKIE]
    assert (session["httponly"], mark["httponly"], mark.value) == (True, "", "1")
    assert (await locked.call("GET", "/status", headers={"Cookie": f"{MARK_COOKIE}=1"}))[0] == 401


async def test_without_a_token_a_login_succeeds_and_sets_no_cookie(client):
    status, headers, _ = await client.call("POST", "/login", json={"token": "any"})
    assert (status, "Set-Cookie" in headers) == (200, False)


async def test_the_cookie_is_accepted_with_a_foreign_authorization_header(locked):
    """A proxy with its own password forwards the browser's Authorization header."""
    cookie = await logged_in(locked)
    headers = {"Cookie": f"{COOKIE}={cookie.value}", "Authorization": "Basic cHJveHk6cHJveHk="}
    assert (await locked.call("GET", "/status", headers=headers))[0] == 200


@pytest.mark.parametrize(
    ("mode", "schemes"), [(None, "Basic"), ("navigate", "Basic"), ("cors", "Bearer"), ("same-origin", "Bearer")]
)
async def test_the_pages_own_calls_open_no_password_dialog(locked, mode, schemes):
    headers = {} if mode is None else {"Sec-Fetch-Mode": mode}
    _, answered, _ = await locked.call("GET", "/status", headers=headers)
    assert schemes in answered["WWW-Authenticate"]
    assert schemes == "Basic" or "Basic" not in answered["WWW-Authenticate"]


async def test_every_call_needs_the_token_but_health_and_login(locked):
    resources = {
        (route.method, route.resource.canonical) for route in locked.app.router.routes() if route.method != "HEAD"
    }
    opened = set()
    for number, (method, path) in enumerate(sorted(resources)):
        # Each from another address: refusals of one address are answered more slowly
        connector = aiohttp.TCPConnector(local_addr=(f"127.0.1.{number + 1}", 0))
        async with (
            aiohttp.ClientSession(connector=connector) as client,
            client.request(method, locked.url + re.sub(r"{\w+}", "0", path)) as response,
        ):
            if response.status != 401:
                opened.add(path)
    assert opened <= {
        "/",
        "/page",
        "/page/{name}",
        "/page/{digest}/{name}",
        "/health",
        "/health/live",
        "/health/ready",
        "/login",
    }
    assert opened >= {"/health", "/health/live", "/health/ready", "/login"}


async def try_to_log_in(client, token):
    async with client.http.post(client.url + "/login", json={"token": token}) as response:
        return response.status, response.headers.get("Retry-After"), await response.json()


async def test_after_ten_wrong_tokens_even_the_correct_one_is_refused_for_a_while(locked, caplog):
    assert [(await try_to_log_in(locked, f"guess {number}"))[0] for number in range(10)] == [401] * 10
    status, wait, body = await try_to_log_in(locked, TOKEN)
    assert (status, body["error"]["code"], body["error"]["type"]) == (429, "too_many_guesses", "rate_limit_error")
    assert 1 <= int(wait) <= 6
    assert caplog.text.count("too many wrong tokens from 127.0.0.1") == 1
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert (await locked.call("GET", "/status", headers=headers))[0] == 200, "a request with the token needs no login"


async def test_repeated_successful_logins_are_not_limited(locked):
    assert [(await try_to_log_in(locked, TOKEN))[0] for _ in range(15)] == [200] * 15


@pytest.mark.parametrize(("token", "warned"), [("sesame", True), ("0123456789abcdef", False)])
async def test_a_short_token_is_warned_about(models, tmp_path, token, warned):
    async with Server(models, tmp_path / "state", environment={"ZWATCH_TOKEN": token}) as server:
        pass
    # After the stop: the log is written by a thread of its own.
    assert (f"the token has only {len(token)} characters" in server.log.read_text()) is warned
