"""Describes what tells of the present: status, attempts, versions, events, health."""

from zwatch.api.openapi.parts import (
    BYTES,
    DIGEST,
    FLAG,
    SECONDS,
    TIME,
    VERSION,
    Json,
    array,
    nullable,
    number,
    obj,
    ok,
    operation,
    other,
    ref,
    text,
    whole,
)
from zwatch.errors import REJECTION_CODES
from zwatch.rollout.lifecycle import AttemptState, EngineState

_TAG = "status"
_COUNT = whole(minimum=0)
_STATUS = text(enum=["ok", "degraded", "unavailable"])

SCHEMAS: Json = {
    "Attempt": obj(
        {
            "alias": text(),
            "version": VERSION,
            "digest": DIGEST,
            "state": text(enum=[state.value for state in AttemptState]),
            "code": nullable({"enum": list(REJECTION_CODES)}),
            "reason": nullable(text()),
            "started": TIME,
            "seconds": SECONDS,
            "bytes": BYTES,
            "progress": number(minimum=0, maximum=1),
            "phases": {"type": "object", "additionalProperties": SECONDS},
            "shared": array(text(description="A component that was there already.")),
            "way": text(enum=["device", "resident", "host"]),
            "held": {**SECONDS, "description": "How long requests waited, seconds."},
            "fallback": FLAG,
        }
    ),
    "Serving": obj({"version": VERSION, "digest": DIGEST, "since": TIME, "images": _COUNT}),
    "Alias": obj(
        {
            "link": nullable(text(description="The link's text.")),
            "target": nullable(VERSION),
            "fault": nullable(obj({"code": text(), "message": text()})),
            "serving": nullable(VERSION),
            "unloaded": FLAG,
            "attempt": nullable(ref("Attempt")),
        }
    ),
    "Engine": obj(
        {
            "version": VERSION,
            "digest": DIGEST,
            "state": text(enum=[state.value for state in EngineState]),
            "leases": _COUNT,
            "bytes": BYTES,
        }
    ),
    "Status": obj(
        {
            "status": _STATUS,
            "reasons": array(text()),
            "serving": nullable(ref("Serving")),
            "aliases": {"type": "object", "additionalProperties": ref("Alias")},
            "engines": array(ref("Engine")),
            "strays": array(obj({"path": text(), "text": text(), "reason": text()})),
            "queue": obj({"waiting": _COUNT, "running": _COUNT, "limit": _COUNT}),
            "device": obj({"name": nullable(text()), "free": nullable(_COUNT), "total": nullable(_COUNT)}),
            "uptime": SECONDS,
            "history": nullable(
                obj({"directory": text(), "images": _COUNT, "bytes": BYTES, "fault": nullable(text())})
            ),
        }
    ),
    "Version": obj(
        {
            "name": VERSION,
            "sealed": FLAG,
            "digest": DIGEST,
            "header_version": nullable(text()),
            "bytes": nullable(BYTES),
            "files": nullable(_COUNT),
            "resident": FLAG,
            "serving": FLAG,
            "aliases": array(text()),
            "sealed_at": nullable(TIME),
            "problem": nullable(text()),
        }
    ),
    "Health": obj({"status": _STATUS, "version": nullable(VERSION), "reasons": array(text())}),
}

PATHS: Json = {
    "/status": {"get": operation(_TAG, "status", "Everything about the present", {"200": ok("It.", ref("Status"))})},
    "/attempts": {
        "get": operation(
            _TAG, "attempts", "The last attempts, newest first",
            {"200": ok("100 at most.", obj({"attempts": array(ref("Attempt"))}))},
        ),
    },
    "/versions": {
        "get": operation(
            _TAG, "versions", "The version directories", {"200": ok("All.", obj({"versions": array(ref("Version"))}))}
        ),
    },
    "/events": {
        "get": operation(
            _TAG, "events", "Follow what changes: `status` first, then `serving`, `attempt`, `alias`, `queue`",
            {"200": other("Server-sent events, without an end.", "text/event-stream")},
        ),
    },
    "/health": {
        "get": operation(
            _TAG, "health", "How it is, for people",
            {"200": ok("It serves.", ref("Health")), "503": ok("Nothing serves.", ref("Health"))}, is_open=True, has_guard=False,
        ),
    },
    "/health/live": {
        "get": operation(
            _TAG, "live", "Answers, which is the answer", {"200": ok("It lives.", obj({"status": text()}))}, is_open=True, has_guard=False
        ),
    },
    "/health/ready": {
        "get": operation(
            _TAG, "ready", "Whether something serves",
            {"200": ok("It does.", obj({"status": text()})), "503": ok("It does not.", obj({"status": text()}))}, is_open=True, has_guard=False,
        ),
    },
}  # fmt: skip
