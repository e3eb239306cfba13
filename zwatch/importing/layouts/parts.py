"""What a layout says about a component: how its tensors are named, and which tensors of which shapes it must have."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from zwatch.errors import Rejection

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

MOST_BLOCKS = 1000
"""Most repeated blocks that are looked for: Z-Image has 30, Qwen3-4B 36. A file's header may count on to any number."""
_LISTED = 8
"""Most differences that a refusal lists; the rest is a count."""
_LONGEST_NAME = 200
"""Characters of a tensor's name that a refusal repeats."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor that is made of a stored one: all of it, or the first, second or last third of its rows."""

    target: str
    third: int | None = None


Rename = Callable[[str], tuple[Piece, ...]]
"""What a stored tensor becomes; nothing where the component does without it."""


@dataclass(frozen=True, slots=True)
class Component:
    """A component of the pipeline, as diffusers and transformers name its tensors.

    `renaming` looks at all names of a file and returns how each is renamed; `expected` looks at the shapes of the renamed
    tensors and returns the whole table that a component of these sizes has. A tensor that `reshaped` matches may be stored
    in another shape of as many elements. `known` matches every name that some component of this kind has.
    """

    name: str
    title: str
    renaming: Callable[[Collection[str]], Rename]
    expected: Callable[[Shapes], dict[str, Shape]]
    known: re.Pattern[str]
    reshaped: re.Pattern[str]


def by_sizes(
    sizes: Callable[[Shapes], Mapping[str, int]], tensors: Callable[[Mapping[str, int]], dict[str, Shape]]
) -> Callable[[Shapes], dict[str, Shape]]:
    """Return an `expected` that reads the sizes of a component from some of its tensors; errors are those of `sizes`."""
    return lambda shapes: tensors(sizes(shapes))


def refusal(what: str) -> Rejection:
    """Return the rejection of a file of weights; what reads the file puts its path before the sentence."""
    return Rejection("weights_mismatch", what)


def quoted(name: str) -> str:
    """Return a tensor's name as a sentence shows it."""
    return repr(name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…")


def listed(lines: Sequence[str], most: int = _LISTED) -> str:
    """Return some lines as one text, with a count of those that are left out."""
    text = "; ".join(lines[:most])
    return text if len(lines) <= most else f"{text}; and {len(lines) - most} more"


def size_of(shapes: Shapes, name: str, dimensions: int) -> Shape:
    """Return the shape of the tensor that a size is read from.

    Raises:
        Rejection: it is missing, or has another number of dimensions, or an empty one.
    """
    shape = shapes.get(name)
    if shape is None:
        raise refusal(f"the tensor {name!r} is missing; is the file complete? Of several shards, import the directory")
    if len(shape) != dimensions or not all(shape):
        raise refusal(f"the tensor {name!r} has the shape {list(shape)}, expected {dimensions} sizes above zero")
    return shape


def blocks_of(shapes: Shapes, prefix: str) -> int:
    """Return how many blocks `prefix.0.`, `prefix.1.`, … there are, each index counted once.

    Raises:
        Rejection: more than any known model has.
    """
    start = len(prefix) + 1
    indexes = {name[start:].partition(".")[0] for name in shapes if name.startswith(f"{prefix}.")}
    count = sum(index.isdecimal() for index in indexes)
    if count > MOST_BLOCKS:
        raise refusal(f"{count} blocks {prefix}.0, {prefix}.1, …, expected at most {MOST_BLOCKS}")
    return count


def count_of(shape: Shape) -> int:
    """Return the number of elements."""
    count = 1
    for size in shape:
        count *= size
    return count


def differences(found: Shapes, component: Component, stored: Mapping[str, str]) -> list[str]:
    """Return how the renamed tensors of a file differ from a whole component of its sizes, one line a tensor. `stored` are the
    names in the file."""
    expected = component.expected(found)
    lines = [f"{name!r} is missing" for name in expected.keys() - found.keys()]
    for name, shape in found.items():
        wanted = expected.get(name)
        if wanted is None:
            lines.append(f"{quoted(stored[name])} {list(shape)} is not known")
        elif shape != wanted and not (component.reshaped.search(name) and count_of(shape) == count_of(wanted)):
            lines.append(f"{quoted(stored[name])} has the shape {list(shape)}, expected {list(wanted)}")
    return sorted(lines)
