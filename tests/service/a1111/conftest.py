"""Services that AUTOMATIC1111's clients talk to."""

import pytest


@pytest.fixture
async def both(client):
    """A service whose `current` serves v2, and that has v1 too."""
    status, _, body = await client.call("POST", "/api/deploy", json={"version": "v2"})
    assert status == 200, body
    return client
