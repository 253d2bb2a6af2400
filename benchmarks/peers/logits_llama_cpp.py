"""Logits of llama.cpp at every position of given windows; run it with the peers' Python.

    LLAMA_CPP_LIB_PATH=FOLDER/llama.cpp/bin FOLDER/venv/bin/python \\
        benchmarks/peers/logits_llama_cpp.py MODEL.gguf ids.npy logits.npy

ids.npy holds [windows, length] ids, logits.npy becomes [windows, length, vocabulary] float32. The
engine's defaults: cache of 16 bits, activations rounded to 8 bits in front of quantized products.
"""

import sys

import llama_cpp as lib
import numpy as np


def main() -> None:
    model_path, ids_path, to = sys.argv[1:4]
    windows = np.load(ids_path)
    count, length = windows.shape
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(model_path.encode(), lib.llama_model_default_params())
    options = lib.llama_context_default_params()
    options.n_ctx = options.n_batch = length
    options.n_ubatch = min(512, length)
    options.n_threads = options.n_threads_batch = 2
    context = lib.llama_init_from_model(model, options)
    vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    shape = (count, length, vocabulary)
    logits = np.lib.format.open_memmap(to, mode="w+", dtype=np.float32, shape=shape)
    batch = lib.llama_batch_init(length, 0, 1)
    batch.n_tokens = length
    for window, row in enumerate(windows.tolist()):
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        for place, token in enumerate(row):
            batch.token[place], batch.pos[place] = token, place
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            batch.logits[place] = 1
        if lib.llama_decode(context, batch):
            sys.exit("llama_decode failed")
        found = lib.llama_get_logits(context)
        logits[window] = np.ctypeslib.as_array(found, shape=(length, vocabulary))
    logits.flush()


if __name__ == "__main__":
    main()
