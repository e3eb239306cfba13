"""The steps of a picture that a control image guides: the ControlNet's blocks, then those of the transformer with their hints."""

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import ref

import torch
from torch import Tensor

from zwatch.engine.computing import Control
from zwatch.engine.fast.operations import Rotation
from zwatch.engine.fast.transformer import (
    Modulation,
    Run,
    Step,
    Steps,
    directly,
    factors_of,
    modulated,
    modulations_of,
    rotations_of,
)
from zwatch.engine.networks.controlnet import ControlBlock, ZImageControlNet
from zwatch.engine.networks.transformer import Block, ZImageTransformer


@dataclass(frozen=True, slots=True)
class ControlledStep:
    """One step, as `Step`. `own` computes the ControlNet's blocks, whose weights may be stored otherwise than the transformer's. It does not
    hold the ControlNet: what is recorded of it is kept with the transformer."""

    step: Step
    own: Step
    network: ref[ZImageControlNet]

    def __call__(
        self, network: ZImageTransformer, latents: Tensor, text: Tensor, factors: Tensor, context: Tensor, own_factors: Tensor,
        scale: Tensor, *waves: Tensor,
    ) -> Tensor:  # fmt: skip
        """As `Step.__call__`. `context` are the control image's tokens, of shape (batch, tokens, width); `own_factors` what the norms of the
        ControlNet's blocks multiply with; `scale` is a number: how strong the hints are.

        Raises:
            RuntimeError: the ControlNet is gone.
        """
        control = self.network()
        if control is None:
            raise RuntimeError("its controlnet is no longer loaded")
        image, whole = rotations_of(waves)
        blocks, refining = modulated(network), len(network.noise_refiner)
        norms = modulations_of(blocks, factors[:-1])
        own_norms = dict(zip(_blocks(control), modulations_of(_blocks(control), own_factors), strict=True))
        x = self.step.tokens(network, latents)
        hints: dict[int, Tensor] = {}
        if rows := control.refining:
            made, context = self._hints(rows, own_norms, context, x, image)
            hints = _placed(control.config.control_refiner_layers_places, made, scale)
        else:
            plain = _plain(control)
            context = self.own.through(plain, [own_norms[block] for block in plain], context, image)
        # The transformer's own tokens get no hints there, only those that the hints for its layers are made of.
        refined = self._through(blocks[:refining], norms[:refining], x, image, hints)
        bare = refined if not hints else self.step.through(blocks[:refining], norms[:refining], x, image)
        layers = _layers(control)
        joined = torch.cat([refined, text], dim=1)
        made, _ = self._hints(layers, own_norms, torch.cat([context, text], dim=1), joined, whole)
        hints = _placed(control.config.control_layers_places, made, scale)
        x = self._through(blocks[refining:], norms[refining:], torch.cat([bare, text], dim=1), whole, hints)
        return self.step.image(network, x, factors)

    def _hints(
        self, blocks: Sequence[ControlBlock], norms: dict[Block, Modulation], context: Tensor, x: Tensor, rotation: Rotation
    ) -> tuple[list[Tensor], Tensor]:  # fmt: skip
        """Return the hint of each block of a row, and what the last one has made, for the image's tokens x."""
        context = blocks[0].before_proj(context) + x
        hints = []
        for block in blocks:
            context = self.own.through([block], [norms[block]], context, rotation)
            hints.append(block.after_proj(context))
        return hints, context

    def _through(
        self, blocks: list[Block], norms: list[Modulation], x: Tensor, rotation: Rotation, hints: dict[int, Tensor]
    ) -> Tensor:
        """As `Step.through`, with hints added behind the blocks of these numbers."""
        begin = 0
        for number in sorted(place for place in hints if place < len(blocks)):
            x = self.step.through(blocks[begin : number + 1], norms[begin : number + 1], x, rotation) + hints[number]
            begin = number + 1
        return self.step.through(blocks[begin:], norms[begin:], x, rotation) if begin < len(blocks) else x


class ControlledSteps(Steps):
    """As `Steps`, guided by a control image."""

    def __init__(
        self, network: ZImageTransformer, step: Step, own: Step, control: Control, prompts: Sequence[Tensor], times: Tensor,
        run: Run = directly,
    ) -> None:  # fmt: skip
        """`own` computes the ControlNet's blocks; the rest is as `Steps` has it."""
        super().__init__(network, step, prompts, times, run)
        self._of = ref(control.network)
        self.run = ControlledStep(step, own, self._of)
        self._control_factors = factors_of(_blocks(control.network), self.embedded(times))
        self._context = control.network.embedded(control.context, network.x_pad_token, len(prompts))
        self._scale = torch.tensor(control.scale, dtype=torch.float32, device=times.device)

    @property
    def key(self) -> tuple[object, ...]:
        """As `Steps.key`: another ControlNet's are others."""
        return (*super().key, self._of)

    def inputs(self, number: int) -> tuple[Tensor, ...]:
        """As `Steps.inputs`."""
        text, factors, *waves = super().inputs(number)
        return text, factors, self._context, self._control_factors[number], self._scale, *waves


def _placed(places: Sequence[int], hints: Sequence[Tensor], scale: Tensor) -> dict[int, Tensor]:
    return {place: hint * scale for place, hint in zip(places, hints, strict=False)}


def _layers(control: ZImageControlNet) -> list[ControlBlock]:
    return list(control.control_layers)  # type: ignore[arg-type]


def _plain(control: ZImageControlNet) -> list[Block]:
    return list(control.control_noise_refiner)  # type: ignore[arg-type]


def _blocks(control: ZImageControlNet) -> list[Block]:
    """Return all blocks of a ControlNet, each once."""
    return list(dict.fromkeys([*_layers(control), *(control.refining or _plain(control))]))
