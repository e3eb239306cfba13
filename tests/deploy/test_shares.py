"""Names of shares, and which clients a share concerns."""

import pytest

from zwatch.deploy.shares import ShareLink, alias_meant, alias_of_key, parse_share, share_key, side_of, why_no_share

CLIENTS = [f"client-{number}" for number in range(10_000)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("current@0", ShareLink("current", 0)),
        ("current@1", ShareLink("current", 1)),
        ("current@10", ShareLink("current", 10)),
        ("current@100", ShareLink("current", 100)),
        ("a.b-c_D@99", ShareLink("a.b-c_D", 99)),
        *((name, None) for name in (
            "current", "current@", "@10", "current@101", "current@1000", "current@010", "current@00", "current@+5",
            "current@-5", "current@5.0", "current@ten", "current@10%", "current@ 10", "current@10 ", "current@1_0",
            "current@\u0661\u0660", "current@10@20", "current@@10", "-x@10", ".x@10", "x" * 65 + "@10", "a/b@10", "current@10\n", "",
        )),
    ],
)  # fmt: skip
def test_names(name, expected):
    assert parse_share(name) == expected
    assert expected is None or expected.name == name


@pytest.mark.parametrize(
    "name", ["c@101", "c@010", "c@00", "c@-5", "c@5.0", "c@ten", "c@10%", "c@", "c@1000", "c@10@20"]
)
def test_a_bad_name_is_explained_with_what_to_do(name):
    text = why_no_share(name)
    assert text.startswith(f"{name}: ")
    assert f"`mv -T {name} c@10`" in text


def test_the_key_of_a_share_is_that_of_its_alias_whatever_its_percentage():
    assert alias_of_key(share_key("current")) == "current"
    assert [alias_of_key(name) for name in ("current", "current@10")] == [None, None]
    assert [alias_meant(name) for name in ("current", "current@ten", "current@")] == [None, "current", "current"]


@pytest.mark.parametrize("alias", ["current", "canary"])
@pytest.mark.parametrize("percent", [0, 1, 10, 50, 99, 100])
def test_the_split_is_within_binomial_bounds(alias, percent):
    """The keys are fixed, so this is no matter of luck: four standard deviations are what an even hash stays within."""
    count = sum(side_of(client, alias) < percent for client in CLIENTS)
    share = percent / 100
    assert abs(count - len(CLIENTS) * share) <= 4 * (len(CLIENTS) * share * (1 - share)) ** 0.5


def test_a_share_that_grows_moves_nobody_back():
    before = set()
    for percent in range(101):
        here = {client for client in CLIENTS[:1000] if side_of(client, "current") < percent}
        assert before <= here
        before = here
    assert len(before) == 1000


def test_the_sides_of_two_aliases_do_not_depend_on_each_other():
    both = sum(side_of(client, "current") < 50 and side_of(client, "canary") < 50 for client in CLIENTS)
    assert abs(both - 2500) <= 4 * (10_000 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize("client", ["", "\ud800", "\u732b", "x" * 10_000, "127.0.0.1"])
def test_any_key_has_a_side(client):
    assert 0 <= side_of(client, "current") < 100
    assert side_of(client, "current") == side_of(client, "current")


def test_the_side_of_a_key_stays_what_it_is():
    """A change would move every client of every running trial."""
    assert [round(side_of(client, "current"), 6) for client in ("alice", "bob", "127.0.0.1")] == [
        80.607809,
        48.12505,
        7.962167,
    ]
