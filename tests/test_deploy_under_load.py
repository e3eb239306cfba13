"""Deployments under load: links are changed in every common way while clients send requests constantly."""

import asyncio
import itertools
import os
import random
import shutil
import subprocess
from contextlib import asynccontextmanager

import pytest

from tests.harness import Server, golden
from zwatch.deploy.seal import read_seal
from zwatch.deploy.sealing import write_seal

CLIENTS = 8
FLIPS = 200
WANTED = [(prompt, seed) for prompt in ("a cat wearing sunglasses", "一只戴墨镜的猫") for seed in (1, 42)]


def shell(command: str):
    def flip(models, version: str) -> None:
        subprocess.run(command.format(version=version), shell=True, cwd=models, check=True)

    return flip


def replace(models, version: str) -> None:
    temporary = models / "temporary"
    temporary.symlink_to(version)
    os.replace(temporary, models / "current")


WAYS = {
    "ln -sf": shell("ln -sf {version} current"),
    "ln -sfn": shell("ln -sfn {version} current"),
    "ln -sfT": shell("ln -sfT {version} current"),
    "mv -T": shell("ln -s {version} next && mv -T next current"),
    "unlink then symlink": shell("rm current; ln -s {version} current"),
    "os.replace": replace,
}
BUSYBOX = "busybox ln -sf {version} current"


def digest_of(directory) -> str:
    fd = os.open(directory, os.O_RDONLY)
    try:
        return read_seal(fd).digest
    finally:
        os.close(fd)


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


@pytest.fixture(scope="module")
def three_versions(tiny_versions, tmp_path_factory, device):
    from random_pipeline import PRESETS, write_pipeline

    root = tmp_path_factory.mktemp("three")
    shutil.copytree(tiny_versions, root, dirs_exist_ok=True)
    write_pipeline(root / "v3", PRESETS["tiny"], 3)
    write_seal(root / "v3", "v3")
    return root, {name: golden(root / name, WANTED, device) for name in ("v1", "v2", "v3")}


@asynccontextmanager
async def asking(server, goldens, digests, served):
    """Clients that send requests constantly; each image is compared with the version that it names; counts images by version."""
    ended = asyncio.Event()

    async def client(number: int) -> None:
        for prompt, seed in itertools.islice(itertools.cycle(WANTED), number, None):
            version, digest, made = await server.generate(prompt, seed)
            assert digest == digests[version]
            assert made == goldens[version][prompt, seed], f"{version} {prompt} {seed}"
            served[version] += 1
            if ended.is_set():
                return

    clients = asyncio.gather(*(client(number) for number in range(CLIENTS)))
    yield clients
    ended.set()
    await clients


@pytest.mark.slow
async def test_200_flips_in_every_way_fail_no_request_and_mix_no_versions(three_versions, device, tmp_path):
    source, goldens = three_versions
    models = tmp_path / "models"
    shutil.copytree(source, models)
    (models / "current").symlink_to("v1")
    digests = {name: digest_of(models / name) for name in goldens}
    assert len({images[WANTED[0]] for images in goldens.values()}) == 3, "the versions make different pixels"
    draw = random.Random(7)
    ways = {**WAYS, **({"busybox": shell(BUSYBOX)} if shutil.which("busybox") else {})}
    async with Server(models, tmp_path / "state", "--exact", device=device) as server:
        await server.serves("v1")
        served: dict[str, int] = dict.fromkeys(goldens, 0)
        async with asking(server, goldens, digests, served) as clients:
            early = last = ""
            for number in range(FLIPS):
                last = draw.choice([name for name in goldens if name != last])
                await asyncio.to_thread(draw.choice(list(ways.values())), models, last)
                # Between 6 ms (faster than any load; below that, wishes have no order) and longer than a load.
                await asyncio.sleep(draw.choice((0.006, 0.03, 0.1, 0.3 if device == "cpu" else 1.2)))
                assert not clients.done(), clients.exception()
                if number == FLIPS // 4:  # by now each has served, also where a load takes longer than all pauses
                    for last in goldens:
                        replace(models, last)
                        await server.serves(last)
                        while not served[last]:
                            await asyncio.sleep(0.01)
                            assert not clients.done(), clients.exception()
                    early = server.resident_memory
            await server.serves(last)
        grown = server.resident_memory - early
        status = await server.status()
        assert (await server.generate(*WANTED[0]))[0] == last
        assert {stray["reason"] for stray in status["strays"]} <= {"it is older than the alias"}
        assert sorted(os.listdir(models)) == ["current", "v1", "v2", "v3"]
        # What the operator's own move overtook before it was seen may be left: it is older than the alias and means nothing.
        moved = (models / "current").lstat().st_ctime_ns
        assert all(path.lstat().st_ctime_ns < moved for path in models.glob("*/*") if path.is_symlink())
        assert min(served.values()) > 0, served
        # 150 more flips load tens of megabytes of weights; a leak of one engine in ten would show.
        assert grown < 32 * 2**20, f"grew by {grown}"


@pytest.mark.slow
async def test_if_two_versions_do_not_fit_requests_wait_for_the_exchange_and_none_fails(
    three_versions, device, tmp_path
):
    source, goldens = three_versions
    models = tmp_path / "models"
    shutil.copytree(source, models)
    (models / "current").symlink_to("v1")
    digests = {name: digest_of(models / name) for name in goldens}
    weights = sum(path.stat().st_size for path in (models / "v1").rglob("*.safetensors"))
    draw = random.Random(8)
    budget = str(int(weights * 1.3))
    async with Server(models, tmp_path / "state", "--exact", "--memory-budget", budget, device=device) as server:
        await server.serves("v1")
        served = dict.fromkeys(goldens, 0)
        async with asking(server, goldens, digests, served) as clients:
            last = "v1"
            for _ in range(20):
                last = draw.choice([name for name in goldens if name != last])
                replace(models, last)
                await asyncio.sleep(draw.choice((0.02, 0.2, 0.8)))  # shorter than an exchange, and longer
                assert not clients.done(), clients.exception()
            await server.serves(last)
        status = await server.status()
        assert (status["status"], [engine["version"] for engine in status["engines"]]) == ("ok", [last])
        attempts = (await server.get("/attempts"))["attempts"]
        ways = {attempt["way"] for attempt in attempts if attempt["state"] == "PROMOTED"}
        assert ways == {"device", "host"}, "the first version was loaded, the others exchanged"
        assert all(
            attempt["held"] > 0 for attempt in attempts if attempt["state"] == "PROMOTED" and attempt["way"] == "host"
        )


@pytest.mark.slow
@pytest.mark.gpu
async def test_what_is_drawn_the_fast_way_has_the_same_bytes_whatever_is_deployed_beside_it(tiny_versions, tmp_path):
    models = tmp_path / "models"
    shutil.copytree(tiny_versions, models)
    (models / "current").symlink_to("v1")
    names = ("v1", "v2")
    async with Server(models, tmp_path / "state", device="cuda") as server:
        await server.serves("v1")
        await server.until(lambda: "kernels for drawing are ready" in server.log.read_text(), "kernels are compiled")
        goldens: dict[str, dict] = {}
        for name in names:
            replace(models, name)
            await server.serves(name)
            goldens[name] = {wanted: (await server.generate(*wanted))[2] for wanted in WANTED}
        served = dict.fromkeys(names, 0)
        digests = {name: digest_of(models / name) for name in names}
        draw = random.Random(9)
        async with asking(server, goldens, digests, served) as clients:
            for number in range(60):
                replace(models, names[number % 2])
                await asyncio.sleep(draw.choice((0.02, 0.2, 0.8)))
                assert not clients.done(), clients.exception()
        assert min(served.values()) > 0, served
