"""Sockets that know when their data arrived, whenever it is read.

A load generator of hundreds of clients is one event loop, and what it has not come to yet waits
in the kernel: that time is the generator's, not the server's. Linux stamps what arrives.
"""

import asyncio
import socket
import struct
import sys
import time
from functools import cache
from typing import Any

_SO_TIMESTAMPNS = 35
_STAMP = struct.Struct("qq")


class StampedSocket(socket.socket):
    """`arrived` is when the last data read had come in, of `time.perf_counter`."""

    arrived = 0.0

    def recv(self, size: int, flags: int = 0) -> bytes:
        data, notes, _, _ = self.recvmsg(size, 64, flags)
        self._note(notes)
        return data

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        view = memoryview(buffer)[:size] if size else buffer
        num_bytes, notes, _, _ = self.recvmsg_into([view], 64, flags)
        self._note(notes)
        return num_bytes

    def _note(self, notes: list[tuple[int, int, bytes]]) -> None:
        now, self.arrived = time.time(), time.perf_counter()
        for level, kind, data in notes:
            if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
                seconds, nanoseconds = _STAMP.unpack(data)
                self.arrived -= max(0.0, now - seconds - nanoseconds / 1e9)


@cache
def _addresses(host: str, port: int) -> list[Any]:
    """Asked for once: hundreds of questions to a resolver would take longer than the flood."""
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


async def connected(host: str, port: int) -> StampedSocket:
    """A connection to the first address of the host that takes one. OSError of the last."""
    loop = asyncio.get_running_loop()
    found = _addresses(host, port)
    for number, (family, kind, protocol, _, address) in enumerate(found):
        connection = StampedSocket(family, kind, protocol)
        connection.setblocking(False)
        if sys.platform == "linux":
            connection.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        try:
            await loop.sock_connect(connection, address)
        except BaseException as error:
            connection.close()
            if not isinstance(error, OSError) or number == len(found) - 1:
                raise
        else:
            return connection
    raise OSError(f"{host} has no address.")
