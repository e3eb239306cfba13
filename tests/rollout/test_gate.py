"""Signatures in a rollout: what is unsigned is neither loaded nor promoted, and what mends that is noticed."""

import asyncio
import os
import shutil
import threading
from pathlib import Path

import pytest

from tests.deploy.factory import next_tick
from tests.rollout.conftest import DEADLINE, flip_byte, noted_good, picture, prove_good, quick_retries
from tests.signing.made import allow, signed, write_key, write_policy
from zwatch.deploy import seal
from zwatch.deploy.seal import SEAL_NAME, SIGNATURE_NAME
from zwatch.deploy.sealing import write_seal
from zwatch.rollout.gate import Gate

pytest.importorskip("cryptography", reason="the extra `signing` is not installed")


@pytest.fixture
def key(tmp_path):
    return write_key(tmp_path)


@pytest.fixture
def policy(tmp_path, key):
    return write_policy(tmp_path, allow())


@pytest.fixture
def make(services, policy, models, key):
    """Make services that require signatures; v1 is signed."""
    signed(models / "v1", key)
    return lambda **options: services(policy_file=policy, **options)


@pytest.fixture
async def strict(make):
    """Such a service that serves v1."""
    started = await make().start()
    await started.until_serves("v1")
    return started


async def test_a_signed_version_serves_and_says_who_signed_it(strict):
    resident = strict.engines.serving("current")
    assert resident.signer.startswith("key release.pub sha256:")
    assert strict.supervisor.attempt("current").signer == resident.signer
    with strict.engines.lease("current") as lease:
        assert lease.signer == resident.signer


async def test_without_a_policy_nobody_is_named_and_everything_serves(service, key):
    signed(service.root / "v2", key)
    service.link("v2")
    await service.until_serves("v2")
    assert service.engines.serving("current").signer is None


async def test_an_unsigned_version_is_rejected_and_what_serves_goes_on(strict):
    strict.link("v2")
    await strict.until_rejected("v2", "signature_missing")
    assert strict.serves() == "v1"
    assert strict.factory.built == ["v1"]


async def test_nothing_of_an_unsigned_version_is_read_but_its_seal(strict, monkeypatch):
    read = []
    opened_file = seal.opened_file
    monkeypatch.setattr(
        seal, "opened_file", lambda fd, path: read.append((path, os.fstat(fd).st_ino)) or opened_file(fd, path)
    )
    inode = (strict.root / "v2").stat().st_ino
    strict.link("v2")
    await strict.until_rejected("v2", "signature_missing")
    assert {path for path, directory in read if directory == inode} == {SEAL_NAME, SIGNATURE_NAME}


async def test_a_signature_that_is_added_later_is_found_without_a_new_link(strict, key):
    strict.link("v2")
    await strict.until_rejected("v2", "signature_missing")
    signed(strict.root / "v2", key)
    await strict.until_serves("v2")


async def test_a_wrong_signature_that_is_replaced_is_found_without_a_new_link(strict, tmp_path, key):
    signed(strict.root / "v2", write_key(tmp_path, "other"))
    strict.link("v2")
    await strict.until_rejected("v2", "signer_not_allowed")
    next_tick(strict.root)
    signed(strict.root / "v2", key)
    await strict.until_serves("v2")


async def test_a_rejected_version_is_not_tried_again_and_again(strict):
    strict.link("v2")
    await strict.until_rejected("v2", "signature_missing")
    for _ in range(5):
        await strict.supervisor.look_now()
    assert strict.attempts().count(("v2", "REJECTED", "signature_missing")) == 1


async def test_a_version_that_is_altered_after_it_was_signed_is_rejected(strict, key):
    signed(strict.root / "v2", key)
    (strict.root / "v2/scheduler/scheduler_config.json").write_text("{}")
    write_seal(strict.root / "v2", "v2")
    strict.link("v2")
    await strict.until_rejected("v2", "signature_invalid")


async def test_signed_weights_that_are_damaged_are_rejected_by_the_seal_as_always(strict, key):
    signed(strict.root / "v2", key)
    flip_byte(strict.root / "v2/transformer/diffusion_pytorch_model.safetensors")
    strict.link("v2")
    await strict.until_rejected("v2", "hash_mismatch")


async def test_a_new_key_in_the_policy_lets_what_was_rejected_serve(strict, tmp_path, policy):
    signed(strict.root / "v2", write_key(tmp_path, "new", "Ed25519"))
    strict.link("v2")
    await strict.until_rejected("v2", "signer_not_allowed")
    next_tick(tmp_path)
    write_policy(tmp_path, allow(), allow("new.pub"))
    await strict.until_serves("v2")
    assert strict.engines.serving("current").signer.startswith("key new.pub ")


@pytest.mark.parametrize("link", ["policy.toml", "release.pub", "folder"])
async def test_a_link_to_the_policy_or_a_key_that_leads_elsewhere_counts(services, models, tmp_path, link):
    key, folder = write_key(tmp_path, "other"), tmp_path / "real"
    for name, allowed in (("a", "nobody.pub"), ("b", "release.pub")):
        (folder / name).mkdir(parents=True)
        write_key(folder / name, "nobody")
        shutil.copy(tmp_path / "other.pub", folder / name / "release.pub")
        write_policy(folder / name, allow(allowed))
    place = tmp_path / "place"
    if link == "folder":
        policy = place / "policy.toml"
        place.symlink_to(folder / "a")
    else:
        place.mkdir()
        policy = place / "policy.toml"
        files = ("policy.toml", "release.pub", "nobody.pub")
        for name in files:
            (place / name).symlink_to(folder / "a" / name)
        if link == "release.pub":
            policy.unlink()
            write_policy(place, allow("release.pub"))
            (place / "release.pub").unlink()
            (place / "release.pub").symlink_to(folder / "a/nobody.pub")
    signed(models / "v1", key)
    service = await services(policy_file=policy).start()
    await service.until_rejected("v1", "signer_not_allowed")
    next_tick(tmp_path)
    new = place if link == "folder" else place / link
    (tmp_path / "new").symlink_to({"folder": folder / "b"}.get(link, folder / "b" / link))
    os.replace(tmp_path / "new", new)
    await service.until_serves("v1")


async def test_another_file_in_the_place_of_a_policy_s_key_counts_too(strict, tmp_path):
    other = write_key(tmp_path, "other")
    signed(strict.root / "v2", other)
    strict.link("v2")
    await strict.until_rejected("v2", "signer_not_allowed")
    next_tick(tmp_path)
    shutil.copy(tmp_path / "other.pub", tmp_path / "release.pub")
    await strict.until_serves("v2")


async def test_a_policy_that_breaks_later_rejects_versions_until_it_is_mended(strict, tmp_path, key, policy):
    signed(strict.root / "v2", key)
    good = policy.read_text()
    policy.write_text("[[allow")
    strict.link("v2")
    await strict.until_rejected("v2", "policy_invalid")
    assert strict.serves() == "v1"
    assert f"the policy {policy} is no TOML" in strict.supervisor.attempt("current").rejection.reason
    next_tick(tmp_path)
    policy.write_text(good)
    await strict.until_serves("v2")


async def test_what_serves_goes_on_though_the_policy_does_not_allow_it_any_more(strict, tmp_path):
    before = picture(strict.engines.lease("current"))
    write_policy(tmp_path, allow(versions="w*"))
    for _ in range(3):
        await strict.supervisor.look_now()
    assert strict.serves() == "v1"
    assert (picture(strict.engines.lease("current")) == before).all()


async def test_a_resident_version_is_not_promoted_again_once_the_policy_does_not_allow_it(strict, tmp_path, key):
    signed(strict.root / "v2", key)
    strict.link("v2")
    await strict.until_serves("v2")
    write_policy(tmp_path, allow(versions="v2"))
    strict.link("v1")
    await strict.until_rejected("v1", "signer_not_allowed")
    assert strict.serves() == "v2"
    assert strict.states()["v1"].name == "WARM"
    for _ in range(3):
        await strict.supervisor.look_now()
    assert strict.attempts().count(("v1", "REJECTED", "signer_not_allowed")) == 1
    next_tick(tmp_path)
    write_policy(tmp_path, allow())
    await strict.until_serves("v1")
    assert strict.factory.built == ["v1", "v2"], "it was resident"


async def test_a_resident_version_whose_signature_was_removed_is_not_promoted_again(strict, key):
    signed(strict.root / "v2", key)
    strict.link("v2")
    await strict.until_serves("v2")
    (strict.root / "v1" / SIGNATURE_NAME).unlink()
    strict.link("v1")
    await strict.until_rejected("v1", "signature_missing")
    signed(strict.root / "v1", key)
    await strict.until_serves("v1")


async def test_an_unload_while_a_signature_is_verified_wins(strict, key, monkeypatch):
    signed(strict.root / "v2", key)
    strict.link("v2")
    await strict.until_serves("v2")
    held, reached = threading.Event(), threading.Event()
    check = Gate.signer

    def hold(*given):
        reached.set()
        held.wait(DEADLINE)
        return check(*given)

    monkeypatch.setattr(Gate, "signer", hold)
    strict.link("v1")
    await strict.until(reached.is_set)
    unloading = asyncio.create_task(strict.operator.unload())
    await strict.until(lambda: strict.supervisor.is_unloaded("current"))
    held.set()
    await asyncio.wait_for(unloading, DEADLINE)
    assert strict.serves() is None
    assert strict.attempts()[0][:2] == ("v1", "ABANDONED")


async def test_a_rollback_to_a_resident_version_names_its_signer(strict, key):
    signed(strict.root / "v2", key)
    strict.link("v2")
    await strict.until_serves("v2")
    strict.link("v1")
    await strict.until_serves("v1")
    assert strict.supervisor.attempt("current").way.value == "resident"
    assert strict.engines.serving("current").signer.startswith("key release.pub ")


@quick_retries
async def test_last_known_good_serves_after_a_restart_only_if_it_is_signed(make, models, tmp_path, key):
    first = await make().start()
    await first.until_serves("v1")
    prove_good(first)
    await noted_good(first, "v1")
    await first.stop()
    (models / "v1" / SIGNATURE_NAME).unlink()
    first.link("v2")
    second = await make().start()
    await second.until(lambda: {code for _, _, code in second.attempts()} == {"signature_missing"})
    await second.until(lambda: {version for version, _, _ in second.attempts()} == {"v1", "v2"})
    assert second.serves() is None
    signed(models / "v1", key)
    await second.until(lambda: second.serves() == "v1")
    assert second.engines.serving("current").signer.startswith("key release.pub ")


async def test_an_operator_s_load_asks_for_the_signature_too(strict):
    (strict.root / "v1" / SIGNATURE_NAME).unlink()
    strict.supervisor.records["current"].forced = True
    strict.supervisor.ring()
    await strict.until_rejected("v1", "signature_missing")
    assert strict.serves() == "v1"


async def test_two_aliases_are_asked_each_for_itself(make, models, key):
    (models / "canary").symlink_to("v2")
    started = await make(aliases=("current", "canary")).start()
    await started.until_serves("v1")
    await started.until(lambda: ("v2", "REJECTED", "signature_missing") in started.attempts())
    signed(Path(models) / "v2", key)
    await started.until_serves("v2", "canary")


async def test_an_unsigned_version_takes_no_requests_by_a_share_until_it_is_signed(strict, key):
    (strict.root / "current@100").symlink_to("v2")
    strict.supervisor.ring()
    await strict.until_rejected("v2", "signature_missing")
    assert strict.supervisor.traffic.find("current", "somebody").key.version == "v1"
    signed(strict.root / "v2", key)
    await strict.until_serves("v2", "current@")
    share = strict.supervisor.records.share_of("current")
    assert share.serving.signer.startswith("key release.pub sha256:")
    os.rename(strict.root / "current@100", strict.root / "current")
    strict.supervisor.ring()
    await strict.until_serves("v2")
