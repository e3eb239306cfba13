"""The command line: `zwatch serve` and the commands beside it.

Each option is declared once: its flag, variable, default, check and help. What takes long to import (asyncio, HTTP, blake3,
torch) is imported by the command that needs it.
"""

import contextlib
import functools
import gc
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from zwatch import __version__, config, options
from zwatch.errors import FatalError, Rejection, UsageError

_Command = Callable[..., int]
_option = functools.partial(click.option, show_envvar=True)
_switch = functools.partial(_option, type=options.Switch(), is_flag=True)


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which `--help` shows them: as declared."""
        return list(self.commands)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0 done, 1 decided against or failed, 2 wrong call or configuration, or no
    service, 130 interrupted."""
    status = 1
    try:
        with commands.make_context("zwatch", list(sys.argv[1:] if arguments is None else arguments)) as context:
            status = commands.invoke(context)
        if sys.stdout is not None:  # closed by the caller, `>&-`
            sys.stdout.flush()
    except click.exceptions.Exit as end:  # --help, --version
        status = end.exit_code
    except click.UsageError as error:
        status = _failed(options.sentence(error), 2)
    except UsageError as error:
        status = _failed(str(error), 2)
    except FatalError as error:
        status = _failed(str(error), error.status)
    except ImportError as error:  # of what the command itself needs
        status = _failed(f"a library cannot be imported: {error}; install zwatch again", 1)
    except BrokenPipeError:  # `zwatch list | head`: its reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
    except (Rejection, OSError) as error:
        status = _failed(str(error), 1)
    except KeyboardInterrupt:
        status = 130
    return status


@click.group(
    cls=_Commands,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100},
)
@click.version_option(__version__, message="zwatch %(version)s")
def commands() -> None:
    """Serve a text-to-image model that is deployed by a symlink."""


@commands.command("serve", epilog="The token may also be in ZWATCH_TOKEN, or in systemd's credential zwatch-token.")
@_option("--models", envvar="ZWATCH_MODELS", type=options.directory, default="models", metavar="DIR", help="The models root.")  # fmt: skip
@_option("--alias", "aliases", envvar="ZWATCH_ALIAS", type=options.ListOf(options.version_name), multiple=True, callback=options.with_current, metavar="NAME", help="Another symlink to follow beside `current`. May be repeated.")  # fmt: skip
@_switch("--strict-links", envvar="ZWATCH_STRICT_LINKS", help="After `ln -sf v2 current` never repoint the link, only report it.")  # fmt: skip
@_option("--host", envvar="ZWATCH_HOST", type=options.host_name, default=config.DEFAULT_HOST, metavar="HOST", help="Address to listen on.")  # fmt: skip
@_option("--port", envvar="ZWATCH_PORT", type=options.Port(), default=str(config.DEFAULT_PORT), metavar="N", help="Port to listen on, 0 for any.")  # fmt: skip
@_option("--device", envvar="ZWATCH_DEVICE", type=options.device, default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N.")  # fmt: skip
@_option("--memory-budget", envvar="ZWATCH_MEMORY_BUDGET", type=options.size, show_default="what is free", metavar="SIZE", help="Most device memory that weights may take, such as 60G.")  # fmt: skip
@_option("--state-dir", envvar="ZWATCH_STATE_DIR", type=options.path, default=config.state_directory, show_default="systemd's STATE_DIRECTORY, else ~/.local/state/zwatch", metavar="DIR", help="Where last-known-good is remembered.")  # fmt: skip
@_option("--token-file", "token", envvar="ZWATCH_TOKEN_FILE", type=options.path, callback=options.read_token, metavar="FILE", help="File with the token that calls need.")  # fmt: skip
@_switch("--insecure-no-token", envvar="ZWATCH_INSECURE_NO_TOKEN", help="Allow an address that other machines can reach without a token.")  # fmt: skip
@_option("--allowed-host", "allowed_hosts", envvar="ZWATCH_ALLOWED_HOST", type=options.ListOf(options.host_name), multiple=True, metavar="NAME", help="Another name by which clients may reach the service. May be repeated.")  # fmt: skip
@_option("--queue", envvar="ZWATCH_QUEUE", type=options.whole_number(1), default="64", metavar="N", help="How many requests may wait.")  # fmt: skip
@_option("--timeout", envvar="ZWATCH_TIMEOUT", type=options.positive("seconds"), default="600", metavar="SECONDS", help="Seconds that one request may take, waiting included.")  # fmt: skip
@_option("--max-work", envvar="ZWATCH_MAX_WORK", type=options.positive("megapixel-steps"), default="600", metavar="N", help="Most megapixels x steps x images that one request may ask for.")  # fmt: skip
@_option("--output-dir", envvar="ZWATCH_OUTPUT_DIR", type=options.path, default="output_image", metavar="DIR", help="Where every image is kept, for the history.")  # fmt: skip
@_switch("--no-history", "history", envvar="ZWATCH_NO_HISTORY", callback=lambda _, __, given: not given, help="Keep no image.")  # fmt: skip
@_option("--history-max-images", envvar="ZWATCH_HISTORY_MAX_IMAGES", type=options.whole_number(1), show_default="no limit", metavar="N", help="Delete the oldest images beyond this number. --no-history keeps none.")  # fmt: skip
@_option("--history-max-bytes", envvar="ZWATCH_HISTORY_MAX_BYTES", type=options.size, show_default="no limit", metavar="SIZE", help="Delete the oldest images beyond this size, such as 20G.")  # fmt: skip
@_option("--log", envvar="ZWATCH_LOG", type=click.Choice(["text", "json"]), default=config.default_log, show_default="text on a terminal, else json", help="Log format.")  # fmt: skip
def _serve(port: int | None, **settings: Any) -> int:
    """Serve the version that models/current points to."""
    import asyncio
    import logging

    from zwatch import logwriter

    with logwriter.queued(settings["log"]):
        gc.disable()  # imports make no garbage: looking for it among their objects would take a tenth of the time to the first answer
        from zwatch.serving import end_at_once, serve

        gc.enable()
        if port is None:
            port = config.DEFAULT_PORT
            logging.getLogger(__name__).warning(
                "ZWATCH_PORT=%s is ignored, because Kubernetes sets it for a Service named zwatch; the port is %d",
                os.environ["ZWATCH_PORT"],
                port,
            )
        ended = asyncio.run(serve(config.Config(port=port, **settings)))
    status = 0 if ended.failure is None else _failed(str(ended.failure), ended.failure.status)
    if ended.lingering:
        end_at_once(status)
    return status


_json_option = _switch("--json", "as_json", envvar="ZWATCH_JSON", help="Print JSON: what the HTTP call answers, or the findings.")  # fmt: skip
_device_option = _option("--device", envvar="ZWATCH_DEVICE", type=options.device, default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N.")  # fmt: skip


def _calls_service(command: _Command) -> _Command:
    """Give a command the options that all commands have which call a service."""
    url = _option("--url", envvar="ZWATCH_URL", type=options.service_url, default=config.DEFAULT_URL, metavar="URL", help="Where the service is.")  # fmt: skip
    token = _option("--token-file", "token", envvar="ZWATCH_TOKEN_FILE", type=options.path, callback=options.read_token, metavar="FILE", help="File with the token, else ZWATCH_TOKEN.")  # fmt: skip
    return url(token(_json_option(command)))


# ZWATCH_ALIAS and others that set up the service must not move the deploys of a shell that shares its environment.
@commands.command("deploy")
@click.argument("version", type=options.version_argument, help="A version's name, such as v2.")
@_option("--alias", envvar="ZWATCH_DEPLOY_ALIAS", type=options.version_name, default="current", metavar="NAME", help="The symlink to repoint.")  # fmt: skip
@_switch("--no-wait", envvar="ZWATCH_DEPLOY_NO_WAIT", help="Repoint only.")
@_calls_service
def _deploy(version: str, alias: str, *, no_wait: bool, **service: Any) -> int:
    """Repoint an alias to a version and wait until it serves."""
    return _change("/api/deploy", {"version": version, "alias": alias, "wait": not no_wait}, **service)


@commands.command("rollback")
@_option("--alias", envvar="ZWATCH_ROLLBACK_ALIAS", type=options.version_name, default="current", metavar="NAME", help="The symlink to repoint.")  # fmt: skip
@_calls_service
def _rollback(alias: str, **service: Any) -> int:
    """Go back to the version that served before."""
    return _change("/api/rollback", {"alias": alias}, **service)


@commands.command("status")
@_calls_service
def _status(**service: Any) -> int:
    """Show what serves."""
    return _show("/status", **service)


@commands.command("list")
@_calls_service
def _list(**service: Any) -> int:
    """List the versions."""
    return _show("/versions", **service)


@commands.command("attempts")
@_calls_service
def _attempts(**service: Any) -> int:
    """List the last attempts."""
    return _show("/attempts", **service)


@commands.command("seal")
@click.argument("directory", type=options.named_directory, help="A version's directory.")
@_option("--version", envvar="ZWATCH_SEAL_VERSION", type=options.version_name, show_default="the directory's", metavar="NAME", help="The version's name.")  # fmt: skip
def _seal(directory: Path, version: str | None) -> int:
    """Stamp the transformer, hash every file, write BLAKE3SUMS."""
    from zwatch.deploy import header, seal
    from zwatch.progress import Progress

    try:
        name = options.version_name(version or directory.name)
    except ValueError as error:
        raise UsageError(f"{error}; give --version NAME") from None
    paths = seal.sealable_files(directory)
    # The transformer's files are written anew with their version, and then hashed as all the others.
    read = [*paths, *filter(header.carries_version, paths)]
    with Progress("sealing", sum((directory / path).stat().st_size for path in read)) as progress:
        sealed = seal.write_seal(directory, name, progress.advance)
    print(f"{directory}: sealed {name}, {len(sealed.files)} files, digest {sealed.digest}")
    return 0


@commands.command("verify")
@click.argument("directory", type=options.named_directory, help="A version's directory.")
@_json_option
def _verify(directory: Path, *, as_json: bool) -> int:
    """Compare every file with the seal."""
    from zwatch.deploy import seal
    from zwatch.progress import Progress

    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    with Progress("verifying", size) as progress:
        findings = seal.check_directory(directory, directory.name, progress.advance)
    return _report(directory, findings, "verified", as_json=as_json)


@commands.command("check")
@click.argument("directory", type=options.named_directory, help="A version's directory.")
@_device_option
@_json_option
def _check(directory: Path, device: str, *, as_json: bool) -> int:
    """Verify, load and warm a version without serving it."""
    from zwatch import logs
    from zwatch.engine.check import check_version
    from zwatch.progress import Progress

    logs.set_up("text")
    with Progress("checking") as progress:
        findings, details = check_version(directory, device, progress.update)
    return _report(directory, findings, f"would serve ({details})", as_json=as_json)


@commands.command("systemd-unit")
def _systemd_unit() -> int:
    """Print a systemd unit that runs this installation; its comments say how to install it."""
    from zwatch import unit

    print(unit.text(Path(sys.executable).parent), end="")
    return 0


def _change(path: str, body: dict[str, Any], *, url: str, token: str | None, as_json: bool) -> int:
    """Ask the service for a deploy or a rollback, wait for its end, and print the answer."""
    from zwatch import client

    service = client.Service(url, token)
    try:
        with client.followed(service, body["alias"]):
            status, found = service.post(path, body)
    except KeyboardInterrupt:
        # Whether the service has the request already is not known here.
        what, where = path.rpartition("/")[2], "" if url == config.DEFAULT_URL else f" --url {url}"
        return _failed(
            f"interrupted; a {what} that has begun goes on without this command: see `zwatch status{where}`", 130
        )
    return _answer(path, status, found, as_json=as_json)


def _show(path: str, *, url: str, token: str | None, as_json: bool) -> int:
    """Print what the service answers to a GET."""
    from zwatch import client

    status, found = client.Service(url, token).get(path)
    return _answer(path, status, found, as_json=as_json)


def _answer(path: str, status: int, body: dict[str, Any], *, as_json: bool) -> int:
    from zwatch import client

    if as_json:
        print(json.dumps(body, ensure_ascii=False))
    elif status < 300:
        print("\n".join(client.shown(path, body)))
    else:
        return _failed(client.message(body), 1)
    return 0 if status < 300 else 1


def _report(directory: Path, findings: list[str], good: str, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"version": directory.name, "ok": not findings, "findings": findings}, ensure_ascii=False))
    else:
        print("\n".join(findings or [f"{directory}: {good}"]))
    return 1 if findings else 0


def _failed(reason: str, status: int) -> int:
    """Say why on standard error, and return the exit status."""
    with contextlib.suppress(OSError):  # it may be a pipe that nobody reads any more, or a full disk
        print(f"zwatch: {reason}", file=sys.stderr)
    return status
