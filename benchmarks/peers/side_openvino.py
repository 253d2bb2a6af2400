"""OpenVINO: its runtime on an exported model that keeps its cache inside.

The export computes logits of every position; the head is cut to the last one here, as the engine's
own text pipelines do, so that a prefill is the same work as elsewhere. Precision of activations and
cache is the runtime's choice, which is reported (`precision`).
"""

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from side import FIRST_PROMPT, Answers, output_to_stderr, random_ids, request, seconds, skip

ENGINE = "OpenVINO"
VOCABULARY = 50400


class Side:
    def __init__(self, folder: str, threads: int) -> None:
        import openvino as ov

        core = ov.Core()
        model = core.read_model(Path(folder) / "openvino_model.xml")
        keep_last_position(model)
        options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        compiled = core.compile_model(model, "CPU", options)
        self.precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        self._names = {name for port in compiled.inputs for name in port.names}
        self._request = compiled.create_infer_request()
        self._rows, self._length = 0, 0

    def reset(self, rows: int) -> None:
        self._request.reset_state()
        self._rows, self._length = rows, 0

    def extend(self, ids: list[list[int]]) -> list[int]:
        """Append one piece to every row; the likeliest next ids."""
        import numpy as np

        count = len(ids[0])
        inputs = {
            "input_ids": np.asarray(ids, np.int64),
            "attention_mask": np.ones((self._rows, self._length + count), np.int64),
            "position_ids": np.tile(
                np.arange(self._length, self._length + count, dtype=np.int64), (self._rows, 1)
            ),
            "beam_idx": np.arange(self._rows, dtype=np.int32),
        }
        self._request.infer({name: inputs[name] for name in self._names}, share_inputs=True)
        self._length += count
        return self._request.get_tensor("logits").data[:, -1].argmax(axis=-1).tolist()

    def prefill(self, rows: int, length: int) -> list[int]:
        self.reset(rows)
        return self.extend(random_ids(rows, length, VOCABULARY))

    def decode(self, last: list[int], tokens: int) -> None:
        for _ in range(tokens):
            last = self.extend([[number] for number in last])


def keep_last_position(model: Any) -> None:
    """Cut the hidden state in front of the head's product down to its last position."""
    import numpy as np
    from openvino import opset13 as ops

    product = model.output("logits").get_node().input_value(0).get_node()
    while product.get_type_name() != "MatMul":
        product = product.input_value(0).get_node()
    ends = [ops.constant(np.array([end], np.int64)) for end in (-1, np.iinfo(np.int64).max, 1, 1)]
    hidden = product.input_value(0)
    product.input(0).replace_source_output(ops.slice(hidden, *ends).output(0))
    model.validate_nodes_and_infer_types()


def main() -> None:
    asked = request(__doc__)
    try:
        opened = time.perf_counter()
        with output_to_stderr():
            side = Side(asked.model, asked.threads)
        loading = time.perf_counter() - opened
    except (ImportError, RuntimeError) as error:
        skip(ENGINE, error)
    said = Answers(ENGINE, f"{version('openvino')}, activations {side.precision}")
    if asked.what == "start":
        side.prefill(1, FIRST_PROMPT)
        said.first_token(asked.began)
        said.say("load", seconds=loading)
        return
    side.decode(side.prefill(1, 8), 2)
    for prompt in asked.prompts:
        taken = seconds(lambda n=prompt: side.prefill(1, n))
        said.say("prefill", prompt=prompt, tokens_per_s=prompt / taken)
    for batch, context in asked.decode_cases:
        last = side.prefill(batch, max(context, 1))
        side.decode(last, 1)  # the first step of a new batch prepares its kernels
        taken = seconds(lambda n=last: side.decode(n, asked.tokens))
        rate = batch * asked.tokens / taken
        said.say("decode", batch=batch, context=context, tokens_per_s=rate)


if __name__ == "__main__":
    main()
