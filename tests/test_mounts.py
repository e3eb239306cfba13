"""A real service on file systems that are mounted: FUSE whose server dies, network file systems, caches, and what is full."""

import asyncio
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.harness import Server
from tests.namespaces import Namespaces, Unavailable
from zwatch.deploy.sealing import write_seal

LONG = os.environ.get("ZWATCH_LONG") == "1"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
SOON = 40.0
"""Seconds for what takes a moment, on a machine that is busy; what hangs takes for ever."""


class Mounts:
    """A models root that is mounted from another directory, in a mount namespace of its own."""

    def __init__(self, source: Path, root: Path) -> None:
        """`source` is what lies below; `root` is where it is mounted."""
        self.namespaces = Namespaces()
        self.source, self.root = source, root
        self.inside = self.namespaces.path(root)
        self._server: subprocess.Popen | None = None

    def run(self, *command) -> None:
        """Run a command inside, in the models root."""
        done = self.namespaces.run("sh", "-ec", 'cd "$0"; exec "$@"', self.root, *command)
        assert done.returncode == 0, done.stderr

    def fuse(self, *options: str) -> None:
        """Mount the directory over the root with bindfs, a file system in user space that passes everything on."""
        line = [
            *self.namespaces.entering,
            "setpriv",
            "--pdeathsig=KILL",
            "bindfs",
            "-f",
            *options,
            str(self.source),
            str(self.root),
        ]
        self._server = subprocess.Popen(line, stderr=subprocess.DEVNULL)
        end = time.monotonic() + SOON
        while not os.path.lexists(self.inside / "current"):
            if self._server.poll() is not None or time.monotonic() > end:
                raise Unavailable("FUSE cannot be mounted")
            time.sleep(0.02)

    def signal(self, number: int) -> None:
        """Send a signal to the file system's server."""
        self._server.send_signal(number)

    def close(self) -> None:
        """End the file system's server, and the namespace."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
        self.namespaces.close()

    def unmount(self) -> None:
        """Unmount it, whether its server lives or not."""
        self.namespaces.run("umount", "--lazy", self.root, check=True)
        self._server.wait(SOON)


class Inside(Server):
    """A service that runs in such a mount namespace."""

    def __init__(self, mounts: Mounts, state: Path, *options: str) -> None:
        super().__init__(mounts.root, state, *options)
        self._command = [*mounts.namespaces.entering, *self._command]

    async def attempt(self, version: str, state: str, deadline: float = SOON):
        async def check():
            attempt = (await self.status())["aliases"]["current"]["attempt"]
            return attempt if attempt and (attempt["version"], attempt["state"]) == (version, state) else None

        return await self.until(check, f"{version} is {state}", deadline)

    async def fault(self, code: str | None, deadline: float = SOON):
        async def check():
            fault = (await self.status())["aliases"]["current"]["fault"]
            return (fault and fault["code"]) == code

        await self.until(check, f"the link's fault is {code}", deadline)


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def add_version(root: Path, name: str) -> None:
    shutil.copytree(root / "v2", root / name)
    write_seal(root / name, name)


@pytest.fixture
def mounts(tiny_versions, tmp_path):
    """A models root with v1 to v4, not yet mounted."""
    source = tmp_path / "source"
    shutil.copytree(tiny_versions, source)
    for name in ("v3", "v4"):
        add_version(source, name)
    (source / "current").symlink_to("v1")
    (tmp_path / "models").mkdir()
    try:
        made = Mounts(source, tmp_path / "models")
    except Unavailable as reason:
        pytest.skip(str(reason))
    yield made
    made.close()


def needs(program: str):
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


@needs("bindfs")
@pytest.mark.slow
async def test_on_fuse_links_deploy_and_a_server_that_dies_changes_nothing_until_it_is_mounted_again(mounts, tmp_path):
    try:
        mounts.fuse()
    except Unavailable as reason:
        pytest.skip(str(reason))
    async with Inside(mounts, tmp_path / "state") as server:
        await server.serves("v1")

        mounts.run("ln", "-sfn", "v2", "current")
        await server.serves("v2")
        mounts.run("ln", "-sf", "v1", "current")  # a stray inside v2; this file system has no exchange
        await server.serves("v1")
        assert (os.readlink(mounts.source / "current"), os.path.lexists(mounts.source / "v2/v1")) == ("v1", False)
        assert (await server.post("/api/deploy", {"version": "v2"}))[0] == 200
        assert (await server.post("/api/rollback"))[1]["version"] == "v1"
        assert os.readlink(mounts.source / "current") == "v1"
        (mounts.source / "other").symlink_to("v2")
        (mounts.source / "other").replace(mounts.source / "current")  # by another host: there is no event
        await server.serves("v2")
        assert not [name for name in os.listdir(mounts.source) if name.startswith(".zwatch")]

        flip_byte(mounts.source / "v3" / WEIGHTS)
        mounts.run("ln", "-sfn", "v3", "current")
        assert "the seal says" in (await server.attempt("v3", "REJECTED"))["reason"]
        assert (await server.generate())[0] == "v2"
        flip_byte(mounts.source / "v3" / WEIGHTS)
        await server.serves("v3")

        mounts.unmount()  # and mounted anew, so slow that a load takes its time
        mounts.fuse("--read-rate=20k")
        mounts.run("ln", "-sfn", "v4", "current")
        await server.attempt("v4", "LOADING")
        mounts.signal(signal.SIGSTOP)  # nothing is answered any more
        assert (await server.generate())[0] == "v3"
        await server.fault("unreadable")
        mounts.signal(signal.SIGKILL)  # every call fails with ENOTCONN
        await server.until(lambda: _fails_at_once(mounts.inside), "the file system is gone")
        async with asyncio.timeout(SOON):
            assert (await server.generate())[0] == "v3"
            found = await server.get("/versions")
            assert "v3" in [one["name"] for one in found["versions"]]
            status, body = await server.post("/api/deploy", {"version": "v1"})
            assert status in (409, 504), body
            assert (await server.get("/health"))["status"] == "degraded"
        attempts = (await server.get("/attempts"))["attempts"]
        codes = {one["code"] for one in attempts if one["version"] == "v4"}
        assert codes <= {None, "io_error", "timeout"}, "it is never called missing or changed"
        mounts.unmount()
        mounts.fuse()
        await server.serves("v4")
        assert (await server.generate())[0] == "v4"

        mounts.signal(signal.SIGSTOP)
        process = server.process
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(SOON):
            while process.poll() is None and not _is_held_by_the_kernel(process.pid):
                await asyncio.sleep(0.05)
        mounts.signal(signal.SIGCONT)
        assert await asyncio.to_thread(process.wait, SOON) == 0


def _is_held_by_the_kernel(pid: int) -> bool:
    """Return whether a process has exited but for calls that no signal ends: those that the file system had begun to answer."""
    try:
        main = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return main.rpartition(")")[2].split()[0] == "Z"


def _fails_at_once(root: Path) -> bool:
    try:
        os.listdir(root)
    except OSError:
        return True
    return False


@pytest.mark.skipif(not LONG, reason="takes half a minute: ZWATCH_LONG=1")
@pytest.mark.slow
async def test_on_a_file_system_that_is_full_or_read_only_links_are_followed_once_they_can_be(mounts, tmp_path):
    mounts.namespaces.run("mount", "-t", "tmpfs", "-o", "size=64m,nr_inodes=200", "full", mounts.root, check=True)
    mounts.run("cp", "-a", f"{mounts.source}/.", ".")
    mounts.run("mkdir", "filled")
    async with Inside(mounts, tmp_path / "state") as server:
        await server.serves("v1")
        mounts.run("ln", "-sfn", "v2", "current")
        await server.serves("v2")

        # One inode is left, for the link that `ln -sf` makes inside v2; zwatch itself needs another one.
        mounts.run("sh", "-c", "while true; do i=$((i + 1)); touch filled/$i 2>/dev/null || break; done; rm filled/1")
        mounts.run("ln", "-sf", "v1", "current")

        async def full():
            return any("No space left on device" in reason for reason in (await server.status())["reasons"])

        await server.until(full, "the status says why it is not followed")
        status, body = await server.post("/api/deploy", {"version": "v3"})
        assert status >= 400
        assert "No space left on device" in body["error"]["message"]
        assert (await server.generate())[0] == "v2"
        mounts.run("rm", "-r", "filled")
        await server.serves("v1")
        assert os.readlink(mounts.inside / "current") == "v1"

        mounts.namespaces.run("mount", "-o", "remount,ro", mounts.root, check=True)
        status, body = await server.post("/api/deploy", {"version": "v2"})
        assert status >= 400
        assert "Read-only file system" in body["error"]["message"]
        assert (await server.get("/health"))["status"] == "ok"
        assert (await server.generate())[0] == "v1"
        mounts.namespaces.run("mount", "-o", "remount,rw", mounts.root, check=True)
        assert (await server.post("/api/deploy", {"version": "v2"}))[0] == 200


@pytest.mark.skipif(not LONG, reason="takes half a minute: ZWATCH_LONG=1")
@pytest.mark.slow
async def test_in_a_root_of_overlay_and_bind_mounts_flips_are_noticed(mounts, tmp_path):
    """As in a container: lower layers, and directories of the host that are bound into them."""
    for name in ("upper", "work", "volume"):
        (tmp_path / name).mkdir()
    shutil.move(mounts.source / "v3", tmp_path / "volume" / "v3")
    (mounts.source / "v3").mkdir()
    options = f"lowerdir={mounts.source},upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    done = mounts.namespaces.run("mount", "-t", "overlay", "-o", options, "overlay", mounts.root)
    if done.returncode:
        pytest.skip(f"no overlay file system can be mounted here: {done.stderr}")
    mounts.namespaces.run("mount", "--bind", tmp_path / "volume/v3", mounts.root / "v3", check=True)
    async with Inside(mounts, tmp_path / "state") as server:
        await server.serves("v1")
        for version in ("v2", "v3", "v1", "v3"):
            mounts.run("ln", "-sfn", version, "current")
            await server.serves(version)
        mounts.run("ln", "-sf", "v2", "current")  # a stray in the directory that is bound
        await server.serves("v2")
        assert not os.path.lexists(tmp_path / "volume/v3/v2")
        assert (await server.post("/api/deploy", {"version": "v4"}))[0] == 200
        assert os.readlink(tmp_path / "upper/current") == "v4"
        assert os.readlink(mounts.source / "current") == "v1"


# Attribute caches, and a network file system: what another host writes is seen later, and never mixed.


def sshfs(mounts: Mounts, *options: str) -> None:
    """Mount the source with sshfs, by its own protocol over a pipe: no network and no keys."""
    script = (
        'exec 3<&0; mkfifo "$0/pipe"; /usr/lib/openssh/sftp-server < "$0/pipe" | sshfs -f -o passive "$@" > "$0/pipe"'
    )
    line = [*mounts.namespaces.entering, "setpriv", "--pdeathsig=KILL", "bash", "-c", script, str(mounts.source.parent)]
    mounts._server = subprocess.Popen([*line, *options, f":{mounts.source}", str(mounts.root)])
    end = time.monotonic() + SOON
    while not os.path.lexists(mounts.inside / "current"):
        assert mounts._server.poll() is None, "sshfs ended"
        assert time.monotonic() < end, "sshfs does not mount"
        time.sleep(0.05)


CACHES = {
    "bindfs, 5 s": ("bindfs", ["-o", "attr_timeout=5,entry_timeout=5,negative_timeout=5"]),
    "sshfs, 20 s": ("sshfs", []),
    "sshfs, 2 s": ("sshfs", ["-o", "dcache_timeout=2", "-o", "attr_timeout=1,entry_timeout=1"]),
}


@pytest.mark.skipif(not LONG, reason="takes minutes: ZWATCH_LONG=1")
@pytest.mark.slow
@pytest.mark.parametrize("kind", CACHES)
async def test_what_another_host_changes_behind_a_cache_is_followed_when_it_ends_and_never_mixed(
    mounts, tmp_path, kind
):
    program, options = CACHES[kind]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    (mounts.fuse if program == "bindfs" else lambda *given: sshfs(mounts, *given))(*options)
    async with Inside(mounts, tmp_path / "state") as server:
        await server.serves("v1")
        for version in ("v2", "v1"):
            begin = time.monotonic()
            mounts.run("ln", "-sfn", version, "current")
            await server.serves(version)
            print(f"{kind}: a link through the mount after {time.monotonic() - begin:.2f} s")
        mounts.run("ln", "-sf", "v2", "current")
        await server.serves("v2")
        for version in ("v1", "v2", "v1"):
            begin = time.monotonic()
            (mounts.source / "other").symlink_to(version)
            (mounts.source / "other").replace(mounts.source / "current")
            await server.serves(version)
            print(f"{kind}: a link by another host after {time.monotonic() - begin:.2f} s")
        # Another host puts v3's weights into v2, seals it, and deploys it, while this one may still see old attributes.
        for times in range(3):
            mounts.run("find", ".")  # everything is cached
            flip_byte(mounts.source / "v2" / WEIGHTS)
            sealed = write_seal(mounts.source / "v2", "v2")
            mounts.run("ln", "-sfn", "v2", "current")

            async def serves_it(digest=sealed.digest):
                serving = (await server.status())["serving"]
                return (serving["version"], serving["digest"]) == ("v2", digest)

            await server.until(serves_it, "the new content serves")
            verified = await server.post("/api/verify")
            assert (verified[0], verified[1]["version"]) == (200, "v2"), f"round {times}"
            mounts.run("ln", "-sfn", "v1", "current")
            await server.serves("v1")
