"""Run other people's programs against `bluejay serve`, and compare with what is made here.

    make check-clients BLUEJAY_DATA=FOLDER LLAMA_VIM=FOLDER

FOLDER of BLUEJAY_DATA has `evals/` with published evaluation sets; that of LLAMA_VIM the sources of
the plugin llama.vim (its `autoload` and `plugin`), for which neovim must be installed. What is not
given is left out, and the last line says so.
"""

import argparse
import os
import sys
from pathlib import Path

from real_clients.harness import check_harness
from real_clients.neovim import check_neovim, missing
from real_clients.packages import check_packages
from real_clients.scoring_tasks import TASKS
from real_clients.servers import Miss, Server, serving

from bluejay.runs.language_model import load

MODELS = ("bluejay-tiny", "smollm2-135m-instruct")


def _folder(text: str) -> Path:
    # Programs run in folders of their own; links are kept, for they tell an environment's python.
    return Path(text).absolute()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--programs", type=_folder, required=True, help="where lm-eval and others are"
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--count", type=int, default=25, help="examples of each task")
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS))
    arguments = parser.parse_args()
    left_out = []
    try:
        for model in arguments.models:
            with serving(model) as server:
                left_out = check_model(server, model, arguments)
    except Miss as miss:
        print(f"FAIL {miss}", file=sys.stderr)
        return 1
    print("\n".join(f"LEFT OUT: {item}" for item in left_out) or "Every client was run.")
    return 0


def check_model(server: Server, name: str, arguments: argparse.Namespace) -> list[str]:
    """All clients on one server; what could not be run, with the reason."""
    left_out, model = [], load(name)
    check_packages(server, model, arguments.programs)
    data = os.environ.get("BLUEJAY_DATA")
    if data:
        evals = Path(data) / "evals"
        check_harness(server, model, arguments.programs, evals, arguments.tasks, arguments.count)
    else:
        left_out.append("lm-eval (BLUEJAY_DATA names no folder with evals/)")
    plugin = os.environ.get("LLAMA_VIM")
    if reason := missing(plugin):
        left_out.append(reason)
    elif plugin:
        check_neovim(server, plugin)
    return left_out


if __name__ == "__main__":
    sys.exit(main())
