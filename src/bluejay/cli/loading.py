"""Load the model of a command, and say meanwhile what takes time."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from bluejay.cli.parser import CommandParser, one_of, positive_number
from bluejay.cli.status import Status
from bluejay.cli.terminal import styled

if TYPE_CHECKING:
    from bluejay.runs.language_model import LanguageModel

DTYPES = ("float32", "bfloat16", "float16")
CACHE_DTYPES = ("float32", "float16", "int8")
_COMPILE_BEGINS = "/jax/compilation_cache/compile_requests_use_cache"
_WAS_KEPT = "/jax/compilation_cache/cache_hits"


_MODEL_HELP = "a name, folder, file or owner/name (default: the best one on this machine)"


def add_model_place(parser: CommandParser) -> None:
    """The model in the first place, for commands that are about it."""
    parser.add_argument("model", metavar="MODEL", nargs="?", help=_MODEL_HELP)


def add_model_arguments(parser: CommandParser) -> None:
    """`--model` and how it runs, for every command that writes with one."""
    group = parser.add_argument_group("model")
    group.add_argument("-m", "--model", metavar="MODEL", help=_MODEL_HELP)
    add_running_arguments(group)
    add_mesh_argument(group)


def add_running_arguments(group: argparse._ActionsContainer) -> None:
    """`--dtype`, `--cache-dtype` and `--threads`."""
    group.add_argument(
        "--dtype",
        metavar="|".join(DTYPES),
        type=one_of(*DTYPES),
        help="of weights and arithmetic (default: float32 on a CPU, bfloat16 elsewhere)",
    )
    group.add_argument(
        "--cache-dtype",
        metavar="|".join(CACHE_DTYPES),
        type=one_of(*CACHE_DTYPES),
        help="of kept keys and values (default: float16 for packed weights, else float32)",
    )
    add_threads_argument(group)


def add_mesh_argument(group: argparse._ActionsContainer) -> None:
    """`--mesh`, for every command that writes with a model."""
    group.add_argument(
        "--mesh",
        metavar="model=N",
        type=_mesh,
        help="share the model between N devices, for one that is too large for a single device",
    )


def add_threads_argument(group: argparse._ActionsContainer) -> None:
    """`--threads`, for every command that computes."""
    group.add_argument(
        "--threads",
        metavar="N",
        type=positive_number,
        help="how many compute (default: BLUEJAY_THREADS, else every core)",
    )


def load_model(
    arguments: argparse.Namespace, shown: Status, *, choice: str = "--model"
) -> tuple[LanguageModel, str]:
    """The model that was asked for by `choice`, or the best one present; and its name."""
    from bluejay.checkpoints.catalogue import find_entry
    from bluejay.checkpoints.locate import best_present, locate

    if arguments.model is None:
        present = best_present()
        name, path = present.entry.name, present.path
        note = f"Using {name} ({choice} chooses another)."
        print(styled(note, "dim", sys.stderr), file=sys.stderr)
    else:
        path, name = locate(arguments.model), str(arguments.model)
    entry = find_entry(name)
    size = f" ({parameter_words(entry.parameters)})" if entry else ""
    shown.say(f"Loading {name}{size}")

    from bluejay.runs.language_model import load

    def on_progress(_done: int, total: int) -> None:
        shown.say(f"Loading {name} ({parameter_words(total)})")

    model = load(
        path,
        dtype=arguments.dtype,
        cache_dtype=arguments.cache_dtype,
        threads=arguments.threads,
        on_progress=on_progress,
        mesh=getattr(arguments, "mesh", None),
    )
    return model, name


def load_draft(name: str, shown: Status) -> LanguageModel:
    """The model that drafts for another."""
    from bluejay.checkpoints.locate import locate
    from bluejay.runs.language_model import load

    path = locate(name)
    shown.say(f"Loading {name}, which drafts")
    return load(path)


def announce_compiling(shown: Status, otherwise: str) -> None:
    """Say so while XLA compiles a program that no earlier run has kept."""
    import jax

    def on_event(event: str, **_: str | int) -> None:
        if event == _COMPILE_BEGINS:
            shown.say("Compiling (kept for later runs)")
        elif event == _WAS_KEPT:
            shown.say(otherwise)

    jax.monitoring.register_event_listener(on_event)
    shown.say(otherwise)


def _mesh(text: str) -> dict[str, int]:
    axis, sign, size = text.partition("=")
    if not (axis and sign and size.isdecimal()):
        raise argparse.ArgumentTypeError(f"takes model=N, such as model=2, not {text!r}")
    return {axis: int(size)}


def parameter_words(count: int) -> str:
    """A number of parameters for people: 135 M parameters."""
    if count >= 999_500_000:
        return f"{count / 1e9:.3g} B parameters"
    if count >= 999_500:
        return f"{count / 1e6:.3g} M parameters"
    return f"{count:,} parameters"
