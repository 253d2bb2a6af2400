"""What a person sees of a server: where it is, how far it is, and how it ends."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

from bluejay.cli.loading import parameter_words
from bluejay.cli.serve_lan import lan_address, qr_code
from bluejay.cli.serve_options import Place
from bluejay.cli.serve_watch import ServerWatch
from bluejay.cli.status import Status, size_words
from bluejay.cli.terminal import is_terminal, styled
from bluejay.core.errors import BluejayError, UsageError

if TYPE_CHECKING:
    from bluejay.runs.serving import ModelServer
    from bluejay.serving.server import Listening

# For a program of the engine to end that nothing can interrupt.
_STOP_SECONDS: Final = 10.0
# Between two looks at it, while it warms up and later.
_LOOK_SECONDS: Final = 0.1
_WATCH_SECONDS: Final = 1.0


class Session:
    """One run of a server. `is_chosen`: somebody named the model."""

    def __init__(
        self, server: ModelServer, place: Place, *, as_json: bool, is_chosen: bool
    ) -> None:
        self._server, self._place = server, place
        self._as_json, self._is_chosen = as_json, is_chosen
        self._status = Status()
        self._is_over = threading.Event()

    def run(self) -> None:
        """Until a signal ends it; BluejayError if it never became ready."""
        from bluejay.serving.logs import set_up_logs
        from bluejay.serving.server import run_server

        set_up_logs(self, as_json=self._as_json)
        self._server.app.lifecycle.on_drain = self._on_drain
        run_server(self._server.app, self._place.settings, on_listening=self._on_listening)
        is_failed = self._server.status().is_failed
        has_ended = self._server.stop(_STOP_SECONDS)
        if is_failed:
            raise BluejayError("The engine has failed: the log says where.")
        _say_at_end("Stopped.")
        if not has_ended:
            sys.stderr.flush()
            os._exit(0)  # the engine's thread is inside a program: Python would not end well

    def write(self, text: str, /) -> None:
        """A line of the log, whatever else is on the screen."""
        self._status.note(text.removesuffix("\n"))

    def flush(self) -> None:
        """Lines are written at once."""

    def _on_listening(self, listening: Listening) -> None:
        self._print_banner(listening)
        if not self._as_json:
            self._status.say("Warming up")
            self._status.start()
        self._server.start(self._on_program)
        watch = threading.Thread(target=self._watch, args=(listening,), daemon=True)
        watch.start()

    def _on_program(self, done: int, total: int) -> None:
        if is_terminal(sys.stderr):
            self._status.live(f"Warming up: {done} of {total} programs (kept for later runs)")

    def _watch(self, listening: Listening) -> None:
        """Say when it is ready, and end the server when its engine has given up or hangs: who
        watches over the process starts it again."""
        begun, is_ready = time.monotonic(), False
        watch = ServerWatch(self._server, listening)
        while not self._is_over.wait(_WATCH_SECONDS if is_ready else _LOOK_SECONDS):
            if is_ready:
                watch.look()
            status = self._server.engine.status()
            if status.is_failed:
                self._end_status()
                listening.stop()
                return
            if status.is_ready and not is_ready:
                is_ready = True
                self._end_status()
                _say(f"Ready after {time.monotonic() - begun:.0f} s. Ctrl-C stops it.")

    def _on_drain(self, num_calls: int) -> None:
        self._is_over.set()
        self._end_status()
        if num_calls:
            seconds = self._server.app.limits.wait.drain_seconds
            calls = "1 request" if num_calls == 1 else f"{num_calls} requests"
            _say_at_end(
                f"Stopping: {calls} may finish, for {seconds:g} s; Ctrl-C again ends at once."
            )

    def _end_status(self) -> None:
        if not self._as_json:
            self._status.stop()

    def _print_banner(self, listening: Listening) -> None:
        server, plan = self._server, self._server.plan
        name = f"{plan.name} ({parameter_words(server.num_parameters)})"
        _say(f"{styled(name, 'bold')} at {styled(_shown_url(listening), 'cyan')}")
        if not self._is_chosen:
            _say("  the best model here; `bluejay serve MODEL` chooses another")
        limits = plan.engine
        _say(
            f"  {limits.num_slots} slots of {limits.context_length:,} tokens:"
            f" {size_words(server.slots_bytes)} of keys and values"
        )
        if server.share is not None:
            count, weights = server.share.num_devices, size_words(server.share.weight_bytes)
            _say(f"  shared by {count} devices, with {weights} of weights on each")
        if plan.adapters:
            _say(f"  adapters: {', '.join(plan.adapters)}")
        self._print_reach(listening)

    def _print_reach(self, listening: Listening) -> None:
        """What others need who may come from the network."""
        from bluejay.serving.access import is_loopback

        if is_loopback(self._place.settings.host):
            return
        if listening.host in _ALL_ADDRESSES and (address := _address_or_none()):
            _say(f"  from the network: {_scheme(listening)}://{address}:{listening.port}")
        key = self._place.made_key
        if key is not None:
            _say(f"  key: {styled(key, 'bold')}")
        if self._place.settings.certificate is None:
            _say("  not encrypted: for a network that you trust (--tls-certificate encrypts)")
        if key is not None and (drawn := qr_code(f"{listening.url}/#key={key}")):
            _say(drawn)


_ALL_ADDRESSES: Final = ("0.0.0.0", "::")


def _shown_url(listening: Listening) -> str:
    """One that can be clicked on this machine."""
    if listening.host not in _ALL_ADDRESSES:
        return listening.url
    return f"{_scheme(listening)}://127.0.0.1:{listening.port}"


def _scheme(listening: Listening) -> str:
    return listening.url.partition(":")[0]


def _address_or_none() -> str | None:
    try:
        return lan_address()
    except UsageError:
        return None


def _say_at_end(sentence: str) -> None:
    """As `_say`, in place of the ^C that a terminal shows."""
    _say(f"\r\x1b[K{sentence}" if is_terminal(sys.stdout) else sentence)


def _say(sentence: str) -> None:
    """On stdout, at once: whoever started the server may wait for the address."""
    print(sentence, flush=True)
