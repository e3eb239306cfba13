"""compose.yaml and the manifests of docs/kubernetes.md: valid by their schemas, and true of the service and the image."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from zwatch.api.routes import CALLS
from zwatch.cli import commands

REPOSITORY = Path(__file__).parent.parent
COMPOSE = REPOSITORY / "compose.yaml"
CONTAINERFILE = (REPOSITORY / "Containerfile").read_text()
KUBERNETES = (REPOSITORY / "docs" / "kubernetes.md").read_text()
VARIABLES = {option.envvar for command in commands.commands.values() for option in command.params} | {"ZWATCH_TOKEN"}
PATHS = {call.path for call in CALLS}
MANIFESTS = [
    manifest
    for block in re.findall(r"^```yaml\n(.*?)^```$", KUBERNETES, re.MULTILINE | re.DOTALL)
    for manifest in yaml.safe_load_all(block)
]


def resolved(**variables: str) -> str:
    """Return compose.yaml as podman-compose understands it."""
    pytest.importorskip("podman_compose", reason="podman-compose is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "podman_compose", "--file", COMPOSE, "--profile", "cpu", "config"],
        capture_output=True, text=True, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **variables}, cwd="/", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_compose_yaml_has_only_what_the_specification_knows():
    compose_spec = pytest.importorskip("compose_spec", reason="compose-spec is not installed")
    options = compose_spec.PyOptions()
    options.apply_merge = True
    found = options.from_yaml(resolved(ZWATCH_TOKEN="x"))
    found.validate()
    assert set(found.services) == {"zwatch", "zwatch-cpu"}


def test_compose_yaml_reserves_a_gpu_and_checks_the_health_and_writes_below_its_volumes_only():
    services = yaml.safe_load(resolved(ZWATCH_TOKEN="x", ZWATCH_UID="1000"))["services"]
    device = {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert services["zwatch"]["deploy"]["resources"]["reservations"]["devices"] == [device]
    assert "deploy" not in services["zwatch-cpu"]
    for service in services.values():
        assert service["healthcheck"]["test"] == ["CMD", "curl", "-f", "http://localhost:7860/health"]
        assert (service["read_only"], service["cap_drop"], service["user"]) == (True, ["ALL"], "1000:0")
        assert [volume.split(":")[1] for volume in service["volumes"]] == ["/models", "/loras", "/var/lib/zwatch"]
        assert set(service["environment"]) <= VARIABLES
        given = {argument.partition("=")[0] for argument in service["build"].get("args", {})}
        assert given <= set(re.findall(r"^ARG (\w+)", CONTAINERFILE, re.MULTILINE))
        assert service["ports"] == ["127.0.0.1:7860:7860"], "nobody else reaches it unless that is wished"


def test_without_a_token_compose_says_where_to_read():
    pytest.importorskip("podman_compose", reason="podman-compose is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "podman_compose", "--file", COMPOSE, "config"],
        capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}, cwd="/", check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "see the first lines of compose.yaml" in done.stderr


def test_the_image_sets_only_variables_that_the_service_reads_and_none_that_is_secret():
    names = set(re.findall(r"\b(ZWATCH_\w+)=", CONTAINERFILE.partition("\nENV PATH")[2]))
    assert {"ZWATCH_HOST", "ZWATCH_MODELS", "ZWATCH_STATE_DIR", "ZWATCH_OUTPUT_DIR"} == names <= VARIABLES


def test_the_image_gets_what_the_package_needs_and_nothing_else():
    ignored = (REPOSITORY / ".dockerignore").read_text().split("\n")
    kept = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", CONTAINERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert kept == copied
    assert not kept & {"models", ".env", ".git", ".venv", "tests"}


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda one: f"{one['kind']} {one['metadata']['name']}")
def test_each_manifest_is_valid_by_the_schema_of_kubernetes(manifest):
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def find(kind: str) -> dict:
    return next(one for one in MANIFESTS if one["kind"] == kind)


def test_the_probes_ask_calls_that_need_no_token_and_say_what_a_probe_wants_to_know():
    [container] = find("Deployment")["spec"]["template"]["spec"]["containers"]
    asked = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert asked == {"startup": "/health/live", "liveness": "/health/live", "readiness": "/health/ready"}
    assert set(asked.values()) <= PATHS
    [port] = container["ports"]
    assert f"EXPOSE {port['containerPort']}" in CONTAINERFILE
    assert find("Service")["spec"]["ports"][0]["targetPort"] == port["name"]
    assert (
        find("Service")["spec"]["selector"].items()
        <= find("Deployment")["spec"]["template"]["metadata"]["labels"].items()
    )


def test_each_container_is_restricted_and_its_variables_volumes_and_user_are_those_of_the_image():
    user = int(re.search(r"^USER (\d+)$", CONTAINERFILE, re.MULTILINE)[1])
    claims = {one["metadata"]["name"] for one in MANIFESTS if one["kind"] == "PersistentVolumeClaim"}
    for kind in ("Deployment", "Job"):
        pod = find(kind)["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsUser"] == user
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["enableServiceLinks"] is False
        volumes = {volume["name"] for volume in pod["volumes"]}
        used = {
            volume["persistentVolumeClaim"]["claimName"]
            for volume in pod["volumes"]
            if "persistentVolumeClaim" in volume
        }
        assert used <= claims | {"training-output"}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            assert {variable["name"] for variable in container["env"]} <= VARIABLES
            context = container["securityContext"]
            assert (context["readOnlyRootFilesystem"], context["allowPrivilegeEscalation"]) == (True, False)
            assert context["capabilities"] == {"drop": ["ALL"]}
    assert find("Deployment")["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1


RAY_CLUSTER = {
    "metadata": {"name": str, "annotations": dict},
    "rayVersion": str, "authOptions": {"mode": str}, "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {"image": str, "idleTimeoutSeconds": int},
    "headGroupSpec": {"rayStartParams": dict, "template": dict},
    "workerGroupSpecs": [
        {
            "groupName": str, "minReplicas": int, "replicas": int, "maxReplicas": int, "rayStartParams": dict,
            "template": dict,
        }
    ],
}  # fmt: skip
"""Of the schema of KubeRay 1.6 (`RayCluster`, ray.io/v1), what docs/fleet.md uses; all of it is 930 kB."""


def fits(value, shape) -> bool:
    """Return whether a value has these fields, and no others, of these types."""
    if isinstance(shape, dict):
        return value.keys() == shape.keys() and all(fits(value[name], one) for name, one in shape.items())
    if isinstance(shape, list):
        return all(fits(one, shape[0]) for one in value)
    return type(value) is shape


def test_the_manifest_for_kuberay_is_valid_and_true_of_the_image_and_the_service():
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    fleet = (REPOSITORY / "docs" / "fleet.md").read_text()
    [block] = re.findall(r"^```yaml\n(.*?)^```$", fleet, re.MULTILINE | re.DOTALL)
    assert block.count("\n") <= 30
    [manifest] = yaml.safe_load_all(block)
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayCluster")
    assert fits({"metadata": manifest["metadata"], **manifest["spec"]}, RAY_CLUSTER)
    head, [group] = manifest["spec"]["headGroupSpec"]["template"], manifest["spec"]["workerGroupSpecs"]
    claims = {one["metadata"]["name"] for one in MANIFESTS if one["kind"] == "PersistentVolumeClaim"}
    for template in (head, group["template"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": template["spec"]}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
        assert {one["persistentVolumeClaim"]["claimName"] for one in pod["spec"]["volumes"]} <= claims
        [container] = pod["spec"]["containers"]
        assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["spec"]["volumes"]}
    [controller] = head["spec"]["containers"]
    _, _, given = controller["command"][2].partition("exec zwatch serve ")
    with commands.commands["serve"].make_context("serve", given.split()) as context:
        assert context.params["ray"] == "auto"
        count = context.params["replicas"]
    assert (count.least, count.most) == (group["minReplicas"], group["maxReplicas"])
    assert {controller[f"{name}Probe"]["httpGet"]["path"] for name in ("liveness", "readiness")} <= PATHS
    assert {one["name"] for one in controller["env"]} <= VARIABLES
    constraints = (REPOSITORY / "constraints.txt").read_text()
    assert f"ray=={manifest['spec']['rayVersion']}\n" in constraints
    [extras] = re.findall(r"EXTRAS=([\w,]+) ", fleet)
    assert "ARG EXTRAS=" in CONTAINERFILE
    extra = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*extras.split(",")} <= extra.keys()


def test_every_command_of_zwatch_in_the_page_exists():
    written = set(re.findall(r"\bzwatch (deploy|seal|rollback|status|list|attempts|verify|check|serve)\b", KUBERNETES))
    assert {"deploy", "seal", "rollback", "status"} <= written <= set(commands.commands)
    for path in re.findall(r"`(?:POST |GET )?(/(?:api|health)[/\w]*)`", KUBERNETES):
        assert path in PATHS
