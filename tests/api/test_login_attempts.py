"""The limit of failed logins per address."""

import pytest

from zwatch.api.auth import FAILURE_SECONDS, MAX_ADDRESSES, MAX_FAILURES, LoginAttempts
from zwatch.errors import RequestError


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def attempts(clock):
    return LoginAttempts(clock)


def exhaust(attempts, address):
    """Fail until it is refused; return the number of failures, and the seconds to wait."""
    for failures in range(100):
        try:
            attempts.check(address)
        except RequestError as error:
            return failures, float(error.headers["Retry-After"])
        attempts.count_failure(address)
    raise AssertionError("there is no limit")


def test_ten_failures_in_a_row_are_allowed_and_one_more_after_each_pause(attempts, clock):
    assert exhaust(attempts, "10.0.0.1") == (MAX_FAILURES, FAILURE_SECONDS)
    clock.now += FAILURE_SECONDS / 2
    assert exhaust(attempts, "10.0.0.1") == (0, FAILURE_SECONDS / 2)
    clock.now += FAILURE_SECONDS / 2
    assert exhaust(attempts, "10.0.0.1") == (1, FAILURE_SECONDS)
    clock.now += 1e6
    assert exhaust(attempts, "10.0.0.1") == (MAX_FAILURES, FAILURE_SECONDS)


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
def test_each_ipv4_address_and_each_ipv6_network_is_limited_separately(attempts, one, another, same):
    exhaust(attempts, one)
    assert (exhaust(attempts, another)[0] == 0) is same


def test_the_number_of_remembered_addresses_is_bounded(attempts):
    exhaust(attempts, "10.9.9.9")
    for number in range(MAX_ADDRESSES):
        attempts.count_failure(f"10.0.{number // 256}.{number % 256}")
    assert exhaust(attempts, "10.9.9.9")[0] == MAX_FAILURES, "the address with the oldest failure is forgotten"
    assert exhaust(attempts, "10.0.0.9")[0] == MAX_FAILURES - 1, "the newer ones are not"
