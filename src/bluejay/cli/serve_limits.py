"""What the limits of `bluejay serve` mean, for its help."""

from typing import Final

LIMIT_WORDS: Final = {
    "--max-header-bytes": "bytes of a request's headers",
    "--max-headers": "headers of a request",
    "--header-timeout": "how long they may take",
    "--max-body-bytes": "bytes of a request's body",
    "--body-timeout": "how long it may take",
    "--max-connections": "connections at once",
    "--keep-alive-timeout": "how long an idle one is kept",
    "--write-timeout": "how long a client may leave its answer unread",
    "--max-prompt-characters": "characters of a prompt",
    "--max-prompts": "prompts of a request",
    "--max-samples": "samples of each prompt",
    "--max-sequences": "prompts times samples",
    "--max-stop-strings": "stop strings",
    "--max-stop-characters": "characters of each",
    "--max-bad-words": "texts that may not be written",
    "--max-logit-bias": "entries of logit_bias",
    "--max-logprobs": "alternatives that come with a token",
    "--max-grammar-bytes": "bytes of a grammar or schema",
    "--max-grammar-depth": "levels that it is nested",
    "--grammar-timeout": "how long it may take to read",
    "--max-embedding-requests": "requests for embeddings that run or wait",
    "--max-suggest-requests": "requests for next words that run or wait",
    "--queue-timeout": "how long a request may wait for its turn",
    "--request-timeout": "how long a request may take in all",
    "--drain-timeout": "how long requests may go on when the server stops",
    "--ping-interval": "after how long a silent stream says that it lives",
    "--hang-timeout": "how long a call of the device may take before the server ends itself, or"
    " ten times as long as usual",
}
"""By flag of `bluejay.serving.limits`."""
