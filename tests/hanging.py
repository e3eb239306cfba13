"""A real file system that does not answer, as a file server that is gone: FUSE without a server. It needs root."""

import contextlib
import ctypes
import os
import struct
import threading
from pathlib import Path

_FORCE, _DETACH = 1, 2  # MNT_FORCE, which ends the connection: a read of /dev/fuse fails then; MNT_DETACH
_HEADER = struct.Struct("<IIQQIIII")  # struct fuse_in_header
_ANSWER = struct.Struct("<IiQ")  # struct fuse_out_header
_LOOKUP, _GETATTR, _OPEN, _READ, _RELEASE, _FLUSH, _INIT, _OPENDIR, _READDIR, _RELEASEDIR, _INTERRUPT = (
    1, 3, 14, 15, 18, 25, 26, 27, 28, 29, 36,
)  # fmt: skip
_SILENT = (2, 42)  # FORGET and BATCH_FORGET have no answer
_libc = ctypes.CDLL(None, use_errno=True)


class HangingMount:
    """Mounted over a directory, read-only, with what that had in it. While `hangs` names a path below it ("" is the mount
    itself), nothing that needs that path or a path below it comes back. `heal` lets everything go on."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.hangs: str | None = None
        self.fails: tuple[str, int] | None = None
        """A path, and the error with which reads of it and of what lies below it fail."""
        self.waiting = threading.Event()
        """Set when something hangs."""
        self._under = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self._paths = {1: ""}
        self._nodes = {"": 1}
        self._held: list[tuple[int, int, int, bytes]] = []
        self._fuse = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self._fuse},rootmode=40000,user_id=0,group_id=0,allow_other,max_read=131072"
        if _libc.mount(b"hanging", os.fsencode(directory), b"fuse.hanging", 1, options.encode()):
            os.close(self._fuse)
            os.close(self._under)
            raise OSError(ctypes.get_errno(), "FUSE cannot be mounted")
        self._server = threading.Thread(target=self._serve, daemon=True)
        self._server.start()

    def heal(self) -> None:
        """Answer everything that hangs, and what comes later."""
        self.hangs = None
        held, self._held = self._held, []
        for request in held:
            self._answer(*request)

    def close(self) -> None:
        """Unmount; what still hangs fails."""
        _libc.umount2(os.fsencode(self.directory), _FORCE | _DETACH)
        self.hangs = None
        self._server.join()  # or it would read whatever takes the number of its descriptor next
        os.close(self._fuse)
        os.close(self._under)

    def _serve(self) -> None:
        while True:
            try:
                data = os.read(self._fuse, 2**18)
            except OSError:
                return
            _, operation, unique, node, *_ = _HEADER.unpack_from(data)
            body = data[_HEADER.size :]
            path = self._paths.get(node, "")
            if operation == _LOOKUP:
                path = f"{path}/{os.fsdecode(body[:-1])}".lstrip("/")
            if operation in _SILENT:
                continue
            if operation == _INTERRUPT:  # the process is killed: as NFS, let it go
                self._interrupt(struct.unpack_from("<Q", body)[0])
                continue
            if self.hangs is not None and operation != _INIT and f"{path}/".startswith(self.hangs and f"{self.hangs}/"):
                self._held.append((operation, unique, node, body))
                self.waiting.set()
                continue
            self._answer(operation, unique, node, body)

    def _interrupt(self, unique: int) -> None:
        for request in [request for request in self._held if request[1] == unique]:
            self._held.remove(request)
            with contextlib.suppress(OSError):
                os.write(self._fuse, _ANSWER.pack(_ANSWER.size, -4, unique))

    def _answer(self, operation: int, unique: int, node: int, body: bytes) -> None:
        path = self._paths.get(node, "")
        try:
            if self.fails is not None and operation == _READ and f"{path}/".startswith(f"{self.fails[0]}/"):
                raise OSError(self.fails[1], os.strerror(self.fails[1]))
            payload, error = self._result(operation, path, body), 0
        except OSError as failure:
            payload, error = b"", -(failure.errno or 5)
        with contextlib.suppress(OSError):
            os.write(self._fuse, _ANSWER.pack(_ANSWER.size + len(payload), error, unique) + payload)

    def _result(self, operation: int, path: str, body: bytes) -> bytes:
        match operation:
            case n if n == _INIT:
                return struct.pack("<IIIIHHIIHHII", 7, 31, 2**17, 0, 12, 10, 2**17, 1, 32, 0, 0, 0) + bytes(24)
            case n if n == _LOOKUP:
                name = f"{path}/{os.fsdecode(body[:-1])}".lstrip("/")
                node = self._nodes.setdefault(name, len(self._nodes) + 1)
                self._paths[node] = name
                return struct.pack("<QQQQII", node, 0, 0, 0, 0, 0) + self._attributes(name, node)
            case n if n == _GETATTR:
                return struct.pack("<QII", 0, 0, 0) + self._attributes(path, self._nodes[path])
            case n if n in (_OPEN, _OPENDIR):
                return struct.pack("<QII", 0, 1 if n == _OPEN else 0, 0)  # FOPEN_DIRECT_IO: each read comes here
            case n if n == _READ:
                _, offset, size = struct.unpack_from("<QQI", body)
                file = os.open(path, os.O_RDONLY, dir_fd=self._under)
                try:
                    return os.pread(file, size, offset)
                finally:
                    os.close(file)
            case n if n == _READDIR:
                return self._entries(path, *struct.unpack_from("<QQI", body)[1:])
            case n if n in (_RELEASE, _RELEASEDIR, _FLUSH):
                return b""
        raise OSError(38, "not supported")

    def _attributes(self, path: str, node: int) -> bytes:
        found = os.stat(path or ".", dir_fd=self._under, follow_symlinks=False)
        seconds = [time_ns // 10**9 for time_ns in (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)]
        rests = [time_ns % 10**9 for time_ns in (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)]
        return struct.pack(
            "<QQQQQQIIIIIIIIII",
            node, found.st_size, found.st_blocks, *seconds, *rests, found.st_mode, found.st_nlink, found.st_uid,
            found.st_gid, 0, 4096, 0,
        )  # fmt: skip

    def _entries(self, path: str, offset: int, size: int) -> bytes:
        folder = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._under)
        try:
            names = sorted(os.listdir(folder))
        finally:
            os.close(folder)
        data = b""
        for number, name in enumerate(names[offset:], offset + 1):
            encoded = os.fsencode(name)
            entry = struct.pack("<QQII", number + 1000, number, len(encoded), 0) + encoded
            entry += bytes(-len(entry) % 8)
            if len(data) + len(entry) > size:
                break
            data += entry
        return data
