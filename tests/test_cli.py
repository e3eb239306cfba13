"""The command line, run as a process."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import Server

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def zwatch(*arguments, **options):
    """Run a command; return the finished process."""
    command = [sys.executable, "-m", "zwatch", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_seal_stamps_hashes_and_satisfies_verify(models):
    shutil.copytree(models / "v2", models / "v3")
    before = zwatch("verify", models / "v3")
    assert before.returncode == 1
    assert "'v3'" in before.stdout, "the stamp is still v2's"
    sealed = zwatch("seal", models / "v3")
    assert sealed.returncode == 0
    assert "sealed v3, 11 files" in sealed.stdout
    after = zwatch("verify", models / "v3")
    assert (after.returncode, after.stderr) == (0, "")


def test_seal_of_the_current_directory_takes_its_name(models):
    assert zwatch("seal", ".", cwd=models / "v1").returncode == 0
    assert zwatch("verify", models / "v1").returncode == 0


def test_seal_names_what_it_leaves_out(models):
    (models / "v1" / ".git").mkdir()
    (models / "v1" / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (models / "v1" / "README.md").write_text("about v1")
    sealed = zwatch("seal", models / "v1")
    assert (sealed.returncode, sealed.stderr) == (0, "")
    assert sealed.stdout.splitlines()[1] == "left out, because a pipeline does not need it: .git (1 file), README.md"


def test_seal_under_another_name_says_that_the_directory_has_to_be_renamed(models):
    sealed = zwatch("seal", models / "v1", "--version", "v7")
    assert sealed.returncode == 0
    assert f"the directory is not named v7: it is rejected until it is renamed to {models / 'v7'}" in sealed.stdout
    assert zwatch("verify", models / "v1").returncode == 1
    (models / "v1").rename(models / "v7")
    assert zwatch("verify", models / "v7").returncode == 0


def test_seal_of_what_cannot_serve_is_one_line_and_status_1(models):
    (models / "v1" / "transformer" / "pytorch_lora_weights.safetensors").write_bytes(b"x")
    refused = zwatch("seal", models / "v1")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert "zwatch import" in refused.stderr


@pytest.mark.parametrize("command", ["seal", "verify"])
def test_a_file_instead_of_a_directory_is_a_wrong_call(models, command):
    refused = zwatch(command, models / "v1" / WEIGHTS)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert "expected a version's directory, got the file" in refused.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_seal_that_is_stopped_leaves_everything_as_it_was(models, number, status):
    before = {path: path.read_bytes() for path in (models / "v1").rglob("*") if path.is_file()}
    code = (
        "import os; from zwatch.deploy import stamping; from zwatch.cli import main; import sys\n"
        "write = stamping.write_beside\n"
        f"def stopped(*arguments): write(*arguments); os.kill(os.getpid(), {number:d})\n"
        "stamping.write_beside = stopped\n"
        f"os.link({str(models / 'v1' / WEIGHTS)!r}, {str(models / 'other')!r})\n"
        f"sys.exit(main(['seal', {str(models / 'v1')!r}, '--version', 'v7']))\n"
    )
    stopped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert stopped.returncode == status, stopped.stderr
    assert {path: path.read_bytes() for path in (models / "v1").rglob("*") if path.is_file()} == before


def test_verify_names_each_file_that_differs_and_how(models):
    (models / "v2" / "vae" / "config.json").unlink()
    with open(models / "v2" / WEIGHTS, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    found = zwatch("verify", models / "v2", "--json")
    findings = json.loads(found.stdout)["findings"]
    assert found.returncode == 1
    assert len(findings) == 2
    assert any(WEIGHTS in finding and "the seal says" in finding for finding in findings)
    assert any("vae/config.json" in finding and "not there" in finding for finding in findings)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_check_reports_whether_a_version_would_serve(models, device):
    good = zwatch("check", models / "v2", "--device", device)  # on a GPU it ends while kernels are compiled
    assert good.returncode == 0, good.stderr
    assert "would serve" in good.stdout
    (models / "v2" / "BLAKE3SUMS").unlink()
    bad = zwatch("check", models / "v2", "--device", device, "--json")
    assert bad.returncode == 1
    assert "seal" in json.loads(bad.stdout)["findings"][0]


def test_the_installed_command_loads_a_version_from_any_directory(models, tmp_path):
    installed = Path(sys.executable).with_name("zwatch")
    if not installed.exists():
        pytest.skip("zwatch is not installed in this environment")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [installed, "check", models / "v1", "--device", "cpu"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=environment)
    assert found.returncode == 0, found.stderr
    assert "would serve" in found.stdout


def test_check_of_a_version_without_a_seal_does_not_import_torch(models):
    (models / "v2" / "BLAKE3SUMS").unlink()
    code = f"import sys; from zwatch.cli import main; print(main(['check', {str(models / 'v2')!r}]), 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert found.stdout.startswith("seal_missing: ")
    assert found.stdout.endswith("\n1 False\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--models", "nowhere"], "there is no such directory"),
        (["serve", "--port", "many"], "whole number"),
        (["serve", "--alias", "../x"], "--alias"),
        (["serve", "--host", "0.0.0.0"], "--token-file"),
        (["serve", "--queue", "0"], "--queue"),
        (["verify", "nowhere"], "no such directory"),
        (["seal", "nowhere"], "no such directory"),
        (["seal", ".", "--version", "-x y"], "cannot name a version"),
        (["status", "--url", "http://127.0.0.1:9"], "zwatch serve"),
        (["status", "--token-file", "nowhere"], "--token-file"),
    ],
)
def test_a_wrong_call_is_one_line_and_status_2(tmp_path, arguments, words):
    (tmp_path / "models").mkdir()
    environment = {**os.environ, "ZWATCH_STATE_DIR": str(tmp_path / "state"), "PYTHONPATH": os.getcwd()}
    found = zwatch(*arguments, cwd=tmp_path, env=environment)
    assert found.returncode == 2
    assert words in found.stderr
    assert "Traceback" not in found.stderr


async def test_deploy_rollback_status_list_attempts_and_their_json(models, tmp_path):
    token = tmp_path / "token"
    token.write_text("secret\n")
    async with Server(models, tmp_path / "state", "--token-file", str(token)) as server:
        server.http.headers["Authorization"] = "Bearer secret"
        await server.serves("v1")
        reach = ["--url", server.url, "--token-file", token]
        deployed = zwatch("deploy", "v2", *reach)
        assert (deployed.returncode, deployed.stdout.startswith("v2 is serving")) == (0, True), deployed.stderr
        back = zwatch("rollback", *reach, "--json")
        assert json.loads(back.stdout)["version"] == "v1"
        shown = zwatch("status", *reach)
        assert "v1 serves" in shown.stdout
        assert json.loads(zwatch("status", *reach, "--json").stdout)["serving"]["version"] == "v1"
        assert "serving <- current" in zwatch("list", *reach).stdout
        assert zwatch("attempts", *reach).stdout.count("PROMOTED") == 3
        (models / "v2" / "BLAKE3SUMS").unlink()
        shutil.copytree(models / "v2", models / "v3")
        refused = zwatch("deploy", "v3", *reach)
        assert (refused.returncode, "zwatch seal" in refused.stderr) == (1, True)
        assert zwatch("deploy", "v9", *reach).returncode == 1
        assert zwatch("deploy", "v1/", *reach).stdout.startswith("v1 is serving"), "a shell's completion adds the slash"
        assert zwatch("deploy", "v1", "--no-wait", *reach).stdout.startswith("current now points to v1")
        assert zwatch("status", "--url", server.url).returncode == 1, "without the token"


async def test_a_second_service_on_the_same_state_or_port_is_refused(models, tmp_path):
    async with Server(models, tmp_path / "state") as server:
        same_state = zwatch("serve", "--models", models, "--state-dir", tmp_path / "state", "--port", 0)
        assert (same_state.returncode, "another zwatch" in same_state.stderr) == (2, True)
        port = server.url.rpartition(":")[2]
        same_port = zwatch("serve", "--models", models, "--state-dir", tmp_path / "other", "--port", port)
        assert (same_port.returncode, "cannot be bound" in same_port.stderr) == (2, True)
