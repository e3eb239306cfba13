"""A cluster whose hosts Ray's autoscaler begins and ends, and a fleet that follows its queue: `python -m tests.fleet.autoscaled ROOT`.

It runs in namespaces of its own (mount, network, processes), since Ray's provider of fake hosts uses fixed ports, and the package of Ray lacks
a file of it. It prints one JSON object of what it saw.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import yaml

from zwatch.client import Service

HEAD = "f" * 51 + "00000"
MOST = 3
CLUSTER = {
    "cluster_name": "zwatch", "max_workers": MOST, "head_node_type": "ray.head.default", "upscaling_speed": 100.0, "idle_timeout_minutes": 0.1,
    "provider": {
        "type": "fake_multinode", "use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True,
        "launch_multiple": True, "head_node_id": HEAD,
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "host": {
            "resources": {"CPU": 1, "object_store_memory": 100_000_000}, "node_config": {}, "min_workers": 0, "max_workers": MOST - 1,
        },
    },
    "auth": {}, "docker": {}, "file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False,
    **{f"{who}{what}_commands": [] for who in ("", "head_", "worker_") for what in ("initialization", "setup", "start_ray")},
    "rsync_exclude": [], "rsync_filter": [],
}  # fmt: skip
"""A head for one replica, and at most two more hosts, of one replica each; a host without one ends after 6 s."""
REQUEST = {"prompt": "a cat", "width": 64, "height": 64, "steps": 40, "n": 4}
SECONDS = 150.0


def make_provider_complete(root: Path) -> None:
    """Mount a copy of Ray's provider of fake hosts, with the file that its package lacks, over it."""
    there = Path(importlib.util.find_spec("ray.autoscaler._private.fake_multi_node").origin).parent
    copy = root / "provider"
    shutil.copytree(there, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "example.yaml").write_text(yaml.safe_dump(CLUSTER))
    subprocess.run(["mount", "--bind", copy, there], check=True)


def begin_cluster(root: Path) -> None:
    """Begin the head, with the autoscaler."""
    (root / "cluster.yaml").write_text(yaml.safe_dump(CLUSTER))
    own = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "0", "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip
    os.environ.update(own)
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--port=6379", "--node-ip-address=127.0.0.1", "--num-cpus=1",
        "--include-dashboard=false", "--temp-dir=/mnt", f"--autoscaling-config={root / 'cluster.yaml'}",
    ]  # fmt: skip
    with (root / "head.log").open("wb") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log)


def begin_fleet(root: Path) -> subprocess.Popen:
    """Begin the controller."""
    command = [
        sys.executable, "-m", "tests.fleet.controller", "--", "--models", root / "models", "--state-dir", root / "state",
        "--port", "7860", "--log", "text", "--ray", "127.0.0.1:6379", "--device", "cpu", "--replicas", f"1..{MOST}",
    ]  # fmt: skip
    with (root / "controller.log").open("wb") as log:
        return subprocess.Popen([*map(str, command)], stdout=log, stderr=log)


class Seen:
    """What a service shows."""

    def __init__(self) -> None:
        self.service = Service("http://127.0.0.1:7860", None)
        self.statuses: list[int] = []

    def replicas(self) -> list[dict]:
        """Return the replicas; none while nobody answers."""
        try:
            return self.service.get("/status")[1]["replicas"]
        except Exception:
            return []

    def until(self, ready: int, others: int | None = 0) -> float:
        """Wait until so many replicas are ready, and no other is there; return how long it took."""
        begun = time.monotonic()
        while time.monotonic() - begun < SECONDS:
            states = [one["state"] for one in self.replicas()]
            if states.count("READY") == ready and (others is None or len(states) == ready + others):
                return round(time.monotonic() - begun, 1)
            time.sleep(0.2)
        raise AssertionError(f"waited {SECONDS} s for {ready} replicas: {self.replicas()}")

    def ask(self, ended: threading.Event) -> None:
        """Ask for one picture after the other."""
        while not ended.is_set():
            self.statuses.append(self.service.post("/generate", REQUEST)[0])


def hosts() -> int:
    """Return how many hosts the cluster has."""
    code = (
        "import ray; ray.init(address='127.0.0.1:6379', log_to_driver=False, logging_level='ERROR'); "
        "print(sum(one['Alive'] for one in ray.nodes()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    root = Path(sys.argv[1])
    make_provider_complete(root)
    begin_cluster(root)
    begin_fleet(root)
    seen, ended = Seen(), threading.Event()
    found: dict = {"until the first is ready": seen.until(1), "hosts at first": hosts()}
    threads = [threading.Thread(target=seen.ask, args=(ended,)) for _ in range(12)]
    for thread in threads:
        thread.start()
    found |= {"until all are ready": seen.until(MOST), "hosts under load": hosts()}
    time.sleep(5)
    found["drawn"] = {one["name"]: one["requests"] for one in seen.replicas()}
    ended.set()
    for thread in threads:
        thread.join()
    found |= {
        "until one is left": seen.until(1),
        "requests": len(seen.statuses),
        "statuses": sorted(set(seen.statuses)),
    }
    begun = time.monotonic()
    while (left := hosts()) > 1 and time.monotonic() - begun < SECONDS:
        time.sleep(1)
    found |= {"hosts at the end": left, "until the hosts are gone": round(time.monotonic() - begun, 1)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
