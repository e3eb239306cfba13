"""The names of a LoRA's tensors: which modules of the transformer it changes, by any of the names that trainers write."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from zwatch.deploy.header import TensorInfo
from zwatch.importing.layouts.families import family_of
from zwatch.importing.layouts.parts import listed, quoted, refusal
from zwatch.importing.layouts.transformer import PATCH

_FACTOR = re.compile(
    r"^(?P<module>.+?)(?:\.processor)?[._](?:(?P<down>lora_A|lora_down|lora\.down)|lora_B|lora_up|lora\.up)"
    r"(?:\.(?P<adapter>(?!weight$)[^.]+))?\.weight$"
)
"""PEFT and diffusers write `lora_A` and `lora_B`, kohya's and LyCORIS's trainers `lora_down` and `lora_up`."""
_KRONECKER = re.compile(r"^(?P<module>.+?)[._]lokr_(?P<part>w[12](?:_[ab])?)$")
"""LoKr, as LyCORIS and ai-toolkit write it: the Kronecker product of w1 and w2, each of which may be a product a @ b."""
_ALPHA = re.compile(r"^(?P<module>.+)\.alpha$")
_PREFIXES = (
    "base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "unet.", "dit.", "module.", "model.",
    "lora_unet_", "lora_transformer_", "lycoris_",
)  # fmt: skip
FUSED = 2
PEFT_PREFIX = "base_model.model."
_OTHERS = (
    (re.compile(r"(?:\.dora_scale|lora_magnitude_vector(?:\.[^.]+)*)$"), "DoRA"),
    (re.compile(r"[._](?:hada_)"), "LoHa"),
    (re.compile(r"[._](?:oft_|boft_)"), "OFT"),
    (re.compile(r"\.(?:a1|a2|b1|b2)\.weight$"), "GLoRA"),
    (re.compile(r"[._](?:lora_mid\.weight|lokr_t[12])$"), "a LoRA in Tucker's form (lora_mid, lokr_t2)"),
    (re.compile(r"[._](?:ia3_l|on_input)\b"), "IA3"),
    (re.compile(r"\.(?:diff|diff_b|set_weight)$"), "a file of whole differences (diff)"),
    (re.compile(r"\.lora_B(?:\.[^.]+)?\.bias$"), "a LoRA with biases (lora_bias)"),
    (re.compile(r"[._]lora_(?:embedding_[AB])\b"), "a LoRA of an embedding"),
)  # fmt: skip
_TEXT_ENCODER = re.compile(r"^(?:lora_te[0-9]*_|text_encoders?\.|lora_qwen)")
_OF_Z_IMAGE = re.compile(r"^(?:layers|noise_refiner|context_refiner)[._][0-9]+[._](?:attention|feed_forward|adaLN_modulation)|^(?:all_)?(?:x_embedder|final_layer)|^(?:cap|t)_embedder")  # fmt: skip


@dataclass(slots=True)
class Factors:
    """The stored tensors of one module: A of shape (rank, in), B of shape (out, rank), or a LoKr's by their names there; and
    alpha if it is a tensor."""

    down: str | None = None
    up: str | None = None
    alpha: str | None = None
    kronecker: dict[str, str] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether all factors of one kind are there, and none of the other."""
        if not self.kronecker:
            return self.down is not None and self.up is not None
        forms = [{one, f"{one}_a", f"{one}_b"} & self.kronecker.keys() for one in ("w1", "w2")]
        return self.down is self.up is None and all(
            len(form) == (1 if one in form else 2) for one, form in zip(("w1", "w2"), forms, strict=True)
        )


@dataclass(slots=True)
class Named:
    """A LoRA's modules as the file names them, and whether PEFT wrote it: then alpha is in a file beside it."""

    modules: dict[str, Factors] = field(default_factory=dict)
    peft: bool = False


def is_lora(names: Collection[str]) -> bool:
    """Return whether most tensors of a file are those of a LoRA or of one of its relatives, and not a whole model's."""
    kinds = (_FACTOR, _KRONECKER, *(other for other, _ in _OTHERS))
    adapters = sum(any(kind.search(name) for kind in kinds) for name in names)
    return adapters > 0 and 2 * (adapters + sum(1 for name in names if _ALPHA.match(name))) > len(names)


def _unprefixed(module: str) -> Iterator[str]:
    """Yield the module's name as it is, and without one prefix after the other."""
    yield module
    while prefix := next((one for one in _PREFIXES if module.startswith(one)), None):
        module = module[len(prefix) :]
        yield module


def parse(tensors: Mapping[str, TensorInfo]) -> Named:
    """Return the modules that a LoRA changes.

    Raises:
        Rejection: it is a relative of LoRA that is not merged, or not for Z-Image, or not whole.
    """
    _refuse_others(tensors)
    named = Named()
    adapters: set[str | None] = set()
    for name in tensors:
        factor, kronecker = _FACTOR.match(name), _KRONECKER.match(name)
        match = factor or kronecker or _ALPHA.match(name)
        if match is None:
            raise refusal(f"a LoRA with {quoted(name)}, which is neither a factor nor an alpha")
        if _TEXT_ENCODER.match(name):
            raise refusal(
                f"a LoRA that also changes the text encoder, as {quoted(name)} shows; only the transformer's is merged"
            )
        module = named.modules.setdefault(match["module"].removesuffix(".default"), Factors())
        if factor is not None:
            adapters.add(factor["adapter"])
            _set(module, name, down=factor["down"] is not None)
        elif kronecker is None:
            module.alpha = name
        elif module.kronecker.setdefault(kronecker["part"], name) != name:
            raise refusal(
                f"{quoted(module.kronecker[kronecker['part']])} and {quoted(name)} are the same factor; which is meant?"
            )
        named.peft |= name.startswith(PEFT_PREFIX)
    if len(adapters) > 1:
        raise refusal(f"the file has several LoRAs, {sorted(map(str, adapters))}; save the one that is meant by itself")
    _check_whole(named)
    return named


def _set(module: Factors, name: str, *, down: bool) -> None:
    before = module.down if down else module.up
    if before is not None:
        raise refusal(f"{quoted(before)} and {quoted(name)} are the same factor; which is meant?")
    if down:
        module.down = name
    else:
        module.up = name


def _check_whole(named: Named) -> None:
    half = [quoted(name) for name, one in named.modules.items() if not one.is_whole]
    if half:
        raise refusal(f"a LoRA with {len(half)} modules of which a factor is missing, or one too many: {listed(half)}")
    if not any(_OF_Z_IMAGE.match(name) for module in named.modules for name in _unprefixed(module)):
        bare = [list(_unprefixed(module))[-1] for module in named.modules]
        family = family_of([f"{name.replace('_', '.')}." for name in bare] + [f"{name}.weight" for name in bare])
        what = f"{family[0]}: " if family else ""
        raise refusal(
            f"a LoRA, but not for Z-Image's transformer: {what}it changes {listed([quoted(one) for one in named.modules], 4)}"
        )


def _refuse_others(names: Iterable[str]) -> None:
    for name in names:
        for pattern, title in _OTHERS:
            if pattern.search(name):
                raise refusal(
                    f"{title}, as {quoted(name)} shows, is not merged; merge it into the transformer with the tool that trained it, "
                    "save that, and import the transformer"
                )


def layout_of(tensors: Mapping[str, TensorInfo]) -> str:
    """Return a LoRA's layout for people: how many modules, of which ranks.

    Raises:
        Rejection: it cannot be merged, whatever the base.
    """
    named = parse(tensors)
    ranks = sorted({shape[0] for one in named.modules.values() if one.down and (shape := tensors[one.down].shape)})
    names = "PEFT's" if named.peft else "diffusers'" if any(".lora_A" in name for name in tensors) else "kohya's"
    if not ranks:
        return f"a LoKr of {len(named.modules)} modules"
    return f"a LoRA of {len(named.modules)} modules, rank {' and '.join(map(str, ranks[:4]))}, {names} names"


def targets_of(base: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return the weights that a module's name may mean, by every name that trainers use for it: one weight, or the three of a
    fused attention. `base` are the names of a transformer's matrices in diffusers' layout."""
    targets: dict[str, tuple[str, ...]] = {}
    for weight in base:
        module = weight.removesuffix(".weight")
        for name in _aliases(module):
            targets[name] = targets[name.replace(".", "_")] = (weight,)
        if module.endswith(".attention.to_q"):
            block = module.removesuffix(".to_q")
            three = tuple(f"{block}.to_{part}.weight" for part in "qkv")
            if all(one in base for one in three):
                for name in (f"{block}.qkv", f"{block}.to_qkv"):
                    targets[name] = targets[name.replace(".", "_")] = three
    return targets


def _aliases(module: str) -> Iterator[str]:
    """Yield a module's name in diffusers' layout, in the original one, and variants that trainers wrote."""
    yield module
    yield module.replace(f"all_x_embedder.{PATCH}", "x_embedder").replace(f"all_final_layer.{PATCH}", "final_layer")
    if ".attention.to_" in module:
        yield module.replace(".attention.to_out.0", ".attention.out")
        yield module.replace(".attention.to_out.0", ".attention.to_out")
        yield module.replace(".attention.to_", ".attention.to.")


def weights_of(module: str, targets: Mapping[str, tuple[str, ...]]) -> tuple[str, ...] | None:
    """Return the weights that a module as the file names it means, or None."""
    return next((targets[name] for name in _unprefixed(module) if name in targets), None)


def order_of(module: str, weights: tuple[str, ...]) -> int:
    """Return how far a module's name is from diffusers' own: 0 is that, with dots or underscores, `FUSED` a fused attention."""
    if len(weights) > 1:
        return FUSED
    own = weights[0].removesuffix(".weight")
    return 0 if {own, own.replace(".", "_")} & set(_unprefixed(module)) else 1
