"""Words on stderr while a person waits: what happens now, and how far it is."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

from bluejay.cli.terminal import bar, can_show, display_width, is_terminal, shortened, styled, width

_FIRST_SHOWN_SECONDS = 0.25
_REDRAW_SECONDS = 0.1
_WIDEST_BAR, _NARROWEST_BAR = 24, 6
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Status:
    """The current activity. On a terminal one line that is rewritten and then erased, with a bar,
    a rate and the time left where they are known; elsewhere one line for each activity that takes
    longer than a moment, the first time it does."""

    def __init__(self) -> None:
        self._stream = sys.stderr
        self._is_terminal = is_terminal(sys.stderr)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._activity = Activity()
        self._is_drawn = False
        self._said: set[str] = set()
        self._thread = threading.Thread(target=self._run, daemon=True, name="bluejay-status")

    def say(self, text: str, done: int = 0, total: int = 0) -> None:
        """Change the activity, or how much of it is done, in bytes."""
        with self._lock:
            if text != self._activity.text:
                self._activity = Activity(text=text, before=done)
            self._activity.done, self._activity.total = done, total

    def live(self, text: str) -> None:
        """An activity whose text says itself how far it is; shown on terminals only."""
        with self._lock:
            if not self._activity.is_live:
                self._activity = Activity(is_live=True)
            self._activity.text = text

    def note(self, sentence: str) -> None:
        """A sentence on a line of its own, which stays."""
        with self._lock:
            self._erase()
            self._write(f"{sentence}\n")

    def start(self) -> None:
        """Begin to draw."""
        self._thread.start()

    def stop(self) -> None:
        """Erase the line; nothing is drawn any more."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        self._thread.join()
        self._erase()

    def _run(self) -> None:
        number = 0
        while not self._stopped.wait(_REDRAW_SECONDS):
            with self._lock:
                activity = self._activity
                is_new = activity.seconds() < _FIRST_SHOWN_SECONDS
                if not activity.text or (is_new and not activity.is_live):
                    continue
                if self._is_terminal:
                    number += 1
                    self._draw(activity, number)
                elif activity.text not in self._said and not activity.is_live:
                    self._said.add(activity.text)
                    self._write(f"{activity.text}{activity.size(self._stream)}\n")

    def _draw(self, activity: "Activity", number: int) -> None:
        spinner = _SPINNER[number % len(_SPINNER)] if can_show(_SPINNER, self._stream) else "-"
        line = shortened(f"{spinner} {activity.line(width() - 3, self._stream)}", width() - 1)
        self._is_drawn = True
        self._write("\r\x1b[K" + styled(line, "dim", self._stream))

    def _erase(self) -> None:
        if self._is_drawn:
            self._write("\r\x1b[K")
        self._is_drawn = False

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._stopped.set()  # nobody reads it: no reason to fail the work


@dataclass(kw_only=True)
class Activity:
    """What goes on, since when, and how many bytes of how many are done (0: not known); a live
    one says in its text how far it is."""

    text: str = ""
    began: float = field(default_factory=time.monotonic)
    before: int = 0
    done: int = 0
    total: int = 0
    is_live: bool = False

    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self.began

    def size(self, stream: TextIO) -> str:
        """What a log says behind the text."""
        end = " …" if can_show("…", stream) else " ..."
        return f" ({size_words(self.total)}){end}" if self.total else end

    def line(self, columns: int, stream: TextIO) -> str:
        """One line of at most that many columns: what does not fit goes, the bar first."""
        seconds = self.seconds()
        if self.is_live:
            return self.text
        if not self.total:
            return f"{self.text}  {duration(seconds)}" if seconds >= 2 else self.text
        share = min(self.done / self.total, 1.0)
        parts = [f"{share:4.0%}", f"{size_words(self.done)} of {size_words(self.total)}"]
        rate = (self.done - self.before) / seconds
        if rate > 0 and seconds > 1:
            parts.append(f"{size_words(int(rate))}/s")
            if share < 1:
                parts.append(f"{duration((self.total - self.done) / rate)} left")
        room = min(columns - display_width("  ".join([self.text, *parts])) - 2, _WIDEST_BAR)
        if room >= _NARROWEST_BAR:
            drawn, empty = bar(share, room), "░" if can_show("░", stream) else "."
            parts.insert(0, drawn + empty * (room - display_width(drawn)))
        while len(parts) > 1 and display_width("  ".join([self.text, *parts])) > columns:
            parts.pop(1)
        return "  ".join([self.text, *parts])


@contextmanager
def status() -> Iterator[Status]:
    """A Status that is gone at the end of the block, however it ends."""
    shown = Status()
    shown.start()
    try:
        yield shown
    finally:
        shown.stop()


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
