"""What differs between two versions: tensors, configs, other files, and the bytes that a deploy would move."""

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from zwatch.deploy import header
from zwatch.deploy.sides import Keys, Side, are_equal, changed_keys
from zwatch.deploy.tensor_values import Difference, Stored, compare
from zwatch.errors import Rejection

COMPONENTS = ("transformer", "controlnet", "text_encoder", "vae", "tokenizer", "scheduler")
_WEIGHED = ("transformer", "controlnet", "text_encoder", "vae")
_THREADS = 16

Advance = Callable[[str, int], None]
"""Called with a tensor's name and how many more of its bytes, in both versions, are compared."""


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """A tensor that differs. `before` and `after` are (dtype, shape); None where it is missing. `values` says by how much, if
    both have it and the shapes are equal."""

    name: str
    before: tuple[str, tuple[int, ...]] | None
    after: tuple[str, tuple[int, ...]] | None
    values: Difference | None = None

    @property
    def weight(self) -> tuple[float, ...]:
        """What the list is sorted by: other shapes and tensors first, then NaN and infinity, then by relative difference."""
        if self.values is None:
            return (2, 0.0, 0.0)
        one, other = self.values.not_finite
        infinite = float("inf")
        relative = infinite if self.values.relative is None else self.values.relative
        maximum = infinite if self.values.maximum is None else self.values.maximum
        return (int(one != other), relative, maximum)


@dataclass(frozen=True, slots=True)
class FileDifference:
    """A file that differs. `before` and `after` are its sizes in bytes, None where it is missing; `keys` are those of a JSON
    object that differ."""

    path: str
    before: int | None
    after: int | None
    keys: Keys | None = None


@dataclass(slots=True)
class ComponentDifference:
    """What differs in one component. `tensors` is sorted, the largest difference first; `equal_tensors` counts the others that
    were compared. A component whose seals say that all its files are equal has neither."""

    tensors: list[TensorDifference] = field(default_factory=list)
    files: list[FileDifference] = field(default_factory=list)
    equal_tensors: int = 0

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs, but for the version in the transformer's headers."""
        return not self.tensors and not self.files


@dataclass(slots=True)
class VersionDifference:
    """What differs between two versions, by component; what lies in none is under "". `moved` of `total` bytes of weights have
    to be loaded for the second while the first serves; None without two seals. `problems` name files that could not be compared."""

    components: dict[str, ComponentDifference]
    moved: int | None
    total: int | None
    problems: list[str]

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs, as far as it could be compared."""
        return not self.problems and all(one.is_equal for one in self.components.values())


def find_difference(first: Side, second: Side, begin: Callable[[int], Advance]) -> VersionDifference:
    """Compare two versions. Files are read only where the seals do not say that they are equal. `begin` gets the bytes that are
    compared tensor by tensor, and returns what is told about the progress."""
    problems: list[str] = []
    names = {component_of(path) for side in (first, second) for path in side.files}
    ordered = [*(name for name in COMPONENTS if name in names), *sorted(names - {*COMPONENTS})]
    components = {name: ComponentDifference() for name in ordered}
    for path in sorted({*first.files, *second.files}):
        if not path.endswith(header.WEIGHTS_SUFFIX) and (found := _file(first, second, path, problems)) is not None:
            components[component_of(path)].files.append(found)
    with ExitStack() as stack:
        pairs: list[_Pair] = []
        for name in ordered:
            tables = _tables(first, second, name, stack, problems)
            of_both = {**tables[0], **tables[1]}
            pairs += [(name, tensor, tables[0].get(tensor), tables[1].get(tensor)) for tensor in of_both]
        _compare_tensors(pairs, components, begin, problems)
    for one in components.values():
        one.tensors.sort(key=lambda found: found.weight, reverse=True)
    moved, total = _moved(first, second, problems)
    return VersionDifference(components, moved, total, problems)


def component_of(path: str) -> str:
    """Return the folder directly in the version that a file lies in; "" for a file outside of all folders."""
    folder, slash, _ = path.partition("/")
    return folder if slash else ""


def _file(first: Side, second: Side, path: str, problems: list[str]) -> FileDifference | None:
    if path in first.files and path in second.files and are_equal(first, second, path):
        return None
    sizes: list[int | None] = [None, None]
    contents: list[bytes | None] = [None, None]
    has_both = path in first.files and path in second.files
    try:
        for position, side in enumerate((first, second)):
            if path in side.files:
                sizes[position], contents[position] = side.size(path), side.read(path)
        before, after = contents
        if has_both and (before is None or after is None):  # larger than a config
            is_equal = sizes[0] == sizes[1] and first.hash(path) == second.hash(path)
        else:
            is_equal = has_both and before == after
    except (Rejection, OSError) as error:
        problems.append(f"{side.name}: {_sentence(error, path)}")
        return None
    is_json = path.endswith(".json") and before is not None and after is not None
    keys = changed_keys(before or b"", after or b"") if is_json else None
    return None if is_equal else FileDifference(path, sizes[0], sizes[1], keys)


def _sentence(error: Exception, path: str) -> str:
    return error.reason if isinstance(error, Rejection) else f"{path}: {getattr(error, 'strerror', None) or error}"


def _tables(
    first: Side, second: Side, component: str, stack: ExitStack, problems: list[str]
) -> tuple[dict[str, Stored], dict[str, Stored]]:
    """Return the tensors of a component by name, of each version: those in files that the other has not, by the seals. If a file
    cannot be read, only those that both have: what it would have is not known."""
    sides = (first, second)
    paths = [
        [path for path in side.files if component_of(path) == component and path.endswith(header.WEIGHTS_SUFFIX)]
        for side in sides
    ]
    both = {path for path in paths[0] if path in paths[1] and are_equal(first, second, path)}
    hashes = [{side.files[path] for path in of_side} - {None} for side, of_side in zip(sides, paths, strict=True)]
    shared = hashes[0] & hashes[1]
    found: list[dict[str, Stored]] = [{}, {}]
    known_problems = len(problems)
    for side, of_side, table in zip(sides, paths, found, strict=True):
        for path in of_side:
            if path in both or side.files[path] in shared:
                continue
            try:
                fd = stack.enter_context(side.opened(path))
                for name, info in header.read_header(fd, path).tensors.items():
                    table[name] = Stored(fd, path, info)
            except (Rejection, OSError) as error:
                problems.append(f"{side.name}: {_sentence(error, path)}")
    if len(problems) > known_problems:
        both_have = found[0].keys() & found[1].keys()
        found = [{name: table[name] for name in table if name in both_have} for table in found]
    return found[0], found[1]


_Pair = tuple[str, str, Stored | None, Stored | None]
"""Component, tensor, and the tensor in each version."""


def _compare_tensors(
    pairs: list[_Pair],
    components: Mapping[str, ComponentDifference],
    begin: Callable[[int], Advance],
    problems: list[str],
) -> None:
    comparable = [(name, one, other) for _, name, one, other in pairs if _have_one_shape(one, other)]
    advance = begin(
        sum(one.nbytes + other.nbytes for _, one, other in comparable if one is not None and other is not None)
    )
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), thread_name_prefix="zwatch-diff") as pool:
        try:
            results = pool.map(lambda pair: _compare_pair(pair, advance), pairs)
            for (component, *_), result in zip(pairs, results, strict=True):
                if isinstance(result, str):
                    problems.append(result)
                elif result is None:
                    components[component].equal_tensors += 1
                else:
                    components[component].tensors.append(result)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _have_one_shape(one: Stored | None, other: Stored | None) -> bool:
    return one is not None and other is not None and one.info.shape == other.info.shape


def _compare_pair(pair: _Pair, advance: Advance) -> TensorDifference | str | None:
    """Return what differs, None if nothing does, or the sentence about a file that could not be read."""
    component, name, one, other = pair
    values = None
    if one is not None and other is not None and one.info.shape == other.info.shape:
        try:
            values = compare(one, other, lambda count: advance(name, count))
        except OSError as error:
            return f"{component}: {name}: {error.strerror}"
        if values is None:
            return None
    return TensorDifference(name, _kind(one), _kind(other), values)


def _kind(stored: Stored | None) -> tuple[str, tuple[int, ...]] | None:
    return None if stored is None else (stored.info.dtype, stored.info.shape)


def _moved(first: Side, second: Side, problems: list[str]) -> tuple[int | None, int | None]:
    """Return how many bytes of weights the second has that the first has not, and how many it has. What is resident is found
    by its hash, wherever it lies."""
    if first.digest is None or second.digest is None:
        return None, None
    resident = {first.files[path] for path in _weights(first.files)}
    sizes = {}
    for path in _weights(second.files):
        try:
            sizes[path] = second.size(path)
        except (Rejection, OSError) as error:
            if (sentence := f"{second.name}: {_sentence(error, path)}") not in problems:
                problems.append(sentence)
    return sum(size for path, size in sizes.items() if second.files[path] not in resident), sum(sizes.values())


def _weights(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if path.endswith(header.WEIGHTS_SUFFIX) and component_of(path) in _WEIGHED]


def as_json(found: VersionDifference, first: Side, second: Side) -> dict[str, Any]:
    """Return the difference as a JSON object."""
    sides = {
        key: {"name": side.name, "sealed": side.digest is not None, "digest": side.digest, "problem": side.problem}
        for key, side in (("before", first), ("after", second))
    }
    return {
        **sides,
        "equal": found.is_equal,
        "moved": found.moved,
        "total": found.total,
        "components": {name: _component_json(one) for name, one in found.components.items()},
        "problems": found.problems,
    }


def _component_json(found: ComponentDifference) -> dict[str, Any]:
    return {
        "equal": found.is_equal,
        "tensors": [
            {
                "name": one.name,
                "before": None if one.before is None else {"dtype": one.before[0], "shape": one.before[1]},
                "after": None if one.after is None else {"dtype": one.after[0], "shape": one.after[1]},
                "values": None
                if one.values is None
                else {
                    "elements": one.values.elements,
                    "different": one.values.different,
                    "max": one.values.maximum,
                    "mean": one.values.mean,
                    "relative": one.values.relative,
                    "not_finite": one.values.not_finite,
                },
            }
            for one in found.tensors
        ],
        "equal_tensors": found.equal_tensors,
        "files": [
            {
                "path": one.path,
                "before": one.before,
                "after": one.after,
                "keys": None
                if one.keys is None
                else [{"key": key, "before": before, "after": after} for key, before, after in one.keys],
            }
            for one in found.files
        ],
    }
