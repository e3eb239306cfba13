"""Where requests begin and end in the bytes of a connection."""

import random

import pytest

from zwatch.api.framing import Framing

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /generate HTTP/1.1\r\nHost: x\r\ncontent-LENGTH: 12\r\nX: y\r\n\r\n" + b"a\r\n\r\nb\r\n\r\nc1"
CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"


def after(*pieces: bytes) -> bool:
    framing = Framing()
    for piece in pieces:
        framing.feed(piece)
    return framing.is_between


@pytest.mark.parametrize(
    ("data", "is_between"),
    [
        (b"", True),
        (GET, True),
        (POST, True),
        (GET + POST + GET, True),
        (b"\r\n" + GET + b"\r\n" + GET, True),
        (GET[:-1], False),
        (POST[:-1], False),
        (GET + b"G", False),
        (CHUNKED, False),
        (CHUNKED + GET, False),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", False),
        (b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n", False),
        (b"x" * 100_000, False),
        (b"POST / HTTP/1.1\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000, True),
    ],
)
def test_it_is_known_whether_all_bytes_are_whole_requests(data, is_between):
    assert after(data) is is_between
    assert after(*(data[at : at + 1] for at in range(min(len(data), 500))), data[500:]) is is_between


def test_it_does_not_depend_on_how_the_bytes_arrive():
    chance = random.Random(1)
    for _ in range(300):
        data = b"".join(chance.choice([GET, POST, b"\r\n"]) for _ in range(5))
        cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(6)))
        pieces = [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        assert after(*pieces)
        assert not after(*pieces, b"P")
