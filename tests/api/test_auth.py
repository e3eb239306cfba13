"""Who may call."""

import base64

import pytest

from zwatch.config import Config, is_loopback, read_token
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
async def test_a_name_that_we_do_not_go_by_is_refused(start, host, status):
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
async def test_a_foreign_page_may_not_change_anything(start, origin, status):
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
def test_loopback_is_what_only_this_machine_reaches(host, loopback):
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(("given", "token"), [("x", "x"), (" x\n", "x"), ("", None), (" ", None)])
def test_white_space_round_a_token_is_none_of_it(monkeypatch, given, token):
    """Clients' tokens are stripped, so this one could never match."""
    monkeypatch.setenv("ZWATCH_TOKEN", given)
    assert read_token(None) == token


def test_the_token_may_be_a_credential_of_systemd(monkeypatch, tmp_path):
    """`LoadCredential=zwatch-token:FILE` in the unit."""
    monkeypatch.delenv("ZWATCH_TOKEN", raising=False)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read_token(None) is None, "the unit loads other credentials only"
    (tmp_path / "zwatch-token").write_text("from systemd\n")
    assert read_token(None) == "from systemd"
    monkeypatch.setenv("ZWATCH_TOKEN", "from the environment")
    assert read_token(None) == "from the environment"
    (tmp_path / "file").write_text("from the file")
    assert read_token(tmp_path / "file") == "from the file"


def test_an_empty_credential_is_a_mistake_and_not_an_open_door(monkeypatch, tmp_path):
    monkeypatch.delenv("ZWATCH_TOKEN", raising=False)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "zwatch-token").write_text("")
    with pytest.raises(UsageError, match="zwatch-token is empty"):
        read_token(None)


@pytest.mark.parametrize(("token", "insecure", "fine"), [(None, False, False), ("x", False, True), (None, True, True)])
def test_an_open_address_needs_a_token_or_a_word(tmp_path, token, insecure, fine):
    config = Config(
        models=tmp_path, aliases=("current",), strict_links=False, device="cpu", memory_budget=None, state_dir=tmp_path,
        host="0.0.0.0", port=0, token=token, insecure_no_token=insecure, allowed_hosts=(), queue=1, timeout=1.0, log="text",
        max_work=600.0, history=True, output_dir=tmp_path, history_max_images=None, history_max_bytes=None,
    )  # fmt: skip
    if fine:
        config.check()
    else:
        with pytest.raises(UsageError, match="--token-file"):
            config.check()
