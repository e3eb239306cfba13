"""The process that makes a tokenizer: its files are read, its chat template is rendered, in bounded time and memory.

A chat template is a program, and `tokenizer.json` describes one. What never ends would take the interpreter's lock from
requests for as long as it runs, and what is built could use up the host's memory, which ends the process. So that is done
here, where it can be stopped. A template may still loop for one prompt alone: `chat_template.bounded` ends that in the
service itself.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

from zwatch.engine.chat_template import compiled, variables
from zwatch.engine.config_fields import MAX_PROMPT_TOKENS
from zwatch.engine.tokenizer import MadeTokenizer

CPU_SECONDS = 3
"""Seconds of processor time to render a template, which takes milliseconds."""
FILE_SECONDS = 5
"""The same to read a file, and to encode the prompts: Qwen3's 151,643 tokens take one."""
BUILD_SECONDS = 60
"""The same to build it. Qwen3's 151,643 tokens take some five."""
IMPORT_SECONDS = 60
"""The same to import transformers, which takes two."""
WAIT_SECONDS = 120
"""Seconds for which a process waits for work: a start takes less."""
MEMORY = 2**30
"""Bytes of address space; the interpreter itself takes a tenth, Qwen3's tokenizer a third."""
MOST_CHARACTERS = 2**20
"""Longest accepted result for the longest prompt."""
PROMPTS = ("a cat wearing sunglasses", "ab \n" * 2500)
"""What is rendered and encoded: the warm-up's prompt, and one as long as a request's may be."""
TOO_LONG, TOO_LARGE = 3, 4
"""Exit statuses: a template's result is too long, there is too little memory."""


def serve() -> None:
    """Import what is needed, then do what a line of standard input asks for: `main` with its list of arguments. A process that
    nobody asks ends."""
    signal.alarm(WAIT_SECONDS)
    _begin("importing transformers", IMPORT_SECONDS)
    sys.modules["torch"] = None  # type: ignore[assignment]  # it is not needed here, and takes a second
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers.models.qwen2 import tokenization_qwen2  # noqa: F401

    if asked := sys.stdin.readline():
        signal.alarm(0)
        main(*json.loads(asked))


def main(folder: str, result: str) -> None:
    """Read a tokenizer's files, render its templates, encode prompts, and write what transformers makes of it to a file; or end
    the process with a status that says what went wrong. What is about to be done is printed first."""
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
        Path(result).write_bytes(_made(folder))
    except MemoryError:
        sys.exit(TOO_LARGE)


def _made(folder: str) -> bytes:
    """Return the packed tokenizer, or {"error": what transformers says of it} as JSON."""
    _begin("building it", BUILD_SECONDS)
    try:
        return make(folder).packed()
    except MemoryError:
        raise
    except BaseException as error:  # a panic of the tokenizers library is no Exception
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
            raise
        # The library's panic is told as what it is for the tokenizer.
        name = "ValueError" if type(error).__name__ == "PanicException" else type(error).__name__
        return json.dumps({"error": f"{name}: {error}"}).encode()


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
    template = compiled(source)
    tokens = {name: value.get("content") if isinstance(value, dict) else value for name, value in config.items()}
    named = {name: value for name, value in tokens.items() if name.endswith("_token") and isinstance(value, str)}
    for prompt in PROMPTS:
        length = 0
        for piece in template.generate(**variables(prompt, named)):
            length += len(piece)
            if length > MOST_CHARACTERS:
                sys.exit(TOO_LONG)


def make(folder: str) -> MadeTokenizer:
    """Make the tokenizer of a folder with transformers. It is to be called in a process of its own.

    Raises:
        Exception: whatever transformers raises of files that are no tokenizer.
    """
    from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

    made: Any = Qwen2Tokenizer.from_pretrained(folder, local_files_only=True)
    template = made.get_chat_template() if made.chat_template else None
    # As its calls set it, for `padding="max_length", max_length=512, truncation=True`.
    text = _chat(made)
    encoded = made([text], padding="max_length", max_length=MAX_PROMPT_TOKENS, truncation=True)
    if not any(encoded.attention_mask[0]):
        raise ValueError(f"a prompt has no tokens: the chat template makes {text[:100]!r} of it")
    last: tuple[str, int] = max(made.get_vocab().items(), key=itemgetter(1))
    backend = made.backend_tokenizer
    return MadeTokenizer(
        backend.to_str(), bool(backend.encode_special_tokens), template, dict(made.special_tokens_map), last
    )


def _chat(made: Any) -> str:
    if not made.chat_template:
        return "a cat"
    text: str = made.apply_chat_template(
        [{"role": "user", "content": "a cat"}], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    return text
