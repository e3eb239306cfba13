"""Which engine a request gets: its alias's, or that of the alias's share."""

from types import SimpleNamespace

import pytest

from zwatch.deploy.shares import ShareLink, share_key, side_of
from zwatch.rollout.alias import Alias
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.lifecycle import VersionKey
from zwatch.rollout.saved import Withdrawn
from zwatch.rollout.traffic import Traffic

V1, V2, V3 = (VersionKey(name, name[1] * 64) for name in ("v1", "v2", "v3"))
CLIENTS = [f"client-{number}" for number in range(10_000)]
ON_SHARE = next(client for client in CLIENTS if side_of(client, "current") < 10)
ON_OWN = next(client for client in CLIENTS if side_of(client, "current") > 50)


class Scene:
    """`current` serves v1, its share of 10 % serves v3, and v2 is the one that `current` served before."""

    def __init__(self):
        self.engines = EngineRegistry()
        self.records = {"current": Alias("current", self.engines)}
        self.share = self.records[share_key("current")] = Alias(share_key("current"), self.engines)
        self.name(10)
        self.traffic = Traffic(self.records, self.engines)
        for key in (V1, V2, V3):
            self.engines.admit(key, SimpleNamespace(is_complete=True, version=key.version))
        self.engines.promote("current", V2)
        self.engines.promote("current", V1)
        self.engines.promote(share_key("current"), V3)

    def name(self, percent):
        self.share.share = ShareLink("current", percent)

    def served(self, model="current", client=ON_SHARE, avoided=()):
        """Return which version a request gets, and by which share."""
        lease = self.traffic.lease(model, client, avoided)
        if lease is None:
            return None
        with lease:
            return lease.key.version, lease.by_share


@pytest.fixture
def scene():
    return Scene()


def test_a_client_on_the_side_of_the_share_gets_its_engine_and_others_do_not(scene):
    assert scene.served() == ("v3", "current@10")
    assert scene.served(client=ON_OWN) == ("v1", None)


@pytest.mark.parametrize("percent", [0, 1, 10, 50, 99, 100])
def test_the_split_of_10000_requests_is_within_binomial_bounds(scene, percent):
    scene.name(percent)
    drawn = {client: scene.served(client=client) for client in CLIENTS}
    assert set(drawn.values()) <= {("v3", scene.share.name), ("v1", None)}
    moved = {client for client, (version, _) in drawn.items() if version == "v3"}
    share = percent / 100
    assert abs(len(moved) - len(CLIENTS) * share) <= 3 * (len(CLIENTS) * share * (1 - share)) ** 0.5
    assert moved == {client for client in CLIENTS if side_of(client, "current") < percent}


def test_growing_a_share_moves_none_of_10000_clients_back(scene):
    before: set[str] = set()
    for percent in range(0, 101, 5):
        scene.name(percent)
        moved = {client for client in CLIENTS if scene.served(client=client) == ("v3", scene.share.name)}
        assert before <= moved
        before = moved
    assert before == {*CLIENTS}


def test_the_same_requests_again_are_split_in_the_same_way(scene):
    first = [scene.served(client=client) for client in CLIENTS]
    assert [scene.served(client=client) for client in CLIENTS] == first


def test_a_request_without_a_client_is_never_moved(scene):
    scene.name(100)
    assert scene.served(client=None) == ("v1", None)


def test_a_request_for_a_version_is_never_moved(scene):
    scene.name(100)
    assert scene.served("v1") == ("v1", None)


def test_a_request_may_name_the_share(scene):
    assert scene.served("current@10", ON_OWN) == scene.served("current@10", None) == ("v3", "current@10")
    assert scene.served("current@50") is None
    assert "current@10" in scene.traffic
    assert not [name for name in ("current@50", "current@", "v1", "canary", "canary@10") if name in scene.traffic]


def test_renaming_the_share_moves_clients_at_once_and_nobody_back(scene):
    before = {client for client in CLIENTS if scene.traffic.find("current", client).key == V3}
    scene.name(50)
    after = {client for client in CLIENTS if scene.traffic.find("current", client).key == V3}
    assert before < after
    assert scene.served() == ("v3", "current@50")


def test_a_share_that_serves_nothing_takes_nothing(scene):
    scene.engines.withdraw(share_key("current"))
    assert scene.served() == ("v1", None)
    assert scene.served("current@10") is None


def test_a_withdrawn_share_takes_nothing(scene):
    scene.share.saved.withdrawn = Withdrawn(V3, "it fails", None)
    assert scene.served() == ("v1", None)


def test_a_share_of_another_alias_does_not_count(scene):
    scene.records["canary"] = Alias("canary", scene.engines)
    scene.engines.promote("canary", V2)
    scene.name(100)
    assert scene.served("canary") == ("v2", None)


def test_what_is_avoided_is_not_leased(scene):
    assert scene.served(avoided=[V3]) == ("v1", None)
    assert scene.served(client=ON_OWN, avoided=[V1]) == ("v2", None), "a client keeps its side"
    assert scene.served(avoided=[V1, V3]) == scene.served(client=ON_OWN, avoided=[V1, V3]) == ("v2", None)
    assert scene.served(client=ON_OWN, avoided=[V1, V2]) is None
    assert scene.served(client=None, avoided=[V1]) == ("v2", None)
    assert scene.served(avoided=[V1, V2, V3]) is None
    assert scene.served("v3", avoided=[V3]) is None


def test_a_request_that_names_a_share_gets_no_other_version(scene):
    scene.engines.promote(share_key("current"), V2)
    assert scene.share.previous == V3
    assert scene.served("current@10") == ("v2", "current@10")
    assert scene.served("current@10", avoided=[V2]) is None


@pytest.mark.parametrize(
    ("model", "client", "avoided", "expected"),
    [
        ("current", ON_SHARE, (), "current@"), ("current", ON_OWN, (), "current"), ("current", None, (), "current"),
        ("current", ON_SHARE, [V3], "current"), ("current", ON_OWN, [V1], "current"), ("current@10", None, (), "current@"),
        ("v3", ON_SHARE, (), None),
    ],
)  # fmt: skip
def test_a_lease_says_by_which_alias_or_share_it_came(scene, model, client, avoided, expected):
    with scene.traffic.lease(model, client, avoided) as lease:
        assert lease.by == expected


def test_a_share_whose_engine_cannot_be_used_takes_nothing(scene):
    scene.engines.resident(V3).is_bad = True
    assert scene.served() == ("v1", None)
    assert scene.served("current@10") is None
