"""Proving a chat template: it has to render in bounded time and memory, in a process of its own.

A template is a program. One that never ends would take the interpreter's lock from requests for as long as it runs, and
what it builds could use up the host's memory. A process can be stopped whatever it does.
"""

import json
import resource
import subprocess
import sys

from blake3 import blake3

from zwatch.errors import Rejection

CPU_SECONDS = 3
"""Seconds of processor time; a template takes milliseconds."""
WALL_SECONDS = 60.0
"""Seconds until the process is given up, on a machine that is busy."""
MEMORY = 2**30
"""Bytes of address space; the interpreter itself takes a tenth."""
MOST_CHARACTERS = 2**20
"""Longest accepted result for the longest prompt."""
PROMPTS = ("a cat wearing sunglasses", "ab \n" * 2500)
"""What is rendered: the warm-up's prompt, and one as long as a request's may be."""
_TOO_LONG, _TOO_LARGE = 3, 4
_proved: set[str] = set()


def prove(template: str, tokens: dict[str, str]) -> None:
    """Check that a chat template renders prompts in bounded time and memory; `tokens` are the special tokens by name.
    Whether it renders them rightly, or at all, shows at the warm-up.

    Raises:
        Rejection: `config_invalid`.
    """
    digest = blake3(template.encode(errors="surrogatepass")).hexdigest()
    if digest in _proved:
        return
    sent = json.dumps({"path": sys.path, "template": template, "tokens": tokens})
    program = f"import json, sys; given = json.load(sys.stdin); sys.path[:] = given['path']; from {__name__} import render; render(given)"
    try:
        ended = subprocess.run(
            [sys.executable, "-S", "-E", "-c", program], input=sent, timeout=WALL_SECONDS, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        status = ended.returncode
    except subprocess.TimeoutExpired:
        status = -1
    what = {
        _TOO_LONG: f"it makes more than {MOST_CHARACTERS} characters",
        _TOO_LARGE: f"it needs more than {MEMORY} bytes of memory",
    }.get(status, f"it does not end within {CPU_SECONDS} s" if status < 0 else None)
    if what is not None:
        raise Rejection(
            "config_invalid",
            f"tokenizer: rendering its chat template was given up: {what} for a prompt of at most {len(PROMPTS[1])} "
            "characters, expected milliseconds and a few kilobytes; look for loops in chat_template.jinja, or in "
            "tokenizer_config.json",
        )
    _proved.add(digest)


def render(given: dict[str, object]) -> None:
    """Render a template as transformers does; end the process with a status that says what went wrong."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
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

    try:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        environment.filters["tojson"] = lambda value, **options: json.dumps(value)
        environment.globals |= {"raise_exception": _fail, "strftime_now": lambda style: style}
        template = environment.from_string(str(given["template"]))
        for prompt in PROMPTS:
            length = 0
            for piece in template.generate(
                messages=[{"role": "user", "content": prompt}], add_generation_prompt=True, enable_thinking=True,
                tools=None, documents=None, **given["tokens"],  # type: ignore[arg-type]
            ):  # fmt: skip
                length += len(piece)
                if length > MOST_CHARACTERS:
                    sys.exit(_TOO_LONG)
    except MemoryError:
        sys.exit(_TOO_LARGE)
    except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError):
        sys.exit(0)  # not this proof's matter


def _fail(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)
