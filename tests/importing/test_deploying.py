"""`zwatch import --deploy`: from a source to what serves; and a service that watches the models root meanwhile."""

import asyncio
import json
import os
import sys

from tests.harness import Server
from tests.importing import published


async def zwatch(*arguments):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "zwatch", *map(str, arguments),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, error = await process.communicate()
    return process.returncode, out.decode(), error.decode()


async def test_deploy_goes_on_to_the_link_and_waits(pipeline, models, tmp_path):
    source = published.published(pipeline, tmp_path / "source")
    async with Server(models, tmp_path / "state") as server:
        await server.serves("v1")
        status, out, error = await zwatch("import", source, "v3", "--models", models, "--deploy", "--url", server.url)
        assert (status, os.readlink(models / "current")) == (0, "v3"), error
        assert "v3 is serving" in out
        assert (await server.status())["serving"]["version"] == "v3"
        log = server.log.read_text()
        assert "importing" not in log
        status, out, _ = await zwatch("import", source, "v4", "--models", models, "--deploy", "--url", server.url, "--json")  # fmt: skip
        assert (status, json.loads(out)["version"]) == (0, "v4")


async def test_without_a_service_nothing_is_written(pipeline, models):
    status, out, error = await zwatch("import", pipeline, "v3", "--models", models, "--deploy", "--url", "http://127.0.0.1:9")  # fmt: skip
    assert (status, os.readlink(models / "current"), out) == (2, "v1", "")
    assert sorted(os.listdir(models)) == ["current", "v1", "v2"]
    assert "no service at http://127.0.0.1:9" in error
    assert "nothing was imported" in error
