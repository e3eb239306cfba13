"""ComfyUI's graphs: what of a request can be found in one, by following the links from the sampler backwards.

A graph is what ComfyUI's API takes and writes into images as `prompt`: nodes by id, each with a `class_type` and `inputs`, which are
values or links `[id of a node, number of its output]`. It comes from a file, so anything may be of any type.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

Graph = Mapping[str, Any]

_DEEPEST = 100
_TEXTS = (
    "text", "t5xxl", "text_g", "user_prompt", "prompt", "clip_l", "text_l", "clip_g", "value", "string", "text_positive",
)  # fmt: skip
"""Inputs in which nodes have a prompt; the first that has a text counts."""
_NUMBERS = ("value", "int", "float", "number", "Number", "a")
_LATENTS = ("latent_image", "latent", "samples", "latents")
_SIDES = {
    "width": ("width", "empty_latent_width", "resolution_width"),
    "height": ("height", "empty_latent_height", "resolution_height"),
}
_NOTHING = "ConditioningZeroOut"
_WIDGETS: Mapping[str, tuple[str, ...]] = {
    "KSampler": ("seed", "", "steps", "cfg"),
    "KSamplerAdvanced": ("", "noise_seed", "", "steps", "cfg"),
    "SamplerCustom": ("", "noise_seed", "", "cfg"),
    "RandomNoise": ("noise_seed",),
    "BasicScheduler": ("", "steps"),
    "CFGGuider": ("cfg",),
    "CLIPTextEncode": ("text",),
    "EmptyLatentImage": ("width", "height"),
    "EmptySD3LatentImage": ("width", "height"),
    "EmptyFlux2LatentImage": ("width", "height"),
    "PrimitiveInt": ("value",),
    "PrimitiveFloat": ("value",),
    "PrimitiveString": ("value",),
    "PrimitiveStringMultiline": ("value",),
}
"""The inputs that a workflow has as a list of values, in ComfyUI's own nodes."""


def settings_of_graph(graph: Graph) -> dict[str, Any]:
    """Return what is found: `prompt`, `negative_prompt`, `seed`, `steps`, `cfg`, `width`, `height`; unchecked."""
    reader = _Reader(graph)
    sampler = reader.first_sampler()
    if sampler is None:
        return {}
    guider = reader.node(sampler.get("guider")) or sampler
    found = {
        "prompt": reader.prompt(guider.get("positive", guider.get("conditioning")), "positive"),
        "negative_prompt": reader.prompt(guider.get("negative"), "negative"),
        "seed": reader.number(sampler, ("seed", "noise_seed"), ("noise",)),
        "steps": reader.number(sampler, ("steps",), ("sigmas",)),
        "cfg": reader.number(guider, ("cfg",)),
        **reader.size(sampler),
    }
    return {name: value for name, value in found.items() if value is not None}


def graph_of_workflow(workflow: Mapping[str, Any]) -> Graph:
    """Return the graph of a workflow, ComfyUI's format for its editor, as far as its nodes are known here."""
    origins: dict[Any, list[Any]] = {}
    for link in _items(workflow.get("links")):
        if isinstance(link, list) and len(link) >= 3 and isinstance(link[0], int):
            origins[link[0]] = [str(link[1]), link[2]]
    graph: dict[str, Any] = {}
    for node in _items(workflow.get("nodes")):
        if not isinstance(node, dict):
            continue
        kind = node.get("type")
        names = _WIDGETS.get(kind, ()) if isinstance(kind, str) else ()
        values = zip(names, _items(node.get("widgets_values")), strict=False)
        inputs: dict[str, Any] = {name: value for name, value in values if name}
        for one in _items(node.get("inputs")):
            if isinstance(one, dict) and isinstance(number := one.get("link"), int) and number in origins:
                inputs[str(one.get("name"))] = origins[number]
        graph[str(node.get("id"))] = {"class_type": kind, "inputs": inputs}
    return graph


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


class _Node(NamedTuple):
    kind: str
    inputs: Mapping[str, Any]


class _Reader:
    """Follows the links of one graph."""

    def __init__(self, graph: Graph) -> None:
        self._nodes = {
            name: _Node(str(node.get("class_type", "")), node["inputs"])
            for name, node in graph.items()
            if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
        }

    def node(self, link: Any) -> Mapping[str, Any] | None:
        """Return the inputs of the node that a link comes from; None if it is no link."""
        if not (isinstance(link, list) and len(link) == 2 and isinstance(link[0], str | int)):
            return None
        found = self._nodes.get(str(link[0]))
        return None if found is None else found.inputs

    def first_sampler(self) -> Mapping[str, Any] | None:
        """Return the inputs of the sampler that begins from an empty latent; later ones only refine its image."""
        samplers = [inputs for kind, inputs in self._nodes.values() if _is_sampler(kind, inputs)][:_DEEPEST]
        known = {id(sampler) for sampler in samplers}
        for sampler in samplers:
            if not any(id(one) in known for one in self._upstream(sampler, _LATENTS)):
                return sampler
        return samplers[0] if samplers else None

    def prompt(self, link: Any, side: str) -> str | None:
        """Return the text of a conditioning; `side` is `positive` or `negative`. Empty if there is deliberately none."""
        return self._prompt(link, side, set(), set())

    def number(self, inputs: Mapping[str, Any], names: Iterable[str], through: Iterable[str] = ()) -> Any:
        """Return the first of some inputs, which another node may provide, also of the nodes behind the inputs `through`."""
        for one in (inputs, *self._upstream(inputs, tuple(through))):
            for name in names:
                value = self._number(one.get(name), (*names, *_NUMBERS), set())
                if value is not None:
                    return value
        return None

    def size(self, sampler: Mapping[str, Any]) -> dict[str, Any]:
        """Return the width and height of the latent with which a sampler begins."""
        last = [sampler, *self._upstream(sampler, _LATENTS)][-1]
        return {side: self.number(last, names) for side, names in _SIDES.items()}

    def _upstream(self, inputs: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
        """Yield the nodes behind the first of some inputs that is a link, the nearest first."""
        for _ in range(_DEEPEST):
            found = next((node for name in names if (node := self.node(inputs.get(name))) is not None), None)
            if found is None:
                return
            inputs = found
            yield inputs

    def _number(self, value: Any, names: tuple[str, ...], seen: set[str]) -> int | float | None:
        """Return a number, or that of the node from which a link brings it."""
        if type(value) in (int, float):
            return value  # type: ignore[no-any-return]
        node = self.node(value)
        if node is None or str(value[0]) in seen or len(seen) > _DEEPEST:
            return None
        seen.add(str(value[0]))
        found = (self._number(node.get(name), names, seen) for name in names if name in node)
        return next((one for one in found if one is not None), None)

    def _prompt(self, link: Any, side: str, seen: set[str], texts_seen: set[str]) -> str | None:
        node = self.node(link)
        if node is None or str(link[0]) in seen or len(seen) > _DEEPEST:
            return None
        seen.add(str(link[0]))
        if self._nodes[str(link[0])].kind == _NOTHING:
            return ""
        if isinstance(text := node.get(side), str):
            return text
        texts = [self._text(node[name], texts_seen) for name in _TEXTS if name in node]
        if any(text is not None for text in texts):
            return next((text for text in texts if text), "")
        # Behind a node that changes or joins conditionings.
        if self.node(node.get(side)) is not None:
            return self._prompt(node[side], side, seen, texts_seen)
        parts = [self._prompt(value, side, seen, texts_seen) for name, value in node.items() if "cond" in name.lower()]
        known = [part for part in parts if part is not None]
        return ", ".join(dict.fromkeys(part for part in known if part)) if known else None

    def _text(self, value: Any, seen: set[str]) -> str | None:
        """Return a text, or that of the node from which a link brings it; nodes that join texts have several."""
        if isinstance(value, str):
            return value
        node = self.node(value)
        if node is None or str(value[0]) in seen or len(seen) > _DEEPEST:
            return None
        seen.add(str(value[0]))
        is_joined = "concat" in self._nodes[str(value[0])].kind.lower()
        names = sorted(name for name in node if name.startswith(("text", "string"))) if is_joined else _TEXTS
        texts = [text for name in names if name in node and (text := self._text(node[name], seen)) is not None]
        if not is_joined or not texts:
            return next((text for text in texts if text), texts[0] if texts else None)
        delimiter = node.get("delimiter", " ")
        return (delimiter if isinstance(delimiter, str) else " ").join(text for text in texts if text)


def _is_sampler(kind: str, inputs: Mapping[str, Any]) -> bool:
    return "Sampler" in kind and any(name in inputs for name in ("positive", "guider")) and "latent_image" in inputs
