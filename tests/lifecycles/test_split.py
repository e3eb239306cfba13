"""The split of a share's requests on a real server: each is drawn by the side on which its client's key stands."""

import http.client
import io
import json

import pytest
from PIL import Image

from tests.lifecycles.service import Light, make_version
from zwatch.deploy.shares import side_of

PERCENT = 20
CLIENTS = [f"client-{number}" for number in range(200)]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A service whose `current` serves v1, and a share of it v2; so does `canary`."""
    folder = tmp_path_factory.mktemp("split")
    root = folder / "models"
    colours = {version: make_version(root / version, version.encode())[1] for version in ("v1", "v2")}
    for alias in ("current", "canary"):
        (root / alias).symlink_to("v1")
        (root / f"{alias}@{PERCENT}").symlink_to("v2")
    light = Light(root, folder / "state", ("current", "canary"), history=False).start()
    light.colours = colours
    light.until(
        lambda seen: (
            seen["settled"] and set(seen["shares"].values()) == {seen["shares"][f"current@{PERCENT}"]} != {None}
        )
    )
    yield light
    light.kill()


class Caller:
    """Draws pictures on one connection."""

    def __init__(self, service):
        self._service = service
        self._http = http.client.HTTPConnection("127.0.0.1", int(service.url.rsplit(":", 1)[1]), timeout=60)

    def __call__(self, headers=None, **fields):
        """Return the version that drew a picture, and the share that the answer names."""
        body = json.dumps({"prompt": "a cat", "seed": 1, "steps": 1, **fields})
        self._http.request("POST", "/generate", body, headers or {})
        response = self._http.getresponse()
        data = response.read()
        assert response.status == 200, data
        version = response.headers["X-Zwatch-Version"]
        with Image.open(io.BytesIO(data)) as image:
            assert image.convert("RGB").getpixel((0, 0)) == self._service.colours[version]
        return version, response.headers.get("X-Zwatch-Share")

    def close(self):
        self._http.close()


@pytest.fixture
def drawn(service):
    caller = Caller(service)
    yield caller
    caller.close()


def expected(client, alias="current"):
    return ("v2", f"{alias}@{PERCENT}") if side_of(client, alias) < PERCENT else ("v1", None)


def test_each_client_is_drawn_by_its_side_however_it_is_named(drawn):
    answers = {client: drawn(user=client) for client in CLIENTS}
    assert answers == {client: expected(client) for client in CLIENTS}
    moved = sum(version == "v2" for version, _ in answers.values())
    mean = len(CLIENTS) * PERCENT / 100
    assert abs(moved - mean) <= 3 * (mean * (1 - PERCENT / 100)) ** 0.5
    for client in CLIENTS[:40]:
        assert drawn({"X-Client-Id": client}) == expected(client)
        assert drawn({"X-Client-Id": "another"}, user=client) == expected(client)


def test_an_address_has_its_side_too(drawn):
    assert {drawn() for _ in range(5)} == {expected("127.0.0.1")}


def test_another_alias_has_other_sides(drawn):
    answers = {client: drawn(user=client, model="canary") for client in CLIENTS[:80]}
    assert answers == {client: expected(client, "canary") for client in CLIENTS[:80]}
    assert {version for version, _ in answers.values()} == {"v1", "v2"}
    assert answers != {
        client: (version, share and share.replace("current", "canary"))
        for client, (version, share) in ((client, expected(client)) for client in CLIENTS[:80])
    }


def test_who_names_current_or_a_version_is_never_moved(drawn):
    on_share = [client for client in CLIENTS if expected(client)[0] == "v2"][:10]
    for client in on_share:
        assert drawn(user=client, model="current") == ("v1", None)
        assert drawn(user=client, model="v1") == ("v1", None)
