"""`zwatch prune`: what it keeps, and that nothing is lost to a crash, a race or a link."""

import asyncio
import io
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest

from tests.deploy.factory import AS_ROOT, VAE, WEIGHTS, write_version
from tests.harness import Server
from zwatch import prune as module
from zwatch.client import Service
from zwatch.deploy import pruning
from zwatch.deploy.pointers import find_pointers
from zwatch.deploy.pruning import PruneBusyError, locked
from zwatch.deploy.seal import SEAL_NAME
from zwatch.deploy.sealing import write_seal
from zwatch.deploy.summaries import Summaries
from zwatch.errors import UsageError
from zwatch.prune import by_state, prune


@pytest.fixture
def versions(tmp_path):
    """A models root with v1 to v6, sealed in this order."""
    root = tmp_path / "models"
    for number in range(1, 7):
        directory = write_version(root, f"v{number}")
        os.utime(directory / SEAL_NAME, (number * 1000, number * 1000))
    return root


def names(root):
    return sorted(os.listdir(root))


def run(root, keep=2, needs=None, **how):
    """Prune without a service; return the exit status."""
    asked = needs or (lambda root_fd: {})
    return prune(root, keep, asked, **{"dry_run": False, "is_agreed": True, "as_json": False, **how})


def test_all_but_the_newest_by_seal_time_are_deleted(versions, capsys):
    os.utime(versions / "v1" / SEAL_NAME, (9000, 9000))
    assert run(versions) == 0
    assert names(versions) == ["v1", "v6"]
    out = capsys.readouterr().out
    assert "keep    v1: among the newest 2" in out
    size = sum(path.stat().st_size for path in (versions / "v6").rglob("*") if path.is_file())
    assert f"delete  v2: {size:,} bytes" in out
    assert "deleted v2, v3, v4, v5: " in out


def test_what_a_link_leads_to_is_kept_whoever_follows_it(versions, tmp_path):
    for link, text in {
        "current": "stable", "stable": "v1/", "canary@10": f"{versions}/v2", ".zwatch-current-0123456789ab": "./v3",
    }.items():  # fmt: skip
        (versions / link).symlink_to(text)
    (versions / "team/a").mkdir(parents=True)
    (versions / "team/a/prod").symlink_to("../../v4")
    assert run(versions, 1) == 0
    assert names(versions) == [".zwatch-current-0123456789ab", "canary@10", "current", "stable", "team", "v1", "v2", "v3", "v4", "v6"]  # fmt: skip


def test_what_a_share_leads_to_is_kept_until_the_trial_ends(versions, capsys):
    (versions / "current").symlink_to("v2")
    (versions / "current@10").symlink_to("v1")
    assert run(versions, 1) == 0
    assert names(versions) == ["current", "current@10", "v1", "v2", "v6"]
    assert "keep    v1: current@10 -> v1\n" in capsys.readouterr().out
    (versions / "current@10").unlink()
    assert run(versions, 1) == 0
    assert names(versions) == ["current", "v2", "v6"]


def test_chains_through_versions_and_through_other_places_keep_every_step(versions, tmp_path):
    elsewhere, other = tmp_path / "elsewhere", tmp_path / "other"
    elsewhere.symlink_to(versions / "v2")
    other.symlink_to(versions)
    (versions / "v1/next").symlink_to("../v3")
    for link, text in {"a": "v1/next", "b": "../elsewhere", "c": "../other/v4/vae", "loop": "loop"}.items():
        (versions / link).symlink_to(text)
    found = find_pointers(versions).by_version
    assert found["v1"] == ["a -> v1/next"]
    assert sorted(found["v3"]) == ["a -> v1/next", "v1/next -> ../v3"]
    assert found["v2"] == ["b -> ../elsewhere"]
    assert found["v4"] == ["c -> ../other/v4/vae"]
    assert run(versions, 1) == 0
    assert {name for name in names(versions) if name.startswith("v")} == {"v1", "v2", "v3", "v4", "v6"}


def test_a_stray_keeps_what_it_asks_for_and_not_where_it_lies(versions):
    (versions / "v1/v2").symlink_to("v2")
    (versions / "v3/self").symlink_to("../v3")
    assert run(versions, 1) == 0
    assert names(versions) == ["v2", "v6"]


def test_what_the_service_needs_is_kept_with_the_reason(versions, capsys):
    assert run(versions, 1, lambda root_fd: {"v1": ["last-known-good at http://x"]}) == 0
    assert names(versions) == ["v1", "v6"]
    assert "keep    v1: last-known-good at http://x" in capsys.readouterr().out


def test_what_is_not_sealed_is_left_and_named(versions, capsys):
    (versions / "v1" / SEAL_NAME).unlink()
    (versions / "v2" / SEAL_NAME).write_text("hello\n")
    (versions / "v3" / SEAL_NAME).unlink()
    os.mkfifo(versions / "v3" / SEAL_NAME)
    (versions / "notes").touch()
    (versions / "a b").mkdir()
    assert run(versions, 1) == 0
    assert names(versions) == ["a b", "notes", "v1", "v2", "v3", "v6"]
    out = capsys.readouterr().out
    assert "leave   v1: it is not sealed; perhaps it is being copied" in out
    assert "leave   v2: BLAKE3SUMS line 1" in out
    assert "leave   v3: BLAKE3SUMS: expected a regular file, found a FIFO" in out


def test_nothing_is_deleted_by_a_dry_run_nor_without_an_answer(versions, monkeypatch, capsys):
    before = names(versions)
    assert run(versions, dry_run=True, is_agreed=False) == 0
    assert "delete  v1: " in capsys.readouterr().out
    with pytest.raises(UsageError, match="--yes deletes without a question"):
        run(versions, is_agreed=False)
    monkeypatch.setattr(module, "_agrees", lambda count: False)
    assert run(versions, is_agreed=False) == 1
    assert names(versions) == before


@pytest.mark.parametrize(("answer", "status", "left"), [("y", 0, 2), (" Yes ", 0, 2), ("n", 1, 6), ("", 1, 6)])
def test_a_person_is_asked_and_only_yes_deletes(versions, monkeypatch, capsys, answer, status, left):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    assert run(versions, is_agreed=False) == status
    assert len(names(versions)) == left
    found = capsys.readouterr()
    assert "Delete 4 versions? [y/N]" in found.err
    assert "delete  v1: " in found.out


def test_links_in_a_version_are_removed_and_not_followed(versions, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    (versions / "v1/out").symlink_to(precious)
    (versions / "v1/vae/out").symlink_to(precious)
    assert run(versions) == 0
    assert "v1" not in names(versions)
    assert (precious / "file").exists()


def test_only_bytes_without_another_name_count_as_freed(versions, capsys):
    for name in ("v5", "v6", "v1"):
        (versions / name / VAE).unlink()
        os.link(versions / "v2" / VAE, versions / name / VAE)
    shared = (versions / "v2" / VAE).stat().st_size
    sizes = pruning.measure(versions, ["v1", "v2"])
    assert sum(sizes.by_name.values()) - sizes.freed == 2 * shared
    assert run(versions, 4, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["freed"] == sizes.freed
    assert pruning.measure(versions, ["v5", "v6"]).freed == sum(pruning.measure(versions, ["v5", "v6"]).by_name.values()) - shared  # fmt: skip


@pytest.mark.parametrize("chain", [False, True])
def test_a_link_made_between_the_check_and_the_rename_brings_the_version_back(versions, monkeypatch, capsys, chain):
    genuine = pruning.hide

    def hide(*given):
        (versions / "current").symlink_to("v1/next" if chain else "v1")
        return genuine(*given)

    if chain:
        (versions / "v1/next").symlink_to("/nowhere")
        (versions / "v6/x").symlink_to("v2")
    monkeypatch.setattr(pruning, "hide", hide)
    assert run(versions) == 0
    assert "v1" in names(versions)
    assert (versions / "v1" / WEIGHTS).exists()
    assert not {"v3", "v4"} & set(names(versions))
    assert "v1 is kept: current -> v1" in capsys.readouterr().err


def test_a_version_that_is_replaced_after_the_question_stays(versions, monkeypatch):
    genuine = pruning.hide

    def hide(*given):
        shutil.rmtree(versions / "v1")
        write_version(versions, "v1", b"another.")
        return genuine(*given)

    monkeypatch.setattr(pruning, "hide", hide)
    assert run(versions) == 0
    assert names(versions) == ["v1", "v5", "v6"]


def test_what_a_crash_after_the_rename_leaves_is_finished_or_returned(versions):
    for name in ("v1", "v2"):
        (versions / name).rename(versions / f".{name}.pruned-0123456789ab")
    (versions / "v3").rename(versions / ".v3.removing-0123456789ab")
    for name in ("v2", "v3"):
        (versions / f"link-{name}").symlink_to(name)
    assert {reason.partition(";")[0] for _, reason in Summaries(versions).read().unusable} == {
        "a `zwatch prune` that was interrupted left it"
    }
    assert run(versions, 5) == 0
    assert names(versions) == ["link-v2", "link-v3", "v2", "v4", "v5", "v6"], "what is partly removed is not returned"


def test_a_dry_run_says_what_is_renamed_back_and_what_is_removed(versions, capsys):
    for name in ("v1", "v2", "v3"):
        (versions / name).rename(versions / f".{name}.pruned-0123456789ab")
    (versions / "link").symlink_to("v2")
    (versions / ".v2.pruned-0123456789ab/more").symlink_to("../v3")  # needed once v2 is there again
    before = names(versions)
    assert run(versions, 5, dry_run=True) == 0
    lines = capsys.readouterr().out.splitlines()
    returned = [line for line in lines if line.startswith("return  ")]
    assert [line.partition(":")[0] for line in returned] == [
        f"return  .{name}.pruned-0123456789ab to {name}" for name in ("v2", "v3")
    ]
    assert [line.split()[1] for line in lines if line.startswith("delete  ")] == [".v1.pruned-0123456789ab:"]
    assert names(versions) == before
    assert run(versions, 5, dry_run=True, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert (list(found["leftovers"].values()), sorted(found["returned"])) == (["v1"], ["v2", "v3"])
    assert run(versions, 5) == 0
    assert names(versions) == ["link", "v2", "v3", "v4", "v5", "v6"]


def test_nobody_is_asked_about_what_is_only_renamed_back(versions):
    (versions / "v2").rename(versions / ".v2.pruned-0123456789ab")
    (versions / "link").symlink_to("v2")
    assert run(versions, 6, is_agreed=False) == 0
    assert names(versions) == ["link", "v1", "v2", "v3", "v4", "v5", "v6"]


def test_names_that_a_terminal_would_obey_are_escaped(versions, capsys):
    (versions / "\x1b[2J").symlink_to("v1")
    (versions / os.fsdecode(b"\xff")).symlink_to("v2")
    assert run(versions, 1, dry_run=True) == 0
    out = capsys.readouterr().out
    assert r"keep    v1: \x1b[2J -> v1" in out
    assert r"keep    v2: \udcff -> v2" in out
    assert run(versions, 1, dry_run=True, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["kept"]["v2"] == ["\udcff -> v2"]


def test_an_interruption_while_one_is_removed_brings_the_others_back(versions, monkeypatch):
    def interrupted(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(versions)
    monkeypatch.undo()
    assert [name.partition("-")[0] for name in names(versions)] == [".v1.removing", "v2", "v3", "v4", "v5", "v6"]
    assert run(versions) == 0
    assert names(versions) == ["v5", "v6"]


def test_a_service_that_does_not_answer_after_the_rename_brings_everything_back(versions):
    def ask(root_fd):
        if any(name.startswith(".v") for name in os.listdir(root_fd)):
            raise UsageError("no service")
        return {}

    with pytest.raises(UsageError, match="no service"):
        run(versions, needs=ask)
    assert names(versions) == ["v1", "v2", "v3", "v4", "v5", "v6"]


def test_an_interruption_while_versions_are_renamed_brings_them_back(versions, monkeypatch):
    genuine = os.rename

    def interrupted(source, target, **named):
        genuine(source, target, **named)
        if source == "v2":
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(versions)
    assert names(versions) == ["v1", "v2", "v3", "v4", "v5", "v6"]


def test_a_version_that_holds_a_mount_is_named_and_left(versions, monkeypatch, capsys):
    monkeypatch.setattr(pruning, "_mount_points", lambda: ["/", f"{versions}/v1/vae", f"{versions}/v22"])
    assert run(versions) == 1
    assert names(versions) == ["v1", "v5", "v6"]
    assert "v1/vae: something is mounted here; unmount it first" in capsys.readouterr().err


def test_two_prunes_do_not_work_at_once(versions):
    with locked(versions), pytest.raises(PruneBusyError, match="another zwatch prune"):
        run(versions)
    assert run(versions) == 0


@contextmanager
def as_plain_user(root):
    """Run the block as a user without rights, who owns the models root."""
    if not AS_ROOT:
        yield
        return
    for path in (root, *root.rglob("*")):
        os.chown(path, 65534, 65534, follow_symlinks=False)
    for path in (parent for parent in root.parents if parent.stat().st_uid == 0):
        path.chmod(path.stat().st_mode | 0o011)
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def test_what_may_not_be_written_or_read_is_named_and_the_others_are_deleted(versions, capsys):
    with as_plain_user(versions):
        (versions / "v1/vae").chmod(0o555)
        (versions / "v2").chmod(0)
        assert run(versions) == 1
        assert names(versions) == ["v1", "v2", "v5", "v6"]
        assert (versions / "v1" / WEIGHTS).exists()
        (versions / "v2").chmod(0o755)
    out, err = capsys.readouterr()
    assert "v1/vae: it may not be written" in err
    assert "leave   v2: it cannot be opened: Permission denied" in out
    assert "v2: it cannot be searched for links: Permission denied" in err


@pytest.mark.skipif(not AS_ROOT, reason="only root can give files to others")
def test_another_users_version_is_named_and_the_others_are_deleted(versions, capsys):
    with as_plain_user(versions):
        os.seteuid(0)
        for path in (versions / "v1", *(versions / "v1").rglob("*")):
            os.chown(path, 0, 0)
        os.seteuid(65534)
        assert run(versions) == 1
        assert names(versions) == ["v1", "v5", "v6"]
        assert "v1: it may not be written" in capsys.readouterr().err
        os.seteuid(0)
        os.chown(versions, 0, 0)
        os.seteuid(65534)
        assert run(versions, 1) == 1
        assert names(versions) == ["v1", "v5", "v6"]
        assert "v5: it could not be renamed: Permission denied; it is as it was" in capsys.readouterr().err


def test_a_removal_that_fails_is_named_and_the_others_go_on(versions, monkeypatch, capsys):
    genuine = shutil.rmtree

    def failing(path, **named):
        if path.startswith(".v2."):
            raise PermissionError(1, "Operation not permitted", "model_index.json")
        return genuine(path, **named)

    monkeypatch.setattr(shutil, "rmtree", failing)
    assert run(versions) == 1
    assert [name for name in names(versions) if not name.startswith(".v2.removing-")] == ["v5", "v6"]
    assert "v2: it is partly removed" in capsys.readouterr().err
    monkeypatch.undo()
    assert run(versions) == 0
    assert names(versions) == ["v5", "v6"]


# --- without a service


def state(directory, **alias):
    directory.mkdir()
    (directory / "state.json").write_text(json.dumps({"format": 1, "aliases": {"current": alias}}))
    return directory


def test_without_a_service_the_state_directory_says_what_is_needed(versions, tmp_path, capsys):
    saved = state(
        tmp_path / "state",
        serving={"version": "v1", "digest": None},
        good=[{"version": "v2", "digest": "0" * 64}],
        promoted=[{"version": "v3", "digest": None}],
        trying=None,
    )
    assert run(versions, 1, by_state(saved)) == 0
    assert names(versions) == ["v1", "v2", "v3", "v6"]
    served = {"serving": {"version": "v1", "digest": None}}
    (saved / "state.json").write_text(json.dumps({"format": 1, "aliases": {"current@": served}}))
    capsys.readouterr()
    assert run(versions, 1, by_state(saved)) == 0
    assert names(versions) == ["v1", "v6"]
    assert "keep    v1: served of the share of current\n" in capsys.readouterr().out


def test_a_state_that_cannot_be_read_or_is_in_use_stops_a_prune(versions, tmp_path, capsys):
    saved = state(tmp_path / "state")
    (saved / "state.json").write_text("{")
    with pytest.raises(UsageError, match="what the service needs is not known"):
        run(versions, needs=by_state(saved))
    assert run(versions, 6, by_state(tmp_path / "none")) == 0
    assert "none: only links keep versions" in capsys.readouterr().err
    code = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); print('locked', flush=True); sys.stdin.read()"  # fmt: skip
    command = [sys.executable, "-c", code, saved / "lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(UsageError, match="a service runs; give its --url"):
            run(versions, needs=by_state(saved))
        process.stdin.close()


# --- with a service


def zwatch(*arguments):
    """Run a command; return the finished process."""
    command = [sys.executable, "-m", "zwatch", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


def set_current(models, version):
    """Replace the link as an operator does."""
    os.symlink(version, models / "next")
    os.replace(models / "next", models / "current")


async def test_what_a_running_service_needs_is_kept(models, tmp_path, monkeypatch):
    for name in ("v3", "v4", "v5"):
        shutil.copytree(models / "v2", models / name)
        assert zwatch("seal", models / name).returncode == 0
    (models / "upload").mkdir()
    async with Server(models, tmp_path / "state") as server:
        await server.serves("v1")
        set_current(models, "v4")
        await server.serves("v4")
        found = {one["name"]: one["uses"] for one in (await server.get("/versions"))["versions"]}
        assert {"serving", "resident", "linked"} <= set(found["v4"])
        assert {"previous", "last_known_good"} <= set(found["v1"])
        call = ("prune", "--keep", "1", "--models", models, "--url", server.url)
        copy = shutil.copytree(models, tmp_path / "copy", symlinks=True)
        for arguments, status, words in [
            ((*call,), 2, "--yes deletes without a question"),
            ((*call, "--dry-run"), 0, "delete  v2: "),
            (("prune", "--keep", "1", "--models", tmp_path, "--yes", "--url", server.url), 2, "serves another models root"),
            (("prune", "--keep", "1", "--models", copy, "--yes", "--url", server.url), 2, "serves another models root"),
            (("prune", "--keep", "0", "--yes"), 2, "expected a whole number of at least 1"),
            (("prune", "--yes"), 2, "--keep"),
            (("prune", "--keep", "1", "--models", models, "--no-service", "--state-dir", tmp_path / "state", "--yes"), 2, "a service runs"),
        ]:  # fmt: skip
            ended = zwatch(*arguments)
            assert ended.returncode == status, ended
            assert words in ended.stdout + ended.stderr
        ended = zwatch(*call, "--yes")
        assert ended.returncode == 0, ended
        assert re.search("keep    v1: .*previous, last-known-good at http", ended.stdout), ended.stdout
        assert "leave   upload: it is not sealed" in ended.stdout
        assert names(models) == ["current", "upload", "v1", "v4", "v5"]
        assert (await server.post("/api/rollback"))[0] == 200
        await server.serves("v1")
        # Deployed between the check and the rename: it comes back, and serves.
        shutil.copytree(models / "v4", models / "v0")
        write_seal(models / "v0", "v0")
        os.utime(models / "v0" / SEAL_NAME, (1000, 1000))
        genuine = pruning.hide

        def hide(*given):
            set_current(models, "v0")
            return genuine(*given)

        monkeypatch.setattr(pruning, "hide", hide)
        ask = module.by_services([(server.url, Service(server.url, None))])
        assert await asyncio.to_thread(run, models, 1, ask) == 0
        await server.serves("v0")
    ended = zwatch(*call, "--yes")
    assert (ended.returncode, names(models)) == (2, ["current", "upload", "v0", "v1", "v4", "v5"])
    assert "--no-service goes by the links" in ended.stderr
    ended = zwatch(
        "prune", "--keep", "1", "--models", models, "--no-service", "--state-dir", tmp_path / "state", "--yes"
    )
    assert ended.returncode == 0, ended
    assert names(models) == ["current", "upload", "v0", "v1", "v4", "v5"]
