"""A service of three replicas on two hosts: no request is lost, there is one moment of promotion, and what a bad host does to a rollout."""

import base64
import contextlib
import io
import os
import random
import shutil
import signal
import threading
import time
from itertools import pairwise

import numpy as np
from PIL import Image

from zwatch.deploy.look import open_version
from zwatch.deploy.sealing import write_seal
from zwatch.engine.opening import open_factory
from zwatch.engine.parameters import GenerationParameters
from zwatch.shadow.control import LoadControl

REQUEST = {"prompt": "a cat", "width": 64, "height": 64, "steps": 4}
LONG = bool(os.environ.get("ZWATCH_LONG"))


def generate(fleet, **fields):
    return fleet.post("/generate", {**REQUEST, **fields})


def picture(answer):
    status, body = answer
    assert status == 200, body
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body["images"][0]["b64_json"]))))


def deploy(fleet, version):
    return fleet.post("/api/deploy", {"version": version})


def made(fleet, name, of="v2"):
    """Make another version on both hosts; return its directories."""
    directories = [root / name for root in dict.fromkeys(fleet.hosts.values())]
    for directory in directories:
        shutil.copytree(directory.parent / of, directory)
        write_seal(directory, name)
    return directories


def test_the_status_shows_each_replica_with_its_host(fleet):
    replicas = fleet.replicas
    assert [one["host"] for one in replicas.values()] == ["host-a", "host-a", "host-b"]
    assert {one["device"] for one in replicas.values()} == {"cpu (CPU)"}
    assert all(one["versions"] == ["v1"] and one["problem"] is None for one in replicas.values())


def test_a_picture_is_that_of_a_service_with_one_device(fleet):
    factory, control = open_factory("cpu"), LoadControl()
    directory = open_version(fleet.models, "v1")
    planned = factory.plan(directory, fleet.get("/status")["serving"]["digest"], control)
    engine = factory.build(directory, planned, control)
    asked = GenerationParameters("a cat", "", 64, 64, 4, 0.0, (7,))
    assert (picture(generate(fleet, seed=7)) == np.asarray(engine.generate(asked).images[0])).all()
    engine.close()


def test_requests_are_drawn_at_the_same_time(fleet):
    before = {name: one["requests"] for name, one in fleet.replicas.items()}
    threads = [threading.Thread(target=generate, args=(fleet,), kwargs={"steps": 60, "n": 4}) for _ in range(3)]
    for thread in threads:
        thread.start()
    fleet.until(lambda: fleet.get("/status")["queue"]["running"] == 3)
    for thread in threads:
        thread.join()
    assert {name: one["requests"] - before[name] for name, one in fleet.replicas.items()} == {"r0": 1, "r1": 1, "r2": 1}


def test_an_image_is_changed_and_a_job_is_watched_and_cancelled(fleet):
    source = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(source, "PNG")
    changed = generate(fleet, image=base64.b64encode(source.getvalue()).decode(), strength=0.5, seed=1)
    assert (picture(changed) != picture(generate(fleet, seed=1))).any()
    _, job = fleet.post("/jobs", {**REQUEST, "steps": 100, "n": 16})
    fleet.until(lambda: fleet.get(f"/jobs/{job['id']}").get("preview"))
    status, _ = fleet.service._call(_delete(fleet, job["id"]))
    assert status == 200
    assert fleet.get(f"/jobs/{job['id']}")["state"] == "cancelled"
    fleet.until(lambda: not any(one["running"] for one in fleet.replicas.values()))


def _delete(fleet, job):
    import urllib.request

    return urllib.request.Request(f"{fleet.url}/jobs/{job}", method="DELETE")


def test_verify_hashes_what_every_replica_holds(fleet):
    status, body = fleet.post("/api/verify", {})
    [engine] = fleet.get("/status")["engines"]
    assert (status, body["bytes"]) == (200, 3 * engine["bytes"])


def test_a_lora_must_be_the_same_on_all_hosts(fleet):
    plain, ink = (picture(generate(fleet, seed=3, loras=loras)) for loras in ([], [{"name": "ink", "scale": 0.8}]))
    assert (plain != ink).any()
    drawn = [picture(generate(fleet, seed=3, loras=[{"name": "ink", "scale": 0.8}])) for _ in range(3)]
    assert all((one == ink).all() for one in drawn)
    status, body = generate(fleet, seed=3, loras=[{"name": "here"}])
    assert (status, body["error"]["param"]) == (400, "loras")
    assert "there is no LoRA 'here'" in body["error"]["message"]
    assert "replica r2 (host-b, cpu)" in body["error"]["message"]


def test_deploy_rollback_and_unload_are_done_by_all_replicas(fleet):
    assert deploy(fleet, "v2")[0] == 200
    assert {tuple(one["versions"]) for one in fleet.replicas.values()} == {("v1", "v2")}
    assert fleet.post("/api/rollback", {})[0] == 200
    assert generate(fleet)[1]["version"] == "v1"
    assert fleet.post("/api/unload_model", {})[0] == 200
    assert {tuple(one["versions"]) for one in fleet.replicas.values()} == {()}
    assert fleet.post("/api/load_model", {})[0] == 200
    assert generate(fleet)[1]["version"] == "v1"


def test_a_share_is_ready_on_all_replicas(fleet):
    assert fleet.post("/api/share", {"version": "v2", "percent": 50})[0] == 200
    assert {tuple(one["versions"]) for one in fleet.replicas.values()} == {("v1", "v2")}
    drawn = {generate(fleet, user=f"user {number}", steps=1)[1]["version"] for number in range(24)}
    assert drawn == {"v1", "v2"}
    assert fleet.post("/api/share", {"percent": None})[0] == 200
    assert {generate(fleet, user=f"user {number}", steps=1)[1]["version"] for number in range(12)} == {"v1"}


def test_a_replica_that_hangs_loses_no_request(fleet):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(generate(fleet, steps=100, n=8, seed=5)))
    thread.start()
    busy = fleet.until(lambda: next((one for one in fleet.replicas.values() if one["running"]), None))
    os.kill(busy["pid"], signal.SIGSTOP)
    thread.join()
    [(status, body)] = answers
    assert (status, len(body["images"])) == (200, 8)
    fleet.all_have("v1")
    after = fleet.replicas[busy["name"]]
    assert (after["losses"], after["redrawn"]) == (busy["losses"] + 1, busy["redrawn"] + 1)
    assert after["pid"] != busy["pid"]


class Clients:
    """Clients that ask all the time, and what they got: (sent, answered, status, version)."""

    def __init__(self, fleet, number):
        self.answers, self._stop, self._fleet = [], threading.Event(), fleet
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(number)]
        for thread in self._threads:
            thread.start()

    def _run(self, number):
        while not self._stop.is_set():
            sent = time.monotonic()
            status, body = generate(self._fleet, seed=len(self.answers))
            self.answers.append((sent, time.monotonic(), status, body.get("version", body)))

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_flips_under_clients_while_replicas_are_killed(fleet):
    flips, number, least = (200, 8, 20) if LONG else (12, 4, 3)
    chance, promoted, done = random.Random(1), [], threading.Event()
    before = sum(one["losses"] for one in fleet.replicas.values())
    clients, killed = Clients(fleet, number), []

    def kill():
        while not done.wait(chance.uniform(0.5, 4)):
            one = chance.choice([*fleet.replicas.values()])
            if one["state"] == "READY":
                with contextlib.suppress(ProcessLookupError):  # it was killed just before, and nobody knows yet
                    os.kill(one["pid"], signal.SIGKILL)
                    killed.append(one["name"])

    killer = threading.Thread(target=kill)
    killer.start()
    end = time.monotonic() + 60 * (20 if LONG else 1)
    while (len(promoted) < flips or len(killed) < least) and time.monotonic() < end:
        version = ("v2", "v1")[len(promoted) % 2]
        begun = time.monotonic()
        status, body = deploy(fleet, version)
        if status != 200:  # a replica was killed while it prepared it
            assert "replica r" in body["error"]["message"], body
        promoted.append((begun, time.monotonic(), version, status))
        time.sleep(chance.uniform(0, 0.8))
    done.set()
    killer.join()
    clients.stop()
    assert [answer for answer in clients.answers if answer[2] != 200] == []
    checked = 0
    for (_, ended, version, status), (following, *_) in pairwise(promoted):
        for sent, answered, _, drawn in clients.answers:
            if status == 200 and sent > ended and answered < following:
                assert drawn == version, "a request that was accepted after a promotion got the old version"
                checked += 1
    assert checked > len(promoted)
    assert sum(one["losses"] for one in fleet.replicas.values()) - before >= least


def test_the_next_controller_takes_the_replicas_over_as_they_are(fleet):
    fleet.until(lambda: {one["state"] for one in fleet.replicas.values()} == {"READY"})
    serving = fleet.get("/status")["serving"]["version"]
    before = {name: one["pid"] for name, one in fleet.replicas.items()}
    fleet.stop(signal.SIGKILL)
    begun = time.monotonic()
    fleet.start("--quorum", "2/3")
    fleet.serves(serving)
    seconds = time.monotonic() - begun
    assert {name: one["pid"] for name, one in fleet.replicas.items()} == before
    assert fleet.attempt()["bytes"] == 0, "it was loaded again"
    assert seconds < 30
    assert generate(fleet)[1]["version"] == serving


def test_a_host_that_has_the_version_later_is_waited_for_and_named(fleet):
    [_, there] = made(fleet, "v3")
    there.rename(there.parent.parent / "v3")
    answers = []
    thread = threading.Thread(target=lambda: answers.append(deploy(fleet, "v3")))
    thread.start()
    waiting = fleet.until(lambda: "waiting for v3" in (fleet.replicas["r2"]["attempt"] or "") and fleet.attempt())
    assert "host-b" in waiting["activity"]
    assert waiting["state"] == "LOADING"
    (there.parent.parent / "v3").rename(there)
    thread.join()
    assert answers[0][0] == 200, answers
    fleet.all_have("v3")


def test_with_a_quorum_a_host_with_a_corrupted_copy_leaves_the_fleet_until_it_is_mended(fleet):
    [_, there] = made(fleet, "v4")
    [weights] = (there / "transformer").glob("*.safetensors")
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    assert deploy(fleet, "v4")[0] == 200
    bad = fleet.until(lambda: fleet.replicas["r2"]["state"] == "OUT" and fleet.replicas["r2"])
    assert "transformer/" in bad["problem"]
    assert "v4" not in bad["versions"]
    assert {generate(fleet, seed=seed)[1]["version"] for seed in range(6)} == {"v4"}
    weights.write_bytes(sound)
    fleet.all_have("v4")


def test_without_a_quorum_a_corrupted_copy_rejects_the_rollout_by_the_replicas_name(fleet):
    fleet.stop(signal.SIGKILL)
    fleet.start()
    fleet.serves("v4")
    [_, there] = made(fleet, "v5")
    [weights] = (there / "transformer").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert deploy(fleet, "v5")[0] == 409
    attempt = fleet.attempt()
    assert attempt["code"] == "hash_mismatch"
    assert attempt["reason"].startswith("replica r2 (host-b, cpu): transformer/")
    assert generate(fleet)[1]["version"] == "v4"
    assert {one["state"] for one in fleet.replicas.values()} == {"READY"}
    assert not any("v5" in one["versions"] for one in fleet.replicas.values())


def test_a_newer_wish_abandons_the_load_everywhere(fleet):
    [_, there] = made(fleet, "v6")
    there.rename(there.parent.parent / "v6")
    thread = threading.Thread(target=deploy, args=(fleet, "v6"))
    thread.start()
    fleet.until(lambda: "waiting for v6" in (fleet.replicas["r2"]["attempt"] or ""))
    begun = time.monotonic()
    assert deploy(fleet, "v2")[0] == 200
    assert time.monotonic() - begun < 20
    thread.join()
    fleet.until(lambda: all(one["attempt"] is None for one in fleet.replicas.values()))
    fleet.all_have("v2")


def test_a_stop_ends_the_replicas_and_the_local_cluster(fleet):
    pids = [one["pid"] for one in fleet.replicas.values()]
    assert fleet.stop() == 0
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
    assert not (fleet.root / "state/fleet/cluster.json").exists()
