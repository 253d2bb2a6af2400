"""What generating takes of memory: one cache, and little beside it."""

import subprocess
import sys

import pytest

from bluejay.core.memory import anonymous_bytes

# A narrow model with a context so long that its cache is 448 MiB; stops after a few tokens.
GENERATE = """
from dataclasses import replace
import jax, numpy as np
from bluejay.core.memory import PeakAnonymous
from bluejay.generation.generate import GenerationRequest, generate
from bluejay.generation.runner import Runner
from bluejay.model.cache import cache_bytes
from bluejay.model.params import unstack_blocks
from bluejay.model.presets import gptj_config
from bluejay.model.specs import decoder_specs, initialize

config = replace(gptj_config(4, 224, 7, vocab_size=96, rotary_dim=16), context_length=2**16)
params = unstack_blocks(initialize(decoder_specs(config), jax.random.key(0)))
runner = Runner(params, config=config)
request = GenerationRequest(prompt_ids=[1, 2, 3], max_tokens=2**16 - 3)
with PeakAnonymous() as memory:
    samples = generate(runner, [request], allowed=np.ones(96, np.bool_))
    for _ in range(8):
        next(samples)
print(memory.peak, cache_bytes(config, positions=2**16, bytes_per_value=4))
"""


@pytest.mark.skipif(anonymous_bytes() is None, reason="this system does not tell what is taken")
def test_one_sample_takes_one_cache() -> None:
    done = subprocess.run([sys.executable, "-c", GENERATE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak, cache = map(int, done.stdout.split())
    assert cache > 400 * 2**20
    assert cache < peak < cache + 300e6, "the model itself is 2 MB"
