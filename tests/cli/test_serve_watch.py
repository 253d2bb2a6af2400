"""A server whose device hangs, and one whose model file is changed under it: row T5 of the fault
matrix, in processes of their own."""

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bluejay.checkpoints.convert import convert
from bluejay.checkpoints.native import WEIGHTS
from bluejay.core.errors import CheckpointError, HungError
from cli.served_process import PATIENCE, Served, running, start
from packed_models import write_llama_gguf
from serving.live_server import Answer, Raw, read_answer
from text_models import write_text_model

JSON = [("Content-Type", "application/json")]
SECRET = "xylophone"


def complete(served: Served, **fields: Any) -> Answer:
    asked = {"prompt": SECRET, "max_tokens": 100, "temperature": 0, "ignore_eos": True}
    raw = Raw(port=served.port)
    with raw.connect() as connection:
        connection.settimeout(PATIENCE)
        body = json.dumps(asked | fields).encode()
        connection.sendall(raw.encode("POST", "/v1/completions", headers=JSON, body=body))
        return read_answer(connection)


def code_of(text: bytes | str) -> str:
    found = json.loads(text)["error"]
    assert SECRET not in found["message"]
    return str(found["code"])


def refuse_code(served: Served) -> str:
    """Why it is not ready, as soon as it is not."""
    deadline = time.monotonic() + PATIENCE
    while True:
        status, answer = served.request("GET", "/ready")
        if status == 503:
            return str(answer["error"]["code"])
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_hung_call_is_told_to_all_who_wait_and_ends_the_process(tmp_path: Path) -> None:
    hanging = start(
        tmp_path / "log",
        str(write_text_model(tmp_path / "base")),
        *("--port", "0", "--slots", "2", "--context", "256", "--hang-timeout", "3"),
        BLUEJAY_FAILPOINT="engine-decode@3:hang",
    )
    with running(hanging), ThreadPoolExecutor(8) as pool:
        hanging.wait_until_ready()
        begun = time.monotonic()
        # Two run, the others wait in the queue.
        calls = [pool.submit(complete, hanging, stream=True) for _ in range(3)]
        while not hanging.figures()["bluejay_num_requests_running"]:
            assert time.monotonic() < begun + PATIENCE
        calls += [pool.submit(complete, hanging) for _ in range(3)]
        assert refuse_code(hanging) == "hung"
        assert complete(hanging).status == 503
        answers = [call.result(PATIENCE) for call in calls]
        assert hanging.process.wait(PATIENCE) == HungError.exit_code
        assert time.monotonic() - begun < 30
    assert {answer.status for answer in answers} == {200, 503}
    for answer in answers:
        assert answer.is_whole
        if answer.status == 503:
            assert answer.headers["retry-after"] == "1"
            assert code_of(answer.body) == "hung"
            continue
        assert answer in answers[:3], "a stream that had begun"
        frames = answer.body.decode().removesuffix("\n\n").split("\n\n")
        assert code_of(frames[-1].removeprefix("data: ")) == "hung"
    log = hanging.log.read_text()
    assert "in failpoint" in log
    assert "in _decode" in log
    [told] = [line for line in log.splitlines() if "The engine has waited" in line]
    assert "and the limit is 3 s: the server ends with status 70" in told
    assert "--hang-timeout" in told
    assert SECRET not in log


def test_a_file_that_is_overwritten_ends_the_readiness(tmp_path: Path) -> None:
    write_llama_gguf(tmp_path / "a.gguf")
    convert(tmp_path / "a.gguf", tmp_path / "native", to="native")
    weights = tmp_path / "native" / WEIGHTS
    with running(start(tmp_path / "log", str(tmp_path / "native"), "--port", "0")) as served:
        served.wait_until_ready()
        assert complete(served).status == 200
        with weights.open("r+b") as file:
            file.write(weights.read_bytes())
        assert refuse_code(served) == "model_file_changed"
        refused = complete(served)
        assert (refused.status, code_of(refused.body)) == (503, "model_file_changed")
        assert served.request("GET", "/live")[0] == 200
        time.sleep(2.5)  # for two more looks
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(PATIENCE) == 0
    log = served.log.read_text()
    assert log.count(f"The file {weights} was changed under the running server") == 1


def test_a_file_that_is_cut_while_the_model_writes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_llama_gguf(path)

    def client(served: Served) -> None:
        while True:
            try:
                complete(served)
            except (ConnectionError, AssertionError):
                return

    with running(start(tmp_path / "log", str(path), "--port", "0")) as served:
        served.wait_until_ready()
        with ThreadPoolExecutor(3) as pool:
            for _ in range(3):
                pool.submit(client, served)
            time.sleep(1)
            os.truncate(path, 4096)
            assert served.process.wait(PATIENCE) == CheckpointError.exit_code
    assert served.log.read_text().endswith(
        f"bluejay: {path}: the file was cut, or its disk cannot be read, while it was in use:"
        " restore it and start again; replace files by renaming, never in place\n"
    )
