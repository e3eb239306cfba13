"""Plain diffusers in a process of its own, for draw_served.py: from a request to PNG bytes.

    python draw_plain.py DIRECTORY DEVICE eager|compiled SECONDS SIDE...

It prints a line of JSON for each part that is ready: {"ready": seconds of the load}, and {"side", "kind", "first", "requests"} with
the seconds of the first request, and for each other request those of the pipeline and those of the PNG. `compiled` is what the
documentation of ZImagePipeline and of compilation advises: cuDNN's attention where it is a GPU, and the repeated blocks compiled.
"""

import io
import json
import sys
import time
from typing import Any

import torch
from diffusers import ZImagePipeline

STEPS = 8
LEAST, MOST = 3, 20
"""Measured requests of a row."""


def asked(pipeline: Any, device: str, prompt: str, side: int, seed: int) -> tuple[float, float]:
    """Draw a picture; return the seconds of the pipeline, and those of the PNG."""
    begun = time.perf_counter()
    generator = torch.Generator(device).manual_seed(seed)
    image = pipeline(
        prompt=prompt, width=side, height=side, num_inference_steps=STEPS, guidance_scale=0.0, generator=generator
    ).images[0]
    drawn = time.perf_counter()
    image.save(io.BytesIO(), "PNG")
    return drawn - begun, time.perf_counter() - drawn


def main() -> None:
    """Load, compile if it is asked for, and measure each size."""
    directory, device, way, seconds, *sides = sys.argv[1:]
    begun = time.perf_counter()
    pipeline = ZImagePipeline.from_pretrained(directory, torch_dtype=torch.bfloat16, local_files_only=True)
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    if way == "compiled":
        if device.startswith("cuda"):
            pipeline.transformer.set_attention_backend("_native_cudnn")
        pipeline.transformer.compile_repeated_blocks(fullgraph=True)
    print(json.dumps({"ready": round(time.perf_counter() - begun, 2)}), flush=True)
    number = 0
    for side in map(int, sides):
        first = sum(asked(pipeline, device, "a cat wearing sunglasses", side, 0))
        asked(pipeline, device, "a cat wearing sunglasses", side, 1)
        requests: list[tuple[float, float]] = []
        end = time.perf_counter() + float(seconds)
        while len(requests) < LEAST or (len(requests) < MOST and time.perf_counter() < end):
            number += 1
            requests.append(asked(pipeline, device, f"a cat wearing sunglasses, number {number}", side, number))
        print(json.dumps({"side": side, "first": round(first, 3), "requests": requests}), flush=True)


if __name__ == "__main__":
    main()
