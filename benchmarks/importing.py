"""`zwatch import` beside `cp -r` of the same source, in one run.

    python benchmarks/importing.py --work DIR [--layers 6] [--rounds 3] [--out FILE]

The source has the published sizes but for the number of the transformer's layers (30 are 12.3 GB in bf16) and of the text
encoder's, once in bf16 and once with the transformer in fp32. Ways take turns, each is a process of its own, from its start
to its end; the page cache has the source. `cp` does not wait for the disk, `cp, synced` does, and so does the import.
`own` is the import's own time, without the interpreter's start.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from common import RESULTS, ROOT, Json, machine, now, packages, search_path, summary

sys.path.insert(0, str(ROOT / "tools"))


def write_sources(work: Path, layers: int) -> dict[str, Path]:
    """Write a pipeline in bf16, and the same with the transformer in fp32, if they are not there."""
    import torch
    from random_pipeline import PRESETS, write_pipeline
    from safetensors.torch import load_file, save_file

    narrow, wide = work / "bf16", work / "fp32"
    if not (narrow / "model_index.json").exists():
        full = PRESETS["full"]
        preset = replace(
            full,
            transformer=full.transformer | {"n_layers": layers, "n_refiner_layers": 1},
            text_encoder=full.text_encoder | {"num_hidden_layers": max(1, layers)},
        )
        write_pipeline(narrow, preset, 1)
    if not (wide / "model_index.json").exists():
        shutil.copytree(narrow, wide)
        for path in (wide / "transformer").glob("*.safetensors"):
            save_file({name: one.to(torch.float32) for name, one in load_file(path).items()}, path, {"format": "pt"})
    return {"bf16 as it is": narrow, "fp32 to bf16": wide}


def size_of(directory: Path) -> int:
    """Return the bytes of all files below a directory, but a version's own."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def timed(command: list[str]) -> tuple[float, str]:
    """Run a command; return its seconds and what it printed."""
    begun = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return time.monotonic() - begun, done.stdout


def measured(source: Path, root: Path, rounds: int) -> Json:
    """Return the times of each way."""
    target = root / "v1"
    zwatch = [sys.executable, "-m", "zwatch", "import", str(source), "v1", "--models", str(root), "--json"]
    ways: dict[str, Callable[[], list[str]]] = {
        "cp": lambda: ["cp", "-r", str(source), str(target)],
        "cp, synced": lambda: ["sh", "-c", f"cp -r '{source}' '{target}' && sync -f '{target}'"],
        "import": lambda: zwatch,
    }
    seconds: dict[str, list[float]] = {name: [] for name in [*ways, "import, own"]}
    written = {}
    for _ in range(rounds):
        for name, command in ways.items():
            os.sync()
            passed, printed = timed(command())
            seconds[name].append(passed)
            if name == "import":
                seconds["import, own"].append(json.loads(printed)["seconds"])
            written[name] = size_of(target)
            shutil.rmtree(target)
    found: Json = {name: summary(times, written.get(name, written["import"])) for name, times in seconds.items()}
    for other in ("cp", "cp, synced"):
        found[f"speed beside {other}"] = round(found[other]["median"] / found["import"]["median"], 2)
        found[f"own speed beside {other}"] = round(found[other]["median"] / found["import, own"]["median"], 2)
    return found


def main() -> None:
    """Measure all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where the sources and versions are written")
    parser.add_argument("--layers", type=int, default=6, help="the transformer's layers (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--note", default="", help="what else is to be known of this run")
    parser.add_argument("--out", type=Path, default=RESULTS / "importing.json")
    options = parser.parse_args()
    root = options.work / "models"
    root.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = search_path()
    data: Json = {"when": now(), "machine": machine(options.work), "packages": packages("torch", "blake3"), "note": options.note}  # fmt: skip
    data["rows"] = {}
    for name, source in write_sources(options.work, options.layers).items():
        data["rows"][name] = measured(source, root, options.rounds)
        print(name, json.dumps(data["rows"][name], indent=2))
    options.out.write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
