"""The twins of TensorFlow Serving's tests of lifecycles (`tensorflow_serving/core/*_test.cc`), each under its own name.

There, a source says which versions it aspires to, and a policy loads and unloads; here, a link says which one. Where the answer
differs, the docstring says how: a version that the link no longer names does not stop serving before another one can.
"""

import threading

import pytest

from tests.lifecycles.light import BAD
from tests.lifecycles.service import WEIGHTS, Light, make_version
from tests.lifecycles.ways import replace

VERSIONS = ("v1", "v2", "v3")


@pytest.fixture
def light(tmp_path):
    """A service that serves v1 under `current`, and v2 under `canary`."""
    root = tmp_path / "models"
    root.mkdir()
    made = {version: make_version(root / version, version.encode()) for version in VERSIONS}
    replace(root, "v1", "current")
    replace(root, "v2", "canary")
    service = Light(root, tmp_path / "state", ("current", "canary"), first_pause=3600.0).start()
    service.colours = {version: colour for version, (_, colour) in made.items()}
    serves(service, "v1")
    serves(service, "v2", "canary")
    yield service
    service.kill()


def link(light, version, alias="current"):
    replace(light.root, version, alias)


def serves(light, version, alias="current"):
    """Wait until an alias serves a version and nothing is left to do, and check with a picture; None: until it serves nothing."""
    seen = light.until(lambda seen: seen["settled"] and (seen["serving"][alias] or [None])[0] == version)
    if version is not None:
        assert light.draw(alias)[0][0] == version
    return seen


def rejected(light, version, code):
    return light.until(lambda seen: (version, "REJECTED", code) in seen["attempts"][:1] and seen["settled"])


def damage(light, version):
    file = light.root / version / WEIGHTS
    file.write_bytes(file.read_bytes()[:-1] + b"?")


# --- aspired_versions_manager_test.cc


def test_aspire_error_dont_unload(light):
    """AspireErrorDontUnload: what serves stays while its successor cannot be loaded, and goes when one can be."""
    damage(light, "v3")
    link(light, "v3")
    seen = rejected(light, "v3", "hash_mismatch")
    assert {key[0] for key in seen["resident"]} == {"v1", "v2"}
    serves(light, "v1")
    serves(light, "v2", "canary")
    make_version(light.root / "v4", b"a good one")
    link(light, "v4")
    serves(light, "v4")


def test_unaspire_then_immediately_reaspire(light):
    """UnaspireThenImmediatelyReaspire: a version is wished for again while its last request still runs. It is not loaded again."""
    light.ask("hold", True)
    drawn, found = light.ask("view")["drawing"], []
    other = Light(light.root, light.state)
    other._http = light.new_connection()
    request = threading.Thread(target=lambda: found.append(other.draw()))
    request.start()
    light.until(lambda seen: seen["drawing"] > drawn)
    link(light, "v3")
    light.until(lambda seen: seen["serving"]["current"][0] == "v3")
    link(light, "v1")
    seen = light.until(lambda seen: seen["settled"] and seen["serving"]["current"][0] == "v1")
    assert seen["leases"] == 1
    assert seen["engines"] == 3, "v1, v2 and v3, each once"
    light.ask("hold", False)
    request.join()
    other._http.close()
    assert found[0][0][0] == "v1"
    serves(light, "v1")


def test_unaspire_failed_servable_then_immediately_reaspire(light):
    """UnaspireFailedServableThenImmediatelyReaspire: a version that failed is wished for again, and is tried again."""
    light.ask("set_faults", {"fail": "internal_error"})
    link(light, "v3")
    rejected(light, "v3", "internal_error")
    link(light, "v1")
    serves(light, "v1")
    link(light, "v3")
    serves(light, "v3")


def test_unaspire_new_servable_then_immediately_reaspire(light):
    """UnaspireNewServableThenImmediatelyReaspire: a version is given up before it was ever loaded, and wished for again."""
    light.ask("set_faults", {"slow": "plan"})
    link(light, "v3")
    light.until(lambda seen: seen["stopped_in"] == "plan")
    link(light, "v1")
    light.until(lambda seen: seen["attempts"][0] == ("v3", "ABANDONED", None))
    link(light, "v3")
    serves(light, "v3")


def test_revert_to_smaller_version_number(light):
    """RevertToSmallerVersionNumber: names have no order."""
    for version in ("v3", "v1", "v2", "v1"):
        link(light, version)
        serves(light, version)


def test_aspired_removed_full(light):
    """AspiredRemovedFull: there, all versions are unloaded. Here, a link that is gone is no wish to serve nothing."""
    (light.root / "current").unlink()
    light.until(lambda seen: seen["faults"].get("current") == "missing")
    serves(light, "v1")
    assert light.post("/api/unload_model") == 200
    seen = serves(light, None)
    assert (seen["engines"], seen["resident"]) == (0, set())


def test_aspired_and_manage_state_unload(light):
    """AspiredAndManageStateUnload: what nobody wishes for is unloaded; one previous version is kept for a rollback."""
    for version in ("v3", "v2"):
        link(light, version)
        seen = serves(light, version)
    assert {key[0] for key in seen["resident"]} == {"v2", "v3"}
    assert seen["engines"] == 2


def test_retry_on_load_error_finally_succeeds(light):
    """RetryOnLoadErrorFinallySucceeds: a failure that may pass is tried again after a pause, as often as needed."""
    link(light, "v3") if light.ask("set_faults", {"fail": "io_error"}) is None else None
    rejected(light, "v3", "io_error")
    light.ask("set_faults", {"fail": "out_of_memory"})
    light.ask("end_pauses", "all")
    rejected(light, "v3", "out_of_memory")
    light.ask("end_pauses", "all")
    serves(light, "v3")


def test_retry_on_load_error_finally_fails(light):
    """RetryOnLoadErrorFinallyFails: what cannot pass is tried once for each link."""
    make_version(light.root / "v3", BAD)
    link(light, "v3")
    rejected(light, "v3", "bad_image")
    light.ask("end_pauses", "all")
    seen = light.ask("look")
    assert seen["attempts"].count(("v3", "REJECTED", "bad_image")) == 1
    link(light, "v3")
    light.until(lambda seen: seen["attempts"].count(("v3", "REJECTED", "bad_image")) == 2)
    serves(light, "v1")


@pytest.mark.parametrize("stage", ["plan", "build", "warm"])
def test_retry_on_load_error_cancelled_load(light, stage):
    """RetryOnLoadErrorCancelledLoad: a load that was given up in the middle is not tried again."""
    light.ask("set_faults", {"slow": stage})
    link(light, "v3")
    light.until(lambda seen: seen["stopped_in"] == stage)
    link(light, "v1")
    seen = light.until(lambda seen: seen["settled"] and seen["attempts"][0] == ("v3", "ABANDONED", None))
    light.ask("end_pauses", "all")
    after = light.ask("look")
    assert after["attempts"] == seen["attempts"]
    assert after["engines"] == 2


# --- basic_manager_test.cc


@pytest.mark.parametrize("how", ["slow", "hang"])
@pytest.mark.parametrize("stage", ["plan", "build", "warm"])
def test_load_after_cancelled_load(light, stage, how):
    """LoadAfterCancelledLoad: a version whose load was given up, even one that did not return, can be loaded afterwards."""
    light.ask("set_faults", {how: stage})
    link(light, "v3")
    light.until(lambda seen: seen["stopped_in"] == stage)
    link(light, "v2")
    serves(light, "v2")
    link(light, "v3")
    seen = serves(light, "v3")
    assert seen["engines"] == len(seen["resident"])


def test_resources_released_if_load_fails(light):
    """ResourcesReleasedIfLoadFails: at every stage, whatever the failure. The same with device memory: `rollout/test_attempt.py`."""
    before = light.ask("look")
    for code in ("io_error", "device_error", "internal_error", "out_of_memory"):
        light.ask("set_faults", {"fail": code})
        link(light, "v3")
        seen = rejected(light, "v3", code)
        assert (seen["engines"], seen["resident"], seen["leases"]) == (2, before["resident"], 0)
    make_version(light.root / "v3", BAD)  # it fails after all memory was taken
    seen = rejected(light, "v3", "bad_image")
    assert (seen["engines"], seen["resident"]) == (2, before["resident"])
    assert seen["descriptors"] <= before["descriptors"] + 4
    assert seen["threads"] <= before["threads"] + 8  # lanes get their threads when they are first used


def test_resources_released_after_unload(light):
    """ResourcesReleasedAfterUnload: everything is freed before the call is answered."""
    assert light.post("/api/unload_model") == 200
    seen = light.ask("view")
    assert (seen["engines"], seen["resident"]) == (0, set())


def test_multiple_load_servables(light):
    """MultipleLoadServables: loading what serves already succeeds and loads nothing."""
    before = light.ask("look")["attempts"]
    assert light.post("/api/load_model") == 200
    assert light.post("/api/deploy", version="v1") == 200
    assert light.ask("look")["attempts"] == before


def test_multiple_unload_servables(light):
    """MultipleUnloadServables: there, the second one is an error; here it says that nothing is loaded."""
    assert [light.post("/api/unload_model") for _ in range(3)] == [200, 200, 200]
    assert light.draw() == "model_not_loaded"


def test_servable_handle_not_found_missing_version(light):
    """ServableHandleNotFoundMissingVersion, and MissingLoaderName: no other version is given instead."""
    assert light.draw("v3") == "model_not_found"
    assert light.draw("v9") == "model_not_found"
    assert light.post("/api/deploy", version="v9") == 404
    serves(light, "v1")


def test_servable_handle_specific_version(light):
    """ServableHandleSpecificVersion, ServableHandleLatest: a version by its name, and what an alias serves."""
    assert [light.draw(model)[0][0] for model in ("v1", "v2", "current", "canary")] == ["v1", "v2", "v1", "v2"]


def test_interleaved_loads_and_unloads(light):
    """InterleavedLoadsAndUnloads: at the end it is as if only the last call had been made."""
    for number in range(10):
        assert light.post("/api/unload_model") == 200
        assert light.post("/api/load_model", alias=("current", "canary")[number % 2]) == 200
    assert light.post("/api/load_model", alias="current") == 200
    seen = serves(light, "v1")
    assert seen["engines"] == len(seen["resident"])


def test_erroneous_servable(light):
    """ErroneousServable, ErroneousAspiredVersion: one alias's bad version concerns no other."""
    damage(light, "v3")
    link(light, "v3", "canary")
    rejected(light, "v3", "hash_mismatch")
    serves(light, "v1")
    serves(light, "v2", "canary")
    link(light, "v2")
    serves(light, "v2")


# --- loader_harness_test.cc


def test_unload_due_to_cancelled_load(light):
    """UnloadDueToCancelledLoad: a load that was given up and comes back late all the same is freed."""
    light.ask("set_faults", {"hang": "build"})
    link(light, "v3")
    light.until(lambda seen: seen["stopped_in"] == "build")
    assert light.post("/api/unload_model") == 200
    light.until(lambda seen: seen["stopped_in"] is None and seen["engines"] == 0)
    serves(light, None)


# --- servable_state_monitor_test.cc


def test_notify_when_servables_reach_state(light):
    """NotifyWhenServablesReachState…: a call that waits for a version is answered when it serves, or with why it does not."""
    light.ask("set_faults", {"slow": "build"})
    answers = []
    other = Light(light.root, light.state)
    other._http = light.new_connection()
    waiting = threading.Thread(target=lambda: answers.append(other.post("/api/deploy", version="v3")))
    waiting.start()
    light.until(lambda seen: seen["stopped_in"] == "build")
    assert answers == []
    light.ask("go_on")
    waiting.join()
    assert answers == [200]
    damage(light, "v1")
    assert light.draw("current")[0][0] == "v3"
    link(light, "v2")
    serves(light, "v2")
    assert other.post("/api/deploy", version="v1") == 409
    other._http.close()
    serves(light, "v2")
