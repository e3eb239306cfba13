"""What a request for something that serves nothing is answered."""

from collections.abc import Callable, Container

from zwatch.deploy.shares import alias_meant
from zwatch.errors import RequestError, retry_after
from zwatch.generation.request import unloaded


def not_served(model: str, aliases: Container[str], is_unloaded: Callable[[str], bool]) -> RequestError:
    """Return the error for a request for what serves nothing; `is_unloaded` says whether an operator wants it so."""
    if model in aliases and is_unloaded(model):
        return RequestError("model_not_loaded", unloaded(model), headers=retry_after(10))
    if model in aliases:
        message = f"{model} serves nothing at present, see /status"
        return RequestError("model_not_loaded", message, headers=retry_after(2))
    if (alias := alias_meant(model)) in aliases:
        text = f"{alias} has no share {model[:100]!r} at present, see /status"
        return RequestError("model_not_found", text, param="model")
    return RequestError(
        "model_not_found", f"{model[:100]!r} is neither an alias nor a resident version, see /status", param="model"
    )
