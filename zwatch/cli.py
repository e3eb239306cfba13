"""The command line: `zwatch serve` and what goes with it."""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zwatch import __version__, client, config, logs
from zwatch.deploy import seal
from zwatch.deploy.versions import is_version_name
from zwatch.errors import Rejection, UsageError
from zwatch.progress import Progress


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0 done, 1 decided against or failed, 2 wrongly called."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except UsageError as error:
        print(f"zwatch: {error}", file=sys.stderr)
        return 2
    except (Rejection, OSError) as error:
        print(f"zwatch: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zwatch", description="Serve a text-to-image model that is deployed by a symlink."
    )
    parser.add_argument("--version", action="version", version=f"zwatch {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_client_commands(commands)
    _add_directory_commands(commands)
    return parser


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser("serve", help="serve what models/current points to", description="Each option is also an environment variable, ZWATCH_HOST for --host and so on.")  # fmt: skip
    environment = os.environ.get
    serve.add_argument("--models", type=Path, default=environment("ZWATCH_MODELS", "models"), metavar="DIR", help="the models root (%(default)s)")  # fmt: skip
    serve.add_argument("--alias", action="append", metavar="NAME", help="another symlink to follow beside `current`; may be repeated")  # fmt: skip
    serve.add_argument("--strict-links", action="store_true", default=_flag("ZWATCH_STRICT_LINKS"), help="never repoint a link after `ln -sf v2 current`, only say so")  # fmt: skip
    serve.add_argument("--host", default=environment("ZWATCH_HOST", config.DEFAULT_HOST), help="address to listen at (%(default)s)")  # fmt: skip
    serve.add_argument("--port", type=_whole, default=environment("ZWATCH_PORT", str(config.DEFAULT_PORT)), help="port to listen at, 0 for any (%(default)s)")  # fmt: skip
    serve.add_argument("--device", default=environment("ZWATCH_DEVICE", "auto"), help="auto, cpu, cuda, cuda:1 (%(default)s)")  # fmt: skip
    serve.add_argument("--memory-budget", type=_bytes, default=environment("ZWATCH_MEMORY_BUDGET"), metavar="SIZE", help="most device memory that weights may take, such as 60G (what is free)")  # fmt: skip
    serve.add_argument("--state-dir", type=Path, default=config.state_directory(), metavar="DIR", help="where last-known-good is remembered (%(default)s)")  # fmt: skip
    serve.add_argument("--token-file", type=Path, default=environment("ZWATCH_TOKEN_FILE"), metavar="FILE", help="file with the token that calls need")  # fmt: skip
    serve.add_argument("--insecure-no-token", action="store_true", default=_flag("ZWATCH_INSECURE_NO_TOKEN"), help="allow an address that others reach without a token")  # fmt: skip
    serve.add_argument("--allowed-host", action="append", metavar="NAME", help="another name that clients may reach the service by; may be repeated")  # fmt: skip
    serve.add_argument("--queue", type=_whole, default=environment("ZWATCH_QUEUE", "64"), help="how many requests may wait (%(default)s)")  # fmt: skip
    serve.add_argument("--timeout", type=float, default=environment("ZWATCH_TIMEOUT", "600"), help="seconds that a request may take in all (%(default)s)")  # fmt: skip
    serve.add_argument("--max-work", type=float, default=environment("ZWATCH_MAX_WORK", "600"), metavar="N", help="most megapixels x steps x images that one request may ask for (%(default)s)")  # fmt: skip
    serve.add_argument("--output-dir", type=Path, default=environment("ZWATCH_OUTPUT_DIR", "output_image"), metavar="DIR", help="where every image is kept, for the history (%(default)s)")  # fmt: skip
    serve.add_argument("--no-history", action="store_true", default=_flag("ZWATCH_NO_HISTORY"), help="keep no image")  # fmt: skip
    serve.add_argument("--history-max-images", type=_whole, default=environment("ZWATCH_HISTORY_MAX_IMAGES"), metavar="N", help="delete the oldest images beyond this number (no limit)")  # fmt: skip
    serve.add_argument("--history-max-bytes", type=_bytes, default=environment("ZWATCH_HISTORY_MAX_BYTES"), metavar="SIZE", help="delete the oldest images beyond this size, such as 20G (no limit)")  # fmt: skip
    serve.add_argument("--log", choices=("text", "json"), default=config.default_log(), help="log format (text on a terminal, else json)")  # fmt: skip
    serve.set_defaults(run=_serve)


def _add_client_commands(commands: Any) -> None:
    def add(name: str, run: Any, help_text: str) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = commands.add_parser(name, help=help_text)
        command.add_argument("--url", default=os.environ.get("ZWATCH_URL", config.DEFAULT_URL), help="where the service is (%(default)s)")  # fmt: skip
        command.add_argument("--token-file", type=Path, default=os.environ.get("ZWATCH_TOKEN_FILE"), metavar="FILE", help="file with the token")  # fmt: skip
        command.add_argument("--json", action="store_true", help="print what the HTTP call answers")
        command.set_defaults(run=run)
        return command

    deploy = add("deploy", _deploy, "repoint an alias to a version and wait until it serves")
    deploy.add_argument("version")
    deploy.add_argument("--alias", default="current")
    deploy.add_argument("--no-wait", action="store_true", help="repoint only")
    rollback = add("rollback", _rollback, "go back to the version that served before")
    rollback.add_argument("--alias", default="current")
    add("status", lambda options: _show(options, "/status", client.status_lines), "say what serves")
    add("list", lambda options: _show(options, "/versions", client.version_lines), "list the versions")
    add("attempts", lambda options: _show(options, "/attempts", client.attempt_lines), "list the last attempts")


def _add_directory_commands(commands: Any) -> None:
    sealing = commands.add_parser("seal", help="stamp the transformer, hash every file, write BLAKE3SUMS")
    sealing.add_argument("directory", type=Path)
    sealing.add_argument("--version", help="the version's name (the directory's)")
    sealing.set_defaults(run=_seal)
    verifying = commands.add_parser("verify", help="compare every file with the seal")
    verifying.add_argument("directory", type=Path)
    verifying.add_argument("--json", action="store_true", help="print the findings as JSON")
    verifying.set_defaults(run=_verify)
    checking = commands.add_parser("check", help="verify, load and warm a version without serving it")
    checking.add_argument("directory", type=Path)
    checking.add_argument(
        "--device", default=os.environ.get("ZWATCH_DEVICE", "auto"), help="auto, cpu, cuda (%(default)s)"
    )
    checking.add_argument("--json", action="store_true", help="print the finding as JSON")
    checking.set_defaults(run=_check)


def _serve(options: argparse.Namespace) -> int:
    from zwatch.app import serve  # the other commands need no server

    environment = os.environ.get
    aliases = options.alias or environment("ZWATCH_ALIAS", "").split()
    for alias in aliases:
        if not is_version_name(alias):
            raise UsageError(f"--alias {alias!r}: 1-64 of A-Za-z0-9._-, not starting with . or -")
    settings = config.Config(
        models=Path(options.models),
        aliases=tuple(dict.fromkeys(["current", *aliases])),
        strict_links=options.strict_links,
        device=options.device,
        memory_budget=options.memory_budget,
        state_dir=options.state_dir,
        host=options.host,
        port=options.port,
        token=config.read_token(options.token_file and Path(options.token_file)),
        insecure_no_token=options.insecure_no_token,
        allowed_hosts=tuple(options.allowed_host or environment("ZWATCH_ALLOWED_HOST", "").split()),
        queue=options.queue,
        timeout=options.timeout,
        max_work=options.max_work,
        history=not options.no_history,
        output_dir=options.output_dir,
        history_max_images=options.history_max_images,
        history_max_bytes=options.history_max_bytes,
        log=options.log,
    )
    logs.set_up(settings.log)
    asyncio.run(serve(settings))
    return 0


def _service(options: argparse.Namespace) -> client.Service:
    return client.Service(options.url, config.read_token(options.token_file and Path(options.token_file)))


def _deploy(options: argparse.Namespace) -> int:
    body = {"version": options.version, "alias": options.alias, "wait": not options.no_wait}
    return _change(options, "/api/deploy", body)


def _rollback(options: argparse.Namespace) -> int:
    return _change(options, "/api/rollback", {"alias": options.alias})


def _change(options: argparse.Namespace, path: str, body: dict[str, Any]) -> int:
    service = _service(options)
    with client.followed(service, options.alias):
        status, found = service.post(path, body)
    if options.json:
        print(json.dumps(found, ensure_ascii=False))
    elif status < 300:
        took = f" after {found['seconds']:.2f} s" if "seconds" in found else ""
        print(f"{found['message']}{took}")
    else:
        print(f"zwatch: {client.message(found)}", file=sys.stderr)
    return 0 if status < 300 else 1


def _show(options: argparse.Namespace, path: str, lines: Any) -> int:
    status, found = _service(options).get(path)
    if options.json:
        print(json.dumps(found, ensure_ascii=False))
    elif status < 300:
        print("\n".join(lines(found)))
    else:
        print(f"zwatch: {client.message(found)}", file=sys.stderr)
    return 0 if status < 300 else 1


def _seal(options: argparse.Namespace) -> int:
    directory = _directory(options)
    version = options.version or directory.name
    if not is_version_name(version):
        raise UsageError(f"{version!r} cannot name a version: 1-64 of A-Za-z0-9._-, not starting with . or -")
    paths = seal.sealable_files(directory)
    with Progress("sealing", sum((directory / path).stat().st_size for path in paths)) as progress:
        sealed = seal.write_seal(directory, version, progress.advance)
    print(f"{directory}: sealed {version}, {len(sealed.files)} files, digest {sealed.digest}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    directory = _directory(options)
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    with Progress("verifying", size) as progress:
        findings = seal.check_directory(directory, directory.name, progress.advance)
    return _report(options, directory, findings, "verified")


def _check(options: argparse.Namespace) -> int:
    directory = _directory(options)
    logs.set_up("text")
    from zwatch.engine.check import check_version  # torch takes seconds; say what is wrong with the call first

    with Progress("checking", None) as progress:
        findings, details = check_version(directory, options.device, progress.update)
    return _report(options, directory, findings, f"would serve ({details})" if not findings else "")


def _report(options: argparse.Namespace, directory: Path, findings: list[str], good: str) -> int:
    if options.json:
        print(json.dumps({"version": directory.name, "ok": not findings, "findings": findings}, ensure_ascii=False))
    elif findings:
        print("\n".join(findings))
    else:
        print(f"{directory}: {good}")
    return 1 if findings else 0


def _directory(options: argparse.Namespace) -> Path:
    directory = Path(options.directory).resolve()  # `zwatch seal .` has a name too
    if not directory.is_dir():
        raise UsageError(f"{options.directory}: there is no such directory")
    return directory


def _flag(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "on")


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None


def _bytes(text: str) -> int:
    scale = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:].upper(), 1)
    try:
        return int(float(text[:-1] if scale > 1 else text) * scale)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"expected bytes such as 60G, got {text!r}") from None
