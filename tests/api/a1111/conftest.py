"""Services for AUTOMATIC1111's clients."""

from contextlib import asynccontextmanager

import pytest


@pytest.fixture
def serving_both(start):
    """Return an asynchronous context manager: a service whose `current` serves v2, with v1 resident too."""

    @asynccontextmanager
    async def begin(token=None):
        async with start(token=token) as client:
            await client.serves()
            client.services.models.joinpath("current").unlink()
            client.services.models.joinpath("current").symlink_to("v2")
            await client.serves("v2")
            yield client

    return begin


@pytest.fixture
async def both(serving_both):
    """Such a service, without a token."""
    async with serving_both() as client:
        yield client
