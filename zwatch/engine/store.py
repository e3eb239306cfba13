"""The components of all live engines, by content: equal ones are shared, and nothing is loaded twice."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import torch

from zwatch.deploy import golden
from zwatch.deploy.resolving import Directory
from zwatch.engine.allowed import OPTIONAL, component_classes
from zwatch.engine.components import (
    BUILDERS,
    WEIGHED,
    ComponentKey,
    Tools,
    build,
    check_control,
    default_size,
    weight_files,
)
from zwatch.engine.config_fields import WARM_SIZE
from zwatch.engine.configs import check_configs, check_together
from zwatch.engine.golden import GoldenImages
from zwatch.engine.placement import TEXT_ENCODER, Placement
from zwatch.engine.precision import Precision
from zwatch.engine.streamed import StreamedEncoder
from zwatch.engine.tokenizer_maker import TokenizerMaker
from zwatch.errors import Rejection
from zwatch.shadow.buffers import FileBuffer
from zwatch.shadow.control import LoadControl
from zwatch.shadow.converted import Buffer
from zwatch.shadow.device import Device
from zwatch.shadow.loader import Candidate, Lot, Plan, convert, load
from zwatch.shadow.verified_files import VerifiedFiles

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Component:
    """One built component and the buffers that its parameters are views of. Engines that share it hold the same object."""

    key: ComponentKey
    module: Any
    buffers: list[Buffer] = field(default_factory=list)
    small: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """Its other files, by name inside its folder, to build it again from."""

    @property
    def device_buffers(self) -> list[Buffer]:
        """Those of its weights that are on the device: all, or none."""
        return [buffer for buffer in self.buffers if not buffer.shadow.is_host]

    @property
    def nbytes(self) -> int:
        """Device bytes of its weights."""
        return sum(buffer.nbytes for buffer in self.device_buffers)

    @property
    def is_offloaded(self) -> bool:
        """Whether its weights stay in host memory, and visit the device."""
        return any(buffer.shadow.is_host for buffer in self.buffers)


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
    is_offloaded: bool = False
    """Whether its text encoder stays in host memory, if it is not resident."""

    @property
    def missing(self) -> list[str]:
        """The weight files that have to be loaded."""
        return [path for files in self.paths.values() for path in files if path not in self.buffers]

    @property
    def shared(self) -> list[str]:
        """The components with weights of which nothing has to be loaded."""
        weighed = [name for name in WEIGHED if name in self.keys]
        return [name for name in weighed if all(path in self.buffers for path in self.paths.get(name, ()))]


@dataclass(frozen=True, slots=True)
class Staged:
    """A version whose bytes are verified, in device or host memory, and the resident parts that it will share."""

    candidate: Candidate
    parts: Parts


@dataclass(frozen=True, slots=True)
class Assembly:
    """All components of one version, the side length in pixels that its images have by default, and its golden images."""

    plan: Plan
    components: Mapping[str, Component]
    default_size: int
    golden: GoldenImages = field(default_factory=GoldenImages)


@dataclass(frozen=True, slots=True)
class Aside:
    """A component that was moved to host memory: all that is needed to build it again."""

    key: ComponentKey
    small: Mapping[str, bytes] = field(repr=False)
    buffers: list[Buffer] = field(repr=False)


class ComponentStore:
    """The components that live engines hold, and their weight files, by content. Its own references are weak."""

    def __init__(
        self, device: Device, tokenizers: TokenizerMaker, precision: Precision, text_encoder: str = "auto"
    ) -> None:
        """`precision` and `text_encoder` as `Placement` has them."""
        self.device = device
        self._placement = Placement(device, precision, text_encoder)
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
        lots: list[Lot] = []

        def choose(small: Mapping[str, bytes]) -> list[Lot]:
            chosen.append(parts := self._parts(planned, small))
            if "tokenizer" not in parts.components:  # its process works while the weights are read
                self._tools.tokenizers.begin(_folder(small, "tokenizer"))
            control.shared.extend(parts.shared)
            if parts.is_offloaded and any(path.startswith(f"{TEXT_ENCODER}/") for path in parts.missing):
                self._tell(planned)
            lots.extend(self._placement.lots(planned, parts.missing, on_host=on_host))
            return lots

        candidate = load(
            directory,
            planned,
            control,
            resident=self._files,
            choose=choose,
            verified=self._verified,
            hash_file=self.device.hash_file,
        )
        [parts] = chosen
        if sum(lot.into is self.device for lot in lots) > 1:
            self.device.give_room()  # files came one by one, for want of room: images need what the last ones took
        conversions = self._placement.conversions(planned, [path for files in parts.paths.values() for path in files])
        resident = {path: conversion for path, conversion in conversions.items() if path in parts.buffers}
        return Staged(convert(candidate, parts.buffers, resident, control), parts)

    def _parts(self, planned: Plan, small: Mapping[str, bytes]) -> Parts:
        classes = component_classes(small)
        check_configs(small)
        default_size(small)
        golden.read(small)
        is_offloaded = self._placement.is_offloaded(planned)
        keys = {
            name: ComponentKey(name, *classes[name], planned.component_hashes(name))
            for name in BUILDERS
            if name in classes
        }
        components = {
            name: found
            for name, key in keys.items()
            if (found := self._components.get(key)) is not None
            and self._is_shared(found, planned, is_offloaded=is_offloaded)
        }
        paths = {
            name: weight_files(name, planned, small) for name in WEIGHED if name in keys and name not in components
        }
        buffers = {
            path: file
            for name, files in paths.items()
            for path in files
            if (file := self._file(path, planned, is_offloaded=is_offloaded)) is not None
        }
        return Parts(keys, paths, components, buffers, is_offloaded)

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
                stays = parts.is_offloaded and path.startswith(f"{TEXT_ENCODER}/")
                files[path] = buffer if stays else self._on_device(buffer)
            components = dict(parts.components)
            for name in parts.keys:
                control.begin(f"building {name}")
                if name not in components:
                    buffers = [files[path] for path in parts.paths.get(name, ())]
                    components[name] = self._build(parts.keys[name], _folder(candidate.small, name), buffers)
            if OPTIONAL in components:
                check_control(components["transformer"].module, components[OPTIONAL].module)
            control.check()  # a load that was left gets here late, and must leave nothing behind
        self._note(components.values())
        size = default_size(candidate.small)
        check_together(candidate.small, min(size, WARM_SIZE), components["tokenizer"].module.last_token)
        return Assembly(candidate.plan, components, size, GoldenImages(golden.read(candidate.small), candidate.small))

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

    def lacks(self, planned: Plan) -> bool:
        """Return whether the device has too little free memory for a version in addition to the resident ones, as far as its seal
        and headers tell."""
        return not self._placement.fits(planned, self._missing(planned))

    def needed_staged(self, planned: Plan) -> int:
        """Return the device bytes that a version takes in addition to the resident ones, once it is verified and converted in host
        memory."""
        return self._placement.needs(planned, self._missing(planned)).held

    def _missing(self, planned: Plan) -> list[str]:
        is_offloaded = self._placement.is_offloaded(planned)
        return [
            path
            for name in WEIGHED
            if not self._is_resident(name, planned, is_offloaded=is_offloaded)
            for path in planned.headers
            if path.startswith(f"{name}/") and self._file(path, planned, is_offloaded=is_offloaded) is None
        ]

    def _tell(self, planned: Plan) -> None:
        whole, text_encoder = self._placement.whole(planned)
        is_crowded = self._placement.is_crowded(planned)
        _log.log(
            logging.WARNING if is_crowded else logging.INFO,
            "the text encoder of %s (%d bytes) stays in host memory and is copied to %s, layer by layer, for each new prompt: the "
            "weights take %d bytes, and %d are there for them%s",
            planned.version, text_encoder, self.device.name, whole, self.device.capacity,
            "; all of them have room on this device if nothing else uses it: a version that is loaded then has its text encoder there"
            if is_crowded else "",
        )  # fmt: skip

    def _is_resident(self, name: str, planned: Plan, *, is_offloaded: bool) -> bool:
        hashes = planned.component_hashes(name)
        return any(
            self._is_shared(found, planned, is_offloaded=is_offloaded)
            for key, found in list(self._components.items())
            if key.component == name and key.hashes == hashes
        )

    def _is_shared(self, found: Component, planned: Plan, *, is_offloaded: bool) -> bool:
        """Return whether a version takes a resident component: not one in host memory that has a place on the device by now."""
        return not found.is_offloaded or is_offloaded or not self._placement.has_place(planned)

    def _file(self, path: str, planned: Plan, *, is_offloaded: bool) -> FileBuffer | None:
        """Return a weight file that is resident in the memory where a version has it."""
        found = self._files.get(planned.seal.files[path])
        on_host = is_offloaded and path.startswith(f"{TEXT_ENCODER}/")
        return found if found is not None and found.shadow.is_host == on_host else None

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
        module = build(key, small, tensors, self._tools)
        if any(buffer.shadow.is_host for buffer in buffers):
            module = StreamedEncoder(module, self.device.torch_device)
        return Component(key, module, buffers, kept)

    def _note(self, components: Collection[Component]) -> None:
        for component in components:
            self._components[component.key] = component
            for buffer in component.buffers:
                if isinstance(buffer, FileBuffer) and buffer.digest is not None:
                    self._files[buffer.digest] = buffer


def _folder(small: Mapping[str, bytes], name: str) -> dict[str, bytes]:
    """Return a component's files by their names inside its folder."""
    return {path.removeprefix(f"{name}/"): data for path, data in small.items() if path.startswith(f"{name}/")}
