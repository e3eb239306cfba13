"""The types of a request's fields: each declares its rule, the words of its refusal, and its part of the JSON schema.

They are markers for `typing.Annotated` on fields of pydantic models. The rules are strict: a number in a string is no
number, and `true` is not 1.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from zwatch.errors import RequestError

M = TypeVar("M", bound=BaseModel)

MAX_TEXT = 10_000
"""Longest accepted text field, characters."""
_SHOWN = 60
"""Most characters of a wrong value that an error repeats."""
_NOT_BLANK = r"[^\s\x1c-\x1f\x85]"
"""What `str.strip` leaves. The separators are white space to Python, but not to other languages' expressions."""
_SHOWN_NAME = 100
"""Most characters of an unknown field's name that an error repeats."""


class Rule(ABC):
    """A marker that checks a field's value by itself."""

    @abstractmethod
    def check(self, value: Any) -> Any:
        """Return the field's value, or raise the error that `refused` makes."""

    @abstractmethod
    def schema(self) -> JsonSchemaValue:
        """Return the JSON schema of what `check` accepts."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return self.schema()


@dataclass(frozen=True, slots=True)
class Text(Rule):
    """A string of at most `most` characters. One that is `required` must have more than white space."""

    required: bool = False
    most: int = MAX_TEXT

    def check(self, value: Any) -> str:
        """Return a string."""
        if not isinstance(value, str):
            raise refused(f"must be a string, got {kind_of(value)}")
        if self.required and not value.strip():
            raise refused("must not be empty")
        if len(value) > self.most:
            raise refused(f"may have {self.most} characters, got {len(value)}")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise refused("has half of a surrogate pair, which is no character") from None
        return value

    def schema(self) -> JsonSchemaValue:
        """Describe it."""
        least = {"minLength": 1, "pattern": _NOT_BLANK} if self.required else {}
        return {"type": "string", **least, "maxLength": self.most}


@dataclass(frozen=True, slots=True)
class TextOrTexts(Rule):
    """A string as `Text`, or a list of 1 to `most` different ones, which becomes a tuple."""

    most: int

    def check(self, value: Any) -> str | tuple[str, ...]:
        """Return a string or a tuple of strings."""
        if not isinstance(value, list):
            if isinstance(value, str):
                return Text().check(value)
            raise refused(f"must be a string or a list of strings, got {kind_of(value)}")
        if not 1 <= len(value) <= self.most:
            raise refused(f"may be a list of 1 to {self.most}, got {len(value)}")
        for one in value:
            Text(required=True).check(one)
        if (twice := next((one for one in value if value.count(one) > 1), None)) is not None:
            raise refused(f"has {shortened(twice)} twice")
        return tuple(value)

    def schema(self) -> JsonSchemaValue:
        """Describe it."""
        one = Text(required=True).schema()
        several = {"type": "array", "items": one, "minItems": 1, "maxItems": self.most, "uniqueItems": True}
        return {"anyOf": [Text().schema(), several]}


@dataclass(frozen=True, slots=True)
class Whole(Rule):
    """A whole number from `least` to `most` that is a multiple of `step`."""

    least: int
    most: int
    step: int = 1

    def check(self, value: Any) -> int:
        """Return an int."""
        if type(value) is not int:
            raise refused(f"must be a whole number, got {kind_of(value)}")
        if not self.least <= value <= self.most:
            raise refused(f"must be from {self.least} to {self.most}, got {shortened(value)}")
        if value % self.step:
            raise refused(f"must be a multiple of {self.step}, got {value}")
        return value

    def schema(self) -> JsonSchemaValue:
        """Describe it."""
        step = {} if self.step == 1 else {"multipleOf": self.step}
        return {"type": "integer", "minimum": self.least, "maximum": self.most, **step}


@dataclass(frozen=True, slots=True)
class Number(Rule):
    """A number from `least` to `most`."""

    least: float
    most: float

    def check(self, value: Any) -> float:
        """Return a float."""
        if type(value) not in (int, float):
            raise refused(f"must be a number, got {kind_of(value)}")
        if not self.least <= value <= self.most:
            raise refused(f"must be from {self.least} to {self.most}, got {shortened(value)}")
        return float(value)

    def schema(self) -> JsonSchemaValue:
        """Describe it."""
        return {"type": "number", "minimum": self.least, "maximum": self.most}


@dataclass(frozen=True, slots=True)
class File(Rule):
    """A file: text that says which (base64, a data URL, a name), or the bytes of a file in a form. Null is none."""

    def check(self, value: Any) -> str | bytes | None:
        """Return it as it is."""
        if value is None or isinstance(value, bytes):
            return value
        if not isinstance(value, str):
            raise refused(f"must be a string, got {kind_of(value)}")
        if not value.strip():
            raise refused("must not be empty")
        return value

    def schema(self) -> JsonSchemaValue:
        """Describe the text."""
        return {"anyOf": [{"type": "string", "minLength": 1, "pattern": _NOT_BLANK}, {"type": "null"}]}


class OneFile(File):
    """A file, or a list with one."""

    def check(self, value: Any) -> str | bytes | None:
        """Return the file."""
        if isinstance(value, list):
            if len(value) != 1:
                raise refused(
                    f"is there {len(value)} times: one picture is edited at a time; send a request for each, "
                    "or put them together into one picture"
                )
            [value] = value
        return super().check(value)


@dataclass(frozen=True, slots=True)
class Untaken(File):
    """A field, perhaps a file, of which nothing can be made; an empty one is none. `why` goes on after its name."""

    why: str = ""

    def check(self, value: Any) -> None:
        """Refuse what is there."""
        if value is not None and value not in ("", b"", []):
            raise refused(self.why)

    def schema(self) -> JsonSchemaValue:
        """Describe nothing."""
        return {"type": "null"}


@dataclass(frozen=True, slots=True)
class Flag(Rule):
    """True or false."""

    def check(self, value: Any) -> bool:
        """Return a bool."""
        if type(value) is not bool:
            raise refused(f"must be true or false, got {kind_of(value)}")
        return value

    def schema(self) -> JsonSchemaValue:
        """Describe it."""
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class OneOf(Rule):
    """A member of an enumeration of strings, by its value."""

    choices: type[StrEnum]

    def check(self, value: Any) -> StrEnum:
        """Return the member."""
        if not isinstance(value, str) or value not in tuple(self.choices):
            raise refused(f"must be one of {', '.join(self.choices)}, got {shortened(value)}")
        return self.choices(value)

    def schema(self) -> JsonSchemaValue:
        """Describe it."""
        return {"type": "string", "enum": [choice.value for choice in self.choices]}


@dataclass(frozen=True, slots=True)
class Converted:
    """Lets a field take more than its rule does: `convert` makes of any value what the rule then checks. `schema` is what
    the field accepts in addition to what the rule accepts."""

    convert: Callable[[Any], Any]
    schemas: tuple[Mapping[str, Any], ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.convert, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        assert schema["type"] == "function-before"  # made above
        return {"anyOf": [handler(schema["schema"]), *map(dict, self.schemas)]}


def file_fields(model: type[BaseModel]) -> dict[str, bool]:
    """Return the names of a model's fields that are read as files, and whether they may be one."""
    return {
        name: not isinstance(rule, Untaken)
        for name, field in model.model_fields.items()
        for rule in field.metadata
        if isinstance(rule, File)
    }


def validated(model: type[M], body: Mapping[str, Any]) -> M:
    """Check a request's body against its model.

    Raises:
        RequestError: 400 with the field's name.
    """
    # Before pydantic, which cannot read names that have half of a surrogate pair.
    name = next((name for name in body if name not in model.model_fields), None)
    if name is not None and model.model_config.get("extra") == "forbid":
        known = ", ".join(model.model_fields) or "none"
        raise RequestError(
            "unknown_field",
            f"there is no field {name[:_SHOWN_NAME]!r}; there are {known}",
            param=name[:_SHOWN_NAME],
        )
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "missing":
        raise invalid(name, f"{name} is required")
    raise invalid(name, f"{name} {first['msg']}")


def invalid(name: str, message: str) -> RequestError:
    """Return the error for a field with a wrong value."""
    return RequestError("invalid_value", message, param=name)


def kind_of(value: object) -> str:
    """Return what kind of JSON value this is, for an error."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else kinds[type(value)]


def shortened(value: object) -> str:
    """Return a value as JSON, cut where it is long."""
    shown = json.dumps(value)
    return shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 3]}..."


def refused(words: str) -> PydanticCustomError:
    """Return what a rule raises; the words follow the field's name."""
    # As a value: braces of the client's text must not be taken for a template.
    return PydanticCustomError("refused", "{words}", {"words": words})
