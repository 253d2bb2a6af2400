"""neovim with llama.vim writes in a file: a suggestion appears, and Tab puts it into the text.

Neovim runs at a pseudo terminal, and keys are typed there. What it has drawn it writes into a file.
"""

import contextlib
import fcntl
import json
import os
import pty
import shutil
import struct
import subprocess
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from real_clients.servers import Miss, Server, require

PATIENCE = 60.0
BEFORE = ["import math", "", "def circle_area(radius):", "    return"]
AFTER = ["", "print(circle_area(2))"]


_DRAWN = (
    "map(nvim_buf_get_extmarks(0, nvim_create_namespace('vt_fim'), 0, -1, {'details': v:true}),"
    " {_, mark -> get(mark[3], 'virt_text', [])})"
)


def missing(plugin: str | None) -> str | None:
    """Why it cannot be run here; None if it can."""
    if shutil.which("nvim") is None:
        return "neovim (not installed; Debian and Ubuntu: apt install neovim)"
    if not plugin:
        return "neovim (LLAMA_VIM names no folder with the sources of ggml-org/llama.vim)"
    if not (Path(plugin) / "autoload" / "llama.vim").is_file():
        return f"neovim (LLAMA_VIM={plugin} has no autoload/llama.vim)"
    return None


def check_neovim(server: Server, plugin: str) -> None:
    """Miss if the suggestion does not get into the text."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "area.py").write_text("\n".join([*BEFORE, *AFTER]) + "\n")
        (folder / "init.vim").write_text(_settings(server, plugin, folder))
        with _editor(folder) as keyboard:
            _write(keyboard, folder, server)


def _settings(server: Server, plugin: str, folder: Path) -> str:
    """Older plugins read `endpoint`, newer ones `endpoint_fim`. What is drawn goes into a file."""
    url = f"{server.url}/infill"
    config = {"endpoint": url, "endpoint_fim": url, "api_key": "", "n_predict": 24}
    draw = f"writefile([json_encode({_DRAWN})], '{folder}/hint')"
    lines = [
        "set noswapfile shortmess+=I nomodeline",
        f"let g:llama_config = {json.dumps(config)}",
        f"set runtimepath^={Path(plugin).resolve()}",
        f"call timer_start(20, {{-> {draw}}}, {{'repeat': -1}})",
    ]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def _editor(folder: Path) -> Iterator[int]:
    """The keyboard's end of a pseudo terminal that an editor with the file runs at."""
    master, end = pty.openpty()
    command = ["nvim", "-u", str(folder / "init.vim"), str(folder / "area.py")]
    process = subprocess.Popen(command, stdin=end, stdout=end, stderr=end, start_new_session=True)
    os.close(end)
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    shown: list[bytes] = []
    threading.Thread(target=_drain, args=(master, shown), daemon=True).start()
    try:
        _wait_for(
            lambda: (folder / "hint").exists(), "neovim starts", lambda: b"".join(shown)[-500:]
        )
        yield master
    finally:
        process.kill()
        process.wait()
        os.close(master)


def _drain(master: int, shown: list[bytes]) -> None:
    """What it draws has to go somewhere."""
    with contextlib.suppress(OSError):
        while data := os.read(master, 65536):
            shown.append(data)


def _wait_for(find: Callable[[], Any], promise: str, found: Callable[[], Any]) -> Any:
    """What is found at last; Miss where nothing is."""
    deadline = time.monotonic() + PATIENCE
    while not (value := find()):
        if time.monotonic() > deadline:
            raise Miss(f"{promise}: no. {found()!r}")
        time.sleep(0.02)
    return value


def _hint(folder: Path) -> tuple[str, str] | None:
    """The suggestion that is drawn behind the cursor, and what the plugin says about it."""
    with contextlib.suppress(ValueError):  # it is being written
        for parts in json.loads((folder / "hint").read_text()):
            if len(parts) == 2 and parts[0][0].strip():
                return parts[0][0], parts[1][0].strip()
    return None


def _write(keyboard: int, folder: Path, server: Server) -> None:
    path = folder / "area.py"
    os.write(keyboard, f"{len(BEFORE)}GA ".encode())  # a space behind `return`
    started = time.monotonic()
    promise = f"llama.vim on {server.model} suggests something"
    hint, info = _wait_for(lambda: _hint(folder), promise, server.log.read_text)
    seconds = time.monotonic() - started
    os.write(keyboard, b"\t")
    time.sleep(0.3)  # Escape behind a key must not be read as Alt
    os.write(keyboard, b"\x1b")
    time.sleep(0.3)
    os.write(keyboard, b":w\r")
    old = "\n".join([*BEFORE, *AFTER]) + "\n"
    new = _wait_for(
        lambda: (text := path.read_text()) != old and text, "the text is saved", path.read_text
    ).splitlines()
    line = new[len(BEFORE) - 1]
    require(
        line == f"    return {hint}" and hint and new[: len(BEFORE) - 1] == BEFORE[:-1],
        f"llama.vim on {server.model}: Tab makes '    return ' into {line!r}; it was shown"
        f" {seconds * 1000:.0f} ms after the key",
        new,
    )
    print(f"     {info}")
