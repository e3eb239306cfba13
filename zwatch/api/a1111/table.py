"""AUTOMATIC1111's part of the table of calls."""

from zwatch.api.a1111 import calls, lists, loras
from zwatch.api.a1111.checkpoints import Checkpoint
from zwatch.api.a1111.img2img import Img2ImgAnswer, Img2ImgRequest
from zwatch.api.a1111.pnginfo import PngInfo, PngInfoRequest
from zwatch.api.a1111.txt2img import SdOptionsRequest, Txt2ImgAnswer, Txt2ImgRequest
from zwatch.api.bodies import IMAGE_TOO_LONG
from zwatch.api.schema import IMAGE_HEADERS, Answer, Call, Null, Parameter

CALLS: tuple[Call, ...] = (
    Call(
        "POST", "/sdapi/v1/txt2img", calls.txt2img, "automatic1111", "sd_txt2img", "Generate images",
        {200: Answer("The images.", Txt2ImgAnswer, headers=IMAGE_HEADERS)}, errors=(404, 429, 503, 504), body=Txt2ImgRequest,
    ),
    Call(
        "POST", "/sdapi/v1/img2img", calls.img2img, "automatic1111", "sd_img2img", "Change a picture, or a part of it",
        {200: Answer("The images.", Img2ImgAnswer, headers=IMAGE_HEADERS)}, errors=(404, 429, 503, 504), body=Img2ImgRequest,
        error_texts=IMAGE_TOO_LONG,
    ),
    Call(
        "GET", "/sdapi/v1/progress", calls.progress, "automatic1111", "sd_progress",
        "Get the progress of the client's own requests",
        {200: Answer("The progress.", calls.SdProgress)},
        parameters=(
            Parameter("skip_current_image", "Whether to omit the image: `true`, `1`, `yes`…", default="false"),
        ),
    ),
    Call(
        "POST", "/sdapi/v1/interrupt", calls.interrupt, "automatic1111", "sd_interrupt",
        "Interrupt the running request, if it is the client's own",
        {200: Answer("It is interrupted, or there is nothing to interrupt.", lists.EmptyObject)},
    ),
    Call(
        "GET", "/sdapi/v1/options", calls.options, "automatic1111", "sd_options", "Get the client's own options",
        {200: Answer("The options.", calls.SdOptions)},
    ),
    Call(
        "POST", "/sdapi/v1/options", calls.set_options, "automatic1111", "sd_set_options",
        "Choose a checkpoint for the client's own later requests", {200: Answer("It is chosen.", Null)},
        errors=(404,), body=SdOptionsRequest,
    ),
    Call(
        "GET", "/sdapi/v1/sd-models", calls.checkpoints, "automatic1111", "sd_models",
        "List `current` and the other aliases, then the loaded versions", {200: Answer("The list.", list[Checkpoint])},
    ),
    Call(
        "POST", "/sdapi/v1/png-info", calls.info, "automatic1111", "sd_png_info", "Get the parameters of an image",
        {200: Answer("The image's metadata.", PngInfo)}, body=PngInfoRequest,
        error_texts=IMAGE_TOO_LONG,
    ),
    Call(
        "GET", "/sdapi/v1/memory", calls.memory, "automatic1111", "sd_memory", "Get the amounts of memory",
        {200: Answer("The host's and the GPU's memory.", calls.SdMemory)},
    ),
    Call(
        "GET", "/sdapi/v1/samplers", lists.SAMPLERS, "automatic1111", "sd_samplers", "List the only sampler",
        {200: Answer("The list.", list[lists.Sampler])},
    ),
    Call(
        "GET", "/sdapi/v1/schedulers", lists.SCHEDULERS, "automatic1111", "sd_schedulers", "List the only scheduler",
        {200: Answer("The list.", list[lists.Scheduler])},
    ),
    Call(
        "GET", "/sdapi/v1/upscalers", lists.UPSCALERS, "automatic1111", "sd_upscalers", "List the only upscaler, `None`",
        {200: Answer("The list.", list[lists.Upscaler])},
    ),
    Call(
        "POST", "/sdapi/v1/skip", calls.skip, "automatic1111", "sd_skip",
        "Interrupt the running request, if it is the client's own and of one image",
        {200: Answer("It is interrupted, or there is nothing to skip.", Null)},
    ),
    Call(
        "GET", "/sdapi/v1/loras", loras.list_loras, "automatic1111", "sd_loras", "List the LoRAs that prompts can name",
        {200: Answer("The list.", list[loras.SdLora])},
    ),
    Call(
        "POST", "/sdapi/v1/refresh-loras", loras.refresh, "automatic1111", "sd_refresh_loras", "Look for LoRAs now",
        {200: Answer("They are looked for.", Null)},
    ),
    Call(
        "GET", "/sdapi/v1/scripts", lists.SCRIPTS, "automatic1111", "sd_scripts", "List the scripts: there are none",
        {200: Answer("Empty lists.", lists.Scripts)},
    ),
    Call(
        "GET", "/sdapi/v1/embeddings", lists.EMBEDDINGS, "automatic1111", "sd_embeddings", "List the embeddings: there are none",
        {200: Answer("Empty objects.", lists.Embeddings)},
    ),
    Call(
        "GET", "/sdapi/v1/cmd-flags", lists.CMD_FLAGS, "automatic1111", "sd_cmd_flags", "Get the command line flags",
        {200: Answer("The flags that have a meaning here.", lists.CmdFlags)},
    ),
    Call(
        "GET", "/internal/ping", lists.EMPTY, "automatic1111", "sd_ping", "Check that the service answers",
        {200: Answer("It answers.", lists.EmptyObject)},
    ),
    *(
        Call(
            "GET", f"/sdapi/v1/{path}", lists.EMPTY_LIST, "automatic1111", f"sd_{path.replace('-', '_')}",
            f"List the {kind}: there are none", {200: Answer("An empty list.", list[lists.EmptyObject])},
        )
        for path, kind in lists.NONE
    ),
    *(
        Call(
            "POST", f"/sdapi/v1/refresh-{name}", lists.NOTHING, "automatic1111", f"sd_refresh_{name}",
            f"Do nothing: the list of {name} is never old", {200: Answer("Nothing is done.", Null)},
        )
        for name in lists.REFRESHED
    ),
)  # fmt: skip
