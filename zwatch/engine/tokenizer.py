"""The tokenizer of a version: transformers' own, but without transformers in the service, which takes seconds to import.

A process of its own makes it from a version's files (`zwatch.engine.tokenizer_proof`) and hands over what the tokenizers
library reads back in a fraction of a second; that is kept for the next start.
"""

import json
import os
from dataclasses import asdict, dataclass

from zwatch.engine.chat_template import bounded, compiled, variables

# A prompt is encoded by one thread: what the library splits is a list of prompts. Where it cannot start its threads it panics, then
# and at every later prompt.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@dataclass(frozen=True, slots=True)
class MadeTokenizer:
    """What transformers made of a version's files."""

    backend: str
    """The tokenizer as the tokenizers library writes it, with its padding to 512 tokens and its truncation."""
    encodes_special_tokens: bool
    """Whether the names of special tokens inside a prompt are encoded like other text."""
    template: str | None
    """The chat template."""
    tokens: dict[str, str]
    """The special tokens by name, for the template."""
    last_token: tuple[str, int]
    """The token with the largest id."""

    def packed(self) -> bytes:
        """Return it as bytes: a line that says what it is, as JSON, and all of it."""
        about = {"has_template": bool(self.template), "last_token": self.last_token}
        return json.dumps(about).encode() + b"\n" + json.dumps(asdict(self)).encode()

    @classmethod
    def unpacked(cls, packed: bytes) -> "MadeTokenizer":
        """Return what `packed` returned as an object.

        Raises:
            ValueError, TypeError: it is something else.
        """
        fields = json.loads(packed.partition(b"\n")[2])
        token, number = fields["last_token"]
        return cls(**{**fields, "last_token": (token, number)})


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as the text encoder takes it."""

    tokens: list[int]
    """512 ids."""
    mask: list[int]
    """1 for the prompt's tokens, 0 for padding."""
    is_truncated: bool
    """Whether the prompt is longer, so that its rest is lost."""


class Tokenizer:
    """Encodes prompts. It has no state, so that threads and engines share it."""

    def __init__(self, made: MadeTokenizer) -> None:
        from tokenizers import Tokenizer as Backend

        self.last_token = made.last_token
        self._backend = Backend.from_str(made.backend)
        self._backend.encode_special_tokens = made.encodes_special_tokens
        self._template = compiled(made.template or "")
        self._tokens = made.tokens

    def encode(self, prompt: str) -> EncodedPrompt:
        """Encode a prompt, in its chat, as `ZImagePipeline` does.

        Raises:
            TemplateTooLong: the chat template does not end.
            jinja2.TemplateError: it cannot be rendered.
        """
        with bounded():
            text = self._template.render(**variables(prompt, self._tokens))
        encoding = self._backend.encode(text)
        return EncodedPrompt(encoding.ids, encoding.attention_mask, bool(encoding.overflowing))
