"""Requests that name LoRAs, over HTTP, with real engines."""

import asyncio
import base64
import gc
import io
import json
import shutil
import threading
import weakref
from dataclasses import replace

import aiohttp
import openai
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.deploy.loras import matrices, write_lora
from tests.engine.editing import TRANSFORMER, edit_json, edit_tensors, seal_again
from zwatch.generation.image_details import read_details
from zwatch.generation.lora_fields import LoraWish
from zwatch.generation.picture_settings import picture_settings


@pytest.fixture
def loras(client, models):
    """The LoRA root of the service, with `ink` and `night`."""
    root = client.services.queue.loras.root.path
    for seed, name in enumerate(("ink", "night")):
        write_lora(root, name, models / "v1/transformer", 4 + seed, seed)
    return root


def digest_of(root, name):
    from zwatch.deploy.loras import LoraRoot

    return LoraRoot(root).open_lora(name).digest


def ink(scale=0.8, name="ink"):
    return [{"name": name, "scale": scale}]


def pixels(file):
    with Image.open(io.BytesIO(file)) as image:
        return image.convert("RGB").tobytes()


async def metric(client, name):
    async with client.http.get(client.url + "/metrics") as response:
        text = await response.text()
    return float(next(line for line in text.splitlines() if line.startswith(f"{name} ")).rpartition(" ")[2])


async def test_the_same_prompt_seed_version_and_loras_give_the_same_bytes(client, loras):
    files = [(await client.png(seed=1, loras=ink()))[1] for _ in range(2)]
    assert files[0] == files[1]
    _, plain = await client.png(seed=1)
    assert pixels(plain) != pixels(files[0])
    both = [{"name": "ink", "scale": 0.8}, {"name": "night", "scale": 0.5}]
    assert (await client.png(seed=1, loras=both))[1] == (await client.png(seed=1, loras=both[::-1]))[1]


async def test_the_answer_names_them_with_scales_and_digests(client, loras):
    headers, file = await client.png(seed=1, loras=ink())
    digest = digest_of(loras, "ink")
    assert headers["X-Zwatch-Loras"] == f"ink:0.8:{digest}"
    with Image.open(io.BytesIO(file)) as image:
        assert json.loads(image.text["zwatch_loras"]) == [{"name": "ink", "scale": 0.8, "digest": digest}]
        assert image.text["parameters"].startswith("a cat <lora:ink:0.8>\nSteps: 8, ")
        assert f'Lora hashes: "ink: {digest[:12]}"' in image.text["parameters"]
        assert json.loads(image.text["zwatch_request"])["loras"] == ink()
    assert picture_settings(file)["settings"]["loras"] == ink()
    body = {"prompt": "a cat", "seed": 1, "loras": ink()}
    _, _, answer = await client.call("POST", "/generate", json=body, headers={"Accept": "application/json"})
    used = [{"name": "ink", "scale": 0.8, "digest": digest}]
    assert answer["loras"] == used
    assert base64.b64decode(answer["images"][0]["b64_json"]) == file
    _, _, job = await client.call("GET", f"/jobs/{answer['id']}")
    assert (job["loras"], job["request"]["loras"]) == (used, ink())
    _, _, page = await client.call("GET", "/history")
    assert [image["loras"] for image in page["images"]] == [used, used]


@pytest.mark.parametrize("image_format", ["jpeg", "webp"])
async def test_other_formats_name_them_too(client, loras, image_format):
    _, file = await client.png(seed=1, loras=ink(), format=image_format)
    [lora] = read_details(file).loras
    assert (lora.name, lora.scale, lora.digest) == ("ink", 0.8, digest_of(loras, "ink"))
    assert picture_settings(file)["settings"]["loras"] == ink()
    _, _, page = await client.call("GET", "/history")
    assert page["images"][0]["loras"][0]["name"] == "ink"


async def test_a_request_without_has_none(client, loras):
    await client.png(seed=1, loras=ink())
    headers, file = await client.png(seed=1, loras=[])
    assert "X-Zwatch-Loras" not in headers
    assert b"zwatch_loras" not in file
    assert file == (await client.png(seed=1))[1]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("[{", "must be JSON such as"), (7, "must be a list such as"), ([7], "[0] must be an object"),
        ([{}], "[0] has no name"), ([{"name": 1}], "must have a string as its name"),
        ([{"name": "../x"}], "[0] has the name"), ([{"name": "ink", "scale": "1"}], "[0] must have a number as its scale"),
        ([{"name": "ink", "scale": 2.5}], "[0] has the scale 2.5, it must be from -2 to 2"),
        ([{"name": "ink", "weight": 1}], '[0] has an unknown field "weight"'),
        ([{"name": "ink"}, {"name": "ink"}], 'has "ink" twice'),
        ([{"name": f"l{number}"} for number in range(9)], "may be a list of up to 8, got 9"),
        ([{"name": "ink", "scale": 10**400}], "[0] has the scale 1000"),
        (json.dumps([{"name": "ink", "scale": -(10**400)}]), "[0] has the scale -1000"),
        ([{"name": "ink", "scale": True}], "[0] must have a number as its scale, got a boolean"),
    ],
)  # fmt: skip
async def test_what_is_no_list_of_loras_is_refused(client, loras, given, says):
    error = await client.error("/generate", {"prompt": "a cat", "loras": given}, 400)
    assert (error["code"], error["param"]) == ("invalid_value", "loras")
    assert says in error["message"]


async def test_an_unknown_name_is_refused_and_those_that_are_there_are_named(client, loras):
    for path in ("/generate", "/jobs"):
        error = await client.error(path, {"prompt": "a cat", "loras": ink(name="oil")}, 400)
        assert error["param"] == "loras"
        assert error["message"] == "loras: there is no LoRA 'oil'; there are ink, night"


async def test_one_that_does_not_fit_the_version_is_refused_with_names_and_shapes(client, loras, models):
    write_lora(loras, "wide", models / "v1/transformer", 4, 1, of=lambda module: module == "layers.0.attention.to_q")
    edit = loras / "wide/lora.safetensors"
    tensors = load_file(edit)
    [rows, columns] = matrices(models / "v1/transformer")["layers.0.attention.to_q"]
    tensors = {name: value[:, :16].contiguous() if "lora_A" in name else value for name, value in tensors.items()}
    save_file(tensors, edit, {"version": "wide"})
    reseal(loras / "wide")
    for path in ("/generate", "/jobs"):
        error = await client.error(path, {"prompt": "a cat", "loras": ink(name="wide")}, 400)
        assert error["param"] == "loras"
        assert error["message"] == (
            f"loras: wide does not fit version v1: layers.0.attention.to_q is {[rows, columns]}, the LoRA is for {[rows, 16]}"
        )


def reseal(directory):
    from blake3 import blake3

    from zwatch.deploy.seal import SEAL_NAME, format_seal

    files = {path.name: blake3(path.read_bytes()).hexdigest() for path in directory.iterdir() if path.name != SEAL_NAME}
    (directory / SEAL_NAME).write_bytes(format_seal(files))


async def test_bytes_that_differ_from_the_seal_are_refused_and_serve_again_when_they_are_right(client, loras):
    path = loras / "ink/lora.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    error = await client.error("/generate", {"prompt": "a cat", "loras": ink()}, 400)
    assert error["message"].startswith("loras: ink cannot be used: ink/lora.safetensors: blake3 is ")
    path.write_bytes(good)
    await client.png(loras=ink())


def spoil(directory):
    """Change a byte of a LoRA's factors, with the seal left as it is."""
    path = directory / "lora.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize("path", ["/generate", "/jobs"])
async def test_one_that_cannot_be_loaded_keeps_nothing_of_the_version(client, loras, path):
    """Neither an answered job nor one that nobody asks for again holds the frames of the load."""
    spoil(loras / "ink")
    body = {"prompt": "a cat", "loras": ink()}
    status, _, answer = await client.call("POST", path, json=body)
    if path == "/jobs":
        assert (await ended(client, answer["id"]))["state"] == "failed"
    else:
        assert status == 400
    network = weakref.ref(client.services.engines.serving("current").engine.pipeline.transformer)
    await client.call("POST", "/api/unload_model")
    for _ in range(100):
        gc.collect()
        if network() is None:
            break
        await asyncio.sleep(0.05)
    assert network() is None


async def test_a_copy_that_is_right_serves_though_a_request_waits_with_one_that_was_not(client, loras):
    good = loras.parent / "good"
    shutil.copytree(loras / "ink", good)
    spoil(loras / "ink")
    waiting = await client.services.queue.loras.opened((LoraWish("ink"),))
    await client.error("/generate", {"prompt": "a cat", "loras": ink()}, 400)
    shutil.rmtree(loras / "ink")
    shutil.copytree(good, loras / "ink")
    await client.png(loras=ink())
    assert waiting.digests == (digest_of(loras, "ink"),)
    _, _, found = await client.call("GET", "/loras")
    assert [one["problem"] for one in found["loras"]] == [None, None]


def changed(directory, change):
    """Change the factors of a LoRA by `change(name, tensor)`, and seal it again."""
    path = directory / "lora.safetensors"
    tensors = {name: change(name, value) for name, value in load_file(path).items()}
    save_file(tensors, path, {"version": directory.name})
    reseal(directory)


@pytest.mark.parametrize(("dtype", "number"), [(torch.bfloat16, torch.nan), (torch.float32, -torch.inf)])
async def test_one_with_a_number_that_is_not_finite_is_refused_with_the_tensors_name(client, loras, dtype, number):
    wrong = "layers.1.attention.to_k.lora_B.weight"

    def change(name, value):
        value = value.to(dtype)
        if name == wrong:
            value[-1, -1] = number
        return value

    changed(loras / "ink", change)
    error = await client.error("/generate", {"prompt": "a cat", "loras": [*ink(name="night"), *ink()]}, 400)
    assert (error["code"], error["param"]) == ("invalid_value", "loras")
    assert error["message"].startswith(
        f"loras: ink cannot be used: ink/lora.safetensors: {wrong} has NaN or infinite numbers in bfloat16"
    )
    await client.png(loras=ink(name="night"))


async def test_an_error_of_what_is_drawn_names_them(client, loras):
    changed(loras / "ink", lambda name, value: value.float().mul(1e36).to(torch.bfloat16))
    both = [*ink(2.0), *ink(0.5, "night")]
    error = await client.error("/generate", {"prompt": "a cat", "loras": both}, 500)
    assert "ink:2" in error["message"]
    assert "night:0.5" in error["message"]
    with client.failing():
        error = await client.error("/generate", {"prompt": "a cat", "loras": ink(name="night")}, 500)
        assert error["message"].endswith(" with the LoRA night:0.8")
        error = await client.error("/generate", {"prompt": "a cat"}, 500)
        assert "LoRA" not in error["message"]


async def test_one_that_is_removed_draws_what_was_accepted(client, loras):
    store = client.services.supervisor.factory.loras
    allowed, load = threading.Event(), store.load
    store.load = lambda *given: allowed.wait(60) and load(*given)
    _, _, job = await client.call("POST", "/jobs", json={"prompt": "a cat", "loras": ink()})
    shutil.rmtree(loras / "ink")
    allowed.set()
    found = await ended(client, job["id"])
    assert found["state"] == "done", found


async def test_one_that_is_sealed_anew_is_another_one_for_the_next_request(client, loras, models):
    _, before = await client.png(seed=1, loras=ink())
    write_lora(loras, "ink", models / "v1/transformer", 4, 77)
    headers, after = await client.png(seed=1, loras=ink())
    assert headers["X-Zwatch-Loras"].endswith(digest_of(loras, "ink"))
    assert pixels(before) != pixels(after)


async def test_a_promotion_keeps_them_working_on_the_new_version(client, loras, models):
    _, before = await client.png(seed=1, loras=ink())
    status, _, _ = await client.call("POST", "/api/deploy", json={"version": "v2"})
    assert status == 200
    headers, after = await client.png(seed=1, loras=ink())
    assert headers["X-Zwatch-Version"] == "v2"
    assert headers["X-Zwatch-Loras"].endswith(digest_of(loras, "ink"))
    assert pixels(before) != pixels(after)
    assert pixels((await client.png(seed=1))[1]) != pixels(after)
    assert await metric(client, "zwatch_lora_load_seconds_count") == 1


async def test_a_job_that_waits_for_a_version_that_they_do_not_fit_fails_with_the_reason(client, loras, models):
    smaller = models / "v2"
    edit_json(smaller / "transformer/config.json", lambda config: config.update(n_layers=1))
    edit_tensors(smaller / TRANSFORMER, lambda found: {name: value for name, value in found.items() if not name.startswith("layers.1.")})  # fmt: skip
    seal_again(smaller)
    accepted = [
        (await client.call("POST", "/jobs", json={"prompt": "a cat", "steps": 100, "loras": ink()}))[2]["id"]
        for _ in range(6)
    ]
    await client.call("POST", "/api/deploy", json={"version": "v2"})
    error = await client.error("/generate", {"prompt": "a cat", "loras": ink()}, 400)
    assert "does not fit version v2: there is no layers.1.attention.to_" in error["message"]
    jobs = [await ended(client, identity) for identity in accepted]
    assert {job["state"] for job in jobs} <= {"done", "failed"}
    assert jobs[-1]["state"] == "failed"
    assert "does not fit version v2" in jobs[-1]["error"]["message"]


async def ended(client, identity):
    while (job := (await client.call("GET", f"/jobs/{identity}"))[2])["state"] in ("queued", "running"):
        await asyncio.sleep(0.02)
    return job


async def test_two_users_with_different_loras_at_once_get_their_own(client, loras):
    alone = {name: (await client.png(seed=1, loras=ink(name=name)))[1] for name in ("ink", "night")}
    plain = (await client.png(seed=1))[1]
    found = await asyncio.gather(
        *(client.png(seed=1, loras=ink(name=name)) for name in ("ink", "night") for _ in range(3)), client.png(seed=1)
    )
    assert [file for _, file in found] == [alone["ink"]] * 3 + [alone["night"]] * 3 + [plain]


async def test_a_comparison_draws_with_them_by_each_version(client, loras):
    await client.call("POST", "/api/deploy", json={"version": "v2"})
    body = {"prompt": "a cat", "seed": 1, "model": ["v1", "v2"], "loras": ink()}
    status, _, answer = await client.call("POST", "/generate", json=body, headers={"Accept": "application/json"})
    assert status == 200, answer
    assert answer["loras"][0]["digest"] == digest_of(loras, "ink")
    files = [base64.b64decode(image["b64_json"]) for image in answer["images"]]
    for version, file in zip(("v1", "v2"), files, strict=True):
        _, alone = await client.png(seed=1, model=version, loras=ink())
        assert pixels(alone) == pixels(file)


async def test_a_verification_hashes_them_too(client, loras):
    status, _, before = await client.call("POST", "/api/verify")
    await client.png(loras=ink())
    status, _, after = await client.call("POST", "/api/verify")
    assert status == 200
    store = client.services.supervisor.factory.loras
    assert after["bytes"] - before["bytes"] == store.nbytes > 0
    lora = next(iter(store._loras.values()))
    with torch.inference_mode():
        next(iter(lora.tensors.values())).view(-1)[:1].zero_()
    status, _, answer = await client.call("POST", "/api/verify")
    assert status == 409
    assert "ink/lora.safetensors" in json.dumps(answer)


async def test_an_unload_frees_them(client, loras):
    await client.png(loras=ink())
    assert await metric(client, "zwatch_lora_resident_bytes") > 0
    await client.call("POST", "/api/unload_model")
    assert await metric(client, "zwatch_lora_resident_bytes") == await metric(client, "zwatch_loras_resident") == 0
    await client.call("POST", "/api/load_model")
    await client.png(loras=ink())


async def test_metrics_count_them(client, loras):
    assert await metric(client, "zwatch_lora_uses_total") == 0
    await client.png(loras=[*ink(), *ink(name="night")])
    await client.png(loras=ink())
    assert await metric(client, "zwatch_lora_uses_total") == 3
    assert await metric(client, "zwatch_lora_load_seconds_count") == 2
    assert await metric(client, "zwatch_loras_resident") == 2


async def test_a_request_whose_lora_is_being_read_lets_others_be_drawn_first(client, loras, monkeypatch):
    store = client.services.supervisor.factory.loras
    allowed, read = threading.Event(), store._read
    monkeypatch.setattr(store, "_read", lambda *given: allowed.wait(60) and read(*given))
    _, _, job = await client.call("POST", "/jobs", json={"prompt": "a cat", "seed": 1, "loras": ink()})
    await client.png(seed=2)  # is drawn meanwhile
    _, _, state = await client.call("GET", f"/jobs/{job['id']}")
    assert state["state"] == "queued"
    allowed.set()
    assert (await ended(client, job["id"]))["state"] == "done"


async def test_one_whose_disk_does_not_answer_fails_none_that_waits_behind_it(client, loras, monkeypatch):
    """`night` is not read until all is over, in a lane with a limit of 2 s; reading `ink`, which waits behind it, takes half a second."""
    store, limits = client.services.supervisor.factory.loras, client.services.bridge._limits
    monkeypatch.setitem(limits, "lora", replace(limits["lora"], seconds=2.0))
    allowed, read = threading.Event(), store._read

    def slow(opened, conversion):
        allowed.wait(60 if opened.name == "night" else 0.5)
        return read(opened, conversion)

    monkeypatch.setattr(store, "_read", slow)
    bodies = [{"prompt": "a cat", "seed": seed, "loras": ink(name=name)} for seed, name in enumerate(("night", "ink"))]
    hung, behind = [(await client.call("POST", "/jobs", json=body))[2]["id"] for body in bodies]
    failed = await ended(client, hung)
    assert failed["state"] == "failed"
    assert "night cannot be read: no answer" in failed["error"]["message"]
    assert (await ended(client, behind))["state"] == "done"
    allowed.set()


async def test_a_lora_is_loaded_while_a_swap_loads_and_neither_waits(client, loras, monkeypatch):
    """The version's weights are held back until the request with the LoRA is answered."""
    factory = client.services.supervisor.factory
    allowed, fill = threading.Event(), factory.device.reader.fill
    monkeypatch.setattr(factory.device.reader, "fill", lambda *given: allowed.wait(60) and fill(*given))
    deploying = asyncio.create_task(client.call("POST", "/api/deploy", json={"version": "v2"}))
    while client.services.supervisor.runner.running is None:
        await asyncio.sleep(0.01)
    headers, _ = await client.png(seed=1, loras=ink())
    assert headers["X-Zwatch-Version"] == "v1"
    assert not deploying.done()
    allowed.set()
    assert (await deploying)[0] == 200


async def test_a_second_turn_is_drawn_with_them(client, loras):
    """See also test_withdrawal: what a version on trial fails to draw, the other version draws with the same LoRAs."""
    from zwatch.engine.pipeline import Engine

    await client.call("POST", "/api/deploy", json={"version": "v2"})
    bad = client.services.engines.serving("current").engine
    good = await client.png(seed=1, model="v1", loras=ink())
    whole = bad.serve

    def failing(*given, **named):
        raise RuntimeError("it fails")

    bad.serve = failing
    try:
        headers, file = await client.png(seed=1, loras=ink())
    finally:
        bad.serve = whole
    assert isinstance(bad, Engine)
    assert headers["X-Zwatch-Version"] == "v1"
    assert pixels(file) == pixels(good[1])
    assert headers["X-Zwatch-Loras"] == good[0]["X-Zwatch-Loras"]


async def test_the_device_is_prepared_as_soon_as_there_are_some(client, loras):
    requested = client.services.queue.loras
    while requested._preparing is None:
        await asyncio.sleep(0.02)
    await requested._preparing
    await client.png(loras=ink())


async def test_a_service_of_another_root_has_its_own(start, models, tmp_path):
    root = tmp_path / "elsewhere"
    write_lora(root, "ink", models / "v1/transformer", 4, 3)
    async with start(loras=root) as client:
        await client.serves()
        await client.png(loras=ink())


async def test_openais_call_takes_them_as_an_extension(client, loras):
    body = {"prompt": "a cat", "seed": 1, "loras": ink()}
    status, headers, answer = await client.call("POST", "/v1/images/generations", json=body)
    assert status == 200, answer
    assert headers["X-Zwatch-Loras"].endswith(digest_of(loras, "ink"))
    assert pixels(base64.b64decode(answer["data"][0]["b64_json"])) == pixels((await client.png(seed=1, loras=ink()))[1])
    error = await client.error("/v1/images/generations", {**body, "loras": ink(name="oil")}, 400)
    assert error["param"] == "loras"


async def test_a_picture_is_changed_with_loras_by_the_compatible_apis_as_by_the_native_one(client, loras):
    picture = base64.b64encode((await client.png(seed=3))[1]).decode()
    _, native = await client.png(seed=1, loras=ink(0.5), image=picture, strength=0.6)
    sent = {"init_images": [picture], "prompt": "a cat <lora:ink:0.5>", "seed": 1, "denoising_strength": 0.6}
    status, _, answer = await client.call("POST", "/sdapi/v1/img2img", json=sent)
    assert status == 200, answer
    assert pixels(base64.b64decode(answer["images"][0])) == pixels(native)
    assert answer["zwatch"]["loras"] == [{"name": "ink", "scale": 0.5, "digest": digest_of(loras, "ink")}]
    async with openai.AsyncOpenAI(base_url=f"{client.url}/v1", api_key="any", max_retries=0) as ours:
        file = base64.b64decode(picture)
        for wish in (ink(0.5), json.dumps(ink(0.5))):
            made = await ours.images.edit(image=file, prompt="a cat", extra_body={"seed": 1, "loras": wish})
            assert pixels(base64.b64decode(made.data[0].b64_json)) == pixels(native), wish
        both = [{"name": "ink", "scale": 0.5}, {"name": "night", "scale": -1}]
        _, native = await client.png(seed=1, loras=both, image=picture, strength=0.6)
        made = await ours.images.edit(image=file, prompt="a cat", extra_body={"seed": 1, "loras": both})
        assert pixels(base64.b64decode(made.data[0].b64_json)) == pixels(native)
        for wrong, words in (
            ([{"name": "ink", "scale": 0.5}, {"name": "night"}], "2 of name, 1 of scale"),
            (ink(5), "-2"),
        ):
            with pytest.raises(openai.BadRequestError, match=words) as caught:
                await ours.images.edit(image=file, prompt="a cat", extra_body={"loras": wrong})
            assert caught.value.param == "loras"


async def test_a_form_has_them_as_json_text(client, loras):
    form = aiohttp.FormData({"prompt": "a cat", "seed": "1", "loras": json.dumps(ink())}, default_to_multipart=True)
    async with client.http.post(client.url + "/generate", data=form) as response:
        assert response.status == 200, await response.text()
        file = await response.read()
    assert file == (await client.png(seed=1, loras=ink()))[1]
