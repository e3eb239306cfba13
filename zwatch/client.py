"""Calls a running service for the command line, and turns its answers into lines for a terminal."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from zwatch.config import is_loopback
from zwatch.errors import UsageError
from zwatch.replica_table import replica_lines

_ANSWER_SECONDS = 3600.0  # a deploy waits for its load, however slow the disk is


class Service:
    """A running zwatch, reached by HTTP. Proxies (`http_proxy`) are not asked for a service on this machine."""

    def __init__(self, url: str, token: str | None) -> None:
        self._url = url.rstrip("/")
        local = is_loopback(urlsplit(url).hostname or "")
        self._opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if local else []))
        self._headers: dict[str, Any] = {"Accept": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}".encode()  # `http.client` would take it for Latin-1

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Return (status, body) of a GET.

        Raises:
            UsageError: no zwatch answers there.
        """
        return self._call(urllib.request.Request(f"{self._url}{path}", headers=self._headers))

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return (status, body) of a POST with a JSON body.

        Raises:
            UsageError: no zwatch answers there.
        """
        headers = {**self._headers, "Content-Type": "application/json"}
        return self._call(urllib.request.Request(f"{self._url}{path}", json.dumps(body).encode(), headers))

    def open(self, path: str, body: bytes, headers: dict[str, str], patience: float) -> Any:
        """Return the answer to a POST, whatever its status, as soon as its headers are there; it must be closed. `patience` is how
        many seconds may pass without a byte.

        Raises:
            UsageError: no zwatch answers there.
        """
        with self._reached():
            return self._opened(
                urllib.request.Request(f"{self._url}{path}", body, {**self._headers, **headers}), patience
            )

    def parsed(self, raw: bytes) -> dict[str, Any]:
        """Return an answer's body.

        Raises:
            UsageError: it is not zwatch's.
        """
        return _parsed(raw, self._url)

    @property
    def url(self) -> str:
        """The URL, without a slash at its end."""
        return self._url

    def _call(self, request: urllib.request.Request) -> tuple[int, dict[str, Any]]:
        with self._reached(), self._opened(request, _ANSWER_SECONDS) as response:
            status, body = response.status, response.read()
        return status, _parsed(body, self._url)

    def _opened(self, request: urllib.request.Request, patience: float) -> Any:
        try:
            return self._opener.open(request, timeout=patience)
        except urllib.error.HTTPError as error:  # an answer too, of status 400 or above
            return error

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise UsageError(
                f"no service at {self._url}: {reason}; start it with `zwatch serve`, or see --url"
            ) from None


def message(body: dict[str, Any]) -> str:
    """Return the sentence in an error answer."""
    error = body.get("error")
    return str(error["message"]) if isinstance(error, dict) and "message" in error else json.dumps(body)


def shown(path: str, body: dict[str, Any]) -> list[str]:
    """Return the lines that show what the service answered at a path.

    Raises:
        UsageError: zwatch does not answer so.
    """
    try:
        return _LINES[path](body)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(
            f"the answer to {path} is not zwatch's, or another version's ({error!r}); see --url and --json"
        ) from None


def _change_lines(body: dict[str, Any]) -> list[str]:
    """Return the line that shows how a deploy or a rollback ended."""
    took = f" after {body['seconds']:.2f} s" if "seconds" in body else ""
    return [f"{body['message']}{took}"]


def _status_lines(status: dict[str, Any]) -> list[str]:
    """Return the lines that show the status."""
    serving = status["serving"]
    what = (
        f"{serving['version']} serves since {serving['since']}, {serving['images']} images"
        if serving
        else "nothing serves"
    )
    lines = [f"{status['status']}: {what}", *(f"  {reason}" for reason in status["reasons"])]
    if serving and serving.get("signer"):
        lines.append(f"  signed by {serving['signer']}")
    for name, alias in status["aliases"].items():
        attempt = alias["attempt"]
        how = f", last attempt {attempt['version']} {attempt['state']} in {attempt['seconds']:.2f} s" if attempt else ""
        lines.append(f"  {name} -> {alias['link']}{how}")
    for name, share in status.get("shares", {}).items():
        problem = f": {share['fault']['message']}" if share["fault"] else ""
        attempt = share["attempt"]
        how = f", last attempt {attempt['version']} {attempt['state']} in {attempt['seconds']:.2f} s" if attempt else ""
        where = f" -> {share['link']}" if share["link"] else ""
        lines.append(f"  {name}{where}{how}{problem}")
    lines += [f"  stray {stray['path']} -> {stray['text']}: {stray['reason']}" for stray in status["strays"]]
    lines += [
        f"  {one['version']} {one['state']}, {one['leases']} leases, {one['bytes']:,} bytes"
        for one in status["engines"]
    ]
    if replicas := status.get("replicas"):  # an older service has none
        lines += [f"  {line}" for line in replica_lines(replicas)]
    queue = status["queue"]
    return [*lines, f"  queue: {queue['waiting']} waiting, {queue['running']} running, room for {queue['limit']}"]


def share_lines(status: dict[str, Any], alias: str) -> list[str]:
    """Return the lines that show the shares of an alias as they are now, of a status."""
    lines = []
    for name, one in status.get("shares", {}).items():
        if one["alias"] != alias:
            continue
        attempt = one["attempt"]
        if one["fault"]:
            how = one["fault"]["message"]
        elif one["target"] is not None and one["serving"] == one["target"]:
            how = f"draws {one['percent']} % of the requests for {alias}" if one["percent"] else "is held ready"
        elif attempt is None or attempt["version"] != one["target"] or attempt["state"] == "PROMOTED":
            how = "is not ready yet"
        else:
            how = f"{attempt['state']} {attempt['reason'] or ''}".rstrip()
        words = _still_drawn(one) or _missed(status, one["serving"])
        lines.append(f"{name} -> {one['link'] or '?'}: {how}{words}")
    return lines


def _still_drawn(share: dict[str, Any]) -> str:
    """Return the words about the version that a share serves until what its link leads to is ready, "" if there is none."""
    serving = share["serving"]
    if serving in (None, share["target"]) or not share["counts"] or not share["percent"]:
        return ""
    return f"; {serving} still draws {share['percent']} %"


def _missed(status: dict[str, Any], version: str | None) -> str:
    """Return what a line about a share ends with: the golden images that the version missed which it serves."""
    golden = next(
        (one["golden"] for one in status.get("engines", ()) if one["version"] == version and one["golden"]), None
    )
    if golden is None or not golden["missed"]:
        return ""
    return f"; {version} missed {golden['missed']} of {golden['checked']} golden images"


def _trial_lines(body: dict[str, Any]) -> list[str]:
    """Return the lines that show a trial: what both sides have drawn, each figure with its interval where there is one."""
    alias, share, sides = body["alias"], body["share"], body["sides"]
    if not sides:
        return [body["conclusion"]]
    rows = [("", [f"{side['version']} ({side['share'] or alias})" for side in sides])]
    rows += [(name, [f"{side[name]:,}" for side in sides]) for name in ("requests", "failures")]
    rows.append(("latency", [_interval(side["latency"], "median", "{:.2f} s".format) for side in sides]))
    rows.append(("votes", [_votes(side["votes"]) for side in sides]))
    width = max(len(text) for _, texts in rows for text in texts)
    lines = [f"  {name:<8}  {'  '.join(text.ljust(width) for text in texts)}".rstrip() for name, texts in rows]
    ended = f", which ended {body['ended']}" if body.get("ended") else ""
    return [
        f"{share or alias}: the trial of {sides[-1]['version']}{ended}",
        *lines,
        "  in brackets: 95 % confidence",
        body["conclusion"],
    ]


def _votes(votes: dict[str, Any] | None) -> str:
    if not votes or not votes["up"] + votes["down"]:
        return "-"
    return f"{votes['up']} of {votes['up'] + votes['down']} up, {_interval(votes, 'share', '{:.0%}'.format)}"


def _interval(found: dict[str, Any] | None, name: str, shown: Callable[[float], str]) -> str:
    """Return a value with its interval, "-" where there is none."""
    if not found or found[name] is None:
        return "-"
    between = "" if found["low"] is None else f" [{shown(found['low'])} - {shown(found['high'])}]"
    return f"{shown(found[name])}{between}"


def _version_lines(body: dict[str, Any]) -> list[str]:
    """Return the lines that show the versions; under each what is wrong with it and where it comes from."""
    lines = []
    for one in body["versions"]:
        marks = [mark for mark in ("serving", "resident") if one[mark]][:1] + [
            f"<- {_quoted(alias)}" for alias in one["aliases"]
        ]
        seal = one["digest"][:12] if one["sealed"] else one["problem"] or "not sealed"
        lines.append(f"{one['name']:<20} {one['bytes']:>16,} bytes  {seal}  {' '.join(marks)}".rstrip())
        if one["sealed"] and one.get("problem"):
            lines.append(f"  problem: {one['problem']}")
        if one.get("signer"):
            lines.append(f"  signed by {one['signer']}")
        if (rejected := one.get("rejected")) is not None:
            lines.append(f"  rejected {rejected['when']}: {rejected['code']}: {rejected['reason']}")
        if facts := provenance_facts(one.get("provenance") or {}):
            lines.append(f"  {', '.join(facts)}")
    lines += [f"{_quoted(one['name'])}: no version: {one['reason']}" for one in body.get("unusable", ())]
    problem = [body["problem"]] if body.get("problem") else []  # an older service has none
    return problem + lines or ["there are no versions"]


def _lora_lines(body: dict[str, Any]) -> list[str]:
    """Return the lines that show the LoRAs; under each what is wrong with it."""
    lines = []
    for one in body["loras"]:
        mark = "  resident" if one["resident"] else ""
        seal = f"{one['digest'][:12]}  rank {one['rank']}" if one["problem"] is None else one["code"]
        lines.append(f"{one['name']:<20} {one['bytes']:>16,} bytes  {seal}{mark}")
        if one["problem"] is not None:
            lines.append(f"  problem: {one['problem']}")
        if one["signer"]:
            lines.append(f"  signed by {one['signer']}")
    problem = [body["problem"]] if body["problem"] else []
    return problem + lines or ["there are no LoRAs; `zwatch import FILE NAME --lora` makes one"]


def provenance_facts(found: dict[str, Any]) -> list[str]:
    """Return the parts of the line that says what a version was made from, of a `zwatch.json`."""
    facts = []
    if source := found.get("source"):
        name = source.get("repository") or source["name"]
        revision = f" {source['revision'][:12]}" if "revision" in source else ""
        count = len(source.get("files", ()))
        files = f", {count} file{'' if count == 1 else 's'}" if count else ""
        facts.append(f"from {name}{revision} ({source['kind'].replace('_', ' ')}{files})")
    if base := found.get("base"):
        facts.append(f"the rest from {base['version']} {base['digest'][:12]}")
    facts += [f"LoRA {lora['name']} {lora['blake3'][:12]} x {lora['scale']:g}" for lora in found.get("loras", ())]
    facts += [f"{one['component']} {one['from']} -> {one['to']}" for one in found.get("conversions", ())]
    for key, text in (("quantization", "quantized to {}"), ("licence", "licence {}"), ("created", "made {}")):
        if key in found:
            facts.append(text.format(found[key]))
    if tools := found.get("tools"):
        facts.append("by " + ", ".join(f"{tool} {version}" for tool, version in tools.items()))
    return facts + ([found["note"]] if "note" in found else [])


def _quoted(name: str) -> str:
    return name if name.isprintable() else json.dumps(name)


def _attempt_lines(body: dict[str, Any]) -> list[str]:
    """Return the lines that show the attempts."""
    return [
        f"{one['started']}  {one['alias']} {one['version']:<12} {one['state']:<9} {one['seconds']:.2f} s  {one['reason'] or ''}".rstrip()
        for one in body["attempts"]
    ] or ["there were no attempts"]


_LINES: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "/api/deploy": _change_lines,
    "/api/rollback": _change_lines,
    "/api/share": _change_lines,
    "/api/promote": _change_lines,
    "/api/trial": _trial_lines,
    "/status": _status_lines,
    "/versions": _version_lines,
    "/loras": _lora_lines,
    "/attempts": _attempt_lines,
}


def _parsed(raw: bytes, url: str) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise UsageError(f"what answers at {url} is not zwatch")
    return body
