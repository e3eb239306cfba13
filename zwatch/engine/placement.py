"""Where the weights of a version are kept, and by which way they get there: known from its headers before anything is allocated."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from zwatch.deploy.contents import SCALE
from zwatch.engine.components import WEIGHED
from zwatch.engine.precision import Precision, conversion_of
from zwatch.errors import Rejection
from zwatch.shadow.buffers import Footprint
from zwatch.shadow.converted import CONVERSION_ROOM, Conversion
from zwatch.shadow.device import Device
from zwatch.shadow.loader import Lot, Plan

TEXT_ENCODER = "text_encoder"
PLACES = ("auto", "device", "host")
"""Where the text encoder may be asked to be. `auto`: in host memory if the device has too little for the whole model, but enough
without it."""


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes that loading takes: `held` on the device from then on, `beside` there meanwhile, and `host` on the host."""

    held: int
    beside: int = 0
    host: int = 0


class Placement:
    """The plan for the weights of one device's versions."""

    def __init__(self, device: Device, precision: Precision, text_encoder: str = "auto") -> None:
        """`precision` is what components are computed in, see `conversion_of`; `text_encoder` is one of `PLACES`."""
        self._device = device
        self._precision = precision
        self._text_encoder = text_encoder

    def conversions(self, planned: Plan, paths: Collection[str]) -> dict[str, Conversion]:
        """Return how each of these weight files is converted; one that is not is left out."""
        return self._conversions(planned, paths, self._precision)

    def is_offloaded(self, planned: Plan) -> bool:
        """Return whether the text encoder of a version stays in host memory, unless a resident one is shared."""
        device = self._device
        if self._text_encoder != "auto":
            return self._text_encoder == "host"
        if device.is_host_memory or device.peak_elsewhere:  # the memory of a process that ends is not lacking for long
            return False
        whole, text_encoder = self.whole(planned)
        return whole - text_encoder <= device.capacity < whole

    def has_place(self, planned: Plan) -> bool:
        """Return whether the text encoder of a version belongs on the device, even if the same one is in host memory."""
        if self._text_encoder != "auto":
            return self._text_encoder == "device"
        return self.whole(planned)[0] <= self._device.capacity

    def is_crowded(self, planned: Plan) -> bool:
        """Return whether a version would fit whole if nothing else had memory of the device."""
        return self._text_encoder == "auto" and self.whole(planned)[0] <= self._device.capacity_alone

    def whole(self, planned: Plan) -> tuple[int, int]:
        """Return the bytes that all weights of a version take, and those of its text encoder."""
        paths = [path for name in WEIGHED for path in _of(name, planned.headers)]
        conversions = self.conversions(planned, paths)
        return planned.held(paths, conversions), planned.held(_of(TEXT_ENCODER, paths), conversions)

    def lots(self, planned: Plan, paths: Sequence[str], *, on_host: bool) -> list[Lot]:
        """Return how weight files are loaded: all at once where the device has room for them beside what they are converted to,
        else file by file. With `on_host` everything goes to host memory.

        Raises:
            Rejection: `insufficient_memory`.
        """
        self._check(planned, paths, on_host=on_host)
        device, conversions = self._device, self.conversions(planned, paths)
        for_host = self._for_host(planned, paths, on_host=on_host)
        for_device = [path for path in paths if path not in for_host]
        lots = []
        if plain := [path for path in for_host if path not in conversions]:
            lots.append(Lot(plain, device.host, device.host))
        converted = {path: conversions[path] for path in for_host if path in conversions}
        lots.extend(Lot([path], device.stopover, device.host, {path: converted[path]}) for path in converted)
        if not for_device:
            return lots
        converted = {path: conversions[path] for path in for_device if path in conversions}
        if not converted or device.has_room([planned.footprint(for_device, conversions)]):
            return [*lots, Lot(for_device, device, device, converted)]
        done = 0
        for path in _largest_first(planned, converted):
            fits = device.has_room([done + planned.footprint([path], converted)])
            lots.append(Lot([path], device if fits else device.stopover, device, {path: converted[path]}))
            done += planned.held([path], converted)
        if plain := [path for path in for_device if path not in converted]:
            lots.append(Lot(plain, device, device))
        return lots

    def needs(self, planned: Plan, paths: Sequence[str], *, on_host: bool = False) -> Needs:
        """Return what loading weight files takes at least, with `on_host` everything into host memory."""
        conversions = self.conversions(planned, paths)
        for_host = self._for_host(planned, paths, on_host=on_host)
        for_device = [path for path in paths if path not in for_host]
        converted = [path for path in for_device if path in conversions]
        beside = 0
        if converted and not self._device.has_room([planned.footprint(for_device, conversions)]):
            longest = max(
                info.end - info.begin for path in converted for info in planned.headers[path].tensors.values()
            )
            beside = min(CONVERSION_ROOM, 10 * longest)
        files = {path: Footprint.of(planned.headers[path]).total for path in conversions}
        stops = [files[path] for path in for_host if path in conversions]
        if beside:
            stops += [
                files[path] for path in converted if not self._device.has_room([planned.footprint([path], conversions)])
            ]
        return Needs(
            planned.held(for_device, conversions), beside, planned.held(for_host, conversions) + max(stops, default=0)
        )

    def fits(self, planned: Plan, paths: Sequence[str]) -> bool:
        """Return whether weight files can be loaded on the device now, in addition to what it has."""
        needs = self.needs(planned, paths)
        return self._device.has_room([needs.held], beside=needs.beside)

    def _check(self, planned: Plan, paths: Sequence[str], *, on_host: bool) -> None:
        needs, device = self.needs(planned, paths, on_host=on_host), self._device
        free, total = device.host.memory()
        if needs.host > free:
            why = (
                f"{device.name} has no room for them next to the serving version, and only {free} of the host's {total} bytes are "
                "free to stage them in"
                if on_host
                else f"its text encoder, or a file that is converted, does not fit on {device.name}, and only {free} of the host's "
                f"{total} bytes are free for it"
            )
            raise Rejection("insufficient_memory", f"{planned.version} needs {needs.host} bytes; {why}")
        if not device.has_room([needs.held], beside=needs.beside):
            free, total = device.memory()
            converting = f" and {needs.beside} for converting" if needs.beside else ""
            raise Rejection(
                "insufficient_memory",
                f"{planned.version} needs {needs.held} bytes on {device.name} besides {device.request_peak} "
                f"for making images{converting}, {free} of {total} are free{self._advice(planned)}",
            )

    def _advice(self, planned: Plan) -> str:
        """Return what would make a version smaller, as the end of a sentence."""
        whole, text_encoder = self.whole(planned)
        if not self.is_offloaded(planned) and whole - text_encoder <= self._device.capacity < whole:
            return f"; {text_encoder} of them are the text encoder's, which --text-encoder host keeps in host memory"
        if self._precision.quantize is not None:
            return ""
        paths = [path for name in WEIGHED for path in _of(name, planned.headers)]
        smaller = self._conversions(planned, paths, replace(self._precision, quantize="int8"))
        quantized = planned.held(paths, smaller)
        return f"; with --quantize int8 or fp8 the whole model takes {quantized} bytes" if quantized < whole else ""

    def _for_host(self, planned: Plan, paths: Sequence[str], *, on_host: bool) -> list[str]:
        if on_host:
            return list(paths)
        return _of(TEXT_ENCODER, paths) if self.is_offloaded(planned) else []

    def _conversions(self, planned: Plan, paths: Collection[str], precision: Precision) -> dict[str, Conversion]:
        found: dict[str, Conversion] = {}
        for name in WEIGHED:
            files = _of(name, paths)
            # All files of the component count: which of them are asked for depends on what is resident.
            own = _of(name, planned.headers)
            tensors = {tensor: info for path in own for tensor, info in planned.headers[path].tensors.items()}
            scales = {tensor for tensor in tensors if tensor.endswith(f".{SCALE}")}
            kept = frozenset(scales | {tensor.removesuffix(SCALE) + "weight" for tensor in scales})
            stored = {info.dtype for tensor, info in tensors.items() if tensor not in kept}
            asked = replace(precision, quantize=None) if kept else precision  # it was quantized before
            conversion = conversion_of(name, stored, asked, self._device.torch_device)
            if conversion is not None:
                found |= dict.fromkeys(files, replace(conversion, kept=kept))
        return found


def _of(component: str, paths: Collection[str]) -> list[str]:
    return [path for path in paths if path.startswith(f"{component}/")]


def _largest_first(planned: Plan, paths: Mapping[str, Conversion]) -> list[str]:
    return sorted(paths, key=lambda path: (-planned.headers[path].file_size, path))
