"""Figures for Prometheus, in the vocabulary that vLLM made common, under the prefix `bluejay_`."""

from collections.abc import Callable, Iterator
from itertools import repeat

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from bluejay.generation.engine_requests import EngineStatus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_TOKEN_SECONDS = (*(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),)
_REQUEST_SECONDS = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

_GAUGES = {
    "num_requests_running": ("Samples that hold a slot.", "slots_in_use"),
    "num_requests_waiting": ("Samples in the queue.", "queued_requests"),
    "num_tokens_waiting": ("Prompt tokens in the queue.", "queued_tokens"),
}
_COUNTERS = {
    "prompt_tokens": ("Tokens of prompts, cached ones among them.", "prompt_tokens"),
    "prefix_cache_hit_tokens": ("Tokens of prompts that were cached.", "cached_prompt_tokens"),
    "generation_tokens": ("New tokens.", "new_tokens"),
    "request_success": ("Samples that finished.", "finished"),
    "request_cancelled": ("Samples whose client left.", "cancelled"),
    "request_failure": ("Samples that failed.", "failed"),
    "admission_rejections": ("Samples that found the queue full.", "rejected"),
    "recompiles": ("Programs compiled after the engine was ready.", "recompiles"),
    "engine_restarts": ("Times that the engine began again after a fault.", "restarts"),
}


class Metrics:
    """One server's figures, in a registry of its own. Keeps the times of tokens, in seconds."""

    def __init__(self, status: Callable[[], EngineStatus] | None = None) -> None:
        # A start time beside every count would double the page.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types there
        self._registry = CollectorRegistry(auto_describe=False)
        self._first = self._histogram("time_to_first_token", "Until a sample's first token.")
        self._next = self._histogram("inter_token_latency", "Between two tokens of a sample.")
        self._whole = Histogram(
            "bluejay_e2e_request_latency_seconds",
            "Of requests that reached the engine's routes and succeeded.",
            buckets=_REQUEST_SECONDS,
            registry=self._registry,
        )
        self._requests = Counter(
            "bluejay_http_requests",
            "Requests by route and status; 499: the client left.",
            ("method", "path", "status"),
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)
        if status is not None:
            self._registry.register(_EngineFigures(status))

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(
            f"bluejay_{name}_seconds", text, buckets=_TOKEN_SECONDS, registry=self._registry
        )

    def first_token(self, seconds: float) -> None:
        """A sample's first token came so long after it was submitted."""
        self._first.observe(seconds)

    def more_tokens(self, seconds: float, count: int) -> None:
        """`count` more tokens of it came together, so long after those before."""
        for share in repeat(seconds / count, count):
            self._next.observe(share)

    def request(self, *, method: str, path: str, status: int, seconds: float | None) -> None:
        """A request ended. `path` is a route's; `seconds` None: nothing was generated."""
        self._requests.labels(method, path, str(status)).inc()
        if seconds is not None:
            self._whole.observe(seconds)

    def exposition(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineFigures:
    """Reads the engine when it is asked, so that nothing is counted twice."""

    def __init__(self, status: Callable[[], EngineStatus]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        for name, (text, reading) in _GAUGES.items():
            yield GaugeMetricFamily(f"bluejay_{name}", text, value=getattr(status, reading))
        for name, (text, reading) in _COUNTERS.items():
            yield CounterMetricFamily(f"bluejay_{name}", text, value=getattr(status, reading))
