"""What starts the server elsewhere: times that must fit together, and what can be tried here."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from bluejay.cli.commands import COMMANDS, command_parser
from bluejay.core.errors import UsageError
from bluejay.serving.limits import WaitLimits
from fake_completions import fake_server

FOLDER = Path(__file__).parents[2] / "deploy"
DRAIN_SECONDS = WaitLimits().drain_seconds
READY = [sys.executable, str(FOLDER / "ready.py")]


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text()))


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [document for document in documents() if document["kind"] == kind]


def container() -> dict[str, Any]:
    [replicas] = of_kind("StatefulSet")
    [found] = replicas["spec"]["template"]["spec"]["containers"]
    return dict(found)


@pytest.mark.parametrize(
    "name", ["Dockerfile", "Dockerfile.gpu", "bluejay.service", "kubernetes.yaml"]
)
def test_a_file_that_was_not_run_says_so_first_and_names_what_checked_it(name: str) -> None:
    first = (FOLDER / name).read_text().splitlines()[0]
    assert re.match(r"# not run: .*; checked by .*\d", first)


def test_kubernetes_waits_longer_than_the_server_drains() -> None:
    [replicas] = of_kind("StatefulSet")
    grace = replicas["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    sleep, seconds = container()["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    assert grace > int(seconds) + DRAIN_SECONDS


def test_kubernetes_asks_ready_for_work_and_live_for_life() -> None:
    found = container()
    for probe in ("startupProbe", "readinessProbe"):
        assert found[probe]["exec"]["command"][-1] == "/opt/bluejay/ready.py"
    assert found["livenessProbe"]["httpGet"]["path"] == "/live"
    startup = found["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600


def test_kubernetes_services_reach_the_port_that_is_served() -> None:
    [replicas] = of_kind("StatefulSet")
    labels = replicas["spec"]["template"]["metadata"]["labels"]
    [port] = container()["ports"]
    assert f"--port={port['containerPort']}" in container()["args"]
    for service in of_kind("Service"):
        assert service["spec"]["selector"].items() <= labels.items()
        assert [p["targetPort"] for p in service["spec"]["ports"]] == [port["name"]]
    assert replicas["spec"]["serviceName"] in [s["metadata"]["name"] for s in of_kind("Service")]


def test_systemd_and_docker_wait_longer_than_the_server_drains() -> None:
    unit = (FOLDER / "bluejay.service").read_text()
    assert re.search(r"^Restart=on-failure$", unit, re.M), "a hung server ends with status 70"
    [stop] = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.M)
    [start] = re.findall(r"^TimeoutStartSec=(\d+)$", unit, re.M)
    [wait] = re.findall(r"ready\.py --wait (\d+)$", unit, re.M)
    assert int(stop) > DRAIN_SECONDS
    assert int(start) > int(wait)
    for name in ("Dockerfile", "Dockerfile.gpu"):
        [stop] = re.findall(r"--stop-timeout (\d+)", (FOLDER / name).read_text())
        assert int(stop) > DRAIN_SECONDS


def started_with() -> list[list[str]]:
    """Every command that a file starts the server or fetches its model with."""
    unit = (FOLDER / "bluejay.service").read_text()
    found = [line.split() for line in re.findall(r"^Exec\w+=\S*/bin/bluejay (.*)$", unit, re.M)]
    for name in ("Dockerfile", "Dockerfile.gpu"):
        [command] = re.findall(r"^CMD (\[.*\])$", (FOLDER / name).read_text(), re.M)
        found.append(json.loads(command))
    [replicas] = of_kind("StatefulSet")
    [first] = replicas["spec"]["template"]["spec"]["initContainers"]
    return [*found, first["args"], container()["args"]]


def test_every_command_has_the_options_that_it_is_given() -> None:
    commands = started_with()
    assert [words[0] for words in commands] == ["pull", "serve", "serve", "serve", "pull", "serve"]
    for name, *words in commands:
        command_parser(COMMANDS[name]).parse(words)
    with pytest.raises(UsageError, match="--prot"):
        command_parser(COMMANDS["serve"]).parse(["--prot", "8000"])


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
@pytest.mark.parametrize("mistake", ["", "ProtectSystm=strict\n"])
def test_systemd_takes_the_unit_and_would_not_take_a_mistake(mistake: str, tmp_path: Path) -> None:
    text = (FOLDER / "bluejay.service").read_text()
    # It looks for the programs, which lie elsewhere here.
    text = re.sub(r"=/opt/bluejay/bin/(?:bluejay|python)", f"={sys.executable}", text)
    path = tmp_path / "bluejay.service"
    path.write_text(text.replace("[Service]\n", f"[Service]\n{mistake}"))
    command = ["systemd-analyze", "verify", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [line for line in done.stderr.splitlines() if "bluejay.service" in line]
    assert bool(found) == bool(mistake), done.stderr


def run_ready(*arguments: str, key: str = "") -> subprocess.CompletedProcess[str]:
    # A proxy of the environment must not come between.
    environment = os.environ | {"BLUEJAY_API_KEY": key, "http_proxy": "http://127.0.0.1:9"}
    return subprocess.run(
        [*READY, *arguments], capture_output=True, text=True, env=environment, check=False
    )


def test_ready_says_by_its_exit_code_whether_work_is_taken() -> None:
    with fake_server(key="sesame") as server:
        url = f"http://127.0.0.1:{server.port}"
        assert run_ready("--url", url, key="sesame").returncode == 0
        refused = run_ready("--url", url, key="other")
        assert refused.returncode == 1
        assert "401" in refused.stderr
    assert run_ready("--url", url).returncode == 1


def test_ready_waits_for_a_server_that_warms_up() -> None:
    with fake_server(ready_after=1.0) as server:
        url = f"http://127.0.0.1:{server.port}"
        cold = run_ready("--url", url)
        assert cold.returncode == 1
        assert "503" in cold.stderr
        assert run_ready("--url", url, "--wait", "30").returncode == 0
