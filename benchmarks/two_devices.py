"""One model over two devices of one host: by component, and each step's sequence over both.

    python benchmarks/two_devices.py --models /dev/shm/models            # two GPUs, full size, within 200 seconds
    python benchmarks/two_devices.py --preset tiny --device cpu          # that it runs: two processes over gloo

The networks have the published sizes and random weights, made on the devices. `fast` is how zwatch computes, `diffusers` the library's
own transformer, eager.

- link: pinned host memory to the one device, the other, both at once; device to device.
- by component: text encoder and VAE on the second device, transformer on the first. `whole` is one picture alone, from tokens to a PNG
  file; `queue` pictures a second when the next is always there. On one device the file is written beside the next picture, as the
  service does; on two, encoding and decoding are beside the next picture's steps as well.
- Ulysses: half of the tokens on each device, all tokens of half of the heads in attention. diffusers has it as `ContextParallelConfig`
  (its Z-Image brings no plan of what is split: the plan is here); `fast` is the same with zwatch's kernels and one exchange for
  query, key and value.
- files: a sealed version, read, hashed and on the device: all of it on one, or each component where it would serve. Each device is
  loaded by a process.

Each row is printed and written when it is measured; one that fails says why, and the others follow.
"""

import argparse
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

# A program that uses NVLink's multicast can put a host's GPUs out of service.
os.environ.update(NCCL_NVLS_ENABLE="0", TORCH_SYMM_MEM_DISABLE_MULTICAST="1", NVSHMEM_DISABLE_NVLS="1")

import torch
from common import RESULTS, Clock, Json, Results, machine, now, packages, search_path
from draw import PROMPT, STEPS, Bench, diffusers_transformer, file_of, line, psnr
from torch import Tensor

from zwatch.engine.computing import EXACT, Computing
from zwatch.engine.fast.attention import DEFAULT, KERNELS
from zwatch.engine.fast.computing import FastComputing, gpu_operations
from zwatch.engine.fast.graphs import Graphs
from zwatch.engine.fast.operations import Norm, Operations, ProcessorOperations, Rotation
from zwatch.engine.fast.products import Products
from zwatch.engine.fast.transformer import Modulation, Step, Steps
from zwatch.engine.networks.transformer import FINAL_EPSILON, PAD_MULTIPLE, ZImageTransformer, image_of, patches
from zwatch.engine.sampling import Pipeline
from zwatch.shadow.graphs import CudaRecorder

PIECE = 2**30
"""Bytes that cross a link at a time."""
RANKS = 2
LOADED_APART = (("transformer",), ("text_encoder", "vae"))
"""Which components each device loads."""


class Rows:
    """What was measured, written down at once."""

    def __init__(self, results: Results, clock: Clock) -> None:
        self.results, self.clock = results, clock
        self.results.data["rows"] = []

    def add(self, row: Json) -> None:
        """Add a row."""
        self.results.data["rows"].append(row)
        self.results.save()
        self.clock.say(line(row))

    def row(self, part: str, way: str, **found: Any) -> None:
        """As `add`."""
        self.add({"part": part, "way": way, **found})

    @contextmanager
    def trying(self, part: str) -> Iterator[None]:
        """Go on if what is inside fails, with a row that says why."""
        try:
            yield
        except Exception as error:
            self.row(part, "failed", error=self.results.clean(f"{type(error).__name__}: {error}"))


def devices_of(kind: str) -> tuple[torch.device, torch.device]:
    """Return the two devices: GPUs, or twice the processor."""
    return (torch.device("cuda:0"), torch.device("cuda:1")) if kind == "cuda" else (torch.device("cpu"),) * 2


def wait(*devices: torch.device) -> None:
    """Wait for devices."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Have a device be the thread's current one: kernels are launched there, whichever device their tensors are on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def bench_of(options: argparse.Namespace, device: torch.device, results: Results, clock: Clock) -> Bench:
    """Return the networks on a device, with the kernels that compute fast there."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    settings = argparse.Namespace(device=str(device), preset=options.preset, quick=True, repeats=3)
    made = Bench(settings, results, clock)
    made.operations = operations_of(device)
    return made


def operations_of(device: torch.device) -> Operations:
    """Return the fast operations of a kind of device."""
    return gpu_operations() if device.type == "cuda" else ProcessorOperations()


def noise_of(pipeline: Pipeline, side: int, device: torch.device, seed: int) -> Tensor:
    """Return a picture's noise."""
    return pipeline.noise(side, side, torch.Generator(device).manual_seed(seed))


def steps_of(pipeline: Pipeline, noise: Tensor, prompt: Tensor, steps: int = STEPS) -> Tensor:
    """Return latents."""
    return pipeline.denoise(noise, pipeline.timeline(noise, steps), [prompt], 0.0, lambda number, before, after: None)


# --- the links


def links(rows: Rows, devices: Sequence[torch.device]) -> None:
    """How fast bytes get to each device, and to both at once."""
    if devices[0].type != "cuda":
        return
    pinned = [torch.empty(PIECE, dtype=torch.uint8, pin_memory=True).fill_(1) for _ in devices]
    there = [torch.empty(PIECE, dtype=torch.uint8, device=device) for device in devices]

    def rate(numbers: Sequence[int], pieces: int = 8) -> float:
        times = []
        for _ in range(4):
            wait(*devices)
            begun = time.perf_counter()
            for _ in range(pieces):
                for number in numbers:
                    there[number].copy_(pinned[number], non_blocking=True)
            wait(*devices)
            times.append(time.perf_counter() - begun)
        return round(len(numbers) * pieces * PIECE / statistics.median(times[1:]) / 1e9, 1)

    for way, numbers in (("first device", [0]), ("second device", [1]), ("both at once", [0, 1])):
        rows.row("link from pinned memory", way, gb_per_s=rate(numbers))
    times = []
    for _ in range(4):
        wait(*devices)
        begun = time.perf_counter()
        for _ in range(8):
            there[1].copy_(there[0], non_blocking=True)
        wait(*devices)
        times.append(time.perf_counter() - begun)
    direct = torch.cuda.can_device_access_peer(0, 1)
    rows.row(
        "link between the devices", "", gb_per_s=round(8 * PIECE / statistics.median(times[1:]) / 1e9, 1), peers=direct
    )


# --- by component


@dataclass
class Place:
    """Where a part of a picture is computed: a device, and the streams of the thread that does it."""

    devices: Sequence[torch.device]
    first: torch.device

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Compute inside on streams of this thread alone; `first` is the current device."""
        with ExitStack() as opened:
            for device in sorted({*self.devices}, key=lambda one: one == self.first):
                if device.type == "cuda":
                    opened.enter_context(torch.cuda.stream(torch.cuda.Stream(device, priority=-1)))
            yield

    def finish(self) -> None:
        """Wait for what this thread launched."""
        for device in {*self.devices}:
            if device.type == "cuda":
                torch.cuda.current_stream(device).synchronize()


class Split:
    """The parts of a picture on two devices, or on one: `steps` has the transformer, `coder` text encoder and VAE."""

    def __init__(self, steps: Bench, coder: Bench) -> None:
        self.devices = (steps.device, coder.device)
        self.at_steps, self.at_coder = Place(self.devices, steps.device), Place(self.devices, coder.device)
        self.steps, self.coder = steps, coder
        self._using, graphs = self._computing(steps)
        self._coding, self._coding_graphs = (self._using, graphs) if coder is steps else self._computing(coder)
        self._pipeline, self._decoder = steps.pipeline(self._using), coder.pipeline(self._coding)

    @staticmethod
    def _computing(bench: Bench) -> tuple[Computing, Graphs | None]:
        graphs = None
        if bench.is_gpu:
            graphs = Graphs(CudaRecorder(bench.device), lambda: True)
            assert graphs.hold()
        return FastComputing(bench.operations, DEFAULT, runs_ahead=True, graphs=graphs), graphs

    def encode(self) -> Tensor:
        """Encode a prompt; where the text encoder is."""
        with current(self.coder.device):
            return self.coder.encode(self._coding)

    def denoise(self, prompt: Tensor, side: int, seed: int) -> Tensor:
        """Return latents, where the transformer is; the prompt may be elsewhere."""
        with current(self.steps.device):
            noise = noise_of(self._pipeline, side, self.steps.device, seed)
            return steps_of(self._pipeline, noise, prompt.to(self.steps.device, non_blocking=True))

    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels, where the VAE is; the latents may be elsewhere."""
        with current(self.coder.device):
            return self._decoder.decode(latents.to(self.coder.device, non_blocking=True))

    def whole(self, side: int, seed: int = 1) -> bytes:
        """Return a picture's file, one part after the other."""
        pixels = self.decode(self.denoise(self.encode(), side, seed))
        with current(self.coder.device):
            return file_of(pixels)

    def record(self) -> None:
        """Record what the second device repeats: during the steps, only what is on the first device is recorded."""
        if self._coding is not self._using and self._coding_graphs is not None:
            with current(self.coder.device):
                for network in (self.coder.text, self.coder.vae):
                    self._coding_graphs.record_one(network)

    def rate(self, side: int, pictures: int) -> float:
        """Return pictures a second, the next one always waiting; what can be beside the steps of another picture is."""
        apart = self.devices[0] != self.devices[1] or self.coder is not self.steps
        lines: list[queue.SimpleQueue[Tensor | None]] = [queue.SimpleQueue() for _ in range(3)]
        failed: list[BaseException] = []
        ends: list[float] = []

        def encoding() -> None:
            for _ in range(pictures):
                found = self.encode()
                self.at_coder.finish()
                lines[0].put(found)

        def drawing() -> None:
            for number in range(pictures):
                prompt = lines[0].get() if apart else self.encode()
                if prompt is None:
                    raise RuntimeError("the encoding failed")
                found = self.denoise(prompt, side, number)
                if not apart:
                    found = self.decode(found)
                self.at_steps.finish()  # until here the prompt's memory must not be used for another one
                lines[1].put(found)

        def decoding() -> None:
            for _ in range(pictures):
                if (found := lines[1].get()) is None:
                    raise RuntimeError("the steps failed")
                pixels = self.decode(found) if apart else found
                self.at_coder.finish()  # until here its memory must not be used for the next picture
                lines[2].put(pixels)

        def writing() -> None:
            for _ in range(pictures):
                if (found := lines[2].get()) is None:
                    raise RuntimeError("the decoding failed")
                file_of(found)
                ends.append(time.perf_counter())

        def run(work: Callable[[], None], place: Place, then: int | None) -> None:
            try:
                with torch.inference_mode(), place.inside():
                    work()
            except BaseException as error:
                failed.append(error)
                if then is not None:
                    lines[then].put(None)

        parts = [(drawing, self.at_steps, 1), (decoding, self.at_coder, 2), (writing, self.at_coder, None)]
        if apart:
            parts.append((encoding, self.at_coder, 0))
        wait(*self.devices)
        threads = [threading.Thread(target=run, args=one, daemon=True) for one in parts]
        begun = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, begun + 60 - time.perf_counter()))
        if failed:
            raise failed[0]
        if len(ends) < pictures:
            raise TimeoutError(f"{len(ends)} of {pictures} pictures within a minute")
        return pictures / (ends[-1] - begun)


def components(rows: Rows, benches: tuple[Bench, Bench], side: int, repeats: int, pictures: int) -> None:
    """A picture on one device, and by component on two."""
    pictures_of = {}
    for way, split in (("one device", Split(benches[0], benches[0])), ("two, by component", Split(*benches))):
        with rows.trying(f"whole {side}, {way}"):
            with split.at_steps.inside():
                for _ in range(3 if repeats > 2 else 2):  # what is repeated is recorded
                    pictures_of[way] = split.whole(side)
                    split.record()
                times = []
                for _ in range(repeats):
                    wait(*split.devices)
                    begun = time.perf_counter()
                    split.whole(side)
                    times.append((time.perf_counter() - begun) * 1000)
            same = {} if way == "one device" else {"same_bytes": pictures_of[way] == pictures_of.get("one device")}
            rows.row(
                f"whole {side}",
                way,
                ms=round(statistics.median(times), 1),
                spread=round(max(times) - min(times), 1),
                **same,
            )
            rows.row(f"queue {side}", way, per_second=round(split.rate(side, pictures), 4), pictures=pictures)


# --- one step over two devices


class Exchange:
    """Attention of all tokens where each of the ranks has some of them: it gets all tokens of some of the heads instead."""

    def __init__(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        self._attend = attend

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As `Attend`, each of shape (1, heads, the rank's tokens, head)."""
        _, heads, tokens, head = query.shape
        ours = torch.stack([one[0].transpose(0, 1) for one in (query, key, value)])  # (3, tokens, heads, head)
        sent = ours.view(3, tokens, RANKS, heads // RANKS, head).permute(2, 0, 1, 3, 4).contiguous()
        got = torch.empty_like(sent)
        torch.distributed.all_to_all_single(got, sent)
        whole = got.transpose(0, 1).reshape(3, 1, RANKS * tokens, heads // RANKS, head).transpose(2, 3)
        found = self._attend(*whole.unbind(0))
        sent = found[0].transpose(0, 1).reshape(RANKS, tokens, heads // RANKS, head)
        got = torch.empty_like(sent)
        torch.distributed.all_to_all_single(got, sent)
        return got.permute(1, 0, 2, 3).reshape(1, tokens, heads, head).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class HalfStep(Step):
    """A step of which each rank computes its part of the image's tokens and of the prompt's."""

    rank: int = 0

    def __call__(
        self, network: ZImageTransformer, latents: Tensor, text: Tensor, factors: Tensor, *waves: Tensor
    ) -> Tensor:
        """As `Step`."""
        blocks: list[Any] = [*network.noise_refiner, *network.layers]
        rows = factors[:-1].view(len(blocks), 4, 1, -1)
        norms = [(one.attention_norm1, one.attention_norm2, one.ffn_norm1, one.ffn_norm2) for one in blocks]
        modulations = [
            Modulation(*(Norm(row, norm.epsilon) for row, norm in zip(part.unbind(0), of, strict=True)))
            for part, of in zip(rows.unbind(0), norms, strict=True)
        ]
        image = Rotation(self._part(waves[0], 0), self._part(waves[1], 0), interleaved=True)
        places = len(waves[0])
        both = [torch.cat([self._part(one[:places], 0), self._part(one[places:], 0)]) for one in waves[2:]]
        refining = len(network.noise_refiner)
        cut = patches(latents[0].unsqueeze(1))
        missing = -len(cut) % PAD_MULTIPLE
        assert not missing, "sides are multiples of 512 here"
        x = network.all_x_embedder["2-1"](self._part(cut, 0)[None].contiguous())
        x = self.through(blocks[:refining], modulations[:refining], x, image)
        count = x.shape[1]
        x = torch.cat([x, self._part(text, 1)], dim=1)
        x = self.through(blocks[refining:], modulations[refining:], x, Rotation(*both, interleaved=True))
        normed = self.operations.norm(x, Norm(factors[-1:], FINAL_EPSILON, centred=True))
        assert isinstance(normed, Tensor)
        final: Any = network.all_final_layer["2-1"]
        out = final.linear(normed[0, :count]).contiguous()
        all_ = torch.empty((RANKS * count, out.shape[1]), dtype=out.dtype, device=out.device)
        torch.distributed.all_gather_into_tensor(all_, out)
        return image_of(all_, (1, *self.size), network.in_channels).squeeze(1)[None]

    def _part(self, whole: Tensor, dimension: int) -> Tensor:
        return whole.chunk(RANKS, dimension)[self.rank].contiguous()


class Ulysses:
    """Measures in two processes; the first one reports."""

    def __init__(self, options: argparse.Namespace, bench: Bench, report: Callable[[Json], None]) -> None:
        self.bench, self.rank, self.report = bench, options.rank, report
        self.latents: dict[tuple[str, int], Tensor] = {}

    def measure(self, side: int, way: str, draw: Callable[[int], Tensor], against: str | None, repeats: int) -> None:
        """Draw once with few steps, then with all; the ranks begin together."""
        part = f"denoise {side}"
        try:
            draw(2)
            times = []
            for _ in range(repeats):
                torch.distributed.barrier()
                wait(self.bench.device)
                begun = time.perf_counter()
                found = draw(STEPS)
                wait(self.bench.device)
                times.append((time.perf_counter() - begun) * 1000)
            self.latents[way, side] = found
            row = {"ms": round(statistics.median(times), 1), "spread": round(max(times) - min(times), 1)}
            known = self.latents.get((against or "", side))
            if known is not None:
                row["db"] = psnr(found, known)
            if self.bench.is_gpu:
                row["peak_gib"] = round(torch.cuda.max_memory_allocated(self.bench.device) / 2**30, 1)
                torch.cuda.reset_peak_memory_stats(self.bench.device)
            self.report({"part": part, "way": way, **row})
        except Exception as error:  # the other rank may wait for this one: end both
            self.report({"part": part, "way": way, "error": f"{type(error).__name__}: {error}"})
            raise

    def ours(self, side: int, repeats: int) -> None:
        """Our own way, on one device and over both."""
        bench = self.bench
        using = FastComputing(bench.operations, DEFAULT, runs_ahead=True)
        pipeline = bench.pipeline(using)
        prompt = bench.prompt.clone()
        torch.distributed.broadcast(prompt, 0)

        def alone(steps: int) -> Tensor:
            return steps_of(pipeline, noise_of(pipeline, side, bench.device, 1), prompt, steps)

        def together(steps: int) -> Tensor:
            latents = noise_of(pipeline, side, bench.device, 1)
            timeline = pipeline.timeline(latents, steps)
            size = (latents.shape[2], latents.shape[3])
            plain = Step(bench.operations, KERNELS[DEFAULT], Products(), size)
            made = Steps(bench.transformer, plain, [prompt], (1000 - timeline.timesteps) / 1000)
            made.step = HalfStep(bench.operations, Exchange(KERNELS[DEFAULT]), Products(), size, self.rank)
            for number in range(steps):
                latents = timeline.step(-made.velocity(latents.to(bench.dtype), number).float(), number, latents)
            return latents

        self.measure(side, "fast, one device", alone, None, repeats)
        self.measure(side, "fast, Ulysses over two", together, "fast, one device", repeats)

    def theirs(self, sides: Sequence[int], repeats: Sequence[int]) -> None:
        """The library's way, on one device and over both."""
        network = diffusers_transformer(self.bench)
        pipeline = self.bench.pipeline(EXACT, transformer=network)
        prompt = self.bench.prompt.clone()
        torch.distributed.broadcast(prompt, 0)

        def drawn(side: int, steps: int) -> Tensor:
            return steps_of(pipeline, noise_of(pipeline, side, self.bench.device, 1), prompt, steps)

        ways = (("diffusers, one device", None), ("diffusers, Ulysses over two", "diffusers, one device"))
        for way, against in ways:
            if against is not None:
                split(network)
            for side, times in zip(sides, repeats, strict=True):
                self.measure(side, way, partial(drawn, side), against, times)


def split(network: Any) -> None:
    """Split the sequences of diffusers' transformer over the ranks; the library brings no plan for Z-Image."""
    from diffusers import ContextParallelConfig
    from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput

    rows = ContextParallelInput(split_dim=1, expected_dims=3, split_output=False)
    plan: dict[str, Any] = {}
    for name in ("noise_refiner", "context_refiner", "layers"):
        plan[f"{name}.0"] = {"x": rows}
        plan[f"{name}.*"] = {"freqs_cis": rows}
        plan[f"{name}.{len(getattr(network, name)) - 1}"] = ContextParallelOutput(gather_dim=1, expected_dims=3)
    if len(network.noise_refiner) == 1:  # the smallest networks: one hook has both names
        for name in ("noise_refiner", "context_refiner"):
            plan[f"{name}.0"] = {"x": rows, "freqs_cis": rows}
            plan[f"{name}.*"] = ContextParallelOutput(gather_dim=1, expected_dims=3)
    if not torch.cuda.is_available():
        torch.accelerator.device_count = lambda: 1  # the library divides by it
    network.enable_parallelism(config=ContextParallelConfig(ulysses_degree=RANKS), cp_plan=plan)


def ulysses_rank(options: argparse.Namespace) -> None:
    """Be one of the two processes: import everything, wait for the word to begin, measure."""
    import diffusers  # imported while the parent measures something else

    diffusers.utils.logging.set_verbosity_error()
    print("ready", flush=True)
    sys.stdin.readline()
    device = devices_of(options.device)[options.rank]
    if device.type == "cpu":
        torch.set_num_threads(1)
    else:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", init_method=f"file://{options.meeting}", rank=options.rank,
        world_size=RANKS, device_id=device if device.type == "cuda" else None,
    )  # fmt: skip
    clock = Clock(None)
    results = Results(Path(options.meeting).with_name(f"rank{options.rank}.json"), [])

    def report(row: Json) -> None:
        if options.rank == 0 or "error" in row:
            print(json.dumps(row | ({"rank": options.rank} if "error" in row else {})), flush=True)

    with torch.inference_mode():
        bench = bench_of(options, device, results, clock)
        measuring = Ulysses(options, bench, report)
        exchanges(bench, report)
        sides, repeats = options.sides, [3 if side <= 1024 else 2 for side in options.sides]
        for side, times in zip(sides, repeats, strict=True):
            measuring.ours(side, times)
        measuring.theirs(sides, repeats)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def exchanges(bench: Bench, report: Callable[[Json], None]) -> None:
    """What one exchange of query, key and value costs, alone."""
    config = bench.preset.transformer
    for side in bench.preset.sides[:1]:
        tokens = ((side // 16) ** 2 + PAD_MULTIPLE) // RANKS
        sent = torch.zeros((RANKS, 3 * tokens * config.dim // RANKS), dtype=bench.dtype, device=bench.device)
        got = torch.empty_like(sent)
        times = []
        for _ in range(5):
            torch.distributed.barrier()
            wait(bench.device)
            begun = time.perf_counter()
            for _ in range(20):
                torch.distributed.all_to_all_single(got, sent)
            wait(bench.device)
            times.append((time.perf_counter() - begun) / 20)
        each = statistics.median(times)
        crossing = sent.nbytes // RANKS
        report(
            {
                "part": f"exchange of q, k, v {side}", "way": torch.distributed.get_backend(), "ms": round(each * 1000, 3),
                "crossing_mb": round(crossing / 1e6, 1), "gb_per_s": round(crossing / each / 1e9, 1),
            }
        )  # fmt: skip


class Children:
    """Processes of this file that import while something else is measured, and begin when they are told to."""

    def __init__(self, orders: Sequence[Sequence[str]], environments: Sequence[dict[str, str]]) -> None:
        self._processes = [
            subprocess.Popen(
                [sys.executable, __file__, *order], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env={**os.environ, "PYTHONPATH": search_path(), **environment},
            )
            for order, environment in zip(orders, environments, strict=True)
        ]  # fmt: skip

    def begin(self) -> None:
        """Tell all of them to begin."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("begin\n")
            process.stdin.flush()

    def lines(self, seconds: float) -> Iterator[str]:
        """Yield what they print until all have ended or the time is over; then all are ended."""
        told: queue.Queue[str | None] = queue.Queue()

        def read(process: subprocess.Popen[str]) -> None:
            assert process.stdout is not None
            for text in process.stdout:
                told.put(text.strip())
            told.put(None)

        for process in self._processes:
            threading.Thread(target=read, args=(process,), daemon=True).start()
        end, running = time.monotonic() + seconds, len(self._processes)
        while running:
            try:
                found = told.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"no end within {seconds:.0f} s") from None
            if found is None:
                running -= 1
            else:
                yield found

    def end(self) -> None:
        """End those that still run."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


def ulysses(rows: Rows, children: Children, seconds: float) -> None:
    """Have the two processes measure; pass their rows on."""
    ready = 0
    try:
        for text in children.lines(seconds):
            if text == "ready":
                ready += 1
                if ready == RANKS:
                    children.begin()
            elif text.startswith("{"):
                rows.add(json.loads(text))
                if "error" in text:
                    return  # the other process would wait for this one
    finally:
        children.end()  # what follows has the devices for itself


# --- files


def load_rank(options: argparse.Namespace) -> None:
    """Be a process that loads components of a version onto its device when it is told to, again and again."""
    from zwatch.deploy.look import open_version
    from zwatch.shadow.control import LoadControl
    from zwatch.shadow.device import Device
    from zwatch.shadow.loader import load_weights, plan
    from zwatch.shadow.verified_files import VerifiedFiles

    device = Device("cuda:0" if options.device == "cuda" else "cpu")
    directory = options.load.resolve()
    opened = open_version(directory.parent, directory.name)
    planned = plan(opened, opened_digest(directory))
    paths = [path for path in planned.headers if path.split("/")[0] in options.components]
    for number in range(5):
        if number == 1:
            print("ready", flush=True)  # the first load compiled the kernel and pinned memory
        if number and not sys.stdin.readline():
            return
        begun = time.perf_counter()
        buffers = load_weights(opened, planned, paths, device, LoadControl(), VerifiedFiles())
        seconds = time.perf_counter() - begun
        nbytes = sum(planned.headers[path].file_size for path in paths)
        del buffers
        if number:
            print(json.dumps({"seconds": seconds, "bytes": nbytes}), flush=True)


def opened_digest(directory: Path) -> str:
    """Return what zwatch calls a version's content."""
    from blake3 import blake3

    from zwatch.deploy.seal import SEAL_NAME

    return blake3((directory / SEAL_NAME).read_bytes()).hexdigest()


def files(rows: Rows, options: argparse.Namespace) -> None:
    """A version's files onto one device, and each component onto its own."""
    if options.models is None or not (version := options.models / "v1").is_dir():
        rows.row("files", "skipped", why="--models names no directory with v1")
        return
    every = [name for part in LOADED_APART for name in part]
    for way, parts in (("one device", [every]), ("two, by component", [list(part) for part in LOADED_APART])):
        with rows.trying(f"files, {way}"):
            orders = [["--device", options.device, "--load", str(version), "--components", *part] for part in parts]
            seen = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")
            children = Children(orders, [{"CUDA_VISIBLE_DEVICES": number} for number in seen[: len(parts)]])
            try:
                times, nbytes = loaded(children, len(parts), min(60.0, rows.clock.left))
            finally:
                children.end()
            spent = statistics.median(times)
            rows.row(
                "files",
                way,
                s=round(spent, 3),
                gb_per_s=round(nbytes / spent / 1e9, 1),
                all=[round(one, 3) for one in times],
            )


def loaded(children: Children, count: int, limit: float) -> tuple[list[float], int]:
    """Return how long each round of loads took: the slowest process counts; and the bytes of all."""
    answers: list[list[Json]] = [[]]
    ready = 0
    for text in children.lines(limit):
        if text == "ready":
            ready += 1
            if ready == count:
                children.begin()
        elif text.startswith("{"):
            answers[-1].append(json.loads(text))
            if len(answers[-1]) == count and len(answers) < 4:
                answers.append([])
                children.begin()
    return [max(one["seconds"] for one in answer) for answer in answers], sum(one["bytes"] for one in answers[0])


# --- all


def main() -> None:
    """Measure, or be one of the processes that do."""
    options = parsed()
    if options.load is not None:
        load_rank(options)
        return
    if options.rank is not None:
        ulysses_rank(options)
        return
    clock = Clock(options.deadline)
    results = Results(
        options.out, [Path(tempfile.gettempdir()), *([options.models] if options.models else [])],
        benchmark="two_devices", started=now(), preset=options.preset, steps=STEPS, prompt_tokens=PROMPT,
        machine=machine(Path.cwd()), packages=packages("torch", "triton", "diffusers"),
    )  # fmt: skip
    rows = Rows(results, clock)
    devices = devices_of(options.device)
    if options.device == "cuda" and torch.cuda.device_count() < RANKS:
        raise SystemExit(f"{RANKS} GPUs are needed, torch sees {torch.cuda.device_count()}")
    with tempfile.TemporaryDirectory() as folder:
        given = [
            "--preset",
            options.preset,
            "--device",
            options.device,
            "--meeting",
            str(Path(folder, "meeting")),
            "--sides",
            *map(str, options.sides),
        ]
        children = Children([[*given, "--rank", str(rank)] for rank in range(RANKS)], [{}] * RANKS)
        try:
            stages(rows, options, devices, children)
        finally:
            children.end()
    results.data |= {"complete": True, "seconds": round(clock.passed, 1)}
    results.save()
    clock.say("done")


def stages(rows: Rows, options: argparse.Namespace, devices: Sequence[torch.device], children: Children) -> None:
    """The measurements, the most important first; the last ones only if there is time."""
    clock = rows.clock
    with torch.inference_mode():
        with rows.trying("links"):
            links(rows, devices)
        clock.say("making the networks on both devices")
        with ThreadPoolExecutor(1) as pool:  # a thread has one current device
            first = bench_of(options, devices[0], rows.results, clock)
            second = pool.submit(torch.inference_mode()(bench_of), options, devices[1], rows.results, clock).result()
        if devices[0].type == "cuda":
            torch.cuda.set_device(devices[0])
        benches, big = (first, second), options.sides[-1]
        with rows.trying("by component"):
            components(rows, benches, options.sides[0], 5, 12)
        with rows.trying("Ulysses"):
            ulysses(rows, children, min(110.0, clock.left - 5))
        if clock.left > 25:
            with rows.trying("files"):
                files(rows, options)
        if big != options.sides[0] and clock.left > 50:
            with rows.trying(f"by component, {big}"):
                components(rows, benches, big, 2, 3)
        else:
            rows.row(f"by component {big}", "skipped", seconds_left=round(clock.left))


def parsed() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("full", "tiny"), default="full", help="tiny: a smoke test (%(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--models", type=Path, metavar="DIR", help="directory with v1, as `versions.make_versions` writes it"
    )
    parser.add_argument("--sides", type=int, nargs="+", help="of the pictures, pixels (1024 2048; tiny: 512)")
    parser.add_argument(
        "--deadline", type=float, default=195.0, metavar="SECONDS", help="begin nothing that ends later"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "two_devices.json", help="the result (%(default)s)")
    for own in ("--rank", "--meeting", "--load"):  # for the processes that this program starts
        parser.add_argument(own, type={"--rank": int, "--load": Path}.get(own, str), help=argparse.SUPPRESS)
    parser.add_argument("--components", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.sides = options.sides or ([512] if options.preset == "tiny" else [1024, 2048])
    return options


if __name__ == "__main__":
    main()
