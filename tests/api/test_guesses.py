"""How often wrong tokens may be tried."""

import pytest

from zwatch.api.auth import IN_A_ROW, MOST_ADDRESSES, SECONDS_EACH, Guesses
from zwatch.errors import RequestError


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def guesses(clock):
    return Guesses(clock)


def exhaust(guesses, address):
    """Try until it is refused; return how often that went, and the seconds to wait."""
    for tried in range(100):
        try:
            guesses.check(address)
        except RequestError as error:
            return tried, float(error.headers["Retry-After"])
        guesses.count(address)
    raise AssertionError("there is no limit")


def test_some_may_be_tried_in_a_row_and_one_more_after_each_pause(guesses, clock):
    assert exhaust(guesses, "10.0.0.1") == (IN_A_ROW, SECONDS_EACH)
    clock.now += SECONDS_EACH / 2
    assert exhaust(guesses, "10.0.0.1") == (0, SECONDS_EACH / 2)
    clock.now += SECONDS_EACH / 2
    assert exhaust(guesses, "10.0.0.1") == (1, SECONDS_EACH)
    clock.now += 1e6
    assert exhaust(guesses, "10.0.0.1") == (IN_A_ROW, SECONDS_EACH)


@pytest.mark.parametrize(
    ("one", "another", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8::ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("", "", True),
    ],
)
def test_each_address_has_its_own_account(guesses, one, another, same):
    exhaust(guesses, one)
    assert (exhaust(guesses, another)[0] == 0) is same


def test_only_so_many_addresses_are_remembered(guesses):
    for number in range(MOST_ADDRESSES + 10):
        guesses.count(f"10.0.{number // 256}.{number % 256}")
    assert len(guesses._paid) == MOST_ADDRESSES
