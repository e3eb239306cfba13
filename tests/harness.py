"""A real `zwatch serve` in a separate process, and its clients."""

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
from PIL import Image

DEADLINE = 180.0


def serve_command(models: Path, state: Path, *options: object) -> list[str]:
    """Return the command of a service that logs text."""
    command = [sys.executable, "-m", "zwatch", "serve", "--models", models, "--state-dir", state, "--log", "text"]
    return [*map(str, command), *map(str, options)]


class Server:
    """A running service. Use as `async with Server(models, state) as server`."""

    def __init__(
        self, models: Path, state: Path, *options: str, device: str = "cpu", environment: dict[str, str] | None = None
    ) -> None:
        self.models = models
        self.log = state.with_suffix(".log")
        images = state.with_suffix(".images")
        self._command = serve_command(
            models, state, "--port", "0", "--device", device, "--output-dir", images, *options
        )
        self._environment = {**os.environ, **(environment or {})}
        self.process: subprocess.Popen | None = None
        self.url = ""

    def start(self) -> None:
        """Start the process; `connect` comes next."""
        with open(self.log, "ab") as log:
            self._begin = log.tell()
            self.process = subprocess.Popen(self._command, stderr=log, stdout=log, env=self._environment)

    async def connect(self) -> None:
        """Open a client on this event loop; `http.close()` ends it."""
        self.http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        await self.until(lambda: self._find_url(self._begin), "it logs its address")

    async def __aenter__(self):
        self.start()
        await self.connect()
        return self

    async def __aexit__(self, *error):
        await self.http.close()
        self.stop()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop the process and return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE)

    async def until(self, condition, what: str, deadline: float = DEADLINE):
        """Wait for a condition (or for the coroutine function's truth) and return its value."""
        end = time.monotonic() + deadline
        while time.monotonic() < end:
            assert self.process.poll() is None, f"the server ended: {self.log.read_text()}"
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.02)
        raise AssertionError(f"waited {deadline} s until {what}\n{await self.status()}\n{self.log.read_text()[-5000:]}")

    async def get(self, path: str):
        async with self.http.get(self.url + path) as response:
            return await response.json()

    async def status(self):
        return await self.get("/status")

    async def post(self, path: str, body=None):
        """Return (status, body)."""
        async with self.http.post(self.url + path, json=body or {}) as response:
            return response.status, await response.json()

    async def generate(self, prompt: str = "a cat", seed: int = 1, **fields):
        """Return (version, digest, pixels) of one image; fails unless the answer is 200."""
        async with self.http.post(self.url + "/generate", json={"prompt": prompt, "seed": seed, **fields}) as response:
            body = await response.read()
            assert response.status == 200, (response.status, body)
            headers = response.headers
            return headers["X-Zwatch-Version"], headers["X-Zwatch-Digest"], pixels(body)

    async def serves(self, version: str, deadline: float = DEADLINE):
        """Wait until a version serves `current` and no attempt is running."""

        async def check():
            status = await self.status()
            return status["status"] == "ok" and status["serving"]["version"] == version

        await self.until(check, f"{version} serves", deadline)

    async def serves_current(self, version: str, deadline: float = DEADLINE):
        """Wait until a version serves `current`, whatever becomes of other aliases."""

        async def check():
            serving = (await self.status())["serving"]
            return serving and serving["version"] == version

        await self.until(check, f"{version} serves current", deadline)

    async def rejected(self, code: str, deadline: float = DEADLINE):
        """Wait until current's attempt is rejected with this code; return the attempt."""

        async def check():
            attempt = (await self.status())["aliases"]["current"]["attempt"]
            return attempt if attempt and attempt["state"] == "REJECTED" and attempt["code"] == code else None

        return await self.until(check, f"the attempt is rejected with {code}", deadline)

    @property
    def resident_memory(self) -> int:
        """Resident bytes of the process."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def _find_url(self, begin: int) -> bool:
        found = re.search(r"serving \S+ at (http://\S+)", self.log.read_bytes()[begin:].decode())
        self.url = found.group(1) if found else ""
        return bool(found)


def pixels(file: bytes) -> bytes:
    """Return the RGB bytes of an image file."""
    with Image.open(io.BytesIO(file)) as image:
        return image.convert("RGB").tobytes()


def golden(directory: Path, wanted, device: str = "cpu") -> dict:
    """Return {(prompt, seed): RGB bytes} as diffusers' own pipeline makes them from a version directory."""
    import torch
    from diffusers import ZImagePipeline

    from zwatch.engine.precision import adapt

    pipeline = ZImagePipeline.from_pretrained(directory, torch_dtype=torch.bfloat16, local_files_only=True)
    pipeline.to(device).set_progress_bar_config(disable=True)
    for module in (pipeline.text_encoder, pipeline.transformer, pipeline.vae):
        adapt(module, torch.device(device))  # as zwatch computes on this processor
    size = pipeline.vae.config.sample_size
    return {
        (prompt, seed): pipeline(
            prompt, width=size, height=size, num_inference_steps=8, guidance_scale=0.0,
            generator=torch.Generator(device).manual_seed(seed),
        ).images[0].tobytes()
        for prompt, seed in wanted
    }  # fmt: skip
