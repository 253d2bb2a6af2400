"""When data came in is known, however late it is read."""

import asyncio
import socket
import ssl
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from serve_http import Call, Client, Reply, Target
from serve_sockets import connected

SERVING = Path(__file__).parent.parent / "serving"
ANSWER = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\n\r\nno"
LATE = 0.2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux stamps what arrives")
@pytest.mark.parametrize("is_tls", [False, True])
def test_a_reply_that_waits_to_be_read_has_arrived_before(
    is_tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = str(SERVING / "localhost.pem")
    trusting = ssl.create_default_context(cafile=certificate)
    monkeypatch.setattr(ssl, "create_default_context", lambda: trusting)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER)
        await writer.drain()
        time.sleep(LATE)  # the generator is busy meanwhile
        await asyncio.sleep(LATE / 2)  # what comes before a read counts with it, the end as well
        writer.close()

    async def run() -> Reply:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context if is_tls else None)
        port = server.sockets[0].getsockname()[1]
        # Linux begins to stamp a moment after the first socket that wants it.
        other = socket.create_server(("127.0.0.1", 0))
        first = await connected("127.0.0.1", other.getsockname()[1])
        await asyncio.sleep(LATE)
        client = Client(Target(host="127.0.0.1", port=port, is_tls=is_tls))
        reply = await client.send(Call(path="/"))
        client.close()
        first.close()
        other.close()
        await asyncio.sleep(LATE)  # the server's side ends
        server.close()
        return reply

    reply = asyncio.run(run())
    assert (reply.status, reply.body) == (429, b"no")
    assert reply.sent <= reply.arrived <= reply.first_byte
    assert reply.first_byte - reply.sent > LATE
    assert reply.arrived - reply.sent < LATE


def test_who_does_not_listen_is_refused() -> None:
    async def run() -> Any:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        with pytest.raises(ConnectionRefusedError):
            await connected("127.0.0.1", port)
        return await Client(Target(host="127.0.0.1", port=port)).get("/")

    assert asyncio.run(run()).failure == "refused"
