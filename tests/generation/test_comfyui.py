"""Settings in ComfyUI's graphs, as a table: graphs as ComfyUI writes them, and what no ComfyUI writes."""

import json

import pytest

from zwatch.generation.comfyui import graph_of_workflow, settings_of_graph


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def text(prompt):
    return node("CLIPTextEncode", text=prompt, clip=["30", 0])


SAMPLER = {
    "model": ["4", 0], "seed": 42, "steps": 9, "cfg": 1.0, "sampler_name": "res_multistep", "scheduler": "simple",
    "denoise": 1.0, "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
}  # fmt: skip
Z_IMAGE = {
    "3": node("KSampler", **{**SAMPLER, "negative": ["33", 0]}),
    "4": node("ModelSamplingAuraFlow", shift=3.0, model=["28", 0]),
    "5": node("EmptySD3LatentImage", width=1024, height=768, batch_size=1),
    "6": text("一只戴墨镜的猫"),
    "8": node("VAEDecode", samples=["3", 0], vae=["29", 0]),
    "9": node("SaveImage", filename_prefix="z-image", images=["8", 0]),
    "28": node("UNETLoader", unet_name="z_image_turbo_bf16.safetensors", weight_dtype="default"),
    "30": node("CLIPLoader", clip_name="qwen_3_4b.safetensors", type="lumina2"),
    "33": node("ConditioningZeroOut", conditioning=["6", 0]),
}
PLAIN = {
    "3": node("KSampler", **SAMPLER),
    "5": node("EmptyLatentImage", width=512, height=768, batch_size=1),
    "6": text("a cat"),
    "7": text("blurry"),
}
FOUND = {
    "prompt": "a cat", "negative_prompt": "blurry", "seed": 42, "steps": 9, "cfg": 1.0, "width": 512, "height": 768,
}  # fmt: skip


def changed(**nodes):
    """Return the plain graph with other nodes; their names lose an `n`."""
    return {**PLAIN, **{name.removeprefix("n"): one for name, one in nodes.items()}}


def with_sampler(**inputs):
    return changed(n3=node("KSampler", **{**SAMPLER, **inputs}))


def test_the_graph_of_z_image_turbo():
    assert settings_of_graph(Z_IMAGE) == {
        "prompt": "一只戴墨镜的猫", "negative_prompt": "", "seed": 42, "steps": 9, "cfg": 1.0, "width": 1024, "height": 768,
    }  # fmt: skip


def test_a_plain_graph():
    assert settings_of_graph(PLAIN) == FOUND


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        (changed(n3=node("KSamplerAdvanced", **{**SAMPLER, "seed": None, "noise_seed": 7})), {"seed": 7}),
        ({**with_sampler(seed=["10", 0]), "10": node("PrimitiveInt", value=5)}, {"seed": 5}),
        ({**with_sampler(seed=["10", 3]), "10": node("Seed (rgthree)", seed=6)}, {"seed": 6}),
        ({**with_sampler(steps=["10", 0]), "10": node("Switch", value=["11", 0]), "11": node("INTConstant", value=4)}, {"steps": 4}),
        ({**changed(n6=text(["10", 0])), "10": node("PrimitiveStringMultiline", value="a dog")}, {"prompt": "a dog"}),
        (
            {
                **changed(n6=text(["10", 0])),
                "10": node("StringConcatenate", string_a=["11", 0], string_b="sitting", delimiter=", "),
                "11": node("String Literal", string="a dog"),
            },
            {"prompt": "a dog, sitting"},
        ),
        (changed(n6=node("CLIPTextEncodeSDXL", text_g="a dog", text_l="a dog", width=1024, height=1024)), {"prompt": "a dog"}),
        (changed(n6=node("CLIPTextEncodeFlux", clip_l="", t5xxl="a dog", guidance=3.5)), {"prompt": "a dog"}),
        (changed(n6=node("CLIPTextEncode", text="")), {"prompt": ""}),
        (
            changed(n6=node("ConditioningCombine", conditioning_1=["10", 0], conditioning_2=["7", 0]), n10=text("a dog")),
            {"prompt": "a dog, blurry"},
        ),
        (changed(n6=node("FluxGuidance", guidance=3.5, conditioning=["10", 0]), n10=text("a dog")), {"prompt": "a dog"}),
        (
            {
                **with_sampler(positive=["10", 0], negative=["10", 1]),
                "10": node("ControlNetApplyAdvanced", positive=["6", 0], negative=["7", 0], strength=1.0),
            },
            {},
        ),
        (
            {
                **with_sampler(positive=["10", 1], negative=["10", 2], latent_image=["10", 3]),
                "10": node("Efficient Loader", positive="a dog", negative="ugly", empty_latent_width=640, empty_latent_height=384),
            },
            {"prompt": "a dog", "negative_prompt": "ugly", "width": 640, "height": 384},
        ),
        (
            {
                **PLAIN,
                "1": node("KSampler", **{**SAMPLER, "seed": 99, "steps": 20, "latent_image": ["2", 0]}),
                "2": node("LatentUpscale", samples=["3", 0], width=2048, height=2048),
            },
            {},
        ),
        ({**with_sampler(latent_image=["10", 0]), "10": node("VAEEncode", pixels=["11", 0])}, {"width": None, "height": None}),
    ],
)  # fmt: skip
def test_links_are_followed(graph, expected):
    wanted = {**FOUND, **expected}
    assert settings_of_graph(graph) == {name: value for name, value in wanted.items() if value is not None}


def test_a_graph_with_a_sampler_in_parts():
    graph = {
        **{name: PLAIN[name] for name in ("5", "6", "7")},
        "13": node("SamplerCustomAdvanced", noise=["25", 0], guider=["22", 0], sampler=["16", 0], sigmas=["18", 0], latent_image=["5", 0]),
        "16": node("KSamplerSelect", sampler_name="euler"),
        "17": node("BasicScheduler", scheduler="simple", steps=9, denoise=1.0, model=["12", 0]),
        "18": node("SplitSigmas", sigmas=["17", 0], step=0),
        "22": node("CFGGuider", model=["12", 0], positive=["6", 0], negative=["7", 0], cfg=1.0),
        "25": node("RandomNoise", noise_seed=42),
    }  # fmt: skip
    assert settings_of_graph(graph) == FOUND
    graph["22"] = node("BasicGuider", model=["12", 0], conditioning=["6", 0])
    assert settings_of_graph(graph) == {
        name: value for name, value in FOUND.items() if name not in ("negative_prompt", "cfg")
    }


def test_a_workflow_of_the_editor():
    workflow = {
        "nodes": [
            {"id": 3, "type": "KSampler", "widgets_values": [42, "randomize", 9, 1.0, "euler", "simple", 1],
             "inputs": [{"name": "positive", "link": 4}, {"name": "negative", "link": 6}, {"name": "latent_image", "link": 2}]},
            {"id": 5, "type": "EmptyLatentImage", "widgets_values": [512, 768, 1]},
            {"id": 6, "type": "CLIPTextEncode", "widgets_values": ["a cat"], "inputs": [{"name": "clip", "link": 3}]},
            {"id": 7, "type": "CLIPTextEncode", "widgets_values": ["blurry"], "inputs": None},
            {"id": 10, "type": "Note", "widgets_values": {"text": "hello"}}, None, 5,
        ],
        "links": [[2, 5, 0, 3, 3, "LATENT"], [4, 6, 0, 3, 1, "CONDITIONING"], [6, 7, 0, 3, 2, "CONDITIONING"], [9], None],
    }  # fmt: skip
    assert settings_of_graph(graph_of_workflow(workflow)) == FOUND


WRONG = [None, True, -1, 1.5, "", "x", [], ["3", 0], [["3"], 0], [None, None], {}, {"inputs": {}}, [1] * 5]


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_anything_may_be_anywhere_in_a_graph(wrong):
    for graph in (PLAIN, Z_IMAGE):
        for name in graph:
            settings_of_graph({**graph, name: wrong})
            settings_of_graph({**graph, name: node(wrong, **graph[name]["inputs"])})
            for key in graph[name]["inputs"]:
                settings_of_graph(
                    {**graph, name: node(graph[name]["class_type"], **{**graph[name]["inputs"], key: wrong})}
                )
    for workflow in ({"nodes": wrong}, {"nodes": [{"type": wrong, "inputs": [wrong]}, wrong], "links": [wrong]}, {}):
        assert settings_of_graph(graph_of_workflow(workflow)) == {}


def test_circles_and_crowds_come_to_an_end():
    names = [str(number) for number in range(2000)]
    texts = ("text", "t5xxl", "text_g", "prompt", "clip_l", "value", "string", "conditioning_1", "conditioning_2")
    crowd = {
        name: node("Concat", **{key: [str(number + 1), 0] for key in (*texts, "seed", "steps", "samples", "width")})
        for number, name in enumerate(names)
    }
    circle = {name: node("KSampler", **{key: [name, 0] for key in SAMPLER}) for name in names}
    for graph in (crowd, circle):
        start = {"x": node("KSampler", **{key: ["0", 0] for key in SAMPLER})}
        json.dumps(settings_of_graph({**graph, **start}))
