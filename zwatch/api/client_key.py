"""By what a client is known from one request to the next, so that it stays on its side of a share."""

from aiohttp import web

from zwatch.api.native.client_jobs import client_in_header
from zwatch.generation.request import PRIMARY, GenerateRequest


def client_key(request: web.Request, model: str, *, user: str = "", is_named: bool = True) -> str | None:
    """Return the key of a request's client: its `user` field, else the header `X-Client-Id`, else its address.

    None if the request is not to be moved to a share, because it names `current` exactly. `is_named` says whether the request
    names its `model`; one that does not is for `current` by default.

    Raises:
        RequestError: 400, the header is not a name.
    """
    named = client_in_header(request)
    if is_named and model == PRIMARY:
        return None
    return user or named or request.remote or "-"


def native_client(request: web.Request, wanted: GenerateRequest) -> str | None:
    """Return the key of the client of a native request, as `client_key`.

    Raises:
        RequestError: as `client_key`.
    """
    return client_key(request, wanted.model, user=wanted.user, is_named="model" in wanted.model_fields_set)
