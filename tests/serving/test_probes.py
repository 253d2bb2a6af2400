"""What watches over the server is told the truth: ready, live, and figures that add up."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bluejay.generation.engine_requests import EngineStatus
from bluejay.serving.metrics import Metrics
from bluejay.serving.router import Router
from serving.example_routes import example_routes
from serving.live_server import Raw, captured_log, live_server, make_app

READY = EngineStatus(
    is_ready=True,
    is_failed=False,
    slots_in_use=3,
    queued_requests=5,
    queued_tokens=700,
    prompt_tokens=1100,
    cached_prompt_tokens=300,
    new_tokens=42,
    finished=9,
    cancelled=2,
    failed=1,
    rejected=4,
    recompiles=0,
)


class Engine:
    """Says what it is told to say."""

    def __init__(self) -> None:
        self.now = READY

    def status(self) -> EngineStatus:
        return self.now


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def metrics(engine: Engine) -> Metrics:
    return Metrics(engine.status)


@pytest.fixture
def server(engine: Engine, metrics: Metrics) -> Iterator[Raw]:
    app = make_app(example_routes(), status=engine.status, metrics=metrics)
    with live_server(app) as listening:
        yield Raw(port=listening.port)


def figures(server: Raw) -> dict[str, float]:
    """Every sample by name and labels, as Prometheus' own parser reads it."""
    text = server.request("GET", "/metrics").body.decode()
    return {
        sample.name
        + "".join(f",{key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"is_ready": False}, "warming_up"),
        ({"is_failed": True}, "failed"),
        ({"is_failed": True, "is_ready": False}, "failed"),
    ],
)
def test_ready_only_while_work_is_taken(
    server: Raw, engine: Engine, change: dict[str, Any], code: str
) -> None:
    assert server.request("GET", "/ready").status == 200
    assert server.post("/v1/echo", b"{}").status == 200
    engine.now = replace(READY, **change)
    for answer in (server.request("GET", "/ready"), server.post("/v1/echo", b"{}")):
        assert answer.status == 503
        assert answer.headers["x-should-retry"] == "true"
        assert json.loads(answer.body)["error"]["code"] == code
    for path in ("/live", "/metrics", "/openapi.json"):
        assert server.request("GET", path).status == 200
    engine.now = READY
    assert server.request("GET", "/ready").status == 200


def test_the_engines_figures_are_those_it_has_now(server: Raw, engine: Engine) -> None:
    engine.now = replace(READY, new_tokens=43, recompiles=1)
    assert (
        figures(server).items()
        >= {
            "bluejay_num_requests_running": 3,
            "bluejay_num_requests_waiting": 5,
            "bluejay_num_tokens_waiting": 700,
            "bluejay_prompt_tokens_total": 1100,
            "bluejay_prefix_cache_hit_tokens_total": 300,
            "bluejay_generation_tokens_total": 43,
            "bluejay_request_success_total": 9,
            "bluejay_request_cancelled_total": 2,
            "bluejay_request_failure_total": 1,
            "bluejay_admission_rejections_total": 4,
            "bluejay_recompiles_total": 1,
        }.items()
    )


def test_times_of_tokens_are_counted_one_by_one(server: Raw, metrics: Metrics) -> None:
    metrics.first_token(0.3)
    metrics.more_tokens(0.008, 4)
    metrics.more_tokens(0.7, 1)
    found = figures(server)
    assert found["bluejay_time_to_first_token_seconds_count"] == 1
    assert found["bluejay_time_to_first_token_seconds_bucket,le=0.25"] == 0
    assert found["bluejay_time_to_first_token_seconds_bucket,le=0.5"] == 1
    assert found["bluejay_inter_token_latency_seconds_count"] == 5
    assert found["bluejay_inter_token_latency_seconds_bucket,le=0.0025"] == 4
    assert found["bluejay_inter_token_latency_seconds_sum"] == pytest.approx(0.708)


def test_requests_are_counted_by_route_and_status(server: Raw) -> None:
    server.post("/v1/echo", b"{}")
    server.post("/v1/echo", b"[]")
    for number in range(30):
        server.request("GET", f"/v1/models/{number}")
        server.request("GET", f"/nothing/{number}")
    server.request("BREW", "/live")
    found = figures(server)
    name = "bluejay_http_requests_total,method={},path={},status={}"
    assert found[name.format("POST", "/v1/echo", 200)] == 1
    assert found[name.format("POST", "/v1/echo", 400)] == 1
    assert found[name.format("GET", "/v1/models/{model:path}", 200)] == 30
    assert found[name.format("other", "other", 404)] == 30
    assert found[name.format("other", "other", 405)] == 1
    assert found["bluejay_e2e_request_latency_seconds_count"] == 1
    # Names that clients make up do not become series.
    assert sum(key.startswith("bluejay_http_requests_total") for key in found) <= 7


def test_probes_that_succeed_leave_no_line_in_the_log(server: Raw, engine: Engine) -> None:
    with captured_log() as log:
        for path in ("/live", "/ready", "/metrics"):
            assert server.request("GET", path).status == 200
        engine.now = replace(READY, is_ready=False)
        assert server.request("GET", "/ready").status == 503
        assert server.request("GET", "/openapi.json").status == 200
        server.request("GET", "/live")  # the line of the one before is written by then
    lines = [line.split()[1:4] for line in log.getvalue().splitlines()]
    assert lines == [["GET", "/ready", "503"], ["GET", "/openapi.json", "200"]]


def test_a_route_is_looked_up_once(server: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    find = Router.find

    def count(router: Router, method: str, path: str) -> Any:
        found.append(path)
        return find(router, method, path)

    monkeypatch.setattr(Router, "find", count)
    for path in ("/live", "/v1/models/a", "/nothing"):
        server.request("GET", path)
    assert found == ["/live", "/v1/models/a", "/nothing"]


def test_two_servers_in_one_process_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.first_token(1.0)
    assert b"first_token_seconds_count 1.0" in first.exposition()
    assert b"first_token_seconds_count 0.0" in second.exposition()
