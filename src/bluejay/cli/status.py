"""Words on stderr while a person waits: what happens now, and how far it is."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bluejay.cli.terminal import bar, can_show, display_width, is_terminal, shortened, styled, width

_FIRST_SHOWN_SECONDS = 0.25
_REDRAW_SECONDS = 0.1
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Status:
    """The current activity. On a terminal one line that is rewritten and then erased; elsewhere
    one line for each activity that takes longer than a moment."""

    def __init__(self) -> None:
        self._stream = sys.stderr
        self._is_terminal = is_terminal(sys.stderr)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._text, self._detail, self._began = "", "", time.monotonic()
        self._is_drawn = self._is_said = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="bluejay-status")

    def say(self, text: str, detail: str = "") -> None:
        """Change the activity; a new `detail` alone does not start its clock again."""
        with self._lock:
            if text != self._text:
                self._text, self._began, self._is_said = text, time.monotonic(), False
            self._detail = detail

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Erase the line; nothing is drawn any more."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        self._thread.join()
        if self._is_drawn:
            self._write("\r\x1b[K")

    def _run(self) -> None:
        number = 0
        while not self._stopped.wait(_REDRAW_SECONDS):
            with self._lock:
                text, detail = self._text, self._detail
                waited = time.monotonic() - self._began
                if not text or waited < _FIRST_SHOWN_SECONDS or self._stopped.is_set():
                    continue
                is_said, self._is_said = self._is_said, True
            if self._is_terminal:
                number += 1
                self._draw(text, detail, waited, number)
            elif not is_said:
                self._write(f"{text} …\n" if can_show("…", self._stream) else f"{text} ...\n")

    def _draw(self, text: str, detail: str, waited: float, number: int) -> None:
        spinner = _SPINNER[number % len(_SPINNER)] if can_show(_SPINNER, self._stream) else "-"
        clock = f"  {waited:.0f} s" if waited >= 2 else ""
        line = shortened(f"{spinner} {text}{'  ' + detail if detail else ''}{clock}", width() - 1)
        self._is_drawn = True
        self._write("\r\x1b[K" + styled(line, "dim", self._stream))

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._stopped.set()  # nobody reads it: no reason to fail the work


@contextmanager
def status() -> Iterator[Status]:
    """A Status that is gone at the end of the block, however it ends."""
    shown = Status()
    shown.start()
    try:
        yield shown
    finally:
        shown.stop()


class ProgressLine:
    """Bytes done of bytes in all: a bar with rate and time left on a terminal; elsewhere one line
    for each phase."""

    def __init__(self) -> None:
        self._stream = sys.stderr
        self._is_terminal = is_terminal(sys.stderr)
        self._phase = ""
        self._began = self._drawn = 0.0
        self._before = 0
        self._has_line = False

    def show(self, phase: str, done: int, total: int) -> None:
        """Report progress of a phase, such as "Downloading"."""
        now = time.monotonic()
        if phase != self._phase:
            self.end()
            self._phase, self._began, self._before, self._drawn = phase, now, done, 0.0
            if not self._is_terminal:
                size = f" ({size_words(total)})" if total else ""
                self._write(f"{phase}{size}\n")
        if self._is_terminal and (now - self._drawn >= _REDRAW_SECONDS or done == total > 0):
            self._drawn = now
            self._write("\r\x1b[K" + self._line(done, total, now - self._began))
            self._has_line = True

    def note(self, sentence: str) -> None:
        """A sentence of its own line."""
        self.end()
        self._write(f"{sentence}\n")

    def end(self) -> None:
        """Erase the bar: what follows begins on a clean line."""
        if self._has_line:
            self._write("\r\x1b[K")
        self._has_line = False
        self._phase = ""

    def _line(self, done: int, total: int, seconds: float) -> str:
        rate = (done - self._before) / seconds if seconds > 0.3 else 0.0
        if not total:
            return f"{self._phase}  {size_words(done)}"
        share = min(done / total, 1.0)
        parts = [f"{share:4.0%}", f"{size_words(done)} of {size_words(total)}"]
        if rate > 0:
            parts.append(f"{size_words(int(rate))}/s")
            if done < total:
                parts.append(f"{duration((total - done) / rate)} left")
        # What does not fit goes: first the bar, then from the right.
        room = width() - 1 - display_width("  ".join([self._phase, *parts])) - 2
        if room >= 8:
            columns = min(room, 24)
            empty = "░" if can_show("░", self._stream) else "."
            drawn = bar(share, columns)
            parts.insert(0, drawn + empty * (columns - display_width(drawn)))
        return shortened("  ".join([self._phase, *parts]), width() - 1)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._is_terminal = self._has_line = False


def size_words(num_bytes: int) -> str:
    """A size in decimal units: 98 MB, 1.5 GB."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            break
        size /= 1000
    return f"{size:.1f} {unit}" if size < 9.95 and unit not in ("B", "kB") else f"{size:.0f} {unit}"


def duration(seconds: float) -> str:
    """A time for people: 9 s, 2 min 5 s, 1 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
