"""`bluejay bench` on a real model, read by what the comparison with other engines reads it with."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bluejay.checkpoints.catalogue import CATALOGUE

SIDE = Path(__file__).resolve().parents[2] / "benchmarks" / "peers" / "side_bluejay.py"
OPTIONS = ("--batch", "1,3", "--prompt", "16,200", "--tokens", "8")


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def bench(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bluejay", "bench", "bluejay-tiny", *OPTIONS, *options]
    done = run(command, **environment)
    assert done.returncode == 0, done.stderr
    return done


def test_the_comparison_with_other_engines_reads_it() -> None:
    command = [sys.executable, str(SIDE), "bluejay-tiny", "--what", "rates", "--threads", "1"]
    done = run([*command, *OPTIONS, "--context", "0,100"])
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["engine"] for line in lines} == {"Bluejay"}, lines
    prompts = [line["prompt"] for line in lines if line["what"] == "prefill"]
    assert prompts == [16, 200]
    cases = [(line["batch"], line["context"]) for line in lines if line["what"] == "decode"]
    assert cases == [(1, 0), (3, 0), (1, 100)]
    [details] = [line for line in lines if line["what"] == "details"]
    for name in ("load_s", "first_token_s", "peak_rss_mb", "bandwidth_gb_s", "overhead_us"):
        assert details[name] > 0, name


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """Of a bench with a cache of bytes, a prompt and a context that the model has no room for."""
    done = bench(
        *("--prompt", "16,300", "--context", "0,100,250", "--cache-dtype", "int8"),
        *("--repeat", "1", "--threads", "1", "--json"),
    )
    left_out = [line for line in done.stderr.splitlines() if line.startswith("Left out: ")]
    assert [("300" in line, "250" in line) for line in left_out] == [(True, False), (False, True)]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_deeper_contexts_come_with_the_first_batch_alone(document: dict[str, Any]) -> None:
    cases = [(item["batch"], item["context"]) for item in document["decode"]]
    assert cases == [(1, 0), (3, 0), (1, 100)]
    assert [item["prompt"] for item in document["prefill"]] == [16]
    assert (document["threads"], document["cache_dtype"]) == (1, "int8")
    assert document["sampled"]["temperature"] == 0.8


def test_figures_belong_together(document: dict[str, Any]) -> None:
    for item in [*document["decode"], document["sampled"]]:
        assert 0 < item["kernels_ms"] < item["step_ms"]
        rate = 1e3 * item["batch"] / item["step_ms"]
        assert item["decode_tokens_per_s"] == pytest.approx(rate)
    assert document["peak_anonymous_mb"] < document["peak_rss_mb"]
    assert 0 < document["load_s"] < document["first_token_s"]
    assert document["predicted_tokens_per_s"] > 0


def test_bytes_are_those_of_the_weights_that_are_read(document: dict[str, Any]) -> None:
    """All parameters but the looked-up table, 4,096 x 224, in float32; 6 layers and 7 heads of 32
    bytes and a scale, keys and values, at 1 + 8 / 2 positions."""
    entry = CATALOGUE["bluejay-tiny"]
    weights = 4 * (entry.parameters - 4096 * 224)
    assert document["bytes_per_token"] == weights + 2 * 6 * 7 * (32 + 4) * 5


def test_people_get_tables() -> None:
    done = bench("--context", "0,100", "--repeat", "1", "--threads", "1")
    for part in ("Decoding, 8 tokens a row", "of the limit", "Prompts", "memory gives", "Start"):
        assert part in done.stdout, done.stdout
    assert "Measuring, round 1 of 1" in done.stderr
    assert "\x1b" not in done.stdout


def test_without_kernels_it_has_fewer_figures() -> None:
    done = bench("--context", "0", "--repeat", "1", "--json", BLUEJAY_KERNELS="off")
    document = json.loads(done.stdout)
    assert document["kernels"].startswith("switched off")
    assert [item["batch"] for item in document["decode"]] == [1, 3]
    assert document["bandwidth_gb_s"] is document["overhead_us"] is None
    assert all(item["decode_tokens_per_s"] > 0 for item in document["decode"])
    shown = bench("--context", "0", "--repeat", "1", BLUEJAY_KERNELS="off").stdout
    assert "in kernels" not in shown
    assert "memory gives" not in shown
