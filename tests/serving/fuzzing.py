"""Requests that schemathesis makes of `/openapi.json`, and what every answer to them must be."""

import json
import os
from collections import Counter
from typing import Any

import requests
import schemathesis
import schemathesis.openapi
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from serving.live_server import PATIENCE, Raw

FACTOR = int(os.environ.get("BLUEJAY_FUZZ", "0"))
"""`make fuzz-serve` sets it: so many times the requests, and other ones at every run."""

_PROMISES = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]
"""Not `positive_data_acceptance`: limits, ids and fields that exclude others are in no schema."""


def operations(document: dict[str, Any]) -> dict[str, Any]:
    """What schemathesis finds in a description, by its label."""
    schema = schemathesis.openapi.from_dict(document)
    return {found.ok().label: found.ok() for found in schema.get_all_operations()}


def fuzz(raw: Raw, operation: Any, mode: GenerationMode, count: int) -> Counter[int]:
    """Send up to `count` requests; every answer is looked at. How many came of each status."""
    statuses: Counter[int] = Counter()
    with requests.Session() as session:

        @settings(
            max_examples=count * max(1, FACTOR),
            derandomize=not FACTOR,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def send(case: Any) -> None:
            answer = case.call(
                base_url=f"http://127.0.0.1:{raw.port}", session=session, timeout=PATIENCE
            )
            statuses[answer.status_code] += 1
            if answer.status_code == 504 and _is_own_deadline(case.body):
                return  # as the field's description says
            case.validate_response(answer, checks=_PROMISES)

        send()
    return statuses


def _is_own_deadline(body: Any) -> bool:
    return isinstance(body, dict) and body.get("timeout_ms") is not None


def document_of(raw: Raw) -> dict[str, Any]:
    """`/openapi.json`."""
    found: dict[str, Any] = json.loads(raw.request("GET", "/openapi.json").body)
    return found
