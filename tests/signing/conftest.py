"""A sealed version, a key, and a policy that allows it."""

import pytest

from tests.deploy.factory import write_version
from tests.signing.made import allow, write_key, write_policy


@pytest.fixture
def version(tmp_path):
    """A light version v1, sealed and not signed."""
    return write_version(tmp_path, "v1")


@pytest.fixture
def key(tmp_path):
    """release.pem beside the versions, and release.pub."""
    return write_key(tmp_path)


@pytest.fixture
def policy(tmp_path, key):
    """A policy that allows that key to sign v*."""
    return write_policy(tmp_path, allow())
