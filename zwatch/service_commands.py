"""The commands that call a running service: what it serves, and changes of it.

What takes long to import is imported by the command that needs it.
"""

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from zwatch import config, options, values
from zwatch.errors import UsageError, status_of

_Command = Callable[..., int]


def calls_service(command: _Command) -> _Command:
    """Give a command the options that all commands have which call a service and print what it answers."""
    return reaches_service(options.json_switch(command))


def reaches_service(command: _Command) -> _Command:
    """Give a command the options that say where the service is."""
    url = options.option("--url", envvar="ZWATCH_URL", type=options.service_url, default=config.DEFAULT_URL, metavar="URL", help="Where the service is.")  # fmt: skip
    token = options.option("--token-file", "token", envvar="ZWATCH_TOKEN_FILE", type=options.path, callback=options.read_token, metavar="FILE", help="File with the token, else ZWATCH_TOKEN.")  # fmt: skip
    return url(token(command))


# ZWATCH_ALIAS and others that set up the service must not move the deploys of a shell that shares its environment.
@click.command("deploy")
@click.argument("version", type=options.version_argument, help="A version's name, such as v2.")
@options.option("--alias", envvar="ZWATCH_DEPLOY_ALIAS", type=options.alias_name, default="current", metavar="NAME", help="The symlink to repoint.")  # fmt: skip
@options.switch("--no-wait", envvar="ZWATCH_DEPLOY_NO_WAIT", help="Repoint only.")
@calls_service
def _deploy(version: str, alias: str, *, no_wait: bool, **service: Any) -> int:
    """Repoint an alias to a version and wait until it serves."""
    return change("/api/deploy", {"version": version, "alias": alias, "wait": not no_wait}, **service)


@click.command("rollback")
@options.option("--alias", envvar="ZWATCH_ROLLBACK_ALIAS", type=options.alias_name, default="current", metavar="NAME", help="The symlink to repoint.")  # fmt: skip
@calls_service
def _rollback(alias: str, **service: Any) -> int:
    """Go back to the version that served before."""
    return change("/api/rollback", {"alias": alias}, **service)


@click.command("share")
@click.argument("words", nargs=-1, metavar="[VERSION PERCENT | PERCENT | end | promote]", help="The version to try and its part of the requests, or only the part (0 holds the version ready); `end` ends the trial, `promote` deploys the version. Nothing: show the trial.")  # fmt: skip
@options.option("--alias", envvar="ZWATCH_SHARE_ALIAS", type=options.alias_name, default="current", metavar="NAME", help="The symlink whose requests are shared.")  # fmt: skip
@options.switch("--no-wait", envvar="ZWATCH_SHARE_NO_WAIT", help="Change the link only.")
@calls_service
def _share(words: tuple[str, ...], alias: str, *, no_wait: bool, **service: Any) -> int:
    """Try a version on a part of an alias's requests, and show how the trial goes."""
    if not words:
        return _show_trial(alias, **service)
    path, body = _share_change(words)
    return change(path, {**body, "alias": alias, "wait": not no_wait}, **service)


def _show_trial(alias: str, *, url: str, token: str | None, as_json: bool) -> int:
    """Print what both sides of a trial have drawn, after the state of the share."""
    from urllib.parse import urlencode

    from zwatch import client

    service = client.Service(url, token)
    status, found = service.get(f"/api/trial?{urlencode({'alias': alias})}")
    if status < 300 and not as_json:
        print("".join(f"{line}\n" for line in client.share_lines(service.get("/status")[1], alias)), end="")
    return answer("/api/trial", status, found, as_json=as_json)


def _share_change(words: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """Return the call that these words ask for, and the fields of its body that they say.

    Raises:
        UsageError: they ask for nothing that there is.
    """
    match words:
        case ("end",):
            return "/api/share", {"percent": None}
        case ("promote",):
            return "/api/promote", {}
        case (percent,) if percent.rstrip("%").lstrip("+-").isdecimal():
            return "/api/share", {"percent": _percent(percent)}
        case (version,):
            raise UsageError(
                f"how many percent of the requests {version!r} shall get is missing, such as `zwatch share {version} 10` "
                "(see zwatch share --help)"
            )
        case (version, percent):
            return "/api/share", {"version": options.version_argument(version), "percent": _percent(percent)}
    raise UsageError(f"expected a version and a percentage, got {' '.join(words)!r} (see zwatch share --help)")


def _percent(text: str) -> int:
    try:
        return values.whole_number(0, 100)(text.removesuffix("%"))
    except ValueError:
        raise UsageError(
            f"expected a percentage, a whole number from 0 to 100, got {text!r} (see zwatch share --help)"
        ) from None


@click.command("status")
@calls_service
def _status(**service: Any) -> int:
    """Show what serves."""
    return show("/status", **service)


# ZWATCH_MODELS, which sets up the service, must not keep this command from asking it.
@click.command("list")
@options.option("--models", envvar="ZWATCH_LIST_MODELS", type=options.directory, show_default="ask the service", metavar="DIR", help="List this models root without a service.")  # fmt: skip
@options.switch("--lora", "is_of_loras", envvar="ZWATCH_LIST_LORA", help="List the LoRAs that requests can name instead; without a service those beside this models root.")  # fmt: skip
@calls_service
def _list(models: Path | None, *, is_of_loras: bool, **service: Any) -> int:
    """List the versions: what each was made from, and why one was rejected."""
    path = "/loras" if is_of_loras else "/versions"
    if models is None:
        return show(path, **service)
    from zwatch import offline

    found = offline.loras(config.lora_root(models)) if is_of_loras else offline.versions(models)
    return answer(path, 200, found, as_json=service["as_json"])


@click.command("attempts")
@calls_service
def _attempts(**service: Any) -> int:
    """List the last attempts."""
    return show("/attempts", **service)


def change(path: str, body: dict[str, Any], *, url: str, token: str | None, as_json: bool) -> int:
    """Ask the service for a change of what serves, wait for its end, and print the answer."""
    try:
        status, found = asked(path, body, url=url, token=token)
    except KeyboardInterrupt as interrupt:
        what = path.rpartition("/")[2]
        return failed(
            f"interrupted; a {what} that has begun goes on without this command: {seen(url)}", status_of(interrupt)
        )
    return answer(path, status, found, as_json=as_json)


def asked(path: str, body: dict[str, Any], *, url: str, token: str | None) -> tuple[int, dict[str, Any]]:
    """Return what the service answers once a deploy or a rollback has ended."""
    from zwatch.client import Service
    from zwatch.load_progress import followed

    service = Service(url, token)
    with followed(service, body["alias"], of_share=path == "/api/share"):
        return service.post(path, body)


def seen(url: str) -> str:
    """Say where to see what becomes of a deploy. Whether the service has the request already is not known after an interrupt."""
    return f"see `zwatch status{'' if url == config.DEFAULT_URL else f' --url {url}'}`"


def show(path: str, *, url: str, token: str | None, as_json: bool) -> int:
    """Print what the service answers to a GET."""
    from zwatch import client

    status, found = client.Service(url, token).get(path)
    return answer(path, status, found, as_json=as_json)


def answer(path: str, status: int, body: dict[str, Any], *, as_json: bool) -> int:
    """Print what the service answered, and return the exit status."""
    from zwatch import client

    if as_json:
        print(json.dumps(body, ensure_ascii=False))
    elif status < 300:
        print("\n".join(client.shown(path, body)))
    else:
        return failed(client.message(body), 1)
    return 0 if status < 300 else 1


def failed(reason: str, status: int) -> int:
    """Say why on standard error, and return the exit status."""
    import logging

    from zwatch import logs

    with contextlib.suppress(OSError):  # it may be a pipe that nobody reads any more, or a full disk
        print(logs.with_priority(f"zwatch: {reason}", logging.ERROR), file=sys.stderr)
    return status


COMMANDS = (_deploy, _rollback, _share, _status, _list, _attempts)
"""In the order in which `--help` shows them."""
