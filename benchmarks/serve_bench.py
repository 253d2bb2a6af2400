"""What every mode is given: the server, how much to ask of it, and eyes on its inside."""

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve_http import Client
from serve_load import Extent, Load, fixed_clients
from serve_report import figures
from serve_requests import Mix

# A reading, and the names under which `/metrics` may have it.
_METRICS = {
    "slots_in_use": ("bluejay_num_requests_running", "llamacpp:requests_processing"),
    "queued_requests": ("bluejay_num_requests_waiting", "llamacpp:requests_deferred"),
    "new_tokens": ("bluejay_generation_tokens_total", "llamacpp:tokens_predicted_total"),
    "recompiles": ("bluejay_recompiles_total",),
}
_SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{[^}]*\})? (\S+)", re.M)
_IDLE_POLL_SECONDS = 0.005
_RSS_POLL_SECONDS = 0.25


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is asked; the defaults are those of the table of loads that the server promises."""

    seconds: float = 60.0
    slots: int = 8
    saturating: int = 32
    flood: int = 500
    storm: int = 200
    drops: int = 1000
    alone_drops: int = 50
    soak: int = 10_000
    prompts: int = 64
    attackers: int = 300
    typists: int = 10
    keys: int = 60  # of each typist
    keys_per_second: float = 10.0
    longest: int = 1024
    long_prompt: int = 1900


@dataclass(kw_only=True)
class Bench:
    """One server under test. `pid` is its process and `log` what it writes to stderr, where they
    are known; `bare_rate` the tokens a second of the same model's engine without a server;
    `tenant_keys` API keys of several users; `start` the command that starts the server."""

    client: Client
    mix: Mix
    scale: Scale = field(default_factory=Scale)
    pid: int | None = None
    log: Path | None = None
    bare_rate: float | None = None
    tenant_keys: Sequence[str] = ()
    start: str | None = None
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)

    async def load(self, num_clients: int, *, seconds: float | None = None) -> Load:
        """The mix, by a fixed number of clients, for the time of the scale."""
        extent = Extent(seconds=seconds or self.scale.seconds, warm_up=num_clients)
        return await fixed_clients(self.client, self.mix.calls(), extent, num_clients=num_clients)

    async def saturated(self) -> dict[str, Any]:
        """Figures with more clients than slots; measured once."""
        if "saturated" not in self.kept:
            self.kept["saturated"] = figures(await self.load(self.scale.saturating))
        return self.kept["saturated"]

    async def counters(self) -> dict[str, float]:
        """What `/metrics` tells of slots, queue, tokens and recompiles; what it lacks is absent."""
        reply = await self.client.get("/metrics")
        if reply.status != 200:
            return {}
        found: dict[str, float] = {}
        for name, value in _SAMPLE.findall(reply.body.decode("utf-8", "replace")):
            found[name] = found.get(name, 0.0) + float(value)
        return {
            reading: next(found[name] for name in names if name in found)
            for reading, names in _METRICS.items()
            if any(name in found for name in names)
        }

    async def seconds_until_idle(self, *, limit: float = 60.0) -> float | None:
        """Until no slot is in use and nothing is queued; None if that takes more than `limit`."""
        began = time.perf_counter()
        while (waited := time.perf_counter() - began) < limit:
            now = await self.counters()
            if not now.get("slots_in_use", 0) and not now.get("queued_requests", 0):
                return waited
            await asyncio.sleep(_IDLE_POLL_SECONDS)
        return None

    def resident_mb(self) -> float | None:
        """Resident memory of the server's process."""
        if self.pid is None:
            return None
        status = Path(f"/proc/{self.pid}/status").read_text()
        match = re.search(r"^VmRSS:\s+(\d+) kB", status, re.M)
        return int(match[1]) / 1024 if match else None

    def num_files(self) -> int | None:
        """Open files and connections of the server's process."""
        return None if self.pid is None else len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def num_tracebacks(self) -> int | None:
        """In what the server wrote so far."""
        if self.log is None:
            return None
        return self.log.read_text(errors="replace").count("Traceback (most recent call last)")

    async def largest_resident_mb(self, until: asyncio.Event) -> float | None:
        """The largest resident size seen before the event."""
        largest = self.resident_mb()
        while largest is not None and not until.is_set():
            await asyncio.sleep(_RSS_POLL_SECONDS)
            largest = max(largest, self.resident_mb() or 0.0)
        return largest


def slope_per_thousand(samples: Sequence[tuple[int, float]]) -> float:
    """How much a value grows in 1,000 requests, by least squares of (requests so far, value)."""
    num = len(samples)
    mean_x = sum(x for x, _ in samples) / num
    mean_y = sum(y for _, y in samples) / num
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    return 1000 * sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread if spread else 0.0
