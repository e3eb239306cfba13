"""The options of the command line, and what their values may be. Each parser serves a flag and its environment variable alike."""

import functools
import ipaddress
import math
import os
import re
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import click
from click.core import ParameterSource
from click.types import BoolParamType, FuncParamType

from zwatch import config, values
from zwatch.deploy.oserrors import leads_nowhere
from zwatch.errors import UsageError
from zwatch.fleet import settings

_DEVICE = re.compile(r"auto|cpu|cuda(:(0|[1-9][0-9]{0,2}))?")
_PATTERN = re.compile(r"(?:[A-Za-z0-9._*?-]|\[!?[A-Za-z0-9._-]+\]){1,64}")
_HOST_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_TOKEN_FILE = "zwatch.token_file"  # noqa: S105 (a key)
Value = TypeVar("Value")
_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


class Switch(BoolParamType):
    """A flag. Its variable is one of eight words; click itself accepts `t`, `y` and blanks too."""

    def convert(self, value: str | bool, param: click.Parameter | None, ctx: click.Context | None) -> bool:
        """Return the truth value."""
        if isinstance(value, bool):
            return value
        if value.lower() not in _WORDS:
            self.fail(f"expected {', '.join(_WORDS)}, got {value!r}", param, ctx)
        return _WORDS[value.lower()]


class ListOf(FuncParamType[str, Value]):
    """One item of an option that may be repeated; its variable holds a list, split at commas and spaces."""

    def split_envvar_value(self, rv: str) -> list[str]:
        """Return the items in the variable's value."""
        return rv.replace(",", " ").split()


class Port(FuncParamType[str, int | None]):
    """A port; None where the variable holds what Kubernetes sets for a Service named zwatch, `tcp://10.96.0.17:7860`."""

    def __init__(self) -> None:
        super().__init__(values.whole_number(0, 65535))

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Return the port, or None."""
        if ctx is not None and param is not None and _source(ctx, param) == param.envvar and value.startswith("tcp://"):
            return None
        return super().convert(value, param, ctx)


def path(text: str) -> Path:
    """Return a path."""
    if not text:
        raise ValueError("expected a path, got ''")
    return Path(text)


def directory(text: str) -> Path:
    """Return the path of a directory that exists, or of which a passing error hides whether it does."""
    try:
        is_there = path(text).is_dir()
    except OSError as error:  # too long, or in a directory that this user may not search
        if leads_nowhere(error):
            raise ValueError(f"{error.strerror}: {text!r}") from None
        is_there = True
    if not is_there:
        raise ValueError(f"there is no such directory: {text!r}")
    return Path(text)


def named_directory(text: str) -> Path:
    """Return the absolute path of a directory that exists, so that `.` has a name too; `/` has none."""
    if os.path.isfile(text):
        raise ValueError(
            f"expected a version's directory, got the file {text!r}; `zwatch import` makes a version of one file"
        )
    found = directory(text).resolve()
    if not found.name:
        raise ValueError(f"expected a version's directory, got {text!r}")
    return found


def version_name(text: str) -> str:
    """Return a name that a version or an alias may have."""
    from zwatch.deploy.versions import is_version_name  # most commands need no blake3

    if not is_version_name(text):
        raise ValueError(
            f"{text!r} cannot name a version or an alias: expected 1-64 of A-Za-z0-9._-, not starting with . or -"
        )
    return text


def alias_name(text: str) -> str:
    """Return the name of an alias. Its share is not named by its link, because a change of percentage renames that."""
    from zwatch.deploy.shares import parse_share

    if (share := parse_share(text)) is not None:
        of = "" if share.alias == "current" else f" --alias {share.alias}"
        raise ValueError(
            f"{text!r} is a share of {share.alias}; `zwatch share VERSION {share.percent}{of}` points it to a version, "
            f"`zwatch share promote{of}` makes its version the one of {share.alias}"
        )
    return version_name(text)


def new_version(text: str) -> str:
    """Return a name that a new version may have: none that aliases have, which must be links."""
    if version_name(text) == "current":
        raise ValueError(
            "'current' is the name of the link to the version that serves; give the version another, such as v2"
        )
    return text


def version_argument(text: str) -> str:
    """Return a version's name as the service shall judge it, without what a shell's completion puts around it: `v3/`, `./v3`."""
    name = text.removesuffix("/.").rstrip("/")
    while name.startswith("./"):
        name = name.removeprefix("./").lstrip("/")
    return name or text


def base(text: str) -> str:
    """Return the name of a version that is there, or of a link to one."""
    if not text:
        raise ValueError("expected a version's name, got ''")
    return version_argument(text)


def host_name(text: str) -> str:
    """Return a host name or an IP address, without brackets."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        if not _HOST_NAME.fullmatch(text) or not _is_resolvable(text):
            raise ValueError(f"expected a host name or an address, without scheme and port, got {text!r}") from None
    return bare


def _is_resolvable(name: str) -> bool:
    """Say whether a name has the form of a host name: labels of 1 to 63 characters between its dots."""
    try:
        name.encode("idna")  # as `socket` does
    except UnicodeError:
        return False
    return True


def device(text: str) -> str:
    """Return a device's name. Whether it exists is known only once torch is imported."""
    if not _DEVICE.fullmatch(text):
        raise ValueError(f"expected auto, cpu, cuda or cuda:N, got {text!r}")
    return text


def ray_address(text: str) -> str:
    """Return the address of a Ray cluster."""
    host, _, port = text.rpartition(":")
    if text != "auto" and not (host and "/" not in host and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(f"expected auto, or the HOST:PORT of a Ray cluster such as 10.0.0.1:6379, got {text!r}")
    return text


def service_url(text: str) -> str:
    """Return the URL of a service, without a slash at its end."""
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # the port or the brackets
        usable = False
    if not usable or re.search(r"[^!-~]|[?#@]", text):
        raise ValueError(f"expected the URL of a service, such as {config.DEFAULT_URL}, got {text!r}")
    return text.rstrip("/")


def followed_name(text: str) -> str:
    """Return the name of a link to follow, or a shell pattern for such names."""
    from zwatch.deploy.following import is_pattern

    if not is_pattern(text):
        return version_name(text)
    if not _PATTERN.fullmatch(text):
        raise ValueError(f"{text!r} matches no alias: expected a pattern of A-Za-z0-9._-, *, ? and [...], such as 'c*'")
    return text


def prompt(text: str) -> str:
    """Return a prompt. How long it may be is judged by the service."""
    if not text.strip():
        raise ValueError(f"expected a text, got {text!r}")
    return text


def output(text: str) -> str:
    """Return where pictures go: a path, or `-`."""
    if not text or "\0" in text:
        raise ValueError(f"expected the name of a file, a directory, or -, got {text!r}")
    return text


def picture(text: str) -> str | Path:
    """Return a picture to send: the path of a file, `-`, or `history:NAME` as it is."""
    if text == "-" or (text.startswith("history:") and text != "history:"):
        return text
    if not os.path.isfile(path(text)):
        raise ValueError(f"expected a picture's file, -, or history:NAME, got {text!r}, which is not there")
    return Path(text)


def lora_use(text: str) -> dict[str, str | float]:
    """Return a LoRA to draw with, as the service takes it: NAME, or NAME:SCALE. Which scales there are is judged by the service."""
    name, colon, number = text.partition(":")
    if not name or (colon and not (values.is_number(number) and math.isfinite(float(number)))):
        raise ValueError(f"expected NAME or NAME:SCALE, such as ink:0.8, got {text!r}")
    return {"name": name, "scale": float(number) if colon else 1.0}


def model(text: str) -> str:
    """Return the name of an alias, a share or a version, as the service shall judge it."""
    if not (name := version_argument(text)):
        raise ValueError("expected the name of an alias, a share or a version, got ''")
    return name


def side(text: str) -> int:
    """Return a side of an image in pixels. What a version may draw is judged by the service."""
    found = values.whole_number(16, 2048)(text)
    if found % 16:
        raise ValueError(f"expected a multiple of 16 from 16 to 2048, got {text!r}")
    return found


def with_current(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    """Return the aliases to follow: `current` first, each once. A callback of click's."""
    return tuple(dict.fromkeys(["current", *given]))


def read_token(ctx: click.Context, param: click.Parameter, file: Path | None) -> str | None:
    """Return the token, from the file if one is named. A callback of click's."""
    try:
        token = config.read_token(file)
        ctx.meta[_TOKEN_FILE] = file
        return token
    except UsageError as error:
        if file is None:
            raise
        raise click.BadParameter(str(error)) from None


def token_file(ctx: click.Context) -> Path | None:
    """Return the file that the token came from."""
    found: Path | None = ctx.meta.get(_TOKEN_FILE)
    return found


def asked(ctx: click.Context, name: str, value: Value) -> Value | None:
    """Return a parameter's value if the user gave it, by a flag or a variable; None if it is the default."""
    return None if ctx.get_parameter_source(name) is ParameterSource.DEFAULT else value


def sentence(error: click.UsageError) -> str:
    """Return click's error as one line: the flag or the variable, what was found, what is allowed, where to read more."""
    text = error.format_message()
    if isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter):
        where = _source(error.ctx, error.param) if error.ctx is not None and error.param is not None else None
        text = f"{where}: {error.message}" if where is not None else error.message
    else:
        text = text[:1].lower() + text[1:]
    command = "zwatch" if error.ctx is None else error.ctx.command_path
    return f"{text.rstrip('.')} (see {command} --help)"


def _source(context: click.Context, parameter: click.Parameter) -> str:
    """Return what the user wrote the value into: the flag, the variable, or the argument."""
    if context.get_parameter_source(parameter.name or "") is ParameterSource.ENVIRONMENT:
        return str(parameter.envvar)
    return parameter.opts[0] if isinstance(parameter, click.Option) else parameter.human_readable_name


option = functools.partial(click.option, show_envvar=True)
switch = functools.partial(option, type=Switch(), is_flag=True)
json_switch = switch("--json", "as_json", envvar="ZWATCH_JSON", help="Print JSON: what the HTTP call answers, or the findings.")  # fmt: skip
device_option = option("--device", envvar="ZWATCH_DEVICE", type=device, default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N.")  # fmt: skip
devices_option = option("--devices", envvar="ZWATCH_DEVICES", type=settings.devices, show_default="one device", metavar="LIST", help="Draw on several devices of this host, one replica each, under Ray: all, GPUs by their numbers such as 0,1, or cpu,cpu. Needs zwatch[ray].")  # fmt: skip
ray_option = option("--ray", envvar="ZWATCH_RAY", type=ray_address, metavar="ADDRESS", help="Draw on the devices of this Ray cluster: HOST:PORT, or auto for the one that this host belongs to. Needs zwatch[ray].")  # fmt: skip
replicas_option = option("--replicas", envvar="ZWATCH_REPLICAS", type=settings.replica_count, show_default="auto with --ray", metavar="N|auto|MIN..MAX", help="How many replicas draw: a number, one for each device (auto), or, with --ray, as many as the length of the queue needs. Without --ray they are on this host: its GPUs, or its CPU with --device cpu. Needs zwatch[ray].")  # fmt: skip
quorum_option = option("--quorum", envvar="ZWATCH_QUORUM", type=settings.quorum, default="all", metavar="all|N|A/B", help="How many replicas must have a version ready for its promotion. The others leave the fleet until they have it.")  # fmt: skip
dtype_option = option("--dtype", envvar="ZWATCH_DTYPE", type=click.Choice(["auto", "bf16", "fp16", "fp32"]), default="auto", help="What versions are computed in, whatever they are stored in; auto: bf16, or fp32 where the device has no bf16.")  # fmt: skip
quantize_option = option("--quantize", envvar="ZWATCH_QUANTIZE", type=click.Choice(["fp8", "int8"]), show_default="as stored", help="Quantize the blocks of transformer and text encoder when a version is loaded: half the memory.")  # fmt: skip
exact_option = switch("--exact/--no-exact", envvar="ZWATCH_EXACT", default=None, show_default="exact on a CPU", help="Draw with diffusers' own bits, or faster with other rounding.")  # fmt: skip
text_encoder_option = option("--text-encoder", envvar="ZWATCH_TEXT_ENCODER", type=click.Choice(["auto", "device", "host"]), default="auto", help="Where its weights are; host: copied to the device, layer by layer, for each new prompt; auto: host where the device has too little memory for the whole model.")  # fmt: skip
probation_option = option("--probation", envvar="ZWATCH_PROBATION", type=values.seconds, default="60", metavar="SECONDS", help="Seconds for which a version is on trial after its promotion: if it fails in 3 of its last 20 requests, the one before it serves again. 0: not at all; inf: always.")  # fmt: skip
loras_option = option("--loras", envvar="ZWATCH_LORAS", type=path, show_default="loras beside the models root", metavar="DIR", help="The LoRA root, whose LoRAs requests name. It need not be there.")  # fmt: skip
policy_option = option("--require-signature", "policy", envvar="ZWATCH_REQUIRE_SIGNATURE", type=path, metavar="POLICY", help="A TOML file that says whose signature which versions need; see docs/signing.md.")  # fmt: skip
sign_option = option("--sign", "key_file", envvar="ZWATCH_SIGN", type=path, metavar="KEY", help="Write model.sig, a signature with this private key (PEM). The password of an encrypted one is in ZWATCH_SIGN_PASSWORD, or is asked for.")  # fmt: skip
