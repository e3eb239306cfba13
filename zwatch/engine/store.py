"""The components of all live engines, by content: equal ones are shared, and nothing is loaded twice."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakValueDictionary

import torch

from zwatch.deploy.contents import SCALE
from zwatch.deploy.resolving import Directory
from zwatch.engine.allowed import component_classes
from zwatch.engine.components import (
    BUILDERS,
    WEIGHED,
    ComponentKey,
    Tools,
    build,
    default_size,
    weight_files,
)
from zwatch.engine.config_fields import WARM_SIZE
from zwatch.engine.configs import check_configs, check_together
from zwatch.engine.precision import Precision, conversion_of
from zwatch.engine.tokenizer_maker import TokenizerMaker
from zwatch.errors import Rejection
from zwatch.shadow.buffers import FileBuffer
from zwatch.shadow.control import LoadControl
from zwatch.shadow.converted import Buffer, Conversion
from zwatch.shadow.device import Device
from zwatch.shadow.loader import Candidate, Plan, VerifiedFiles, convert, load


@dataclass(eq=False)
class Component:
    """One built component and the buffers that its parameters are views of. Engines that share it hold the same object."""

    key: ComponentKey
    module: Any
    buffers: list[Buffer] = field(default_factory=list)
    small: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """Its other files, by name inside its folder, to build it again from."""

    @property
    def nbytes(self) -> int:
        """Device bytes of its weights."""
        return sum(buffer.nbytes for buffer in self.buffers)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a version consists of, and which of it is resident; holds on to that, so that it is not freed meanwhile."""

    keys: Mapping[str, ComponentKey]
    paths: Mapping[str, list[str]]
    """Weight files of each component that is not resident."""
    components: Mapping[str, Component]
    """The resident components."""
    buffers: Mapping[str, FileBuffer]
    """Resident weight files of components that are not resident, by path."""

    @property
    def missing(self) -> list[str]:
        """The weight files that have to be loaded."""
        return [path for files in self.paths.values() for path in files if path not in self.buffers]

    @property
    def shared(self) -> list[str]:
        """The components with weights of which nothing has to be loaded."""
        return [name for name in WEIGHED if all(path in self.buffers for path in self.paths.get(name, ()))]


@dataclass(frozen=True, slots=True)
class Staged:
    """A version whose bytes are verified, in device or host memory, and the resident parts that it will share."""

    candidate: Candidate
    parts: Parts


@dataclass(frozen=True, slots=True)
class Assembly:
    """All components of one version, and the side length in pixels that its images have by default."""

    plan: Plan
    components: Mapping[str, Component]
    default_size: int


@dataclass(frozen=True, slots=True)
class Aside:
    """A component that was moved to host memory: all that is needed to build it again."""

    key: ComponentKey
    small: Mapping[str, bytes] = field(repr=False)
    buffers: list[Buffer] = field(repr=False)


class ComponentStore:
    """The components that live engines hold, and their weight files, by content. Its own references are weak."""

    def __init__(self, device: Device, tokenizers: TokenizerMaker, precision: Precision) -> None:
        """`precision` is what components are computed in, see `conversion_of`."""
        self.device = device
        self._precision = precision
        self._tools = Tools(device, tokenizers)
        self._components: WeakValueDictionary[ComponentKey, Component] = WeakValueDictionary()
        self._files: WeakValueDictionary[str, FileBuffer] = WeakValueDictionary()
        self._verified = VerifiedFiles()

    def stage(self, directory: Directory, planned: Plan, control: LoadControl, *, on_host: bool = False) -> Staged:
        """Load those weight files of a version that no live engine has, onto the device or into host memory; verify all.

        Raises:
            Rejection, Abandoned, OSError, RuntimeError: as `zwatch.shadow.loader.load`; besides, a class is not on
                the allow-list, or there is too little memory.
        """
        chosen: list[Parts] = []

        def choose(small: Mapping[str, bytes]) -> list[str]:
            chosen.append(parts := self._parts(planned, small))
            if "tokenizer" not in parts.components:  # its process works while the weights are read
                self._tools.tokenizers.begin(_folder(small, "tokenizer"))
            control.shared.extend(parts.shared)
            self._check_memory(planned, parts.missing, on_host=on_host)
            return parts.missing

        candidate = load(
            directory,
            planned,
            self.device.host if on_host else self.device,
            control,
            resident=self._files,
            choose=choose,
            verified=self._verified,
            hash_file=self.device.hash_file,
        )
        [parts] = chosen
        conversions = self._conversions(planned, [path for files in parts.paths.values() for path in files])
        return Staged(convert(candidate, parts.buffers, conversions, control), parts)

    def _parts(self, planned: Plan, small: Mapping[str, bytes]) -> Parts:
        classes = component_classes(small)
        check_configs(small)
        default_size(small)
        keys = {name: ComponentKey(name, *classes[name], planned.component_hashes(name)) for name in BUILDERS}
        components = {name: found for name, key in keys.items() if (found := self._components.get(key)) is not None}
        paths = {name: weight_files(name, planned, small) for name in WEIGHED if name not in components}
        wanted = [path for files in paths.values() for path in files]
        buffers = {path: file for path in wanted if (file := self._files.get(planned.seal.files[path])) is not None}
        return Parts(keys, paths, components, buffers)

    def assemble(self, staged: Staged, control: LoadControl) -> Assembly:
        """Build a version from its staged parts; those in host memory are copied to the device first.

        Raises:
            Rejection, Abandoned, RuntimeError: weights do not fit their config, or the device failed.
        """
        candidate, parts = staged.candidate, staged.parts
        with control.phase("build"), self.device.beside(), self.device.giving_way(control.check):
            files: dict[str, Buffer] = dict(parts.buffers)
            for path, buffer in candidate.weights.items():
                control.begin(f"copying {path} to the device")
                files[path] = self._on_device(buffer)
            components = dict(parts.components)
            for name in BUILDERS:
                control.begin(f"building {name}")
                if name not in components:
                    buffers = [files[path] for path in parts.paths.get(name, ())]
                    components[name] = self._build(parts.keys[name], _folder(candidate.small, name), buffers)
            control.check()  # a load that was left gets here late, and must leave nothing behind
        self._note(components.values())
        size = default_size(candidate.small)
        check_together(candidate.small, min(size, WARM_SIZE), components["tokenizer"].module.last_token)
        return Assembly(candidate.plan, components, size)

    def put_aside(self, component: Component, exclusive: Collection[Buffer]) -> Aside:
        """Copy to host memory those buffers that only this component holds, so that it can be freed and built again.

        Raises:
            torch.OutOfMemoryError, MemoryError: the host has not enough memory.
        """
        with self.device.beside():
            buffers = [
                buffer.moved(self.device.host) if buffer in exclusive else buffer for buffer in component.buffers
            ]
        return Aside(component.key, component.small, buffers)

    def restore(self, aside: Aside) -> Component:
        """Build a component again that was put aside, from bytes that are verified again.

        Raises:
            Rejection, RuntimeError: the device failed.
        """
        with self.device.beside():
            component = self._build(aside.key, aside.small, [self._on_device(buffer) for buffer in aside.buffers])
        self._note([component])
        return component

    def needed(self, planned: Plan, *, is_staged: bool = False) -> int:
        """Return the device bytes that a version needs in addition to the resident ones, as far as its seal and headers tell;
        one that is staged in host memory is converted there."""
        paths = [
            path
            for name in WEIGHED
            if not self._is_resident(name, planned)
            for path in planned.headers
            if path.startswith(f"{name}/") and planned.seal.files[path] not in self._files
        ]
        conversions = self._conversions(planned, paths)
        return planned.held(paths, conversions) if is_staged else planned.footprint(paths, conversions)

    def _conversions(self, planned: Plan, paths: Collection[str]) -> dict[str, Conversion]:
        """Return how each of these weight files is converted; one that is not is left out."""
        found: dict[str, Conversion] = {}
        for name in WEIGHED:
            files = [path for path in paths if path.startswith(f"{name}/")]
            tensors = {tensor: info for path in files for tensor, info in planned.headers[path].tensors.items()}
            scales = {tensor for tensor in tensors if tensor.endswith(f".{SCALE}")}
            kept = frozenset(scales | {tensor.removesuffix(SCALE) + "weight" for tensor in scales})
            stored = {info.dtype for tensor, info in tensors.items() if tensor not in kept}
            asked = replace(self._precision, quantize=None) if kept else self._precision  # it was quantized before
            conversion = conversion_of(name, stored, asked, self.device.torch_device)
            if conversion is not None:
                found |= dict.fromkeys(files, replace(conversion, kept=kept))
        return found

    def _is_resident(self, name: str, planned: Plan) -> bool:
        hashes = planned.component_hashes(name)
        return any(key.component == name and key.hashes == hashes for key in list(self._components))

    def _check_memory(self, planned: Plan, paths: list[str], *, on_host: bool) -> None:
        needed = planned.footprint(paths, self._conversions(planned, paths))
        if on_host:
            free, total = self.device.host.memory()
            if needed > free:
                raise Rejection(
                    "insufficient_memory",
                    f"{planned.version} needs {needed} bytes; {self.device.name} has no room for them next to the serving "
                    f"version, and only {free} of the host's {total} bytes are free to stage them in",
                )
            return
        if not self.device.has_room([needed]):
            free, total = self.device.memory()
            raise Rejection(
                "insufficient_memory",
                f"{planned.version} needs {needed} bytes on {self.device.name} besides {self.device.request_peak} "
                f"for making images, {free} of {total} are free",
            )

    def _on_device(self, buffer: Buffer) -> Buffer:
        return buffer if buffer.shadow is self.device else buffer.moved(self.device)

    def _build(self, key: ComponentKey, small: Mapping[str, bytes], buffers: list[Buffer]) -> Component:
        tensors: dict[str, torch.Tensor] = {}
        for buffer in buffers:
            for name, tensor in buffer.tensors().items():
                if name in tensors:
                    raise Rejection(
                        "weights_mismatch", f"{buffer.path}: tensor {name!r} is in two shards, expected in one"
                    )
                tensors[name] = tensor
        kept = small if key.component in WEIGHED else {}  # a tokenizer's files are large, and it is never put aside
        return Component(key, build(key, small, tensors, self._tools), buffers, kept)

    def _note(self, components: Collection[Component]) -> None:
        for component in components:
            self._components[component.key] = component
            for buffer in component.buffers:
                if isinstance(buffer, FileBuffer) and buffer.digest is not None:
                    self._files[buffer.digest] = buffer


def _folder(small: Mapping[str, bytes], name: str) -> dict[str, bytes]:
    """Return a component's files by their names inside its folder."""
    return {path.removeprefix(f"{name}/"): data for path, data in small.items() if path.startswith(f"{name}/")}
