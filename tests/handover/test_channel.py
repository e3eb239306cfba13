"""The connection between two processes: lines in order, descriptors with their lines, and no path that is too long."""

import asyncio
import os
import socket
import stat

import pytest

from zwatch.handover.channel import Channel, Door, connect


@pytest.fixture
async def ends():
    one, other = (Channel(end) for end in socket.socketpair())
    yield one, other
    one.close()
    other.close()


async def test_messages_arrive_in_order_whatever_their_size(ends):
    one, other = ends
    sent = [{"number": number, "text": "x" * (10 ** (number % 7))} for number in range(20)]
    for body in sent:
        one.send(body)
    assert [(await other.receive(10)).body for _ in sent] == sent
    await one.flushed(10)


async def test_descriptors_arrive_with_their_message_and_are_not_inherited(ends, tmp_path):
    one, other = ends
    files = [(tmp_path / name).open("w") for name in "abc"]
    one.send({"text": "x" * 1_000_000}, [files[0].fileno()])
    one.send({"empty": True})
    one.send({"two": True}, [files[1].fileno(), files[2].fileno()])
    for file in files:
        file.close()  # the channel has its own
    found = [await other.receive(10) for _ in range(3)]
    assert [len(message.fds) for message in found] == [1, 0, 2]
    for message in found:
        assert all(not os.get_inheritable(fd) for fd in message.fds)
    for fd, name in zip(found[0].fds + found[2].fds, "abc", strict=True):
        assert os.readlink(f"/proc/self/fd/{fd}").endswith(name)
    for message in found:
        message.close()


async def test_what_was_sent_before_the_end_is_received(ends):
    one, other = ends
    one.send({"last": True})
    one.close()
    assert (await other.receive(10)).body == {"last": True}
    assert await other.receive(10) is None
    other.send({"into": "the void"})


async def test_a_receiver_does_not_wait_for_ever(ends):
    with pytest.raises(TimeoutError):
        await ends[0].receive(0.01)


@pytest.mark.parametrize("line", [b"nonsense\n", b"[1]\n", b'{"fds": 3}\n'])
async def test_what_is_no_message_ends_the_connection(line):
    sender, receiver = socket.socketpair()
    channel = Channel(receiver)
    sender.sendall(line)
    assert await channel.receive(10) is None
    sender.close()


async def test_a_door_works_in_a_directory_with_a_long_path_and_is_for_this_user_alone(tmp_path):
    directory = tmp_path / ("d" * 100) / ("e" * 100)
    directory.mkdir(parents=True)
    assert connect(directory) is None
    Door(directory).listening.close()  # a crash leaves the file
    assert connect(directory) is None
    door = Door(directory)
    mode = (directory / "handover").stat().st_mode
    assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)
    accepting = asyncio.create_task(door.accept())
    client = Channel(connect(directory))
    server = await accepting
    assert server.peer == (os.getpid(), os.geteuid())
    client.send({"hello": True})
    assert (await server.receive(10)).body == {"hello": True}
    client.close()
    server.close()
    door.close()
    assert not (directory / "handover").exists()


async def test_a_door_is_no_other_process_socket_and_puts_aside_what_is_none(tmp_path, caplog):
    first = Door(tmp_path)
    second = Door(tmp_path)  # the lock says who owns the directory
    assert (first.is_there(), second.is_there()) == (False, True)
    first.close()
    assert (tmp_path / "handover").exists()
    second.close()
    (tmp_path / "handover").write_text("mine")
    third = Door(tmp_path)
    assert third.is_there()
    assert (tmp_path / "handover.bad").read_text() == "mine"
    assert "handover is not a socket; it is renamed to handover.bad" in caplog.text
    third.close()
    assert not (tmp_path / "handover").exists()
