"""Each signature is verified once, until something changes on which that depends."""

import os
import shutil

import pytest

from tests.deploy.factory import write_version
from tests.signing.made import allow, signed, write_key, write_policy
from zwatch.deploy.sealing import write_seal
from zwatch.deploy.summaries import Summaries
from zwatch.errors import Rejection
from zwatch.signing import judged
from zwatch.signing.judged import Judgements


@pytest.fixture
def key(tmp_path):
    return write_key(tmp_path)


@pytest.fixture
def policy(tmp_path, key):
    return write_policy(tmp_path, allow())


@pytest.fixture
def root(tmp_path, key):
    """A models root with v1, which is signed, and v2, which is not."""
    root = tmp_path / "models"
    signed(write_version(root, "v1"), key)
    write_version(root, "v2")
    return root


@pytest.fixture
def verified(monkeypatch):
    """The names of the versions whose signatures were verified."""
    names, genuine = [], judged.check

    def check(policy, directory_fd, name, digest):
        names.append(name)
        return genuine(policy, directory_fd, name, digest)

    monkeypatch.setattr(judged, "check", check)
    return names


def found(judgements, root):
    """What is said of each version: the signer's first word, or the rejection's code."""
    verdicts = judgements.judge(root, Summaries(root).read().versions)
    return {name: one.code if isinstance(one, Rejection) else one.partition(" ")[0] for name, one in verdicts.items()}


def test_an_unchanged_version_is_verified_once(root, policy, verified):
    judgements = Judgements(policy)
    for _ in range(3):
        assert found(judgements, root) == {"v1": "key", "v2": "signature_missing"}
    assert verified == ["v1", "v2"]


@pytest.mark.parametrize("what", ["signature made", "signature removed", "sealed again", "version replaced"])
def test_a_changed_version_alone_is_verified_again(what, root, policy, key, verified):
    judgements = Judgements(policy)
    found(judgements, root)
    verified.clear()
    name, expected = "v1", "signature_missing"
    if what == "signature made":
        signed(root / "v2", key)
        name, expected = "v2", "key"
    elif what == "signature removed":
        (root / "v1/model.sig").unlink()
    elif what == "sealed again":
        (root / "v1/vae/config.json").write_text('{"a": 1}')
        write_seal(root / "v1", "v1")
        expected = "signature_invalid"
    else:
        shutil.rmtree(root / "v1")
        write_version(root, "v1")
    assert found(judgements, root)[name] == expected
    assert verified == [name]


@pytest.mark.parametrize("what", ["the policy", "the key that it names", "a link to the key"])
def test_a_changed_policy_judges_all_anew(what, root, policy, key, verified, tmp_path):
    if what == "a link to the key":
        (tmp_path / "release.pub").rename(tmp_path / "old.pub")
        (tmp_path / "release.pub").symlink_to("old.pub")
    judgements = Judgements(policy)
    assert found(judgements, root)["v1"] == "key"
    write_key(tmp_path, "other")
    if what == "the policy":
        write_policy(tmp_path, allow("other.pub"))
    elif what == "the key that it names":
        os.replace(tmp_path / "other.pub", tmp_path / "release.pub")
    else:
        (tmp_path / "release.pub").unlink()
        (tmp_path / "release.pub").symlink_to("other.pub")
    verified.clear()
    assert found(judgements, root) == {"v1": "signer_not_allowed", "v2": "signature_missing"}
    assert verified == ["v1", "v2"]


def test_of_what_is_gone_nothing_is_kept(root, policy, verified):
    judgements = Judgements(policy)
    found(judgements, root)
    (root / "v1").rename(root.parent / "v1")
    assert list(found(judgements, root)) == ["v2"]
    (root.parent / "v1").rename(root / "v1")
    verified.clear()
    assert found(judgements, root)["v1"] == "key"
    assert verified == ["v1"]


@pytest.mark.parametrize("what", ["gone", "no TOML", "without its key"])
def test_a_policy_that_cannot_be_used_is_a_fault_until_it_can(what, root, policy, verified, tmp_path):
    judgements = Judgements(policy)
    assert judgements.look() is None
    text, public = policy.read_text(), (tmp_path / "release.pub").read_bytes()
    if what == "gone":
        policy.unlink()
    elif what == "no TOML":
        policy.write_text("[[allow")
    else:
        (tmp_path / "release.pub").unlink()
    fault = judgements.look()
    assert str(policy) in fault
    assert "no version can be loaded until" in fault
    assert found(judgements, root) == {"v1": "policy_invalid", "v2": "policy_invalid"}
    assert verified == []
    policy.write_text(text)
    (tmp_path / "release.pub").write_bytes(public)
    assert judgements.look() is None
    assert found(judgements, root)["v1"] == "key"


def test_what_depends_on_the_present_time_is_judged_again_after_a_while(root, policy, verified, monkeypatch):
    judgements = Judgements(policy)
    found(judgements, root)
    verified.clear()
    monkeypatch.setattr(judged, "_KEPT_SECONDS", -1.0)
    found(judgements, root)
    assert verified == ["v1", "v2"]
