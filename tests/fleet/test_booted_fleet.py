"""A fleet under a systemd that is really booted: the unit of a node, and the service with the drop-in of docs/fleet.md. It takes two minutes."""

import os
import re

import pytest

from tests.booted import REPOSITORY, Booted, Unbootable, install, serves

pytest.importorskip("ray", reason="needs ray")
pytestmark = pytest.mark.skipif(os.environ.get("ZWATCH_LONG") != "1", reason="takes two minutes: ZWATCH_LONG=1")
DOCUMENT = (REPOSITORY / "docs" / "fleet.md").read_text()
NODE = (REPOSITORY / "systemd" / "zwatch-node.service").read_text()
RAY = r"""printf '#!/opt/zwatch/bin/python3\nimport sys\nfrom ray.scripts.scripts import main\nsys.exit(main())\n' > /opt/zwatch/bin/ray
chmod 755 /opt/zwatch/bin/ray"""
"""Without a network pip installs no Ray: its modules are there, and this is its command."""


def drop_in() -> str:
    """Return the drop-in of the document, for replicas on the processor."""
    [found] = re.findall(r"^    \[Unit\]\n    JoinsNamespaceOf=.*?\n\n(?=\S)", DOCUMENT, re.MULTILINE | re.DOTALL)
    lines = [line.removeprefix("    ") for line in found.splitlines()]
    return "\n".join([*lines, "Environment=ZWATCH_DEVICE=cpu OMP_NUM_THREADS=1", "RestartSec=100ms", ""])


@pytest.fixture(scope="module")
def machine(tiny_versions, tmp_path_factory):
    work = tmp_path_factory.mktemp("booted") / "machine"
    try:
        with Booted(work, {"/opt/source": REPOSITORY, "/opt/versions": tiny_versions}) as booted:
            install(booted, "[Service]\nEnvironment=OMP_NUM_THREADS=1\n")
            serves(booted, "v1")
            booted.shell(RAY)
            booted.shell("cd /root; head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n' > token-of-the-fleet")
            steps = [found[1] for line in NODE.splitlines() if (found := re.fullmatch(r"#   (\S.*)", line))]
            for step in steps:
                if "pip" not in step and "/etc/zwatch/node" not in step:  # this host begins the cluster
                    booted.shell(f"cd /root; {step}")
            folder = "/etc/systemd/system/zwatch.service.d"
            booted.shell(
                f"cat > {folder}/fleet.conf << 'E'\n{drop_in()}E\nsystemctl daemon-reload; systemctl restart zwatch"
            )
            yield booted
    except Unbootable as error:
        pytest.skip(f"no systemd can be booted here: {error}")


def replica(machine) -> list[str]:
    """Return the line of the one replica, once it is ready."""

    def found():
        lines = machine.run("/opt/zwatch/bin/zwatch", "status", check=False).splitlines()
        return next((line.split() for line in lines if re.match(r"\s+r0 .* ready +v1 ", line)), None)

    return machine.until(found, "the replica is ready")


def replica_pids(machine) -> str:
    return machine.run("pgrep", "-u", "zwatch", "-f", "^ray::Replica")


def test_the_service_draws_on_the_node_s_replica_which_outlives_a_controller_that_is_killed(machine):
    replica(machine)
    assert "zwatch-node.service" in machine.run("cat", f"/proc/{(before := replica_pids(machine)).split()[0]}/cgroup")
    machine.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "zwatch")
    machine.until(lambda: "is taken over from an earlier controller" in machine.journal("-t", "zwatch"), "it is found")
    replica(machine)
    assert replica_pids(machine) == before
    body = '{"prompt": "a cat", "steps": 2}'
    command = ["curl", "-s", "-m", "100", "-o", "/dev/null", "-w", "%{http_code}", "-d", body]
    assert machine.run(*command, "http://127.0.0.1:7860/generate") == "200"


def test_a_node_without_the_token_is_no_part_of_the_cluster(machine):
    """Ray itself refuses it: who could call it could run programs here."""
    command = "RAY_AUTH_MODE=token RAY_AUTH_TOKEN=of-somebody-else-entirely timeout 60 /opt/zwatch/bin/ray start --address=127.0.0.1:6379"
    said = machine.run("bash", "-c", f"{command} 2>&1; echo status $?", check=False)
    assert "status 0" not in said
    assert "InvalidAuthToken" in said


def test_the_node_begins_again_when_its_ray_is_killed_and_the_service_serves_again(machine):
    machine.run("systemctl", "kill", "--signal=KILL", "zwatch-node")
    machine.until(lambda: machine.show("zwatch-node", "NRestarts") == "1", "the node begins again")
    serves(machine, "v1")
    replica(machine)
