"""The Containerfile, built and run by a real podman: read-only root, another user, no capabilities; and compose.yaml."""

import json
import os
import re
import shutil
import subprocess
import threading

import pytest

from tests.namespaces import Unavailable
from tests.podman import Podman
from zwatch.deploy.sealing import write_seal

LONG = os.environ.get("ZWATCH_LONG") == "1"
USER = 10001
TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def podman(tmp_path_factory):
    try:
        running = Podman(tmp_path_factory.mktemp("podman"))
    except Unavailable as reason:
        pytest.skip(f"no container can be run here: {reason}")
    yield running
    running.close()


@pytest.fixture(scope="module")
def image(podman):
    """The image, built from the repository on a base of this machine's own files."""
    podman.build(podman.import_base())
    return podman.inspect("zwatch")


@pytest.fixture(scope="module")
def models(tiny_versions, tmp_path_factory):
    """A models root that belongs to the container's user."""
    root = tmp_path_factory.mktemp("mounted") / "models"
    shutil.copytree(tiny_versions, root)
    (root / "current").symlink_to("v1")
    for path in [root, *root.rglob("*")]:
        os.chown(path, USER, 0, follow_symlinks=False)
    subprocess.run(["chmod", "-R", "a+rX", root], check=True)
    root.parent.chmod(0o755)
    root.parent.parent.chmod(0o755)
    return root


class Container:
    """One running container and its calls."""

    def __init__(self, podman, models, *options, name: str = "zwatch", port: int = 7860) -> None:
        self.podman, self.name, self.url = podman, name, f"http://127.0.0.1:{port}"
        podman.run(
            "--detach", f"--name={name}", f"--volume={models}:/models", f"--volume={name}-state:/var/lib/zwatch",
            f"--env=ZWATCH_TOKEN={TOKEN}", f"--env=ZWATCH_PORT={port}", *options,
        )  # fmt: skip

    def call(self, path: str, body=None):
        """Return (status, body)."""
        data = [] if body is None else ["--data", json.dumps(body)]
        done = self.podman.inside(
            "curl", "-s", "-w", "\n%{http_code}", "-H", f"Authorization: Bearer {TOKEN}", "-H", "Accept: application/json",
            *data, self.url + path,
        )  # fmt: skip
        text, _, status = done.stdout.rpartition("\n")
        return int(status or 0), json.loads(text) if text else None

    def serves(self, version: str) -> None:
        def check():
            status, body = self.call("/status")
            return status == 200 and body["status"] == "ok" and body["serving"]["version"] == version

        try:
            self.podman.until(check, f"{version} serves")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.call('/status')}\n{self.log()[-3000:]}") from None

    def healthcheck(self) -> bool:
        """Run the image's health check, as Docker and Kubernetes do; podman itself needs systemd's timers for that."""
        return self.podman.inside(*self.podman.command, "healthcheck", "run", self.name).returncode == 0

    def run(self, *command, check: bool = True) -> str:
        """Run a command in it."""
        return self.podman.podman("exec", self.name, *command, check=check)

    def log(self) -> str:
        done = self.podman.inside(*self.podman.command, "logs", self.name)
        return done.stdout + done.stderr

    def stop(self, seconds: int = 60) -> int:
        """Stop it with SIGTERM; return its exit status."""
        self.podman.podman("stop", f"--time={seconds}", self.name)
        return int(self.podman.podman("inspect", "--format={{.State.ExitCode}}", self.name))


@pytest.fixture(scope="module")
def container(podman, image, models):
    running = Container(podman, models)
    running.podman.until(running.healthcheck, f"it is healthy\n{running.log()}")
    return running


@pytest.mark.slow
def test_the_image_runs_as_a_user_that_kubernetes_knows_not_to_be_root_and_checks_its_health(image):
    config = image["Config"]
    assert config["User"] == str(USER)
    assert (config["Entrypoint"], config["Cmd"]) == (["zwatch"], ["serve"])
    assert image["Healthcheck"]["Test"][-1] == "http://127.0.0.1:7860/health"
    assert "7860/tcp" in config["ExposedPorts"]
    assert not [line for line in config["Env"] if "TOKEN" in line]


@pytest.mark.slow
def test_without_a_token_it_says_what_is_missing_and_ends_with_2(podman, image, models):
    podman.run("--name=tokenless", f"--volume={models}:/models", check=False)
    assert podman.podman("inspect", "--format={{.State.ExitCode}}", "tokenless").strip() == "2"
    logged = podman.inside(*podman.command, "logs", "tokenless").stderr
    assert "ZWATCH_TOKEN" in logged.splitlines()[-1]


@pytest.mark.slow
def test_its_root_is_read_only_and_its_processes_have_no_rights(container):
    for path in ("/x", "/etc/x", "/opt/zwatch/x", "/tmp/x"):
        assert container.run("touch", path, check=False) == ""
        assert not int(container.run("sh", "-c", f"test -e {path} && echo 1 || echo 0"))
    status = container.run("cat", "/proc/1/status")
    assert re.search(rf"^Uid:\s+{USER}\s+{USER}", status, re.MULTILINE)
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    assert container.run("cat", "/proc/1/cmdline").split("\0")[-3:] == ["/opt/zwatch/bin/zwatch", "serve", ""]
    assert container.run("ls", "/dev/shm") == "", "a small shared memory is enough"


@pytest.mark.slow
def test_every_module_has_bytecode_that_need_not_be_compared_with_its_source(container):
    check = (
        "import importlib.util as u, pathlib, zwatch\n"
        "paths = list(pathlib.Path(zwatch.__file__).parent.rglob('*.py'))\n"
        "flags = [open(u.cache_from_source(path), 'rb').read(8)[4] for path in paths]\n"
        "print(len(flags), set(flags), zwatch.__file__)"
    )
    count, flags, file = container.run("/opt/zwatch/bin/python", "-c", check).split()
    assert (int(count) > 50, flags) == (True, "{1}")  # a hash that is not checked: PEP 552
    assert file.startswith("/opt/zwatch/lib/")


@pytest.mark.slow
def test_links_on_the_mounted_root_deploy_and_so_does_the_command_inside(container, models):
    container.serves("v1")
    subprocess.run(["ln", "-sfn", "v2", "current"], cwd=models, check=True)
    container.serves("v2")
    subprocess.run(["ln", "-sf", "v1", "current"], cwd=models, check=True)  # lands inside v2: zwatch moves the link
    container.serves("v1")
    assert os.readlink(models / "current") == "v1"
    assert "v2 serves" in container.run("zwatch", "deploy", "v2") or os.readlink(models / "current") == "v2"
    container.serves("v2")
    container.run("ln", "-sfn", "v1", "/models/current")
    container.serves("v1")
    status, body = container.call("/generate", {"prompt": "a cat", "seed": 1})
    assert (status, body["images"][0]["version"] if "version" in body["images"][0] else body["version"]) == (200, "v1")
    assert container.healthcheck()


@pytest.mark.slow
def test_a_link_with_a_path_of_the_host_is_a_fault_that_changes_nothing(container, models):
    container.serves("v1")
    subprocess.run(["ln", "-sfn", models / "v2", "current"], cwd=models, check=True)

    def fault():
        return container.call("/status")[1]["aliases"]["current"]["fault"]

    assert container.podman.until(fault, "the fault is seen")["code"] == "dangling"
    assert container.call("/status")[1]["serving"]["version"] == "v1"
    assert container.healthcheck(), "degraded is no reason to restart it"
    subprocess.run(["ln", "-sfn", "v1", "current"], cwd=models, check=True)
    container.serves("v1")


@pytest.mark.slow
def test_a_stop_finishes_what_was_accepted(container):
    answers = []
    making = threading.Thread(
        target=lambda: answers.append(container.call("/generate", {"prompt": "a cat", "steps": 100}))
    )
    making.start()
    container.podman.until(lambda: container.call("/status")[1]["queue"]["running"], "it runs")
    assert container.stop() == 0
    making.join()
    assert answers[0][0] == 200


@pytest.mark.skipif(not LONG, reason="takes a minute: ZWATCH_LONG=1")
@pytest.mark.slow
def test_the_next_container_knows_what_served(podman, image, models):
    first = Container(podman, models, name="stopped", port=7861)
    first.serves("v1")
    assert first.stop() == 0
    podman.podman("rm", "stopped")
    write_seal(models / "v2", "v2")
    (models / "v2" / "vae" / "config.json").write_text("{}")  # current now leads to a version that cannot serve
    subprocess.run(["ln", "-sfn", "v2", "current"], cwd=models, check=True)
    second = Container(podman, models, name="stopped", port=7861)

    def fallen_back():
        status, body = second.call("/status")
        return status == 200 and body["serving"] and (body["status"], body["serving"]["version"]) == ("degraded", "v1")

    podman.until(fallen_back, f"it serves what served before\n{second.log()}")
    assert second.stop() == 0


@pytest.mark.skipif(not LONG, reason="takes a minute: ZWATCH_LONG=1")
@pytest.mark.slow
def test_another_user_without_a_name_can_run_it_and_a_stop_right_after_the_start_ends_with_0(podman, image, models):
    subprocess.run(["ln", "-sfn", "v1", "current"], cwd=models, check=True)
    other = Container(podman, models, "--user=12345:0", name="other", port=7862)
    other.serves("v1")
    assert other.stop() == 0
    podman.podman("start", "other")
    assert other.stop() == 0
