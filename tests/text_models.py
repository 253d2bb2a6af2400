"""A small decoder with a tokenizer of its own, written as a native folder."""

from pathlib import Path

import numpy as np

from bluejay.checkpoints.native import native_writer, seal, write_config_file
from bluejay.model.params import named_leaves
from bluejay.model.presets import gptj_config
from bluejay.vocab.training import train_bpe
from small_models import drawn_params

TEXT = ["the sea is wide and the sky is blue; a jay is blue too, and sings — naïvely. "] * 30
NUM_ROWS, NUM_TOKENS = 320, 280


def write_text_model(folder: Path, *, num_tokens: int = NUM_TOKENS, seed: int = 0) -> Path:
    """A GPT-J of 320 rows whose tokenizer has 280 ids, or as many as given; gives the folder."""
    config = gptj_config(2, 64, 4, rotary_dim=8, vocab_size=NUM_ROWS)
    folder.mkdir(parents=True)
    train_bpe(TEXT, vocab_size=num_tokens).save(folder)
    write_config_file(folder, family="gptj", config=config)
    values = named_leaves(drawn_params(config, seed=seed))
    with native_writer(folder, config, dict.fromkeys(values, np.dtype(np.float32))) as writer:
        for name in writer.order:
            writer.write(name, np.asarray(values[name]))
    seal(folder)
    return folder
