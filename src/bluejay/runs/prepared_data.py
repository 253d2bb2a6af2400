"""Where the shards of a run come from: made before, or prepared now from raw text."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

from bluejay.checkpoints.model_cache import cache_root
from bluejay.core.errors import DataError, UsageError
from bluejay.corpus.archives import book_sources
from bluejay.corpus.prepare import PrepareOptions, prepare
from bluejay.corpus.progress import OnProgress
from bluejay.runs.train_run import DataConfig
from bluejay.vocab.tokenizer import Tokenizer


def is_prepared(folder: Path) -> bool:
    """Whether `bluejay prepare` made this folder."""
    return (folder / "train" / "MANIFEST.json").is_file()


def recipe_data(config: DataConfig, given: Path | None, *, on_progress: OnProgress) -> Path:
    """The prepared folder for a recipe on books.

    `given` is one that is prepared, or the folder of raw text (default: $BLUEJAY_DATA); what is
    prepared from raw text is kept in the cache and found there the next time.
    """
    if given is not None and is_prepared(given):
        return given
    kept = cache_root() / "data" / _cache_name(config)
    if is_prepared(kept):
        return kept
    return prepare_now(config, raw_books(given), kept, tokenizer=None, on_progress=on_progress)


def raw_books(given: Path | None) -> list[Path]:
    """The archives of books in the data folder. Raises UsageError that says what to give."""
    named = given or os.environ.get("BLUEJAY_DATA")
    found = book_sources(Path(named)) if named else []
    if found:
        return found
    place = f"{named} holds no books in text/books" if named else "No books are at hand"
    raise UsageError(
        f"{place}: give the folder of raw text with --data (or BLUEJAY_DATA), or fetch them with "
        "`bluejay prepare --fetch-books --out DIR` and give --data DIR."
    )


def prepare_now(
    config: DataConfig,
    sources: list[Path],
    out: Path,
    *,
    tokenizer: Tokenizer | None,
    on_progress: OnProgress,
) -> Path:
    """Prepare the sources into `out` as the configuration says."""
    out.parent.mkdir(parents=True, exist_ok=True)
    options = PrepareOptions(
        vocab_size=config.vocab_size,
        tokenizer=tokenizer,
        held_out=config.held_out,
        order=config.order,
    )
    prepare(sources, out, options=options, on_progress=on_progress)
    return out


def remember_data(run_folder: Path, data: Path) -> None:
    """Note in the run's folder where its shards are, for `bluejay resume`."""
    text = json.dumps({"folder": os.path.relpath(data.resolve(), run_folder.resolve())})
    (run_folder / "data.json").write_text(text + "\n", encoding="utf-8")


def remembered_data(run_folder: Path) -> Path:
    """The shards that the run began with. Raises DataError if they are gone."""
    try:
        noted = json.loads((run_folder / "data.json").read_text(encoding="utf-8"))["folder"]
        folder = (run_folder / str(noted)).resolve()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{run_folder}/data.json does not say where the run's shards are: give --data."
        ) from error
    if not is_prepared(folder):
        raise DataError(
            f"The run's shards are no longer in {folder}: give their place with --data."
        )
    return folder


def _cache_name(config: DataConfig) -> str:
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()
    return f"{config.source}-{config.vocab_size}-{digest[:8]}"
