"""What may lie in the place of a file, besides one that can be used."""

import os
import socket


def make_socket(path):
    directory = os.open(path.parent, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{directory}/{path.name}")  # a long path would not do
    os.close(directory)


ODD = {
    "a FIFO": os.mkfifo,
    "a directory": lambda path: (path / "inside").mkdir(parents=True),
    "a socket": make_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a symlink loop": lambda path: path.symlink_to(path),
    "a dangling symlink": lambda path: path.symlink_to("nowhere"),
}
"""Functions that make it at a path."""
