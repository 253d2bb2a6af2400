"""Binding, listening, and an orderly end on SIGTERM."""

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import uvicorn

from bluejay.core.errors import UsageError
from bluejay.serving.access import is_loopback
from bluejay.serving.app import App
from bluejay.serving.errors import ApiError
from bluejay.serving.guard import GuardedProtocol, guarded

EXIT_NOW = 130
_BACKLOG = 1024


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Where to listen. Port 0 takes any that is free. Certificate and key are PEM files."""

    host: str = "127.0.0.1"
    port: int = 8000
    certificate: Path | None = None
    certificate_key: Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UsageError(f"--port must be between 0 and 65535, not {self.port}.")
        if (self.certificate is None) != (self.certificate_key is None):
            raise UsageError("--tls-certificate and --tls-key are needed together.")


@dataclass(frozen=True, kw_only=True)
class Listening:
    """A server that takes connections. From any thread: `stop` drains it, `give_up` ends each call
    with what is given and refuses all others, and the process has to be ended then."""

    host: str
    port: int
    url: str
    stop: Callable[[], None] = field(repr=False)
    give_up: Callable[[Callable[[], ApiError]], None] = field(repr=False)


def run_server(
    app: App,
    settings: ServerSettings,
    *,
    on_listening: Callable[[Listening], None] = lambda _: None,
) -> None:
    """Serve until SIGTERM, SIGINT or `Listening.stop`, drain, and return.

    In the main thread it answers the signals: the first drains, the second ends the process at once
    with status 130. `on_listening` is called on the event loop. UsageError for a port that cannot
    be had, a certificate that cannot be read, or an address that others reach without a key.
    """
    if not is_loopback(settings.host) and not app.access.keys_sha256:
        raise UsageError(f"Binding {settings.host!r} needs an API key, since others reach it.")
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=guarded(app.limits.connection, app.door),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # the log is ours, and tracebacks may quote prompts
        access_log=False,
        proxy_headers=False,
        server_header=False,
        # uvicorn names whole seconds, and gives them to a timer that takes any.
        timeout_keep_alive=app.limits.connection.idle_seconds,  # type: ignore[arg-type]
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=app.limits.connection.header_bytes,
    )
    tls = _tls_context(settings)
    listener = bind(settings.host, settings.port)
    with listener:
        _Server(config, app, settings=settings, tls=tls, on_listening=on_listening).run([listener])


def bind(host: str, port: int) -> socket.socket:
    """A TCP socket bound to `host` and `port`. UsageError says why there is none."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise UsageError(f"--host {host!r} is no address of this machine.") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise UsageError(_bind_problem(host, port, error)) from None
    return listener


def _bind_problem(host: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"Port {port} of {host} is taken: stop what listens there, or choose another with"
                " --port (0 takes any that is free)."
            )
        case errno.EACCES:
            return f"Port {port} may not be used by this user: choose one above 1023 with --port."
        case errno.EADDRNOTAVAIL:
            return f"--host {host!r} is no address of this machine."
        case _:
            return f"{host} port {port} cannot be used: {error.strerror}."


def _tls_context(settings: ServerSettings) -> ssl.SSLContext | None:
    if settings.certificate is None or settings.certificate_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.certificate, settings.certificate_key)
    except OSError as error:
        files = f"{str(settings.certificate)!r} and {str(settings.certificate_key)!r}"
        raise UsageError(
            f"--tls-certificate and --tls-key {files} are no certificate with its key in PEM form:"
            f" {error.strerror or error}."
        ) from None
    return context


class _Server(uvicorn.Server):
    """uvicorn, which drains before it closes and ends at once when it is told twice."""

    def __init__(
        self,
        config: uvicorn.Config,
        app: App,
        *,
        settings: ServerSettings,
        tls: ssl.SSLContext | None,
        on_listening: Callable[[Listening], None],
    ) -> None:
        super().__init__(config)
        self._app = app
        self._settings = settings
        self._tls = tls
        self._on_listening = on_listening
        self._is_stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, with a bound on how long a TLS handshake may take."""
        self._loop = asyncio.get_running_loop()
        (listener,) = sockets or []
        await self.lifespan.startup()
        server = await self._loop.create_server(
            self._protocol,
            sock=listener,
            ssl=self._tls,
            backlog=_BACKLOG,
            ssl_handshake_timeout=self._app.limits.connection.header_seconds if self._tls else None,
        )
        self.servers = [server]
        self.started = True
        self._tasks.append(self._loop.create_task(self._enforce_limits()))
        self._on_listening(self._listening(listener))

    def _protocol(self) -> asyncio.Protocol:
        # uvicorn's type is that of all its protocols; ours was put in.
        protocol: type[GuardedProtocol] = self.config.http_protocol_class  # type: ignore[assignment]
        return protocol(config=self.config, server_state=self.server_state, app_state={})

    def _listening(self, listener: socket.socket) -> Listening:
        host, port = listener.getsockname()[:2]
        scheme = "https" if self._tls else "http"
        name = f"[{host}]" if ":" in host else host
        return Listening(
            host=host,
            port=port,
            url=f"{scheme}://{name}:{port}",
            stop=self._stop_from_outside,
            give_up=self._give_up_from_outside,
        )

    async def _enforce_limits(self) -> None:
        limits = self._app.limits.connection
        shortest = min(limits.header_seconds, limits.idle_seconds, limits.blocked_seconds)
        while True:
            await asyncio.sleep(min(0.25, shortest / 4))
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, GuardedProtocol):
                    connection.enforce(now)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The handler of signals; uvicorn's would raise them again at the end."""
        if self._is_stopping:
            os._exit(EXIT_NOW)
        self._stop_from_outside()

    def _stop_from_outside(self) -> None:
        if self._is_stopping:
            return
        self._is_stopping = True
        if self._loop is None:
            self.should_exit = True
            return
        with suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._begin_drain)

    def _give_up_from_outside(self, told: Callable[[], ApiError]) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._app.lifecycle.give_up, told)

    def _begin_drain(self) -> None:
        self._tasks.append(asyncio.ensure_future(self._drain()))

    async def _drain(self) -> None:
        await self._app.lifecycle.drain(self._app.limits.wait.drain_seconds)
        self.should_exit = True
