"""The page about agents shows commands and configurations that work."""

import json
import re
import shlex
from pathlib import Path

import pytest

from zwatch.cli import commands
from zwatch.client import Service
from zwatch.mcp import server

PAGE = (Path(__file__).parent.parent.parent / "docs" / "agents.md").read_text()
LINES = re.findall(r"^    (zwatch generate .+?)(?: < .+)?$", PAGE, re.MULTILINE)
CONFIGURATIONS = [json.loads(text) for text in re.findall(r"```json\n(.+?)```", PAGE, re.DOTALL)]


def parsed(command, arguments):
    with commands.commands[command].make_context(command, list(arguments)) as context:
        return context.params


@pytest.mark.parametrize("line", LINES)
def test_each_line_is_understood(tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    for name in ("cat.png", "head.png"):
        (tmp_path / name).touch()
    assert parsed("generate", shlex.split(line)[2:])["prompt"]


def test_each_configuration_starts_this_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    servers = [one.get("mcpServers", one.get("servers"))["zwatch"] for one in CONFIGURATIONS]
    assert len(servers) == 2
    for found in servers:
        command, *arguments = found["args"]
        assert (command, Path(found["command"]).name) == ("mcp", "zwatch")
        assert parsed("mcp", [text if not text.startswith("/home") else str(tmp_path) for text in arguments])[
            "directory"
        ]


def test_the_table_has_every_tool():
    rows = re.findall(r"^\| (`.+?) \|", PAGE.partition("| tool |")[2].partition("\n\n")[0], re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    tools = server.tools(Service("http://127.0.0.1:9", None), allows_deploy=True, directory=None)
    assert named == [tool.name for tool in tools]
