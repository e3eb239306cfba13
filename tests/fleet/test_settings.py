"""What the options of a fleet mean."""

import pytest

from zwatch.fleet import settings
from zwatch.fleet.settings import local_devices, quorum, replica_count


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


def test_replicas_of_this_host_are_on_its_gpus_or_on_its_cpu(monkeypatch):
    monkeypatch.setattr(settings, "_gpus", list)
    assert local_devices(replica_count("3"), "auto") == local_devices(replica_count("3"), "cpu") == ("cpu",) * 3
    assert local_devices(replica_count("auto"), "auto") == ("cpu",)
    with pytest.raises(ValueError, match="--device cuda: this host has no GPU"):
        local_devices(replica_count("1"), "cuda")
    monkeypatch.setattr(settings, "_gpus", lambda: ["0", "3"])
    assert local_devices(replica_count("2"), "cuda") == local_devices(replica_count("2"), "auto") == ("0", "3")
    assert local_devices(replica_count("auto"), "auto") == ("all",)
    assert local_devices(replica_count("3"), "cpu") == ("cpu",) * 3
    with pytest.raises(ValueError, match="--replicas 3: this host has 2 GPUs; give --replicas 2, or --device cpu"):
        local_devices(replica_count("3"), "auto")
    with pytest.raises(ValueError, match=r"MIN\.\.MAX is for the hosts of a cluster"):
        local_devices(replica_count("2..3"), "cpu")
