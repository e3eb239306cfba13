"""Recorded calls of Open WebUI and SillyTavern: each succeeds, and its answer has what the client reads."""

import base64
import os

import pytest

from tests.api.a1111 import recordings
from tests.api.a1111.recordings import found_in
from zwatch.generation.image_details import read_details


async def replay(client, headers, calls):
    """Send all calls; return the last answer by path."""
    answers = {}
    for call in calls:
        body = call.body(answers) if callable(call.body) else call.body
        status, _, answer = await client.call(call.method, call.path, headers=headers, json=body)
        assert status == 200 or call.may_fail, (call, status, answer)
        for path in call.uses:
            found_in(answer, path)
        answers[call.path] = answer
    return answers


def title(client, version):
    [key] = [resident.key for resident in client.services.engines.residents if resident.key.version == version]
    return f"{version} [{key.digest[:10]}]"


def version_of(image):
    return read_details(base64.b64decode(image, validate=True)).version


@pytest.mark.parametrize(("auth", "version"), [("without a password", "v1"), ("with a password", "v2")])
async def test_open_webui_generates_with_the_checkpoint_that_it_chose(serving_both, auth, version):
    async with serving_both(token="sesame" if auth == "with a password" else None) as client:
        headers = {**recordings.OPEN_WEBUI_HEADERS, "authorization": recordings.OPEN_WEBUI_AUTH[auth]}
        answers = await replay(client, headers, recordings.open_webui(title(client, version)))
        chosen = "current" if version == "v2" else title(client, version)
        assert answers["/sdapi/v1/options"]["sd_model_checkpoint"] == chosen
        listed = [one["title"] for one in answers["/sdapi/v1/sd-models"]]
        assert listed == ["current", title(client, "v2"), title(client, "v1")]
        [image] = answers["/sdapi/v1/txt2img"]["images"]
        assert "," not in image, "it takes the part before a comma for the prefix of a data URL"
        assert version_of(image) == version
        assert os.readlink(client.services.models / "current") == "v2", "choosing never repoints a link"


@pytest.mark.parametrize(("auth", "version"), [("without a password", "v1"), ("with a password", "v2")])
async def test_sillytavern_generates_with_the_checkpoint_that_it_chose(serving_both, auth, version):
    async with serving_both(token="sesame" if auth == "with a password" else None) as client:
        headers = {**recordings.SILLYTAVERN_HEADERS, "Authorization": recordings.SILLYTAVERN_AUTH[auth]}
        answers = await replay(client, headers, recordings.sillytavern(title(client, version)))
        options, progress = answers["/sdapi/v1/options"], answers["/sdapi/v1/progress"]
        assert options["sd_model_checkpoint"] in {one["title"] for one in answers["/sdapi/v1/sd-models"]}, "in its list"
        assert "forge_preset" not in options, "by which it recognises Forge"
        assert (progress["progress"], progress["state"]["job_count"]) == (0, 0), (
            "it then regards the checkpoint as loaded"
        )
        assert version_of(answers["/sdapi/v1/txt2img"]["images"][0]) == version
        assert os.readlink(client.services.models / "current") == "v2", "choosing never repoints a link"


ODD_CREDENTIALS = ["", "Basic", "Basic ", "Basic Og==", "Basic dW5kZWZpbmVk", "Basic OndlbHA=", "Bearer"]
"""What clients send that have no credentials, or wrong ones."""


async def test_without_a_token_odd_credentials_are_ignored(client):
    for auth in ODD_CREDENTIALS:
        status, _, body = await client.call("GET", "/sdapi/v1/options", headers={"Authorization": auth})
        assert (status, body["sd_model_checkpoint"]) == (200, "current"), auth


async def test_with_a_token_odd_credentials_are_a_401_with_a_detail(start):
    async with start(token="sesame") as client:
        for auth in ODD_CREDENTIALS:
            status, _, body = await client.call("GET", "/sdapi/v1/options", headers={"Authorization": auth})
            assert (status, body["error"]["code"]) == (401, "unauthorized"), auth
            assert body["detail"] == body["error"]["message"]
