"""Whatever lies in the state directory: the service starts, says so, puts the bad file aside, and follows the links."""

import json
import os
import shutil
import subprocess
from contextlib import suppress

import pytest

from tests.lifecycles import another_user
from tests.lifecycles.service import Light, in_another_process, make_version
from tests.odd import ODD

FILES = (
    "state.json",
    "lock",
    "handover",
    "votes.sqlite",
    "trials.json",
    "history/search.sqlite",
    "history/search.sqlite-wal",
)
"""Those that a service without a token has; `ended-sessions.json` and `prepared` have tests of their own."""
FOLDERS = ("history", "history/thumbnails")


CONTENTS = {
    "an empty file": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(os.urandom(5000)),
}


@pytest.fixture
def light(tmp_path):
    root = tmp_path / "models"
    root.mkdir()
    for version in ("v1", "v2"):
        make_version(root / version, version.encode())
    (root / "current").symlink_to("v1")
    service = Light(root, tmp_path / "state", history=True)
    yield service
    service.kill()


def works(light, version):
    """Check that a service serves a version, keeps its pictures and their thumbnails, finds them, and saves its state."""
    light.until(lambda seen: seen["settled"] and (seen["serving"]["current"] or [None])[0] == version)
    assert light.draw()[0][0] == version
    newest = light.call("GET", "/history")[2]["images"][0]
    assert light.call("GET", newest["url"] + "/thumbnail")[0] == 200
    assert light.call("POST", newest["url"] + "/vote", {"vote": 1})[2]["votes"] == {"up": 1, "down": 0, "mine": 1}
    assert [one["name"] for one in light.call("GET", "/history?q=cat&limit=1")[2]["images"]] == [newest["name"]]
    saved = json.loads((light.state / "state.json").read_bytes())
    assert (saved["format"], saved["aliases"]["current"]["serving"]["version"]) == (1, version)


@pytest.mark.parametrize("make", (ODD | CONTENTS).values(), ids=(ODD | CONTENTS).keys())
def test_odd_things_in_the_places_of_all_files_are_put_aside_and_the_links_are_followed(light, make):
    (light.state / "history").mkdir(parents=True)
    for name in FILES:
        make(light.state / name)
    light.start()
    works(light, "v1")
    os.remove(light.root / "current")
    os.symlink("v2", light.root / "current")
    works(light, "v2")
    said = "\n".join(entry["message"] for entry in light.new_log() if entry["level"] == "warning")
    assert "state.json" in said
    assert not [entry for entry in light.new_log() if entry["level"] in ("raw", "error", "critical")]
    light.stop()
    light.start()  # what was repaired is used again
    works(light, "v2")
    assert "previous run crashed" not in str(light.new_log())
    light.stop()


@pytest.mark.parametrize(
    "make", [ODD["a FIFO"], CONTENTS["garbage"], ODD["a symlink loop"]], ids=["FIFO", "file", "symlink loop"]
)
@pytest.mark.parametrize("folder", FOLDERS)
def test_odd_things_in_the_places_of_folders_are_put_aside(light, folder, make):
    (light.state / folder).parent.mkdir(parents=True)
    make(light.state / folder)
    light.start()
    works(light, "v1")
    assert f"{folder} is not a directory; it is renamed to {os.path.basename(folder)}.bad" in str(light.new_log())
    light.stop()


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_on_a_disk_that_is_not_mounted_is_missed_and_used_when_it_is(light, folder):
    disk, link = light.state.parent / "disk", light.state / folder
    link.parent.mkdir(parents=True)
    link.symlink_to(disk)
    light.start()
    works(light, "v1")
    light.until(lambda seen: light.call("GET", "/health")[2]["status"] == "degraded")
    [reason] = light.call("GET", "/health")[2]["reasons"]
    assert reason.startswith(f"{link}: ")
    assert reason.endswith(f"are not kept: it is a symbolic link to {disk}, where nothing is")
    assert os.readlink(link) == str(disk)
    disk.mkdir()
    light.until(lambda seen: light.call("GET", "/health")[2]["status"] == "ok")
    works(light, "v1")
    assert list(disk.rglob("*.webp"))
    assert os.listdir(link.parent).count(f"{link.name}.bad") == 0
    light.stop()


def test_pictures_on_a_disk_that_is_not_mounted_are_answered_and_kept_when_it_is(light):
    disk = light.state.parent / "disk"
    light.images.symlink_to(disk)
    light.start()
    light.until(lambda seen: seen["settled"] and seen["serving"]["current"])
    assert light.draw()[0][0] == "v1"
    assert light.call("GET", "/status")[2]["history"]["fault"].endswith(
        f"images cannot be kept: it is a symbolic link to {disk}, where nothing is"
    )
    disk.mkdir()
    works(light, "v1")
    assert light.call("GET", "/health")[2]["status"] == "ok"
    assert list(disk.glob("*.png"))
    light.stop()


def test_a_state_file_that_is_cut_off_anywhere_still_lets_the_link_be_followed(light):
    light.start()
    works(light, "v1")
    light.stop()
    whole = (light.state / "state.json").read_bytes()
    for part in (0, 1, len(whole) // 3, len(whole) - 1):
        (light.state / "state.json").write_bytes(whole[:part])
        light.start()
        works(light, "v1")
        assert "state.json cannot be used" in str(light.new_log())
        light.stop()


def test_the_state_of_a_newer_release_is_put_aside_and_not_lost(light):
    light.state.mkdir()
    newer = json.dumps({"format": 2, "all": "new"}).encode()
    for _ in range(2):
        (light.state / "state.json").write_bytes(newer)
        light.start()
        works(light, "v1")
        assert "it is of format 2, expected 1" in str(light.new_log())
        light.stop()
    assert [(light.state / name).read_bytes() for name in ("state.json.bad", "state.json.bad-1")] == [newer, newer]


def tmpfs(path, options):
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "zwatch", str(path)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"tmpfs cannot be mounted: {done.stderr.strip()}")


@pytest.fixture
def small_disk(light):
    """A state directory on a disk of its own that is full."""
    tmpfs(light.state, "size=64k")
    yield light.state / "filling"
    light.kill()
    subprocess.run(["umount", str(light.state)], check=True)


def fill(path):
    with suppress(OSError), open(path, "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def test_on_a_full_disk_the_service_starts_says_so_and_writes_the_state_as_soon_as_it_can(light, small_disk):
    fill(small_disk)
    light.start()
    light.until(lambda seen: seen["settled"] and seen["serving"]["current"])
    assert light.draw()[0][0] == "v1"
    _, _, health = light.call("GET", "/health")
    assert health["status"] == "degraded"
    assert "No space left on device" in str(health["reasons"])
    os.remove(light.root / "current")
    os.symlink("v2", light.root / "current")
    light.until(lambda seen: seen["settled"] and seen["serving"]["current"][0] == "v2")
    small_disk.unlink()
    light.until(lambda seen: light.call("GET", "/health")[2]["status"] == "ok")
    assert json.loads((light.state / "state.json").read_bytes())["aliases"]["current"]["serving"]["version"] == "v2"
    fill(small_disk)
    light.kill()
    light.start()  # what was saved before is read
    light.until(lambda seen: seen["settled"] and seen["serving"]["current"])
    assert "the previous run crashed: that counts for v2" in str(light.new_log())


def test_files_of_another_owner_are_put_aside(tmp_path):
    """A service that runs as another user than before may rename what it may not read."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files to others")
    state = tmp_path / "state"
    (state / "history").mkdir(parents=True)
    for name in ("state.json", "lock", "history/search.sqlite", "kept.proven"):
        (state / name).write_text("another user's")
        (state / name).chmod(0o600)
    for path in (state, state / "history"):
        shutil.chown(path, 65534, 65534)
    for path in (tmp_path, *(parent for parent in tmp_path.parents if parent.stat().st_uid == 0)):
        path.chmod(path.stat().st_mode | 0o011)
    said = in_another_process(another_user.use, state, 65534)
    assert "state.json cannot be used" in said
    assert sorted(path.name for path in state.glob("*.bad")) == ["kept.proven.bad", "lock.bad", "state.json.bad"]


def test_a_load_that_finds_no_link_ends_an_unload_also_across_a_crash(light):
    light.start()
    light.until(lambda seen: seen["serving"]["current"])
    assert light.post("/api/unload_model") == 200
    os.remove(light.root / "current")
    light.until(lambda seen: light.call("GET", "/status")[2]["aliases"]["current"]["fault"])
    assert light.post("/api/load_model") == 409
    light.kill()
    assert json.loads((light.state / "state.json").read_bytes())["aliases"]["current"]["unloaded"] is None
