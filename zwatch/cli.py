"""The command line: `zwatch serve` and the commands beside it.

Each option is declared once: its flag, variable, default, check and help. What takes long to import (asyncio, HTTP, blake3,
torch) is imported by the command that needs it.
"""

import contextlib
import gc
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from zwatch import __version__, config, drawing_commands, options, service_commands, values, version_commands
from zwatch.deploy.signals import Ending
from zwatch.errors import FatalError, UsageError, ZwatchError, status_of

_option, _switch = options.option, options.switch


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
        status = service_commands.failed(options.sentence(error), 2)
    except UsageError as error:
        status = service_commands.failed(str(error), 2)
    except FatalError as error:
        status = service_commands.failed(str(error), error.status)
    except ImportError as error:  # of what the command itself needs
        status = service_commands.failed(f"a library cannot be imported: {error}; install zwatch again", 1)
    except BrokenPipeError:  # `zwatch list | head`: its reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
    except (ZwatchError, OSError) as error:
        status = service_commands.failed(str(error), 1)
    except KeyboardInterrupt as interrupt:
        status = status_of(interrupt)
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
@options.loras_option
@_option("--alias", "aliases", envvar="ZWATCH_ALIAS", type=options.ListOf(options.followed_name), multiple=True, callback=options.with_current, metavar="NAME", help="Another symlink to follow beside `current`, or a shell pattern for the names of several, such as 'c*'. May be repeated.")  # fmt: skip
@_switch("--all-aliases", envvar="ZWATCH_ALL_ALIASES", help="Follow every symlink in the models root that leads to a version, or was meant to.")  # fmt: skip
@_switch("--strict-links", envvar="ZWATCH_STRICT_LINKS", help="After `ln -sf v2 current` never repoint the link, only report it.")  # fmt: skip
@_option("--host", envvar="ZWATCH_HOST", type=options.host_name, default=config.DEFAULT_HOST, metavar="HOST", help="Address to listen on.")  # fmt: skip
@_option("--port", envvar="ZWATCH_PORT", type=options.Port(), default=str(config.DEFAULT_PORT), metavar="N", help="Port to listen on, 0 for any.")  # fmt: skip
@_option("--device", envvar="ZWATCH_DEVICE", type=options.device, default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N.")  # fmt: skip
@options.devices_option
@options.ray_option
@options.replicas_option
@options.quorum_option
@options.dtype_option
@options.quantize_option
@options.text_encoder_option
@options.exact_option
@_option("--memory-budget", envvar="ZWATCH_MEMORY_BUDGET", type=values.size, show_default="what is free", metavar="SIZE", help="Most device memory that weights may take, such as 60G.")  # fmt: skip
@_option("--state-dir", envvar="ZWATCH_STATE_DIR", type=options.path, default=config.state_directory, show_default="systemd's STATE_DIRECTORY, else ~/.local/state/zwatch", metavar="DIR", help="Where last-known-good is remembered.")  # fmt: skip
@_option("--token-file", "token", envvar="ZWATCH_TOKEN_FILE", type=options.path, callback=options.read_token, metavar="FILE", help="File with the token that calls need.")  # fmt: skip
@_switch("--insecure-no-token", envvar="ZWATCH_INSECURE_NO_TOKEN", help="Allow an address that other machines can reach without a token.")  # fmt: skip
@_option("--allowed-host", "allowed_hosts", envvar="ZWATCH_ALLOWED_HOST", type=options.ListOf(options.host_name), multiple=True, metavar="NAME", help="Another name by which clients may reach the service. May be repeated.")  # fmt: skip
@_option("--queue", envvar="ZWATCH_QUEUE", type=values.whole_number(1), default="64", metavar="N", help="How many requests may wait.")  # fmt: skip
@_option("--timeout", envvar="ZWATCH_TIMEOUT", type=values.positive("seconds"), default="600", metavar="SECONDS", help="Seconds that one request may take, waiting included.")  # fmt: skip
@_option("--stall-timeout", envvar="ZWATCH_STALL_TIMEOUT", type=values.positive("seconds"), show_default="600, on a GPU 120", metavar="SECONDS", help="Seconds without a step after which a generation hangs: it is given up, and if that is not possible, the service ends with status 1.")  # fmt: skip
@options.probation_option
@_option("--max-work", envvar="ZWATCH_MAX_WORK", type=values.positive("megapixel-steps"), default="600", metavar="N", help="Most megapixels x steps x images that one request may ask for.")  # fmt: skip
@_option("--output-dir", envvar="ZWATCH_OUTPUT_DIR", type=options.path, default="output_image", metavar="DIR", help="Where every image is kept, for the history.")  # fmt: skip
@_switch("--no-history", "history", envvar="ZWATCH_NO_HISTORY", callback=lambda _, __, given: not given, help="Keep no image.")  # fmt: skip
@_option("--history-max-images", envvar="ZWATCH_HISTORY_MAX_IMAGES", type=values.whole_number(1), show_default="no limit", metavar="N", help="Delete the oldest images beyond this number. --no-history keeps none.")  # fmt: skip
@_option("--history-max-bytes", envvar="ZWATCH_HISTORY_MAX_BYTES", type=values.size, show_default="no limit", metavar="SIZE", help="Delete the oldest images beyond this size, such as 20G.")  # fmt: skip
@_option("--require-signature", envvar="ZWATCH_REQUIRE_SIGNATURE", type=options.path, metavar="POLICY", help="Load only versions whose signature this TOML file allows; see docs/signing.md.")  # fmt: skip
@_switch("--takeover", envvar="ZWATCH_TAKEOVER", help="Take over from the zwatch that uses the state directory, without a gap: load beside it, then it ends.")  # fmt: skip
@_option("--log", envvar="ZWATCH_LOG", type=click.Choice(["text", "json"]), default=config.default_log, show_default="text on a terminal, else json", help="Log format.")  # fmt: skip
def _serve(port: int | None, **settings: Any) -> int:
    """Serve the version that models/current points to."""
    import asyncio
    import logging

    from zwatch import logwriter

    with logwriter.queued(settings["log"]):
        with _quickly():
            from zwatch.listening import passed
            from zwatch.serving import end_at_once, serve

        context = click.get_current_context()
        host, asked_port = options.asked(context, "host", settings["host"]), options.asked(context, "port", port)
        if port is None:
            port = config.DEFAULT_PORT
            logging.getLogger(__name__).warning(
                "ZWATCH_PORT=%s is ignored, because Kubernetes sets it for a Service named zwatch; the port is %d",
                os.environ["ZWATCH_PORT"],
                port,
            )
        if (given := passed()).sockets:
            settings["passed_hosts"] = given.addresses
            settings["host"], port = given.address(host, asked_port)
        settings["token_file"] = options.token_file(context)
        ended = asyncio.run(serve(config.Config(port=port, **settings).with_local_replicas(), given))
    status = 0 if ended.failure is None else service_commands.failed(str(ended.failure), ended.failure.status)
    # CUDA aborts when it frees a lost device.
    if ended.lingering or (ended.failure is not None and ended.failure.is_crash):
        end_at_once(status)
    return status


@contextlib.contextmanager
def _quickly() -> Iterator[None]:
    """Import inside what the first answer waits for, without what would take a tenth of that time each: looking for garbage among
    the libraries' objects, and reading the system's certificates for aiohttp's client, which the service does not use."""
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR")
    before = {name: os.environ[name] for name in names if name in os.environ}
    os.environ.update(dict.fromkeys(names, os.devnull))
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        for name in names:
            del os.environ[name]
        os.environ.update(before)


for _command in (*service_commands.COMMANDS, *drawing_commands.COMMANDS):
    commands.add_command(_command)


class _Import(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Let `--lora` stand without a value: what follows it is one if it is a scale or FILE:SCALE."""
        given = []
        for this, following in zip(args, [*args[1:], ""], strict=True):
            given.append("--lora=1" if this == "--lora" and not values.is_lora_value(following) else this)
        return super().parse_args(ctx, given)


@commands.command("import", cls=_Import)
@click.argument("source", type=options.path, help="A pipeline's directory, a hub's cache, a file of weights, a LoRA.")
@click.argument("name", type=options.new_version, help="The new version's name, such as v2.")
@_option("--models", envvar="ZWATCH_MODELS", type=options.directory, default="models", metavar="DIR", help="The models root.")  # fmt: skip
@_option("--base", envvar="ZWATCH_IMPORT_BASE", type=options.base, metavar="VERSION", help="Take what SOURCE lacks from this version, without copying where possible.")  # fmt: skip
@_option("--dtype", envvar="ZWATCH_IMPORT_DTYPE", type=click.Choice(["bf16", "fp16"]), default="bf16", help="What is stored in fp32 becomes this.")  # fmt: skip
@_switch("--keep-dtype", envvar="ZWATCH_IMPORT_KEEP_DTYPE", help="Convert nothing.")
@_option("--lora", envvar="ZWATCH_IMPORT_LORA", type=options.ListOf(values.lora), multiple=True, metavar="[[FILE:]SCALE]", help="SOURCE is a LoRA: without --base it is kept in the LoRA root, for requests; with one it is merged with this scale, 1 if none is given. Or this file is one more to merge, may be repeated.")  # fmt: skip
@options.loras_option
@options.sign_option
@_switch("--deploy", envvar="ZWATCH_IMPORT_DEPLOY", help="Then repoint an alias to it and wait until it serves.")
@_option("--alias", envvar="ZWATCH_DEPLOY_ALIAS", type=options.alias_name, default="current", metavar="NAME", help="The symlink that --deploy repoints.")  # fmt: skip
@service_commands.calls_service
def _import(source: Path, name: str, *, deploy: bool, alias: str, as_json: bool, url: str, token: str | None, **asked: Any) -> int:  # fmt: skip
    """Make a sealed version of what people have: a published pipeline, a cache, ComfyUI's files, a training run, a LoRA."""
    from zwatch.importing.command import import_version

    if name == alias:
        raise UsageError(
            f"NAME and --alias are both {name!r}; an alias is a link to a version, give the version another name"
        )
    if deploy:
        _check_service(name, url, token)
    ending = Ending()
    import_version(source, name, as_json=as_json, deploys=deploy, ending=ending, **asked)
    if not deploy:
        return 0
    return _deploy_imported(name, alias, ending, url=url, token=token, as_json=as_json, models=asked["models"])


def _check_service(name: str, url: str, token: str | None) -> None:
    """Check, before anything is written, that a service answers which can deploy it."""
    from zwatch import client

    try:
        status, found = client.Service(url, token).get("/versions")
    except UsageError as error:
        raise UsageError(
            f"{error}; nothing was imported: import {name} without --deploy if it shall not be served"
        ) from None
    if status >= 400:
        raise UsageError(f"the service at {url} cannot be asked: {client.message(found)}; nothing was imported")


def _deploy_imported(
    name: str, alias: str, ending: Ending, *, url: str, token: str | None, as_json: bool, models: Path
) -> int:
    """Deploy what was just imported; whatever becomes of that, say that it is there."""
    link, has_asked = models / alias, False
    by_hand = f"repoint the link yourself: ln -sfn {name} {link}"
    try:
        ending.go_on()
        has_asked = True
        status, found = service_commands.asked(
            "/api/deploy", {"version": name, "alias": alias, "wait": True}, url=url, token=token
        )
        ending.put_off()
    except UsageError as error:
        raise UsageError(f"{name} is imported, but not deployed: {error}; start the service, or {by_hand}") from None
    except KeyboardInterrupt as interrupt:
        goes_on = f"a deploy of it that has begun goes on without this command: {service_commands.seen(url)}"
        return service_commands.failed(f"interrupted; {name} is imported; {goes_on if has_asked else f'deploy it, or {by_hand}'}", status_of(interrupt))  # fmt: skip
    answered = service_commands.answer("/api/deploy", status, found, as_json=as_json)
    if status == 404:
        service_commands.failed(f"{name} is imported into {models.absolute()}; does the service at {url} serve another models root? See --url and --models", 1)  # fmt: skip
    elif status >= 300:
        leads = link.is_symlink() and os.readlink(link).rstrip("/") == name
        service_commands.failed(f"{name} is imported, {f'and {link} leads to it, but it does not serve' if leads else f'but not deployed; {by_hand}'}", 1)  # fmt: skip
    return answered


for _command in version_commands.COMMANDS:
    commands.add_command(_command)


@commands.command("systemd-unit")
@_switch("--socket", "is_socket", envvar="ZWATCH_SYSTEMD_UNIT_SOCKET", help="Print zwatch.socket instead of zwatch.service.")  # fmt: skip
@_switch("--takeover", envvar="ZWATCH_SYSTEMD_UNIT_TAKEOVER", help="Print the template zwatch@.service, whose instances take over from each other, or its socket.")  # fmt: skip
@_switch("--node", "is_node", envvar="ZWATCH_SYSTEMD_UNIT_NODE", help="Print zwatch-node.service, a node of a fleet's Ray cluster; see docs/fleet.md.")  # fmt: skip
def _systemd_unit(*, is_socket: bool, takeover: bool, is_node: bool) -> int:
    """Print a systemd unit that runs this installation; its comments say how to install it."""
    from zwatch import unit

    if is_node and (is_socket or takeover):
        raise UsageError("--node prints one unit, which has no socket and no template: use it alone")
    if is_node:
        print(unit.node_text(Path(sys.executable).parent), end="")
    elif is_socket:
        print(unit.socket_text(takeover=takeover), end="")
    else:
        print(unit.text(Path(sys.executable).parent, takeover=takeover), end="")
    return 0
