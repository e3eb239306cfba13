"""Describes the history."""

from zwatch.api.native.history import DEFAULT_LIMIT, MAX_LIMIT
from zwatch.api.openapi.parts import (
    DIGEST,
    VERSION,
    Json,
    array,
    in_path,
    in_query,
    nullable,
    obj,
    ok,
    operation,
    other,
    ref,
    text,
    whole,
)
from zwatch.generation.image_index import NAME
from zwatch.generation.request import ImageFormat

_TAG = "history"
_WHOLE = nullable(whole(minimum=0))
_NAME = in_path("name", "The picture's name.", examples=["20261121_142231_seed42.png"])

SCHEMAS: Json = {
    "Kept": obj(
        {
            "name": text(),
            "url": text(),
            "version": nullable(VERSION),
            "digest": DIGEST,
            "seed": _WHOLE,
            "prompt": nullable(text()),
            "width": _WHOLE,
            "height": _WHOLE,
            "steps": _WHOLE,
            "created": nullable(text(format="date-time")),
        },
        description="What other programs put into the directory may lack all but name and url.",
    ),
    "Page": obj(
        {
            "images": array(ref("Kept")),
            "next": nullable(text(description="The next page's `before`.")),
            "total": whole(),
        }
    ),
}

PATHS: Json = {
    "/history": {
        "get": operation(
            _TAG, "history", "What was made, newest first", {"200": ok("A page.", ref("Page"))}, 400, 404,
            parameters=(
                in_query("limit", "Pictures a page.", whole(minimum=1, maximum=MAX_LIMIT, default=DEFAULT_LIMIT)),
                in_query("before", "A picture's name: what is older than it.", text(pattern=f"^{NAME}$", examples=["20261121_142231_seed42.png"])),
            ),
        ),
        "delete": operation(
            _TAG, "clear_history", "Delete all pictures", {"200": ok("Done.", obj({"deleted": whole(minimum=0)}))}, 404
        ),
    },
    "/history/{name}": {
        "get": operation(
            _TAG, "picture", "A picture", {"200": other("The file.", *(one.media_type for one in ImageFormat))}, 404, parameters=(_NAME,)
        ),
        "delete": operation(
            _TAG, "delete_picture", "Delete a picture",
            {"200": ok("Done.", obj({"deleted": whole(minimum=1), "name": text()}))}, 404, parameters=(_NAME,),
        ),
    },
}  # fmt: skip
