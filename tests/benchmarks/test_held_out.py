"""The table of held-out text: every row is what its own tool says of the same bytes."""

import gzip
import json
import math
from pathlib import Path

import bits_per_byte
import held_out
import numpy as np
import pytest
from kneser_ney import KneserNey

import bluejay
from bluejay.shards.reader import TokenShards
from bluejay.shards.writer import ShardWriter
from bluejay.vocab.loading import load_tokenizer
from bluejay.vocab.tokenizer import Tokenizer
from text_models import TEXT, write_text_model

DOCUMENTS = {
    "train": [TEXT[0] * 20, "a jay sings naïvely — " * 40],
    "held-out": ["the sky is wide, and a jay is blue — " * 12, "naïvely, the sea — " * 9],
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("models") / "jay")


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> Tokenizer:
    return load_tokenizer(model_folder)


@pytest.fixture(scope="module")
def data(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `bluejay prepare` writes, as far as the benchmark reads it."""
    folder, lines = tmp_path_factory.mktemp("data"), []
    tokenizer.save(folder / "tokenizer")
    identity = {"tokenizer_sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size}
    for split, texts in DOCUMENTS.items():
        with ShardWriter(folder / split, **identity) as writer:
            for text in texts:
                ids = [tokenizer.document_start_id, *tokenizer.encode(text)]
                writer.append(ids, num_text_bytes=len(text.encode()))
                lines.append(json.dumps({"split": split, "tokens": len(ids)}))
    (folder / "documents.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_rows_are_what_each_tool_says(data: Path, model_folder: Path) -> None:
    rows = held_out.measure(data, held_out.Scored(models=[str(model_folder)]))
    text = "".join(DOCUMENTS["held-out"]).encode()
    assert all(row.num_bytes == len(text) for row in rows)
    assert rows[0].bits == 8 * len(gzip.compress(text, 9))

    train, held = TokenShards(data / "train"), TokenShards(data / "held-out")
    ids, seen = held.read(0, held.num_tokens), train.read(0, train.num_tokens)
    scores = KneserNey.fit(seen, vocab_size=280).log_probabilities(ids)
    of_text = [score for score, target in zip(scores, ids[1:], strict=True) if target != ids[0]]
    assert rows[3].num_tokens == len(of_text) == held.num_tokens - 2
    assert rows[3].bits == pytest.approx(-sum(of_text) / math.log(2))

    lm = bluejay.load(model_folder)
    nats = -sum(lm.score("", document)[0] for document in DOCUMENTS["held-out"])
    assert rows[4].num_tokens == held.num_tokens - 2
    assert rows[4].bits == pytest.approx(nats / math.log(2), rel=1e-6)


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 24, 25, 100])
@pytest.mark.parametrize("overlap", [0, 4, 8, 15])
def test_overlapping_windows_score_every_token_once(count: int, overlap: int) -> None:
    scored, size = [], 16
    for begin in bits_per_byte.windows(count, size, overlap):
        predicted = list(range(begin, min(begin + size, count)))
        scored += predicted[overlap if begin else 0 :]
    assert scored == list(range(count))


def test_an_overlap_gives_each_token_its_past(model_folder: Path) -> None:
    lm = bluejay.load(model_folder)
    size, overlap = lm.config.context_length, lm.config.context_length // 2
    ids = lm.prompt_ids("the sea is wide and the sky is low " * size)[: size + overlap + 1]
    first, second = ids[: size + 1], ids[size - overlap :]
    expected = bits_per_byte.nats(lm, first)
    expected += bits_per_byte.nats(lm, second) - bits_per_byte.nats(lm, second[: overlap + 1])
    assert bits_per_byte.nats(lm, ids, overlap=overlap) == pytest.approx(expected, rel=1e-5)


def test_excerpts_are_beginnings_of_whole_characters(data: Path, tokenizer: Tokenizer) -> None:
    documents = held_out.held_out_documents(data, tokenizer)
    assert [document.text for document in documents] == DOCUMENTS["held-out"]
    for num_tokens in range(1, 60):
        cut = held_out.beginning(documents[0], tokenizer, num_tokens=num_tokens)
        assert documents[0].text.startswith(cut.text)
        assert "�" not in cut.text
        # No character of this text has more than three bytes.
        assert num_tokens - 2 <= len(cut.ids) - 1 <= num_tokens
        assert tokenizer.decode(cut.ids[1:].tolist()) == cut.text
    whole = held_out.beginning(documents[1], tokenizer, num_tokens=10**6)
    assert whole.text == documents[1].text


def test_limited_tokens_come_from_documents_spread_evenly(tokenizer: Tokenizer) -> None:
    ids = np.array(tokenizer.encode("the sea is wide " * 9000), np.int32)
    text = tokenizer.decode(ids[1:].tolist())
    # Only their first ids tell the documents apart.
    documents = [held_out.Passage(ids=np.roll(ids, n), text=text) for n in range(5)]
    found = held_out.excerpts(documents, tokenizer, num_tokens=3 * held_out.EXCERPT_TOKENS)
    assert [len(passage.ids) - 1 for passage in found] == [held_out.EXCERPT_TOKENS] * 3
    starts = [passage.ids[:40].tolist() for passage in found]
    assert starts == [documents[n].ids[:40].tolist() for n in (0, 2, 4)]


def test_the_table_and_the_words_without_data(
    data: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out.main([])
    assert "Nothing to do" in capsys.readouterr().out
    held_out.main([str(data), "--slow-model", str(model_folder), "--tokens", "50"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].split()[0] for line in lines[2:7]] == [
        "gzip",
        "bzip2",
        "xz",
        "5-gram",
        "5-gram",
    ]
    excerpt, model = (line.split("|")[3:5] for line in lines[6:8])
    assert excerpt == model
    assert "peak memory" in lines[-1]


def test_documents_that_are_not_those_of_the_shards_are_refused(
    data: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "held-out").symlink_to(data / "held-out")
    (tmp_path / "documents.jsonl").write_text('{"split": "held-out", "tokens": 3}\n')
    with pytest.raises(SystemExit, match="lists 3 held-out tokens"):
        held_out.held_out_documents(tmp_path, tokenizer)
