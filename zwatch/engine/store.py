"""The components of all live engines, by content: what is equal is shared, and nothing is loaded twice."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from zwatch.deploy.resolving import Directory
from zwatch.engine.components import BUILDERS, WEIGHED, build, component_classes, default_size, weight_files
from zwatch.errors import Rejection
from zwatch.shadow.buffers import FileBuffer
from zwatch.shadow.device import Device
from zwatch.shadow.loader import Candidate, LoadControl, Plan, VerifiedFiles, check_header, load_small, load_weights

Key = tuple[str, str, str, tuple[tuple[str, str], ...]]
"""What makes two components equal: component, library, class, and the hashes of all their files."""


@dataclass(eq=False)
class Component:
    """One built component and the buffers that its parameters are views of. Engines that share it hold the same one."""

    key: Key
    module: Any
    buffers: list[FileBuffer] = field(default_factory=list)
    small: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """Its other files, by name inside its folder, for building it again."""

    @property
    def nbytes(self) -> int:
        """Device bytes of its weights."""
        return sum(buffer.nbytes for buffer in self.buffers)


@dataclass(frozen=True, slots=True)
class Staged:
    """A version whose bytes are verified, in device or host memory, and the resident parts that it will share."""

    candidate: Candidate
    keys: Mapping[str, Key]
    paths: Mapping[str, list[str]]
    """Weight files of each component that is not resident."""
    components: Mapping[str, Component]
    buffers: Mapping[str, FileBuffer]
    """Resident weight files of components that are not, by path."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """All components of one version, and the side length in pixels that its images have by default."""

    plan: Plan
    components: Mapping[str, Component]
    default_size: int


@dataclass(frozen=True, slots=True)
class Aside:
    """A component that gave its device memory away: all it takes to build it again."""

    key: Key
    small: Mapping[str, bytes] = field(repr=False)
    buffers: list[FileBuffer] = field(repr=False)


class ComponentStore:
    """The components that live engines hold, and their weight files, by content. It keeps none alive itself."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._components: WeakValueDictionary[Key, Component] = WeakValueDictionary()
        self._files: WeakValueDictionary[str, FileBuffer] = WeakValueDictionary()
        self._verified = VerifiedFiles()

    def stage(self, directory: Directory, planned: Plan, control: LoadControl, *, on_host: bool = False) -> Staged:
        """Load what a version has and no live engine, onto the device or into host memory, and verify all of it.

        Raises:
            Rejection, Abandoned, OSError, RuntimeError: as `zwatch.shadow.loader.load_weights`; besides, a class is
                not on the list, or the memory does not suffice.
        """
        small = load_small(directory, planned, control)
        classes = component_classes(small)
        keys: dict[str, Key] = {name: (name, *classes[name], planned.component_hashes(name)) for name in BUILDERS}
        # Strong references at once: what is shared must not be freed while the rest loads.
        components = {name: found for name, key in keys.items() if (found := self._components.get(key)) is not None}
        paths = {name: weight_files(name, planned, small) for name in WEIGHED if name not in components}
        wanted = [path for files in paths.values() for path in files]
        shared = {path: file for path in wanted if (file := self._files.get(planned.seal.files[path])) is not None}
        missing = [path for path in wanted if path not in shared]
        control.shared.extend(name for name in WEIGHED if not set(paths.get(name, ())).intersection(missing))
        self._check_memory(planned, missing, on_host=on_host)
        shadow = self.device.host if on_host else self.device
        weights = load_weights(directory, planned, missing, shadow, control, self._verified)
        with control.phase("verify"):
            rest = [path for path in planned.headers if path not in weights]
            self._verified.check(directory, planned, rest, control, self.device.hash_file)
            for path in rest:
                resident = self._files.get(planned.seal.files[path])
                if resident is not None:
                    check_header(path, planned.headers[path], resident.header.raw)
        return Staged(Candidate(planned, small, weights), keys, paths, components, shared)

    def assemble(self, staged: Staged, control: LoadControl) -> Assembly:
        """Build a version from what was staged; what is in host memory moves to the device first.

        Raises:
            Rejection, Abandoned, RuntimeError: weights do not fit their config, or the device failed.
        """
        candidate = staged.candidate
        with control.phase("build"), self.device.beside(), self.device.giving_way(control.check):
            files = dict(staged.buffers)
            for path, buffer in candidate.weights.items():
                files[path] = self._on_device(buffer)
                control.check()
            components = dict(staged.components)
            for name in BUILDERS:
                if name not in components:
                    buffers = [files[path] for path in staged.paths.get(name, ())]
                    components[name] = self._build(staged.keys[name], _folder(candidate.small, name), buffers)
                control.check()
        self._note(components.values())
        return Assembly(candidate.plan, components, default_size(candidate.small))

    def put_aside(self, component: Component, exclusive: Collection[FileBuffer]) -> Aside:
        """Copy to host memory what only this component holds, so that it can be given up and built again.

        Raises:
            torch.OutOfMemoryError, MemoryError: the host has not enough memory.
        """
        with self.device.beside():
            buffers = [
                buffer.moved(self.device.host) if buffer in exclusive else buffer for buffer in component.buffers
            ]
        return Aside(component.key, component.small, buffers)

    def bring_back(self, aside: Aside) -> Component:
        """Build a component again that was put aside, from bytes that are verified once more.

        Raises:
            Rejection, RuntimeError: the device failed.
        """
        with self.device.beside():
            component = self._build(aside.key, aside.small, [self._on_device(buffer) for buffer in aside.buffers])
        self._note([component])
        return component

    def needed(self, planned: Plan) -> int:
        """Return the device bytes that a version needs beyond what is resident, going by its seal alone."""
        return planned.footprint([
            path
            for name in WEIGHED
            if not self._is_resident(name, planned)
            for path in planned.headers
            if path.startswith(f"{name}/") and planned.seal.files[path] not in self._files
        ])  # fmt: skip

    def _is_resident(self, name: str, planned: Plan) -> bool:
        hashes = planned.component_hashes(name)
        return any(key[0] == name and key[3] == hashes for key in list(self._components))

    def _check_memory(self, planned: Plan, paths: list[str], *, on_host: bool) -> None:
        needed = planned.footprint(paths)
        if on_host:
            free, total = self.device.host.memory()
            if needed > free:
                raise Rejection(
                    "insufficient_memory",
                    f"{planned.version} needs {needed} bytes; {self.device.name} has no room for them beside what "
                    f"serves, and of the host's {total} bytes only {free} are free to stage them in",
                )
            return
        if not self.device.has_room([needed]):
            free, total = self.device.memory()
            raise Rejection(
                "insufficient_memory",
                f"{planned.version} needs {needed} bytes on {self.device.name} besides {self.device.request_peak} "
                f"for making images, {free} of {total} are free",
            )

    def _on_device(self, buffer: FileBuffer) -> FileBuffer:
        return buffer if buffer.shadow is self.device else buffer.moved(self.device)

    def _build(self, key: Key, small: Mapping[str, bytes], buffers: list[FileBuffer]) -> Component:
        tensors: dict[str, Any] = {}
        for buffer in buffers:
            for name, tensor in buffer.tensors().items():
                if name in tensors:
                    raise Rejection("weights_mismatch", f"{buffer.path}: tensor {name!r} is in two shards")
                tensors[name] = tensor
        kept = small if key[0] in WEIGHED else {}  # a tokenizer's files are large, and it is never put aside
        return Component(key, build(key, small, tensors, self.device), buffers, kept)

    def _note(self, components: Collection[Component]) -> None:
        for component in components:
            self._components[component.key] = component
            for buffer in component.buffers:
                if buffer.digest is not None:
                    self._files[buffer.digest] = buffer


def _folder(small: Mapping[str, bytes], name: str) -> dict[str, bytes]:
    """Return a component's files by their names inside its folder."""
    return {path.removeprefix(f"{name}/"): data for path, data in small.items() if path.startswith(f"{name}/")}
