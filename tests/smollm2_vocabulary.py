"""SmolLM2's vocabulary, as the GGUF file of SmolLM2-135M-Instruct (Apache-2.0) has it.

Kept without what follows from the rest: every token after the first 252 is the union of a merge.
Made by hand, with the `gguf` package:

    python tests/smollm2_vocabulary.py SmolLM2-135M-Instruct.Q4_1.gguf
"""

import json
import lzma
import sys
from pathlib import Path
from typing import Any

_FILE = Path(__file__).parent / "golden" / "smollm2" / "vocabulary.json.xz"
_TOKENS, _TYPES, _MERGES = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "merges"))


def smollm2_metadata() -> dict[str, Any]:
    """The file's `general.architecture` and `tokenizer.ggml.*`."""
    metadata: dict[str, Any] = json.loads(lzma.decompress(_FILE.read_bytes()))
    learned = [merge.replace(" ", "") for merge in metadata[_MERGES]]
    metadata[_TOKENS] += learned
    metadata[_TYPES] += [1] * len(learned)
    return metadata


def write_fixture(gguf_file: str) -> None:
    from gguf import GGUFReader

    metadata = {
        name: field.contents()
        for name, field in GGUFReader(gguf_file).fields.items()
        if name.startswith("tokenizer.ggml.") or name == "general.architecture"
    }
    kept = len(metadata[_TOKENS]) - len(metadata[_MERGES])
    short = metadata | {key: metadata[key][:kept] for key in (_TOKENS, _TYPES)}
    text = json.dumps(short, ensure_ascii=False, separators=(",", ":"))
    _FILE.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    if smollm2_metadata() != metadata:
        sys.exit("the tokens do not follow from the merges")


if __name__ == "__main__":
    write_fixture(sys.argv[1])
