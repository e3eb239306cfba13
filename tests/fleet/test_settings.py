"""What the options of a fleet mean."""

import pytest

from zwatch.fleet.settings import quorum, replica_count


@pytest.mark.parametrize(
    ("text", "needed"), [("all", [1, 2, 3, 8]), ("2", [1, 2, 2, 2]), ("2/3", [1, 2, 2, 6]), ("1/2", [1, 1, 2, 4])]
)
def test_a_quorum_of_so_many_replicas(text, needed):
    assert [quorum(text).of(number) for number in (1, 2, 3, 8)] == needed


def test_only_a_range_follows_the_queue_and_only_auto_the_cluster():
    assert (replica_count("2..8").is_elastic, replica_count("2").is_elastic, replica_count("auto").is_elastic) == (
        True, False, False,
    )  # fmt: skip
    assert replica_count("auto").follows_cluster
