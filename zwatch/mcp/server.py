"""The server: one table of tools, and what becomes of their errors."""

import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcp.server import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ImageContent,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from zwatch import __version__
from zwatch.client import Service
from zwatch.errors import UsageError, ZwatchError
from zwatch.mcp import operating
from zwatch.mcp import schemas as kinds
from zwatch.mcp.drawing import Painter
from zwatch.mcp.places import Places
from zwatch.mcp.progress import Meter

_log = logging.getLogger(__name__)

_INSTRUCTIONS = """\
zwatch draws pictures with an image model (Z-Image). Describe the whole picture in a prompt: subject, surroundings, light, style.
Each result has small copies to look at, and for each picture its seed, its URL in full size, and what edit_image takes as `image`.
To vary a picture a little, call edit_image with a low strength; to draw it again, repeat prompt, seed and size."""

Outcome = tuple[kinds.Answer, list[ImageContent]]
Call = Callable[[Any, Meter], Awaitable[Outcome]]


@dataclass(frozen=True)
class _Tool:
    """A tool: what a client sees of it, and what it does."""

    name: str
    title: str
    description: str
    arguments: type[kinds.Arguments]
    answer: type[kinds.Answer]
    annotations: ToolAnnotations
    call: Call

    @property
    def listed(self) -> Tool:
        """What `tools/list` answers of it."""
        return Tool(
            name=self.name,
            title=self.title,
            description=self.description,
            input_schema=kinds.schema(self.arguments),
            output_schema=kinds.schema(self.answer),
            annotations=self.annotations,
        )


def _hints(*, reads: bool = False, destroys: bool = False, repeats: bool = False) -> ToolAnnotations:
    return ToolAnnotations(
        read_only_hint=reads, destructive_hint=destroys, idempotent_hint=repeats, open_world_hint=False
    )


def tools(service: Service, *, allows_deploy: bool, directory: Path | None) -> list[_Tool]:
    """Return the tools. Without `allows_deploy` none of them changes what serves. `directory` is where pictures may be read and
    written, None: nowhere."""
    painter = Painter(service, Places(directory))

    async def draw(asked: kinds.DrawArguments, meter: Meter) -> Outcome:
        return await painter.draw(asked, meter)

    def reading(path: str, model: type[kinds.Answer]) -> Call:
        async def call(asked: kinds.NoArguments, meter: Meter) -> Outcome:
            return await operating.read(service, path, model), []

        return call

    async def change(asked: kinds.DeployArguments | kinds.RollbackArguments, meter: Meter) -> Outcome:
        return await operating.change(service, asked, meter), []

    looking, changing = _hints(reads=True, repeats=True), _hints(destroys=True)
    found = [
        _Tool("generate_image", "Draw pictures", "Draw one to four pictures from a prompt.", kinds.GuidedArguments, kinds.Drawn, _hints(), draw),
        _Tool("edit_image", "Change a picture", "Draw a picture anew from another one: all of it, or what a mask has white. Use it to vary, restyle or "
              "repair a picture.", kinds.EditArguments, kinds.Drawn, _hints(), draw),
        _Tool("list_versions", "List versions", "List the versions of the model: which serves, and which can be named as model.", kinds.NoArguments,
              kinds.Versions, looking, reading("/versions", kinds.Versions)),
        _Tool("list_loras", "List LoRAs", "List the LoRAs (styles) that a picture can be drawn with.", kinds.NoArguments, kinds.Loras, looking,
              reading("/loras", kinds.Loras)),
        _Tool("get_status", "Show the status", "Show what serves, its sizes, the queue, and what is wrong.", kinds.NoArguments, kinds.Status, looking,
              reading("/status", kinds.Status)),
    ]  # fmt: skip
    if allows_deploy:
        found += [
            _Tool("deploy_version", "Deploy a version", "Let another version serve everybody, and wait until it does. What is wrong with it is the error; "
                  "then the old one serves on.", kinds.DeployArguments, kinds.Deployed, changing, change),
            _Tool("rollback", "Roll back", "Let the version serve everybody that served before.", kinds.RollbackArguments, kinds.Deployed, changing, change),
        ]  # fmt: skip
    return found


def server(found: list[_Tool]) -> Server[Any]:
    """Return the server of these tools."""
    named = {tool.name: tool for tool in found}

    async def list_tools(context: ServerRequestContext[Any], params: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=[tool.listed for tool in found])

    async def call_tool(context: ServerRequestContext[Any], params: CallToolRequestParams) -> CallToolResult:
        if (tool := named.get(params.name)) is None:
            raise MCPError(INVALID_PARAMS, f"there is no tool {params.name[:100]!r}; there are {', '.join(named)}")
        return await _result(tool, params.arguments or {}, Meter(context))

    return Server(
        "zwatch",
        version=__version__,
        title="zwatch",
        instructions=_INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


async def _result(tool: _Tool, arguments: dict[str, Any], meter: Meter) -> CallToolResult:
    """Return the result of a call. What goes wrong is a result too, with the sentence that says it: an agent reads it and can
    do better."""
    try:
        asked = tool.arguments.model_validate(arguments)
    except ValidationError as error:
        return _failed("; ".join(_sentence(one, tool.arguments) for one in error.errors()))
    try:
        answer, images = await tool.call(asked, meter)
    except (ZwatchError, OSError) as error:
        return _failed(str(error))
    except (ValidationError, KeyError, TypeError, ValueError) as error:
        _log.exception("the answer to %s is not understood", tool.name)
        return _failed(
            str(UsageError(f"the service's answer is not zwatch's, or another version's ({type(error).__name__})"))
        )
    found = answer.model_dump(mode="json")
    text = TextContent(type="text", text=json.dumps(found, ensure_ascii=False))
    return CallToolResult(content=[text, *images], structured_content=found)


def _sentence(found: ErrorDetails, arguments: type[kinds.Arguments]) -> str:
    """Return what is wrong with an argument."""
    name = ".".join(str(part) for part in found["loc"])
    if found["type"] == "extra_forbidden" and len(found["loc"]) == 1:
        return f"there is no argument {name[:100]!r}; there are {', '.join(arguments.model_fields) or 'none'}"
    if found["type"] == "missing":
        return f"{name} is missing"
    return f"{name}: {found['msg'][:1].lower()}{found['msg'][1:]}, got {found['input']!r:.100}"


def _failed(sentence: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=sentence)], is_error=True)


async def run(service: Service, *, allows_deploy: bool, directory: Path | None) -> None:
    """Serve one client over standard input and output, until it closes them."""
    found = server(tools(service, allows_deploy=allows_deploy, directory=directory))
    async with stdio_server() as (reading, writing):
        await found.run(reading, writing, found.create_initialization_options())
