"""The rule that says which files of a directory a pipeline needs, as tables."""

import json

import pytest

from tests.deploy import goldens
from tests.deploy.factory import SMALL, TEXT_ENCODER, VAE, WEIGHTS
from zwatch.deploy.pipeline_files import PIPELINE, select
from zwatch.errors import Rejection

COMPLETE = sorted([*SMALL, TEXT_ENCODER, VAE, WEIGHTS])
STEM = "transformer/diffusion_pytorch_model"
SHARDS = [f"{STEM}-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
INDEX = f"{WEIGHTS}.index.json"


def reader(**contents):
    """Return what reads a pipeline's index, and these contents by path."""
    texts = {"model_index.json": {"_class_name": PIPELINE}, INDEX: names(*SHARDS)} | contents
    return lambda path: json.dumps(texts[path]).encode()


def names(*paths):
    return {"weight_map": {str(number): path.rpartition("/")[2] for number, path in enumerate(paths)}}


def without(*paths, also=()):
    return [path for path in [*COMPLETE, *also] if path not in paths]


def refusal(paths, read=None):
    with pytest.raises(Rejection) as caught:
        select(paths, read or reader())
    return caught.value.reason


def test_a_complete_pipeline_needs_all_of_its_files():
    found = select(reversed(COMPLETE), reader())
    assert found.needed == tuple(COMPLETE)
    assert (dict(found.left_out), found.summary) == ({}, "")


NEEDED = [
    "zwatch.json", "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/added_tokens.json",
    "tokenizer/special_tokens_map.json", "tokenizer/chat_template.jinja", "tokenizer/additional_chat_templates/tool.jinja",
    "text_encoder/generation_config.json",
]  # fmt: skip
LEFT_OUT = {
    ".git/HEAD": "a hidden file", ".git/objects/3f/a1": "a hidden file", ".gitattributes": "a hidden file",
    ".cache/huggingface/download/x.metadata": "a hidden file", ".DS_Store": "a hidden file", "vae/.ipynb_checkpoints/c.json":
    "a hidden file", "tokenizer/additional_chat_templates/.x": "a hidden file", "README.md": "a text for people",
    "LICENSE": "a text for people", "LICENCE.txt": "a text for people", "NOTICE": "a text for people", "transformer/README.md":
    "a text for people", "assets/showcase.jpg": "a picture", "teaser.PNG": "a picture", "golden/1.png": "a picture",
    "vae/diffusion_pytorch_model.bin": "a pickle, which is never read", "optimizer.pt": "a pickle, which is never read",
    "vae/diffusion_pytorch_model.fp16.safetensors": "weights that no component names",
    "transformer/old.safetensors": "weights that no component names", "z_image_turbo_bf16.safetensors":
    "weights that no component names", "training_args.json": "nothing reads it", "tokenizer/tokenizer.model":
    "nothing reads it", "safety_checker/config.json": "nothing reads it", "golden.txt": "nothing reads it",
}  # fmt: skip


@pytest.mark.parametrize("path", NEEDED)
def test_what_a_pipeline_may_have_is_needed_where_it_is(path):
    assert path in select([*COMPLETE, path], reader()).needed


@pytest.mark.parametrize("path", LEFT_OUT)
def test_what_nothing_reads_is_left_out_with_the_reason(path):
    assert dict(select([*COMPLETE, path], reader()).left_out) == {path: LEFT_OUT[path]}


GOLDEN = json.loads(goldens.text({}, {"image": "other/2.png"}))


def test_the_images_that_golden_json_names_are_needed_with_it_and_others_are_not():
    also = ("golden.json", "golden/1.png", "other/2.png", "golden/3.png", "golden/.x")
    found = select([*COMPLETE, *also], reader(**{"golden.json": GOLDEN}))
    assert set(found.needed) - set(COMPLETE) == set(also[:3])
    assert list(found.left_out) == ["golden/.x", "golden/3.png"]


def test_a_golden_image_that_is_not_there_is_refused():
    reason = refusal([*COMPLETE, "golden.json", "golden/1.png"], reader(**{"golden.json": GOLDEN}))
    assert reason.startswith("other/2.png: golden.json names it, it is not there")


def test_a_golden_json_that_is_wrong_is_refused():
    assert refusal([*COMPLETE, "golden.json"], reader(**{"golden.json": {"images": []}})).startswith(
        "golden.json: images: "
    )


def test_the_index_says_which_shards_are_needed_and_the_others_are_left_out():
    paths = without(also=[INDEX, *SHARDS, f"{STEM}-00001-of-00002.safetensors"])
    found = select(paths, reader())
    assert [path for path in found.needed if path.startswith(STEM)] == [*SHARDS, INDEX]
    assert list(found.left_out) == [f"{STEM}-00001-of-00002.safetensors", WEIGHTS]  # in the order of their names


def test_the_summary_counts_the_files_of_folders_that_are_left_out_whole():
    found = select(
        [*COMPLETE, ".git/HEAD", ".git/a/b", "README.md", "assets/a.png", "vae/.x/y/z", "vae/note\n"], reader()
    )
    assert found.summary == ".git (2 files), README.md, assets (1 file), vae/.x (1 file), vae/note\\n"


def test_the_summary_of_very_many_files_is_short():
    found = select([*COMPLETE, *(f"notes-{number}.txt" for number in range(1000))], reader())
    assert len(found.summary) < 1000
    assert "and 9" in found.summary


REFUSED = {
    "nothing": ([], "the directory is empty; make a version with `zwatch import SOURCE NAME`"),
    "no index": (without("model_index.json"), "model_index.json: it is not there, so this is no diffusers pipeline"),
    "one file of another layout": (["z_image_turbo_bf16.safetensors"], "`zwatch import SOURCE NAME`"),
    "no transformer config": (without("transformer/config.json"), "transformer/config.json: it is not there, every pipeline"),
    "no scheduler": (without("scheduler/scheduler_config.json"), "`zwatch import DIR NAME --base VERSION`"),
    "no weights": (without(VAE), f"{VAE}: it is not there, and neither is {VAE}.index.json"),
    "no vocabulary": (without("tokenizer/tokenizer.json"), "tokenizer/tokenizer.json: it is not there, and neither are"),
    "half a vocabulary": (without("tokenizer/tokenizer.json", also=["tokenizer/vocab.json"]), "tokenizer/tokenizer.json"),
    "a variant": (
        without(WEIGHTS, also=[f"{STEM}.bf16.safetensors"]), f"{STEM}.bf16.safetensors: this is the name of a variant, expected {WEIGHTS}",
    ),
    "a variant in shards": (
        without(WEIGHTS, also=[f"{STEM}.fp16-00001-of-00002.safetensors", f"{STEM}.fp16-00002-of-00002.safetensors",
                               f"{STEM}.safetensors.index.fp16.json"]),
        f"{STEM}.fp16-00001-of-00002.safetensors (and 2 more): this is the name of a variant",
    ),
    "shards without their index": (without(WEIGHTS, also=SHARDS), f"{SHARDS[0]} (and 2 more): this is a shard, but {INDEX}"),
    "a shard missing": (without(WEIGHTS, also=[INDEX, *SHARDS[:2]]), f"{SHARDS[2]}: {INDEX} names it, it is not there"),
    "a pickle": (without(WEIGHTS, also=[f"{STEM}.bin"]), f"{STEM}.bin: this is a pickle, which can run code and is never read"),
    "another name": (without(WEIGHTS, also=["transformer/model.safetensors"]), "transformer/model.safetensors: this is not a name"),
    "gguf": (without(WEIGHTS, also=["transformer/z-image-Q8_0.gguf"]), "transformer/z-image-Q8_0.gguf: this is not a name"),
    "a LoRA beside the transformer": (
        without(also=["transformer/pytorch_lora_weights.safetensors"]),
        "transformer/pytorch_lora_weights.safetensors: this is a LoRA, and nothing in a version applies it; merge it into a version",
    ),
    "a LoRA of peft": (without(also=["transformer/adapter_model.safetensors"]), "adapter_model.safetensors: this is a LoRA"),
    "a LoRA above the transformer": (without(also=["ink_LoRA.safetensors"]), "ink_LoRA.safetensors: this is a LoRA"),
    "a LoRA alone": (["adapter_config.json", "adapter_model.safetensors"], "adapter_model.safetensors: this is a LoRA"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_serve_is_refused_with_what_to_do(case):
    paths, reason = REFUSED[case]
    assert reason in refusal(paths)


def test_another_pipeline_is_refused():
    reason = refusal(COMPLETE, reader(**{"model_index.json": {"_class_name": "FluxPipeline"}}))
    assert (
        reason
        == "model_index.json: _class_name is 'FluxPipeline', expected 'ZImagePipeline': only Z-Image can be served"
    )


BAD_INDEXES = {
    "no map": ({}, "its weight_map must be an object that names files"),
    "an empty map": ({"weight_map": {}}, "its weight_map must be an object that names files"),
    "numbers": ({"weight_map": {"a": 1}}, "its weight_map must be an object that names files"),
    "a list": ([], "expected a JSON object, found list"),
    "a path upwards": ({"weight_map": {"a": "../vae/x.safetensors"}}, "it is not there"),
    "a pickle": ({"weight_map": {"a": "config.json"}}, "names transformer/config.json, expected files that end in"),
}


@pytest.mark.parametrize("case", BAD_INDEXES)
def test_an_index_that_names_no_shards_is_refused(case):
    index, reason = BAD_INDEXES[case]
    found = refusal([*COMPLETE, INDEX], reader(**{INDEX: index}))
    assert INDEX in found
    assert reason in found


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000])
def test_an_index_that_is_not_json_is_refused(data):
    assert refusal(COMPLETE, lambda path: data).startswith("model_index.json: not JSON")


@pytest.mark.parametrize(
    "path", ["transformer/colour.safetensors", "explorations.safetensors", "vae/flora.json", "assets/lora.png"]
)
def test_a_word_that_only_contains_lora_is_no_lora(path):
    assert select([*COMPLETE, path], reader()).needed == tuple(COMPLETE)
