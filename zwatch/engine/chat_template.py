"""Chat templates: the programs that turn a prompt into the text that is encoded, as transformers renders them.

A template may loop: `bounded` ends that.
"""

import json
import sys
from collections.abc import Mapping
from datetime import datetime
from types import FrameType, TracebackType
from typing import Any

MOST_STEPS = 500_000
"""Most steps of a template in the service: lines that it executes and functions that it calls. One that looks at each
character of the longest prompt takes a tenth of that."""
_FILE = "<template>"
"""What jinja calls the file of a template's code."""


class TemplateTooLong(ValueError):
    """A chat template was given up: it took too many steps."""

    def __init__(self) -> None:
        super().__init__(
            f"rendering its chat template was given up after {MOST_STEPS} steps, expected a few hundred; look for loops in it"
        )


def variables(prompt: str, tokens: Mapping[str, str]) -> dict[str, Any]:
    """Return what a chat template is rendered with."""
    return {
        **tokens, "messages": [{"role": "user", "content": prompt}], "tools": None, "documents": None,
        "add_generation_prompt": True, "enable_thinking": True,
    }  # fmt: skip


def compiled(source: str) -> Any:
    """Compile a chat template as transformers does.

    Raises:
        jinja2.TemplateError: it is none.
    """
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Scope
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 (as jinja declares it)

        def parse(self, parser: Parser) -> Scope:
            line = next(parser.stream).lineno
            return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    def fail(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {
        "raise_exception": fail,
        "strftime_now": lambda style: datetime.now().strftime(style),  # noqa: DTZ005 (as transformers does)
    }
    return environment.from_string(source)


class bounded:  # noqa: N801 (used like a function)
    """A context manager in which a chat template may take `MOST_STEPS` steps, counted by tracing this thread's Python code.

    Raises:
        TemplateTooLong: it took more.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._runs = False
        self._before: Any = None

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        sys.settrace(self._trace)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        is_template = frame.f_code.co_filename == _FILE
        self._runs = self._runs or is_template  # before it, jinja compiles the template, once
        self._steps += self._runs
        if self._steps > MOST_STEPS:
            raise TemplateTooLong
        # The lines of other code are not counted, so that this costs next to nothing.
        return self._trace if is_template else None
