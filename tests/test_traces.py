"""Traces of a real service: what a collector receives of requests and of deploys."""

import asyncio
import shutil
import subprocess
import sys
import time

from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.harness import Server
from tests.otlp import Receiver, values
from tests.test_operations import flip
from zwatch.api.traces import wanted
from zwatch.deploy.sealing import write_seal

PROMPT = "a secret lighthouse"
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CLIENT = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=1", "X-Request-Id": "r-1"}
UNSAMPLED = {"traceparent": f"00-{'ab' * 16}-{SPAN}-00"}


async def received(server, receiver, name, number=1):
    return await server.until(
        lambda: len(receiver.named(name)) >= number and receiver.named(name), f"{name} is received"
    )


def names(spans):
    return [span.name for span in spans]


def check_times(receiver, parent):
    """Check that what is below a span lies within it."""
    for child in receiver.below(parent):
        assert parent.start_time_unix_nano <= child.start_time_unix_nano <= child.end_time_unix_nano
        assert child.end_time_unix_nano <= parent.end_time_unix_nano + 2_000_000, (parent.name, child.name)
        check_times(receiver, child)


async def test_a_collector_receives_requests_and_deploys_with_their_phases_and_holds_up_nothing(models, tmp_path):
    begun = time.time_ns()
    shutil.copytree(models / "v2", models / "v3")
    write_seal(models / "v3", "v3")
    weights = models / "v3/transformer/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with Receiver() as receiver:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_EXPORTER_OTLP_HEADERS": "key=k1",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test", "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        }  # fmt: skip
        async with Server(models, tmp_path / "state", environment=environment) as server:
            await server.serves("v1")
            [first] = await received(server, receiver, "deploy")
            await check_deploy(receiver, first, "v1")
            assert receiver.resources[0]["service.name"] == "zwatch"
            assert receiver.resources[0]["deployment.environment"] == "test"
            assert receiver.headers[0]["key"] == "k1"

            body = {"prompt": PROMPT, "seed": 1, "n": 2}
            for headers in (CLIENT, UNSAMPLED):
                async with server.http.post(
                    server.url + "/generate", json=body, headers={**headers, "Accept": "application/json"}
                ) as response:
                    assert response.status == 200
            [request] = await received(server, receiver, "POST /generate")
            check_request(receiver, request)

            flip(models, "v2")
            await server.serves("v2")
            second = (await received(server, receiver, "deploy", 2))[-1]
            await check_deploy(receiver, second, "v2")
            assert receiver.below(second)[0].name == "resolve"
            assert second.start_time_unix_nano > begun

            status, job = await server.post("/jobs", {"prompt": PROMPT, "seed": 1})
            assert status == 202
            [created] = await received(server, receiver, "POST /jobs")
            of_job = (await received(server, receiver, "job", 2))[-1]
            assert values(of_job.attributes)["zwatch.job"] == job["id"]
            assert (of_job.trace_id, of_job.parent_span_id) == (created.trace_id, created.span_id)

            async with server.http.post(server.url + "/generate", json={"prompt": PROMPT, "model": "v9"}) as response:
                assert response.status == 404
            await server.post("/api/deploy", {"version": "v9"})
            [refused] = await received(server, receiver, "POST /api/deploy")
            assert values(refused.attributes)["http.response.status_code"] == 404

            flip(models, "v3")
            attempt = await server.rejected("hash_mismatch")
            rejected = (await received(server, receiver, "deploy", 3))[-1]
            assert (rejected.status.code, rejected.status.message) == (Status.STATUS_CODE_ERROR, attempt["reason"])
            assert values(rejected.attributes)["zwatch.attempt.code"] == "hash_mismatch"

            receiver.stop()  # a collector that is gone holds up nothing
            await server.generate()
            assert await asyncio.to_thread(server.stop) == 0
        assert PROMPT not in str(receiver.spans)
        assert not [span for span in receiver.spans if span.trace_id.hex() == "ab" * 16], (
            "the client's sampling is honoured"
        )


async def check_deploy(receiver, deploy, version):
    found = values(deploy.attributes)
    assert (found["zwatch.version"], found["zwatch.attempt.state"]) == (version, "PROMOTED")
    below = names(receiver.below(deploy))
    assert {"read", "verify", "build", "warm", "promote"} <= set(below)
    assert [below.index(name) for name in ("read", "build", "warm", "promote")] == sorted(
        below.index(name) for name in ("read", "build", "warm", "promote")
    )
    check_times(receiver, deploy)


def check_request(receiver, request):
    assert (request.trace_id.hex(), request.parent_span_id.hex(), request.kind) == (TRACE, SPAN, Span.SPAN_KIND_SERVER)
    assert request.trace_state == "vendor=1"
    found = values(request.attributes)
    assert (found["http.route"], found["zwatch.request_id"]) == ("/generate", "r-1")
    [job] = receiver.below(request)
    found = values(job.attributes)
    assert (found["zwatch.version"], found["zwatch.images"], found["zwatch.job.state"]) == ("v1", 2, "done")
    below = receiver.below(job)
    assert names(below) == ["queue", "generate", "write", "write"]
    assert names(receiver.below(below[1])) == ["encode", "denoise", "decode", "denoise", "decode"]
    check_times(receiver, request)


def test_nothing_of_it_is_imported_unless_it_is_asked_for():
    code = "import sys, zwatch.serving; print(sorted(name for name in sys.modules if name.startswith('opentelemetry')))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout == "[]\n", ended.stderr


def test_the_variables_of_opentelemetry_ask_for_traces():
    assert not wanted({})
    assert not wanted({"OTEL_SERVICE_NAME": "zwatch", "OTEL_EXPORTER_OTLP_ENDPOINT": ""})
    assert wanted({"OTEL_TRACES_EXPORTER": "console"})
    assert wanted({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"})
    assert not wanted({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "TRUE"})
    assert not wanted({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318", "OTEL_TRACES_EXPORTER": "none"})
