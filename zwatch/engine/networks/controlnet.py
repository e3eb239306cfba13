"""The ControlNet of Z-Image: blocks beside a transformer that read a control image's latents and give hints to its layers.

Parameters have the names, and results the bits, of diffusers' `ZImageControlNetModel` (0.42, models/controlnets/controlnet_z_image.py), which
shares the embedders and refiners of the transformer that it is used with: here that comes with each call, so that one with LoRAs can.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zwatch.engine.networks.configs import PATCH, ControlConfig, TransformerConfig
from zwatch.engine.networks.layers import Linear
from zwatch.engine.networks.transformer import Block, ZImageTransformer, joined, mask_of, padded, patches

LAYERS, REFINER = "control_layers", "control_noise_refiner"
"""What `add_control_noise_refiner` may be: which blocks give hints to the noise refiner. Version 2.0 of the published checkpoint was made with
the first, 2.1 with the second; 1.0 gives none, and its refiner's blocks are plain ones."""


class ControlBlock(Block):
    """A block that makes a hint of what it has made; the first one of its row begins with the image's tokens, too."""

    def __init__(self, config: TransformerConfig, *, is_first: bool) -> None:
        super().__init__(config, modulated=True)
        if is_first:
            self.before_proj = Linear(config.dim, config.dim)
        self.after_proj = Linear(config.dim, config.dim)


class ZImageControlNet(nn.Module):
    """The network. Built on the meta device it has no values until weights are assigned."""

    def __init__(self, config: ControlConfig) -> None:
        super().__init__()
        self.config = config
        own = TransformerConfig(
            dim=config.dim, n_heads=config.n_heads, norm_eps=config.norm_eps, qk_norm=config.qk_norm
        )
        self.control_layers = nn.ModuleList(
            ControlBlock(own, is_first=place == 0) for place in config.control_layers_places
        )
        self.control_all_x_embedder = nn.ModuleDict({"2-1": Linear(PATCH * PATCH * config.control_in_dim, config.dim)})
        if config.add_control_noise_refiner != LAYERS:
            has_hints = config.add_control_noise_refiner == REFINER
            self.control_noise_refiner = nn.ModuleList(
                ControlBlock(own, is_first=number == 0) if has_hints else Block(own, modulated=True)
                for number in range(config.n_refiner_layers)
            )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that it computes in."""
        found: Tensor = self.control_layers[0].attention_norm1.weight  # type: ignore[assignment,union-attr]
        return found.dtype

    @property
    def refining(self) -> list[ControlBlock]:
        """The blocks that give hints to the noise refiner."""
        kind = self.config.add_control_noise_refiner
        return [] if kind is None else list(self.control_layers if kind == LAYERS else self.control_noise_refiner)  # type: ignore[arg-type]

    def forward(
        self, transformer: ZImageTransformer, x: Sequence[Tensor], t: Tensor, cap_feats: Sequence[Tensor], context: Tensor, scale: float
    ) -> dict[int, Tensor]:  # fmt: skip
        """Return the hints for the transformer's layers, by their numbers, as its `forward` takes them.

        `x`, `t` and `cap_feats` are those of that; `context` are the control image's latents, of shape (control_in_dim, 1, h, w), as
        `context_of` makes them; `scale` is how strong the hints are.
        """
        time = transformer.embedded(t, x[0])
        image, prompt = transformer.parts(x, cap_feats)
        # diffusers gives attention a mask in any case, which may decide the last bits.
        mask = mask_of(image.lengths, image.tokens.device)
        control = self.embedded(context, transformer.x_pad_token, len(x))
        tokens, prompt_tokens = image.tokens, prompt.tokens
        hints: dict[int, Tensor] = {}
        if blocks := self.refining:
            made, control = _hints(blocks, control, tokens, mask, image.rotations, time)
            # The second row of places may be shorter than that of the blocks.
            hints = dict(zip(self.config.control_refiner_layers_places, (hint * scale for hint in made), strict=False))
        for number, block in enumerate(transformer.noise_refiner):
            tokens = block(tokens, mask, image.rotations, time)
            if number in hints:
                tokens = tokens + hints[number]
        prompt_mask = mask_of(prompt.lengths, tokens.device)
        for block in transformer.context_refiner:
            prompt_tokens = block(prompt_tokens, prompt_mask, prompt.rotations)
        if not blocks:
            for block in self.control_noise_refiner:
                control = block(control, mask, image.rotations, time)
        whole, rotations, _ = joined(image, tokens, prompt, prompt_tokens)
        whole_control, _, _ = joined(image, control, prompt, prompt_tokens)
        whole_mask = mask_of([sum(pair) for pair in zip(image.lengths, prompt.lengths, strict=True)], tokens.device)
        layers: list[ControlBlock] = list(self.control_layers)  # type: ignore[arg-type]
        made, _ = _hints(layers, whole_control, whole, whole_mask, rotations, time)
        return dict(zip(self.config.control_layers_places, (hint * scale for hint in made), strict=True))

    def embedded(self, context: Tensor, pad: Tensor, count: int) -> Tensor:
        """Return the tokens of the control image's latents `count` times, shape (count, tokens, dim), with the transformer's padding at
        the end."""
        cut = patches(context.to(self.dtype))
        # All in one product, as diffusers has it: the number of rows may decide the last bits.
        tokens: Tensor = self.control_all_x_embedder["2-1"](padded(cut).repeat(count, 1)).unflatten(0, (count, -1))
        if missing := tokens.shape[1] - len(cut):
            tokens = torch.cat([tokens[:, : len(cut)], pad.expand(count, missing, -1)], dim=1)
        return tokens


def _hints(
    blocks: Sequence[ControlBlock], control: Tensor, x: Tensor, mask: Tensor, rotations: Tensor, time: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Return the hint of each block of a row, and what the last one has made, for the image's tokens x."""
    control = blocks[0].before_proj(control) + x
    hints = []
    for block in blocks:
        control = block(control, mask, rotations, time)
        hints.append(block.after_proj(control))
    return hints, control


def context_of(network: ZImageControlNet, latents: Tensor) -> Tensor:
    """Return latents of shape (channels, 1, h, w) with as many channels as a network takes: those of a mask, and of what is around it, are
    zero."""
    missing = network.config.control_in_dim - latents.shape[0]
    return torch.cat([latents, latents.new_zeros((missing, *latents.shape[1:]))]) if missing else latents
