"""Fuzz one target with atheris: python -m tests.fuzz.run TARGET [libFuzzer's options and folders].

The corpus is in tests/fuzz/corpus/TARGET; `make fuzz` runs all targets on a copy of it. Without a folder the corpus is read and
nothing is kept. An input that fails is in a file `crash-…` in the current folder (`-artifact_prefix=FOLDER/`): after the mend, put
it into tests/fuzz/corpus/TARGET, where the tests run it.
"""

import logging
import sys
from random import Random

import atheris

with atheris.instrument_imports(include=["zwatch.deploy", "zwatch.generation", "zwatch.rollout", "zwatch.api"]):
    from tests.fuzz import targets

from tests.fuzz.mutation import mutated


def _changed(data: bytes, most: int, seed: int) -> bytes:
    random = Random(seed)
    if random.random() < 0.4:
        return bytes(atheris.Mutate(data, most))
    return mutated(data, random)[:most]


def main() -> None:
    """Fuzz until libFuzzer's options end it."""
    name, *options = sys.argv[1:]
    logging.disable()  # thousands of files are put aside, each with a line
    atheris.Setup([sys.argv[0], *options], targets.TARGETS[name], custom_mutator=_changed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
