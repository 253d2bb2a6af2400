import json
import os
from pathlib import Path
from typing import Any

import pytest

from bluejay.core.errors import CheckpointError, DiskError
from bluejay.vocab.gpt2 import gptj_tokenizer
from bluejay.vocab.loading import MAX_FILE_BYTES, load_tokenizer
from bluejay.vocab.tokenizer import Tokenizer
from tokenizers_for_tests import codegen_tokenizer, small_document, smollm2_tokenizer


def write(folder: Path, **files: Any) -> Path:
    """JSON files by stem; a small tokenizer.json unless another is given."""
    for stem, content in ({"tokenizer": small_document()} | files).items():
        (folder / f"{stem}.json").write_text(json.dumps(content))
    return folder


def test_a_folder_and_its_file_load_alike(tmp_path: Path) -> None:
    write(tmp_path, tokenizer_config={"eos_token": {"content": "<|endoftext|>"}})
    by_folder, by_file = load_tokenizer(tmp_path), load_tokenizer(tmp_path / "tokenizer.json")
    assert by_folder.encode(" the") == [258]
    assert by_folder.sha256 == by_file.sha256
    assert by_folder.roles == by_file.roles
    assert by_folder.eos_id == by_folder.document_start_id == 259


@pytest.mark.parametrize("tokenizer", [gptj_tokenizer(), codegen_tokenizer(), smollm2_tokenizer()])
def test_saved_tokenizers_load_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.sha256 == tokenizer.sha256
    assert loaded.roles == tokenizer.roles
    assert loaded.token_bytes_table() == tokenizer.token_bytes_table()
    assert loaded.special_ids == tokenizer.special_ids


def test_the_parts_alone_give_the_same_tokenizer(tmp_path: Path) -> None:
    gptj_tokenizer().save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    loaded = load_tokenizer(tmp_path)
    assert loaded.sha256 == gptj_tokenizer().sha256
    assert not loaded.sampleable_mask(50400)[50257:].any()


def test_parts_of_another_class_are_refused(tmp_path: Path) -> None:
    smollm2_tokenizer().save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    with pytest.raises(CheckpointError, match="'Qwen2Tokenizer' splits text"):
        load_tokenizer(tmp_path)


def test_merges_that_look_like_comments(tmp_path: Path) -> None:
    document = small_document()
    vocab = document["model"]["vocab"] | {"##": 259}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nĠ t\nh e\nĠt he\n# #\n\n", "utf-8")
    assert load_tokenizer(tmp_path).encode("## the") == [259, 258]


def test_padding_names_become_special_whatever_the_file_says(tmp_path: Path) -> None:
    document = small_document()
    document["added_tokens"].append({"id": 260, "content": "<|extratoken_1|>", "special": False})
    tokenizer = load_tokenizer(write(tmp_path, tokenizer=document))
    assert 260 not in tokenizer.encode("<|extratoken_1|>")
    assert tokenizer.sampleable_mask(260).tolist() == [True] * 260
    assert not tokenizer.sampleable_mask(300)[260:].any()


def test_names_win_over_ids(tmp_path: Path) -> None:
    # As in CodeGen's folder, whose config.json calls the quotation mark bos.
    config = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": -1}
    names = {"bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    tokenizer = load_tokenizer(write(tmp_path, config=config, tokenizer_config=names))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (259, 2, 259)
    assert tokenizer.pad_id is None
    assert tokenizer.stop_ids == {2, 259}


def test_all_stop_ids_of_the_generation_config(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path, generation_config={"eos_token_id": [5, 7]}))
    assert (tokenizer.eos_id, tokenizer.stop_ids) == (5, {5, 7, 259})


def test_template_and_flags_surround_the_text(tmp_path: Path) -> None:
    document = small_document()
    document["post_processor"] = {
        "type": "Sequence",
        "processors": [
            document["post_processor"],
            {
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                ],
            },
        ],
    }
    tokenizer = load_tokenizer(write(tmp_path, tokenizer=document))
    assert tokenizer.encode(" the", add_special=True) == [259, 258]
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").roles == tokenizer.roles
    flags = {"bos_token": "!", "eos_token": "<|endoftext|>", "add_eos_token": True}
    tokenizer = load_tokenizer(write(tmp_path, tokenizer_config=flags))
    assert tokenizer.encode(" the", add_special=True) == [258, 259]


def test_truncation_in_the_file_is_ignored(tmp_path: Path) -> None:
    document = small_document()
    document["truncation"] = {
        "max_length": 1,
        "strategy": "LongestFirst",
        "stride": 0,
        "direction": "Right",
    }
    assert load_tokenizer(write(tmp_path, tokenizer=document)).encode(" the the") == [258, 258]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "JSON cannot be read"),
        (b"[1]", "object is expected, not list"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff\xfe{}", "JSON cannot be read"),
        (b'{"model": {"vocab": {"a": 0, "a": 1}}}', "the key 'a' is there twice"),
        (b'{"model": ' + b"9" * 5000 + b"}", "JSON cannot be read"),
        (b'{"version": "1.0"}', 'no "model"'),
    ],
)
def test_unreadable_files(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value).isprintable()


def test_files_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json, nor vocab\.json"):
        load_tokenizer(tmp_path)
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_tokenizer(tmp_path)


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(CheckpointError, match="67,108,865 bytes, more than"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"generation_config": {"eos_token_id": 99999}}, "special id 99999 has no token"),
        ({"config": {"bos_token_id": 2**70}}, "special id 1180591620717411303424 has no"),
        ({"tokenizer_config": {"eos_token": "<|nowhere|>"}}, "eos_token '<|nowhere|>' is no token"),
        ({"tokenizer_config": [1]}, "object is expected"),
    ],
)
def test_roles_that_are_no_tokens(files: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(write(tmp_path, **files))
    assert message in str(caught.value)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="cannot write the tokenizer to"):
        gptj_tokenizer().save(tmp_path / "file" / "below")
