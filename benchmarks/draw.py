"""Where the milliseconds of a picture go: diffusers' own way, eager and compiled, and each part of the fast way.

    python benchmarks/draw.py --out draw.json            # on a GPU, full size, within six minutes
    python benchmarks/draw.py --quick                    # the most important rows, within 90 seconds
    python benchmarks/draw.py --preset tiny --device cpu # that it runs

The networks have the published sizes and random weights, made on the device: nothing is read from disk. Times are medians, in
milliseconds, between two waits for the device. `limit` is the share of the arithmetic limit: the operations of the steps, at the
rate of a large product measured in the same run, divided by the time. Latents are compared by PSNR, whose peak is the range of
the other's. Each row is measured on its own: one that fails says why, and the others follow. Compiling is only measured where
diffusers is installed.
"""

import argparse
import itertools
import json
import math
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Clock, Json, Results, machine, now, packages
from torch import Tensor

from zwatch.engine.computing import EXACT, Computing
from zwatch.engine.fast.attention import DEFAULT, KERNELS
from zwatch.engine.fast.computing import FastComputing, gpu_operations
from zwatch.engine.fast.graphs import Graphs
from zwatch.engine.fast.operations import GroupNorm, Norm, Operations, Rotation, TorchOperations
from zwatch.engine.fast.products import CopiedProducts, Products
from zwatch.engine.fast.transformer import Step, Steps
from zwatch.engine.networks.autoencoder import Autoencoder, AutoencoderConfig
from zwatch.engine.networks.text_encoder import Qwen3Encoder, TextConfig
from zwatch.engine.networks.transformer import PAD_MULTIPLE, TransformerConfig, ZImageTransformer
from zwatch.engine.sampling import Pipeline, image_of
from zwatch.engine.scaled import QuantizedLinear, Scaled
from zwatch.engine.schedule import EulerSchedule
from zwatch.shadow.graphs import CudaRecorder

STEPS = 8
TOKENS = 512
"""Of a prompt with its padding."""
PROMPT = 30
"""Of a usual prompt."""


@dataclass(frozen=True)
class Preset:
    """Sizes of the networks, and sides of pictures in pixels."""

    transformer: TransformerConfig
    text: TextConfig
    vae: AutoencoderConfig
    sides: tuple[int, int]


PRESETS = {
    "full": Preset(
        TransformerConfig(axes_lens=(1536, 512, 512)),
        TextConfig(hidden_size=2560, num_hidden_layers=36, num_key_value_heads=8, intermediate_size=9728, rope_theta=1e6),
        AutoencoderConfig((128, 256, 512, 512), 0.1159, 0.3611, 2, 16, 32, use_quant_conv=False, use_post_quant_conv=False),
        (1024, 512),
    ),
    "tiny": Preset(
        TransformerConfig(dim=64, n_layers=2, n_refiner_layers=1, n_heads=2, cap_feat_dim=32, axes_dims=(8, 12, 12), axes_lens=(600, 64, 64)),
        TextConfig(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, head_dim=16, intermediate_size=64),
        AutoencoderConfig((8, 8, 8, 8), 0.1159, 0.3611, 1, 16, 4, use_quant_conv=False, use_post_quant_conv=False),
        (64, 32),
    ),
}  # fmt: skip
"""`full` as the configs published with Z-Image-Turbo say."""

CLASSES = (
    ("attention", ("flash", "fmha", "sdpa", "attention", "softmax")),
    ("convolution", ("fprop", "conv", "implicit", "winograd", "nhwckrsc", "nchwtonhwc", "nhwctonchw")),
    ("matrix product", ("gemm", "nvjet", "cutlass", "cublas", "splitk", "gemv", "_scaled_mm")),
    ("copies", ("memcpy", "memset", "copy", "catarray")),
)
"""Kernels by parts of their names; all others are norms and element by element."""


class Bench:
    """The networks, the clock, and what was measured so far."""

    def __init__(self, options: argparse.Namespace, results: Results, clock: Clock) -> None:
        self.device = torch.device(options.device)
        self.is_gpu = self.device.type == "cuda"
        self.preset = PRESETS[options.preset]
        self.quick, self.repeats = options.quick, options.repeats
        self.results, self.clock = results, clock
        self.dtype = torch.bfloat16 if self.is_gpu else torch.float32
        self.rate = 0.0
        self.rows: list[Json] = []
        self.operations: Operations = TorchOperations()
        self.transformer = self._made(ZImageTransformer, self.preset.transformer)
        self.text = self._made(Qwen3Encoder, self.preset.text)
        self.vae = self._made(Autoencoder, self.preset.vae)
        self.prompt = torch.randn((PROMPT, self.preset.transformer.cap_feat_dim), device=self.device).to(self.dtype)
        self.exact: dict[int, Tensor] = {}

    def _made(self, cls: Any, config: Any) -> Any:
        with torch.device("meta"):
            network = cls(config)
        network = network.to(self.dtype).to_empty(device=self.device).requires_grad_(False).eval()
        torch.manual_seed(0)
        for name, value in network.state_dict().items():
            if "norm" in name and name.endswith("weight"):
                value.fill_(1)
            else:
                value.normal_(std=max(1, value[0].numel()) ** -0.5 if value.dim() > 1 else 0.02)
        return network

    def wait(self) -> None:
        """Wait for the device."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def timed(self, call: Callable[[], Any], repeats: int | None = None) -> tuple[float, float]:
        """Return the median, and how far the middle half of the times lies apart, milliseconds."""
        call()
        times = []
        for _ in range(repeats or self.repeats):
            self.wait()
            begun = time.perf_counter()
            call()
            self.wait()
            times.append((time.perf_counter() - begun) * 1000)
        times.sort()
        spread = times[len(times) * 3 // 4] - times[len(times) // 4]
        return round(statistics.median(times), 3), round(spread, 3)

    def row(self, part: str, way: str, **found: Any) -> None:
        """Add a row, and write it down at once."""
        self.rows.append({"part": part, "way": way, **found})
        self.results.data["rows"] = self.rows
        self.results.save()
        self.clock.say(line(self.rows[-1]))

    @contextmanager
    def trying(self, name: str) -> Iterator[None]:
        """Go on if what is inside fails, with a row that says why."""
        try:
            yield
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = self.results.clean(f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})")
            self.row(name, "failed", error=said)
            if self.is_gpu:
                torch.cuda.empty_cache()

    # --- the parts of a picture

    def pipeline(self, computing: Computing, **instead: Any) -> Pipeline:
        """Return the pipeline; no prompt is tokenized."""
        parts = {"text_encoder": self.text, "transformer": self.transformer, "vae": self.vae} | instead
        return Pipeline(None, scheduler=EulerSchedule(shift=3.0), computing=computing, **parts)  # type: ignore[arg-type]

    def encode(self, computing: Computing) -> Tensor:
        """Encode a prompt."""
        tokens = torch.arange(TOKENS).remainder(60).to(self.device)
        return computing.encode(self.text, tokens, torch.arange(TOKENS) < PROMPT)

    def denoise(self, pipeline: Pipeline, side: int, prompt: Tensor | None = None) -> Tensor:
        """Return the latents of a picture."""
        noise = pipeline.noise(side, side, torch.Generator(self.device).manual_seed(1))
        prompts = [self.prompt if prompt is None else prompt]
        return pipeline.denoise(
            noise, pipeline.timeline(noise, STEPS), prompts, 0.0, lambda number, before, after: None
        )

    def whole(self, pipeline: Pipeline, side: int) -> bytes:
        """Return a picture's file."""
        latents = self.denoise(pipeline, side, self.encode(pipeline.computing))
        return file_of(pipeline.decode(latents))

    def operations_of(self, side: int) -> float:
        """Return the arithmetic of a step, TFLOP: products and attention of the layers that see all tokens, and the refiners."""
        config = self.preset.transformer
        image = -(-((side // 16) ** 2) // PAD_MULTIPLE) * PAD_MULTIPLE
        text = -(-PROMPT // PAD_MULTIPLE) * PAD_MULTIPLE
        weights = 4 * config.dim**2 + 3 * config.dim * int(config.dim / 3 * 8)

        def layer(tokens: int) -> float:
            return 2 * tokens * weights + 4 * tokens**2 * config.dim

        return (config.n_layers * layer(image + text) + config.n_refiner_layers * layer(image)) / 1e12

    def compared(self, latents: Tensor, side: int) -> Json:
        """Return the distance from the exact latents, if they are known."""
        known = self.exact.get(side)
        return {} if known is None else {"db": psnr(latents, known)}

    def limit(self, milliseconds: float, side: int, pictures: int = 1) -> float | None:
        """Return the share of the arithmetic limit, percent."""
        work = self.operations_of(side) * STEPS * pictures
        return round(100 * work / self.rate / (milliseconds / 1000), 1) if self.rate else None


def psnr(found: Tensor, exact: Tensor) -> float | str:
    """Return the peak signal-to-noise ratio, dB, or `equal`, or `nan`."""
    found, exact = found.double(), exact.double()
    error = float((found - exact).pow(2).mean())
    if not math.isfinite(error):
        return "nan"
    return "equal" if error == 0 else round(10 * math.log10(float(exact.max() - exact.min()) ** 2 / error), 1)


def file_of(pixels: Tensor) -> bytes:
    """Return the PNG file of pixels."""
    picture = image_of(torch.nan_to_num(pixels))
    try:
        from zwatch.generation.png import write_png
    except ImportError:
        return picture.tobytes()
    return write_png(picture)


def line(row: Json) -> str:
    """Return a row as text."""
    numbers = [f"{name} {value}" for name, value in row.items() if name not in ("part", "way")]
    return f"{row['part']:<34} {row['way']:<34} {'  '.join(numbers)}"


# --- measurements, the most important first


def rates(bench: Bench) -> None:
    """The card's limits: a large product, a large copy, the products of a layer."""
    if not bench.is_gpu:
        return
    size = 8192
    left, right = (torch.randn((size, size), device=bench.device).to(bench.dtype) for _ in range(2))
    milliseconds, spread = bench.timed(lambda: [left @ right for _ in range(10)], 5)
    bench.rate = 2 * size**3 * 10 / (milliseconds / 1000) / 1e12
    bench.row("product 8192^3", "bf16", tflops=round(bench.rate), ms=round(milliseconds / 10, 3), spread=spread)
    source = torch.empty(2**31, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    milliseconds, spread = bench.timed(lambda: [target.copy_(source) for _ in range(5)], 5)
    bench.results.data["copy_gb_per_s"] = round(2 * 2**31 * 5 / (milliseconds / 1000) / 1e9)
    bench.row("copy 2 GiB", "", gb_per_s=bench.results.data["copy_gb_per_s"])


def layer_products(bench: Bench) -> None:
    """The products of a layer, as bf16, joined, and as fp8."""
    config = bench.preset.transformer
    tokens = (bench.preset.sides[0] // 16) ** 2 + PAD_MULTIPLE
    hidden = int(config.dim / 3 * 8)
    shapes = [
        ("q", config.dim, config.dim), ("q, k, v", config.dim, 3 * config.dim), ("w1", config.dim, hidden),
        ("w1, w3", config.dim, 2 * hidden), ("w2", hidden, config.dim),
    ]  # fmt: skip
    for name, width, out in shapes:
        x = torch.randn((1, tokens, width), device=bench.device).to(bench.dtype)
        weight = torch.randn((out, width), device=bench.device).to(bench.dtype)
        work = 2 * tokens * width * out / 1e9
        for way in ("bf16", "fp8"):
            with bench.trying(f"product {name} {tokens}x{width}x{out}"):
                if way == "bf16":
                    call = partial(torch.nn.functional.linear, x, weight)
                else:
                    call = partial(QuantizedLinear.of(weight), Scaled.of(x))
                milliseconds, _ = bench.timed(lambda call=call: [call() for _ in range(20)], 5)  # type: ignore[misc]
                each = milliseconds / 20
                bench.row(f"product {name} {tokens}x{width}x{out}", way, ms=round(each, 4), tflops=round(work / each))


def kernels(bench: Bench) -> None:
    """Compile the kernels; use from here on those that are right at the networks' own widths."""
    if not bench.is_gpu:
        return
    made, plain = gpu_operations(), TorchOperations()
    begun = time.perf_counter()
    wrong = set()
    for name, (operation, call) in cases(bench, small=True).items():
        apart = math.nan
        with bench.trying(f"kernel {name}"):
            found, expected = (tensors(call(operations)) for operations in (made, plain))
            apart = max(
                float(((one.float() - two.float()).abs() / (two.float().abs() + two.float().abs().mean())).max())
                for one, two in zip(found, expected, strict=True)
            )
        if not apart < (0.13 if "fp8" in name else 2**-6):  # one step of fp8, and of bf16
            bench.row(f"kernel {name}", "WRONG", largest_difference=apart)
            wrong.add(operation)
    for operation in wrong:
        setattr(made, operation, getattr(plain, operation))
    seconds = round(time.perf_counter() - begun, 1)
    bench.row("kernels", "compiled and compared", seconds=seconds, replaced=sorted(wrong))
    bench.operations = made


def tensors(found: Any) -> list[Tensor]:
    """Return the tensors in a result, fp8 as what it stands for."""
    if isinstance(found, Scaled):
        return [found.float()]
    return [found] if isinstance(found, Tensor) else list(itertools.chain.from_iterable(map(tensors, found)))


def cases(bench: Bench, *, small: bool = False) -> dict[str, tuple[str, Callable[[Operations], Any]]]:
    """Return each operation's name and a call of it, at the sizes of the networks, or of few rows of them."""
    config, side = bench.preset.transformer, bench.preset.sides[0]
    tokens = 64 if small else (side // 16) ** 2 + PAD_MULTIPLE
    hidden, heads, head = int(config.dim / 3 * 8), config.n_heads, config.dim // config.n_heads

    def numbers(*shape: int, dtype: torch.dtype = bench.dtype) -> Tensor:
        return torch.randn(shape, device=bench.device).to(dtype)

    x, change = numbers(1, tokens, config.dim), numbers(1, tokens, config.dim)
    first, second = (Norm(numbers(1, config.dim, dtype=torch.float32), 1e-5) for _ in range(2))
    both = numbers(1, tokens, 2 * hidden)
    left, right = both.chunk(2, dim=-1)
    angles = numbers(tokens, head // 2, dtype=torch.float32)
    norms = Norm(numbers(1, head), 1e-5), Norm(numbers(1, head), 1e-5)

    def rotate(operations: Operations, *, interleaved: bool) -> tuple[Tensor, Tensor]:
        query, key = (one.view(1, tokens, heads, head).clone() for one in (x, change))
        operations.heads(query, key, norms, Rotation(angles.cos(), angles.sin(), interleaved))
        return query, key

    width = bench.preset.vae.block_out_channels[0]
    pixels = 16 if small else side
    image, shortcut = (
        numbers(1, width, pixels, pixels).contiguous(memory_format=torch.channels_last) for _ in range(2)
    )
    parameters = GroupNorm(numbers(width), numbers(width), bench.preset.vae.norm_num_groups, 1e-6)
    bias = numbers(width)
    return {
        "norm": ("norm", lambda made: made.norm(x, first)),
        "residual and norm": ("residual_norm", lambda made: made.residual_norm(x, change, first, second)),
        "heads": ("heads", lambda made: rotate(made, interleaved=True)),
        "heads in halves": ("heads", lambda made: rotate(made, interleaved=False)),
        "gated": ("gated", lambda made: made.gated(left, right)),
        "norm fp8": ("norm", lambda made: made.norm(x, first, scaled=True)),
        "residual and norm fp8": (
            "residual_norm",
            lambda made: made.residual_norm(x, change, first, second, scaled=True),
        ),
        "gated fp8": ("gated", lambda made: made.gated(left, right, scaled=True)),
        "rows fp8": ("scaled", lambda made: made.scaled(x)),
        "group norm": ("group_norm", lambda made: made.group_norm(image, parameters, bias=bias)),
        "group norm of a sum": (
            "group_norm",
            lambda made: made.group_norm(image, parameters, bias=bias, shortcut=shortcut),
        ),
        "residual": ("residual", lambda made: made.residual(x, change, first)),
        "doubled": ("doubled", lambda made: made.doubled(image, bias=bias, shortcut=shortcut)),
    }


def kernel_times(bench: Bench) -> None:
    """Each kernel at the sizes of a picture: the bytes that it has to move, and how fast it does."""
    config, side = bench.preset.transformer, bench.preset.sides[0]
    tokens = (side // 16) ** 2 + PAD_MULTIPLE
    rows, hidden = 2 * tokens * config.dim, 2 * tokens * int(config.dim / 3 * 8)
    image = 2 * side**2 * bench.preset.vae.block_out_channels[0]
    moved = {
        "norm": 2 * rows, "residual and norm": 4 * rows, "gated": 3 * hidden, "norm fp8": 1.5 * rows,
        "residual and norm fp8": 3.5 * rows, "gated fp8": 2.5 * hidden, "rows fp8": 1.5 * rows, "group norm": 3 * image,
        "group norm of a sum": 5 * image, "residual": 3 * rows, "doubled": 6 * image,
        "heads": 8 * rows, "heads in halves": 8 * rows,  # with the copies that the measurement makes
    }  # fmt: skip
    for name, (_, call) in cases(bench).items():
        with bench.trying(f"kernel {name}"):
            milliseconds, _ = bench.timed(lambda call=call: [call(bench.operations) for _ in range(20)], 5)  # type: ignore[misc]
            each = milliseconds / 20
            bench.row(
                f"kernel {name}", bench.operations.name, ms=round(each, 4), gb_per_s=round(moved[name] / each / 1e6)
            )


def exact(bench: Bench) -> None:
    """The exact way, which is diffusers' eager one."""
    measured(bench, "exact", EXACT)


def fast(bench: Bench) -> None:
    """The fast way, all of it."""
    measured(bench, "fast", computing(bench))


def computing(bench: Bench, attend: str = DEFAULT, products: Products | None = None) -> FastComputing:
    """Return a fast way to compute."""
    return FastComputing(bench.operations, attend, products, runs_ahead=True)


def measured(bench: Bench, way: str, using: Computing, sides: Sequence[int] = ()) -> None:
    """Measure all parts of a picture."""
    pipeline = bench.pipeline(using)
    with bench.trying(f"encode {way}"):
        milliseconds, spread = bench.timed(lambda: bench.encode(using))
        bench.row("encode", way, ms=milliseconds, spread=spread)
    for side in sides or bench.preset.sides:
        with bench.trying(f"denoise {side} {way}"):
            latents = bench.denoise(pipeline, side)
            if using is EXACT:
                bench.exact[side] = latents
            milliseconds, spread = bench.timed(lambda side=side: bench.denoise(pipeline, side))  # type: ignore[misc]
            found = bench.compared(latents, side) | {"limit": bench.limit(milliseconds, side)}
            bench.row(f"denoise {side}", way, ms=milliseconds, spread=spread, **found)
        with bench.trying(f"decode {side} {way}"):
            latents = bench.exact.get(side, latents)
            pixels = pipeline.decode(latents)
            milliseconds, spread = bench.timed(lambda latents=latents: pipeline.decode(latents))  # type: ignore[misc]
            known = bench.pipeline(EXACT).decode(latents)
            bench.row(f"decode {side}", way, ms=milliseconds, spread=spread, db=psnr(pixels, known))
            milliseconds, spread = bench.timed(lambda pixels=pixels: file_of(pixels))  # type: ignore[misc]
            bench.row(f"pixels to PNG {side}", way, ms=milliseconds, spread=spread)
        with bench.trying(f"whole {side} {way}"):
            milliseconds, spread = bench.timed(lambda side=side: bench.whole(pipeline, side))  # type: ignore[misc]
            same = bench.whole(pipeline, side) == bench.whole(pipeline, side)
            bench.row(f"whole {side}", way, ms=milliseconds, spread=spread, same_bytes_twice=same)


def denoise_only(bench: Bench, way: str, using: Computing, sides: Sequence[int] = (), **instead: Any) -> None:
    """Measure the steps."""
    pipeline = bench.pipeline(using, **instead)
    for side in sides or bench.preset.sides:
        with bench.trying(f"denoise {side} {way}"):
            begun = time.perf_counter()
            latents = bench.denoise(pipeline, side)
            bench.wait()
            first = round(time.perf_counter() - begun, 2)
            milliseconds, spread = bench.timed(lambda side=side: bench.denoise(pipeline, side))  # type: ignore[misc]
            found = bench.compared(latents, side) | {"limit": bench.limit(milliseconds, side)}
            bench.row(f"denoise {side}", way, ms=milliseconds, spread=spread, first_s=first, **found)


def attentions(bench: Bench) -> None:
    """The kernels of attention, alone and in the steps, and what a length costs that is new."""
    config, tokens = bench.preset.transformer, (bench.preset.sides[0] // 16) ** 2 + PAD_MULTIPLE
    head = config.dim // config.n_heads

    def drawn(length: int) -> list[Tensor]:
        shape = (1, length, config.n_heads, head)
        return [torch.randn(shape, device=bench.device).to(bench.dtype).transpose(1, 2) for _ in range(3)]

    given, longer = drawn(tokens), drawn(tokens + 3 * PAD_MULTIPLE)
    for name, attend in KERNELS.items():
        with bench.trying(f"attention {name}"):
            milliseconds, _ = bench.timed(lambda attend=attend: [attend(*given) for _ in range(20)], 5)  # type: ignore[misc]
            each = milliseconds / 20
            bench.wait()
            begun = time.perf_counter()
            attend(*longer)
            bench.wait()
            new = round((time.perf_counter() - begun) * 1000, 1)
            rate = round(4 * tokens**2 * config.dim / each / 1e9)
            bench.row(f"attention {tokens}", name, ms=round(each, 4), tflops=rate, new_length_ms=new)
    for name in KERNELS:
        if name != DEFAULT:
            denoise_only(bench, f"fast, {name} attention", computing(bench, name), bench.preset.sides[:1])


def joined(bench: Bench) -> None:
    """One product for q, k, v and one for w1, w3, with a second copy of their weights."""
    products = CopiedProducts(bench.transformer, joined=True)
    denoise_only(bench, "fast, joined products", computing(bench, products=products))


def fp8(bench: Bench) -> None:
    """The blocks' products as fp8."""
    for way in (False, True):
        products = CopiedProducts(bench.transformer, scaled=True, joined=way)
        denoise_only(bench, "fast, fp8" + ", joined" * way, computing(bench, products=products))
        if way and bench.is_gpu:
            profile(bench, "fast, fp8, joined", computing(bench, products=products))


def rows(bench: Bench) -> None:
    """How many rows a program of a norm's kernel takes."""
    if bench.operations.name != "triton":
        return
    for count in (1, 2, 8):
        made = FastComputing(gpu_operations(count), runs_ahead=True)
        denoise_only(bench, f"fast, {count} rows a program", made, bench.preset.sides[:1])


def steps_of(bench: Bench, side: int, count: int) -> tuple[Steps, Tensor, Any]:
    """Return the steps of a batch, its noise, and its timeline."""
    pipeline = bench.pipeline(EXACT)
    noise = pipeline.noise(side, side, torch.Generator(bench.device).manual_seed(1))
    timeline = pipeline.timeline(noise, STEPS)
    times = (1000 - timeline.timesteps) / 1000
    size = (noise.shape[2], noise.shape[3])
    step = Step(bench.operations, KERNELS[DEFAULT], Products(), size)
    made = Steps(bench.transformer, step, [bench.prompt] * count, times)
    others = [torch.randn_like(noise) for _ in range(count - 1)]
    return made, torch.cat([noise, *others]), timeline


def all_steps(made: Steps, noise: Tensor, timeline: Any, dtype: torch.dtype) -> Tensor:
    """Return the latents of a batch."""
    latents = noise
    for number in range(STEPS):
        latents = timeline.step(-made.velocity(latents.to(dtype), number).float(), number, latents)
    return latents


def batches(bench: Bench) -> None:
    """Batches: milliseconds a picture, and whether the first picture has the bits that it has alone."""
    for side, count in itertools.product(bench.preset.sides[::-1], (1, 2, 4)):
        with bench.trying(f"batch of {count}, {side}"):
            made, noise, timeline = steps_of(bench, side, count)
            call = partial(all_steps, made, noise, timeline, bench.dtype)
            alone = all_steps(*steps_of(bench, side, 1), bench.dtype)
            same = bool(torch.equal(call()[:1], alone))
            milliseconds, spread = bench.timed(call, max(2, bench.repeats // 2))
            bench.row(
                f"denoise {side}", f"fast, batch of {count}, each", ms=round(milliseconds / count, 2), spread=spread,
                first_has_its_own_bits=same, limit=bench.limit(milliseconds, side, count),
            )  # fmt: skip


def graphs(bench: Bench) -> None:
    """As requests are drawn: the steps and the encoding recorded as CUDA graphs, and what recording costs."""
    if not bench.is_gpu:
        return
    for way, products in (("fast", None), ("fp8", CopiedProducts(bench.transformer, scaled=True))):
        made = Graphs(CudaRecorder(bench.device), lambda: True)
        using = FastComputing(bench.operations, DEFAULT, products, runs_ahead=True, graphs=made)
        with torch.cuda.stream(torch.cuda.Stream(priority=-1)):
            assert made.hold()
            pipeline = bench.pipeline(using)
            plain = bench.pipeline(computing(bench, products=products))
            for side in bench.preset.sides[::-1]:
                expected = bench.whole(plain, side)
                begun = time.perf_counter()
                found = [bench.whole(pipeline, side)]
                first = round((time.perf_counter() - begun) * 1000)
                found += [bench.whole(pipeline, side) for _ in range(3)]
                same = found == [expected] * 4
                bench.row(f"whole {side}", f"{way}, graphs, first", ms=first, same_bytes_as_launched_singly=same)
            measured(bench, f"{way}, graphs", using)
            made.release()


def true(bench: Bench) -> None:
    """How far both ways are from latents computed in float32."""
    if not bench.is_gpu:
        return
    side = bench.preset.sides[-1 if bench.quick else 0]
    with torch.device("meta"):
        network = ZImageTransformer(bench.preset.transformer)
    weights = {name: value.float() for name, value in bench.transformer.state_dict().items()}
    network.load_state_dict(weights, assign=True)
    precise = bench.denoise(bench.pipeline(EXACT, transformer=network.eval()), side, bench.prompt.float())
    for way, using in (("exact", EXACT), ("fast", computing(bench))):
        bench.row(f"from float32, {side}", way, db=psnr(bench.denoise(bench.pipeline(using), side), precise))


def profiles(bench: Bench) -> None:
    """Where the time goes, by class of kernel."""
    if bench.is_gpu:
        profile(bench, "fast", computing(bench))
        if not bench.quick:
            profile(bench, "exact", EXACT)


def profile(bench: Bench, way: str, using: Computing, **instead: Any) -> None:
    """Add up the kernels of the parts of a picture."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiling

    pipeline, side = bench.pipeline(using, **instead), bench.preset.sides[0]
    latents = bench.denoise(pipeline, side)
    parts: dict[str, Callable[[], Any]] = {"denoise": lambda: bench.denoise(pipeline, side)}
    if "fp8" not in way and not instead:
        parts |= {"encode": lambda: bench.encode(using), "decode": lambda: pipeline.decode(latents)}
    for part, call in parts.items():
        with bench.trying(f"profile {part} {way}"):
            call()
            with profiling(activities=[ProfilerActivity.CUDA]) as found:
                call()
                bench.wait()
            sums: dict[str, float] = {}
            kernels = {one.key: (one.self_device_time_total / 1000, one.count) for one in found.key_averages()}
            for name, (milliseconds, _) in kernels.items():
                sums[class_of(name)] = sums.get(class_of(name), 0) + milliseconds
            longest = sorted(kernels.items(), key=lambda item: -item[1][0])[:12]
            bench.results.data.setdefault("kernels", {})[f"{part} {way}"] = {
                name[:120]: [round(milliseconds, 3), count] for name, (milliseconds, count) in longest
            }
            launches = sum(count for _, count in kernels.values())
            numbers = {name.replace(" ", "_"): round(value, 2) for name, value in sums.items()}
            bench.row(f"kernels of {part} {side}", way, all=round(sum(sums.values()), 1), launches=launches, **numbers)


def class_of(kernel: str) -> str:
    """Return what a kernel computes, by its name."""
    lower = kernel.lower()
    return next((name for name, parts in CLASSES if any(part in lower for part in parts)), "other")


def diffusers_transformer(bench: Bench) -> Any:
    """Return the library's own transformer with the same weights."""
    from diffusers import ZImageTransformer2DModel

    config = bench.preset.transformer
    with torch.device("meta"):
        made = ZImageTransformer2DModel(
            dim=config.dim, n_layers=config.n_layers, n_refiner_layers=config.n_refiner_layers, n_heads=config.n_heads,
            n_kv_heads=config.n_heads, cap_feat_dim=config.cap_feat_dim, axes_dims=list(config.axes_dims),
            axes_lens=list(config.axes_lens),
        )  # fmt: skip
    made.load_state_dict(bench.transformer.state_dict(), assign=True)
    return made.requires_grad_(False).eval()


def diffusers_ways(bench: Bench) -> None:
    """The library's own transformer, eager, and compiled as its documentation advises."""
    made = diffusers_transformer(bench)
    denoise_only(bench, "diffusers, eager", EXACT, transformer=made)
    if not bench.is_gpu or bench.quick:
        return
    made.set_attention_backend("_native_cudnn")
    made.compile_repeated_blocks(fullgraph=True)
    denoise_only(bench, "diffusers, compiled", EXACT, bench.preset.sides[:1], transformer=made)
    profile(bench, "diffusers, compiled", EXACT, transformer=made)


MEASUREMENTS: tuple[tuple[Callable[[Bench], None], float, bool], ...] = (
    (rates, 5, True), (kernels, 60, True), (exact, 30, True), (fast, 20, True), (profiles, 10, True), (fp8, 25, True),
    (graphs, 20, True), (attentions, 15, True), (joined, 10, False), (batches, 20, False), (kernel_times, 5, True),
    (layer_products, 5, False), (rows, 15, False), (diffusers_ways, 60, False), (true, 30, False),
)  # fmt: skip
"""Each with the most seconds that it may need, and whether it belongs to a quick run."""


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="full")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="only the most important rows")
    parser.add_argument(
        "--only", nargs="*", metavar="NAME", help=f"of {', '.join(one.__name__ for one, *_ in MEASUREMENTS)}"
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="of each time (%(default)s)")
    parser.add_argument(
        "--deadline", type=float, metavar="SECONDS", help="begin nothing that may end later (360; quick: 90)"
    )
    parser.add_argument("--out", type=Path, default=Path("draw.json"), help="the result (%(default)s)")
    options = parser.parse_args()
    options.repeats = min(options.repeats, 3) if options.quick else options.repeats
    clock = Clock(options.deadline or (90 if options.quick else 360))
    results = Results(
        options.out, [], about="benchmarks/draw.py", time=now(), machine=machine(Path.cwd()),
        packages=packages("torch", "triton", "diffusers"), preset=options.preset, steps=STEPS,
    )  # fmt: skip
    clock.say("making the networks")
    with torch.inference_mode():
        bench = Bench(options, results, clock)
        results.data["tflop_of_a_step"] = {side: round(bench.operations_of(side), 2) for side in bench.preset.sides}
        for measure, seconds, is_quick in MEASUREMENTS:
            wanted = measure.__name__ in options.only if options.only else is_quick or not options.quick
            if not wanted:
                continue
            if clock.left < seconds:
                bench.row(measure.__name__, "skipped", seconds_left=round(clock.left))
                continue
            with bench.trying(measure.__name__):
                measure(bench)
            if bench.is_gpu:
                torch.cuda.empty_cache()
    results.data["complete"] = True
    results.save()
    print(f"\n{json.dumps(results.data['machine'])}\n{json.dumps(results.data['packages'])}")
    print("\n".join(map(line, sorted(bench.rows, key=lambda row: row["part"]))))


if __name__ == "__main__":
    main()
