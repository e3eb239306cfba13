"""Proving a tokenizer: its files have to be read, and its chat template rendered, in bounded time and memory.

A chat template is a program, and `tokenizer.json` describes one. What never ends would take the interpreter's lock from
requests for as long as it runs, and what is built could use up the host's memory, which ends the process. So a new tokenizer
is tried in a process of its own, which can be stopped whatever it does. A template may still loop for one prompt alone:
`bounded` ends that in the service itself.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from blake3 import blake3

from zwatch.errors import Rejection

CPU_SECONDS = 3
"""Seconds of processor time to render a template, which takes milliseconds."""
FILE_SECONDS = 5
"""The same to read a file, and to encode the prompts: Qwen3's 151,643 tokens take one."""
MAX_FILE = 32 * 2**20
"""Largest accepted file of a tokenizer, bytes: while the library reads it in the service, no other thread runs. Qwen3's has
11 MB."""
WALL_SECONDS = 60.0
"""Seconds until the process is given up, on a machine that is busy."""
MEMORY = 2**30
"""Bytes of address space; the interpreter itself takes a tenth, Qwen3's tokenizer a third."""
MOST_CHARACTERS = 2**20
"""Longest accepted result for the longest prompt."""
MOST_STEPS = 500_000
"""Most steps of a template in the service: lines that it executes and functions that it calls. One that looks at each
character of the longest prompt takes a tenth of that."""
PROMPTS = ("a cat wearing sunglasses", "ab \n" * 2500)
"""What is rendered and encoded: the warm-up's prompt, and one as long as a request's may be."""
_PACKAGE_ROOT = str(Path(__file__).parents[2])
_TOO_LONG, _TOO_LARGE = 3, 4
_TEMPLATE_FILE = "<template>"
"""What jinja calls the file of a template's code."""
_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP}
_proved: set[str] = set()


class TemplateTooLong(ValueError):
    """A chat template was given up: it took too many steps."""

    def __init__(self) -> None:
        super().__init__(
            f"rendering its chat template was given up after {MOST_STEPS} steps, expected a few hundred; look for loops in it"
        )


def _digest(folder: str) -> str:
    """Return what a folder's content is recognized by.

    Raises:
        Rejection: `config_invalid`, a file is too large.
    """
    hasher = blake3()
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        name, size = path.relative_to(folder), path.stat().st_size
        if size > MAX_FILE:
            raise Rejection("config_invalid", f"tokenizer/{name}: found {size} bytes, expected at most {MAX_FILE}")
        hasher.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
        hasher.update(path.read_bytes())
    return hasher.hexdigest()


def prove(folder: str) -> None:
    """Check that the tokenizer in a folder can be read, and its chat template rendered, in bounded time and memory.
    Whether it is right shows when it is built and at the warm-up.

    Raises:
        Rejection: `config_invalid`.
    """
    if (digest := _digest(folder)) in _proved:
        return
    # An editable install is found by an import hook of this process, not on its path.
    sent = json.dumps({"path": [*sys.path, _PACKAGE_ROOT], "folder": folder})
    program = f"import json, sys; given = json.load(sys.stdin); sys.path[:] = given['path']; from {__name__} import try_out; try_out(given['folder'])"
    try:
        ended = subprocess.run(
            [sys.executable, "-S", "-E", "-c", program], input=sent, timeout=WALL_SECONDS, capture_output=True, text=True,
            check=False, errors="replace",
            # No threads: each would take some of the address space.
            env={**os.environ, "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "1"},
        )  # fmt: skip
        status, begun = ended.returncode, ended.stdout.split("\n")
    except subprocess.TimeoutExpired:
        raise Rejection(
            "stalled", f"tokenizer: trying it out took more than {WALL_SECONDS:g} s, expected one; the machine is busy"
        ) from None
    activity = begun[-2] if len(begun) > 1 else "trying it out"  # what follows the last line end is empty
    if (what := _what_is_wrong(status)) is not None:
        raise Rejection(
            "config_invalid",
            f"tokenizer: {activity} was given up: {what}, expected milliseconds and a few megabytes; look for loops and "
            "repetitions in it",
        )
    if status == -signal.SIGKILL:  # by the kernel: our limits end it by other signals
        raise Rejection("out_of_memory", f"tokenizer: {activity} was ended by SIGKILL; the host has too little memory")
    if status != 0:
        last = (ended.stderr.strip().splitlines() or [f"status {status}"])[-1]
        raise Rejection("io_error", f"tokenizer: {activity} failed: {last[:300]}")
    _proved.add(digest)


def _what_is_wrong(status: int) -> str | None:
    """Return what the end of the process says of the tokenizer; None if it says nothing."""
    if status == -signal.SIGXCPU:
        return "it does not end within its processor time"
    if status == _TOO_LONG:
        return f"it makes more than {MOST_CHARACTERS} characters of at most {len(PROMPTS[1])}"
    # The tokenizers library ends the process where it gets no memory.
    if status in (_TOO_LARGE, -signal.SIGABRT):
        return f"it needs more than {MEMORY} bytes of memory"
    return f"it ended the process by signal {-status}" if -status in _CRASHES else None


def try_out(folder: str) -> None:
    """Read a tokenizer's files, render its templates and encode prompts; end the process with a status that says what went
    wrong. What is about to be done is printed first."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        config = _read_files(Path(folder))
        for name, template in _templates(Path(folder), config):
            _begin(f"rendering its chat template in {name}", CPU_SECONDS)
            _quietly(lambda template=template: _render(template, config))  # type: ignore[misc]
        if (file := Path(folder, "tokenizer.json")).exists():
            _begin("encoding a prompt with tokenizer.json", FILE_SECONDS)
            _quietly(lambda: _encode(file))
    except MemoryError:
        sys.exit(_TOO_LARGE)


def _begin(activity: str, seconds: int) -> None:
    print(activity, flush=True)
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _quietly(call: Callable[[], object]) -> None:
    """Call what may fail: how it fails shows when the tokenizer is built."""
    try:
        call()
    except (MemoryError, SystemExit):
        raise
    except BaseException:  # noqa: S110 (a panic of the tokenizers library is no Exception)
        pass


def _read_files(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.json")):
        _begin(f"reading {path.relative_to(folder)}", FILE_SECONDS)

        def read(path: Path = path) -> None:
            found = json.loads(path.read_bytes())
            if path.name == "tokenizer_config.json" and isinstance(found, dict):
                config.update(found)

        _quietly(read)
    return config


def _templates(folder: Path, config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each chat template that the folder has, with the name of its file."""
    for path in sorted([*folder.glob("*.jinja"), *folder.glob("*/*.jinja")]):
        yield str(path.relative_to(folder)), path.read_text(errors="surrogateescape")
    found = config.get("chat_template")
    for one in found if isinstance(found, list) else [{"template": found}]:
        if isinstance(one, dict) and isinstance(one.get("template"), str):
            yield "tokenizer_config.json", one["template"]


def _encode(file: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(file.read_text())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for prompt in PROMPTS:
        tokenizer.encode(prompt)


def _render(source: str, config: dict[str, Any]) -> None:
    """Render a template as transformers does."""
    from datetime import datetime

    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Scope
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 (as jinja declares it)

        def parse(self, parser: Parser) -> Scope:
            line = next(parser.stream).lineno
            return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value)
    environment.globals |= {
        "raise_exception": _fail,
        "strftime_now": lambda style: datetime.now().strftime(style),  # noqa: DTZ005 (as transformers does)
    }
    template = environment.from_string(source)
    tokens = {name: value.get("content") if isinstance(value, dict) else value for name, value in config.items()}
    tokens = {name: value for name, value in tokens.items() if name.endswith("_token") and isinstance(value, str)}
    for prompt in PROMPTS:
        length = 0
        for piece in template.generate(
            messages=[{"role": "user", "content": prompt}], add_generation_prompt=True, enable_thinking=True, tools=None,
            documents=None, **tokens,
        ):  # fmt: skip
            length += len(piece)
            if length > MOST_CHARACTERS:
                sys.exit(_TOO_LONG)


def _fail(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


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
        is_template = frame.f_code.co_filename == _TEMPLATE_FILE
        self._runs = self._runs or is_template  # before it, jinja compiles the template, once
        self._steps += self._runs
        if self._steps > MOST_STEPS:
            raise TemplateTooLong
        # The lines of other code are not counted, so that this costs next to nothing.
        return self._trace if is_template else None
