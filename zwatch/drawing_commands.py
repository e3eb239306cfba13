"""The commands that draw with a running service: `zwatch generate` for people, and `zwatch mcp` for their agents.

What takes long to import is imported by the command that needs it.
"""

from pathlib import Path
from typing import Any

import click

from zwatch import options, service_commands, values

_option, _switch = options.option, options.switch


@click.command("generate")
@click.argument("prompt", type=options.prompt, help="What to draw; `-` reads it from standard input.")
@_option("--output", "-o", envvar="ZWATCH_GENERATE_OUTPUT", type=options.output, metavar="FILE", show_default="its name in the history", help="Where to write it, as PNG, JPEG or WebP by its suffix; several are numbered. Or a directory, or `-` for standard output.")  # fmt: skip
@_switch("--force", envvar="ZWATCH_GENERATE_FORCE", help="Replace files that are there.")
@_option("--image", envvar="ZWATCH_GENERATE_IMAGE", type=options.picture, metavar="FILE", help="A picture to change: a file, `-` for standard input, or history:NAME for one that the service keeps.")  # fmt: skip
@_option("--mask", envvar="ZWATCH_GENERATE_MASK", type=options.picture, metavar="FILE", help="What is white in it is painted anew, the rest of the picture stays.")  # fmt: skip
@_option("--strength", envvar="ZWATCH_GENERATE_STRENGTH", type=values.number(0, 1), metavar="N", show_default="0.6", help="How much the picture is changed: 0 not at all, 1 wholly.")  # fmt: skip
@_option("--mask-blur", envvar="ZWATCH_GENERATE_MASK_BLUR", type=values.whole_number(0, 64), metavar="PIXELS", show_default="0", help="How soft the mask's edge is.")  # fmt: skip
@_option("--control", "control_image", envvar="ZWATCH_GENERATE_CONTROL", type=options.picture, metavar="FILE", help="A picture of edges, a pose, depth or the like that the new one follows; as --image. The version needs a controlnet.")  # fmt: skip
@_option("--control-scale", envvar="ZWATCH_GENERATE_CONTROL_SCALE", type=values.number(0, 2), metavar="N", show_default="0.75", help="How strongly that guides: 0 not at all.")  # fmt: skip
@_option("--lora", "loras", envvar="ZWATCH_GENERATE_LORA", type=options.ListOf(options.lora_use), multiple=True, metavar="NAME[:SCALE]", help="Draw with this LoRA, such as ink:0.8. May be repeated.")  # fmt: skip
@_option("--model", "models", envvar="ZWATCH_GENERATE_MODEL", type=options.ListOf(options.model), multiple=True, metavar="NAME", show_default="current", help="An alias, a share or a loaded version. Repeated: the same by each.")  # fmt: skip
@_option("--seed", envvar="ZWATCH_GENERATE_SEED", type=values.whole_number(0, 2**63 - 1), metavar="N", show_default="random", help="Picture i of n uses seed + i.")  # fmt: skip
@_option("--n", "-n", envvar="ZWATCH_GENERATE_N", type=values.whole_number(1, 16), metavar="N", default="1", help="How many pictures.")  # fmt: skip
@_option("--steps", envvar="ZWATCH_GENERATE_STEPS", type=values.whole_number(1, 100), metavar="N", show_default="8", help="Denoising steps.")  # fmt: skip
@_option("--width", envvar="ZWATCH_GENERATE_WIDTH", type=options.side, metavar="PIXELS", show_default="the version's, or the picture's", help="A multiple of 16.")  # fmt: skip
@_option("--height", envvar="ZWATCH_GENERATE_HEIGHT", type=options.side, metavar="PIXELS", show_default="the version's, or the picture's", help="A multiple of 16.")  # fmt: skip
@_option("--negative-prompt", envvar="ZWATCH_GENERATE_NEGATIVE_PROMPT", metavar="TEXT", type=options.prompt, help="What to avoid; it has an effect with guidance.")  # fmt: skip
@_option("--guidance-scale", envvar="ZWATCH_GENERATE_GUIDANCE_SCALE", type=values.number(0, 20), metavar="N", show_default="0", help="Guidance; a turbo model needs none.")  # fmt: skip
@_option("--format", envvar="ZWATCH_GENERATE_FORMAT", type=click.Choice(["png", "jpeg", "webp"]), show_default="by the suffix of the output, else png", help="The file's format.")  # fmt: skip
@_switch("--show/--no-show", "is_shown", envvar="ZWATCH_GENERATE_SHOW", default=True, help="Show pictures in a terminal that can (kitty's graphics, iTerm2's images, sixels).")  # fmt: skip
@service_commands.calls_service
def _generate(output: str | None, image: str | Path | None, mask: str | Path | None, control_image: str | Path | None, loras: tuple[dict[str, Any], ...], models: tuple[str, ...], *, force: bool, is_shown: bool, as_json: bool, url: str, token: str | None, **fields: Any) -> int:  # fmt: skip
    """Draw, or change a picture, with the service, and write what it made.

    Files are never replaced without --force. Ctrl-C cancels the request.
    """
    from zwatch.generating.command import Asked, generate

    model = list(models) if len(models) > 1 else next(iter(models), None)
    asked = Asked(
        fields={**fields, "model": model, "loras": list(loras) or None},
        pictures={name: given for name, given in (("image", image), ("mask", mask), ("control_image", control_image)) if given is not None},
        output=output, replaces=force, as_json=as_json, is_shown=is_shown,
    )  # fmt: skip
    return generate(asked, url=url, token=token)


@click.command("mcp")
@_switch("--allow-deploy", "allows_deploy", envvar="ZWATCH_MCP_ALLOW_DEPLOY", help="Also offer tools that deploy a version and roll back.")  # fmt: skip
@_option("--files", "directory", envvar="ZWATCH_MCP_FILES", type=options.directory, metavar="DIR", show_default="none", help="Let the tools read pictures in this directory, and write new ones there.")  # fmt: skip
@service_commands.reaches_service
def _mcp(*, allows_deploy: bool, directory: Path | None, url: str, token: str | None) -> int:
    """Offer agents tools that draw with the service: an MCP server over standard input and output."""
    from zwatch.client import Service
    from zwatch.mcp.command import serve

    return serve(Service(url, token), allows_deploy=allows_deploy, directory=directory)


COMMANDS = (_generate, _mcp)
"""In the order in which `--help` shows them."""
