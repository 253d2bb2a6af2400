"""Completion in the shell: short scripts that ask this command for the candidates."""

import sys
from collections.abc import Sequence

from bluejay.checkpoints.catalogue import CATALOGUE
from bluejay.cli.commands import COMMANDS, FRONT_OPTIONS, command_parser
from bluejay.cli.parser import CommandParser
from bluejay.core.errors import UsageError
from bluejay.model.presets import PRESETS

ASK_OPTION = "--complete"

# Each hands the words up to the cursor to `bluejay --complete` and offers what comes back, a
# candidate and its description a line, or files where nothing does.
_BASH = r"""# eval "$(bluejay --print-completion bash)"
_bluejay() {
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        COMPREPLY+=("${line%%$'\t'*}")
    done < <("${COMP_WORDS[0]}" --complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -o default -F _bluejay bluejay
"""
_ZSH = r"""#compdef bluejay
# eval "$(bluejay --print-completion zsh)", after compinit
_bluejay() {
    local line
    local -a found
    for line in "${(@f)$("${words[1]}" --complete "${(@)words[2,CURRENT]}" 2>/dev/null)}"; do
        [[ -n "$line" ]] && found+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
    done
    if (( ${#found} )); then
        _describe 'bluejay' found
    else
        _files
    fi
}
compdef _bluejay bluejay
"""
_FISH = r"""# bluejay --print-completion fish | source
function __bluejay_complete
    set -l words (commandline -opc) (commandline -ct)
    $words[1] --complete $words[2..-1] 2>/dev/null
end
complete -c bluejay -f -a '(__bluejay_complete)'
complete -c bluejay -n 'not __bluejay_complete | string length -q' -F
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def print_script(arguments: Sequence[str]) -> None:
    """Print the script for a shell. Raises UsageError for one that is not known."""
    if len(arguments) != 1 or arguments[0] not in SCRIPTS:
        given = f", not {' '.join(arguments)[:60]!r}" if arguments else ""
        raise UsageError(f"--print-completion takes bash, zsh or fish{given}.")
    print(SCRIPTS[arguments[0]], end="")


def print_candidates(words: Sequence[str]) -> None:
    """Print what the last of the words can become."""
    for word, description in candidates(words):
        print(f"{word}\t{description}" if description else word)
    sys.stdout.flush()


def candidates(words: Sequence[str]) -> list[tuple[str, str]]:
    """What the last word can become, with descriptions; empty where a file is wanted."""
    before, typed = list(words[:-1]), words[-1] if words else ""
    # bash splits `--model=x` into three words.
    if typed == "=":
        typed = ""
    elif before and before[-1] == "=":
        before.pop()
    while before and before[0] == "--debug":
        before.pop(0)
    found = _first_words() if not before else _later_words(before, typed)
    return [(word, what) for word, what in found if word.startswith(typed)]


def _first_words() -> list[tuple[str, str]]:
    return [(name, command.summary) for name, command in COMMANDS.items()] + list(
        FRONT_OPTIONS.items()
    )


def _later_words(before: list[str], typed: str) -> list[tuple[str, str]]:
    if before[0] == "--print-completion":
        return [(shell, "") for shell in SCRIPTS]
    if before[0] in ("help", "--help"):
        return [(name, command.summary) for name, command in COMMANDS.items()]
    if before[0] not in COMMANDS:
        return []
    parser = command_parser(COMMANDS[before[0]])
    action = parser.action_of(before[-1])
    if action is not None and action.nargs != 0:
        return _values(str(action.metavar), before)
    if typed.startswith("-"):
        actions = [(name, parser.action_of(name)) for name in parser.option_strings()]
        return [
            (name, (action.help or "").replace("%%", "%"))
            for name, action in actions
            if name.startswith("--") and action is not None
        ]
    return _values(_next_positional(parser, before[1:]), before)


def _next_positional(parser: CommandParser, before: Sequence[str]) -> str:
    """The metavar of the positional that comes after these words."""
    num_given, expects_value = 0, False
    for word in before:
        action = parser.action_of(word)
        if expects_value:
            expects_value = False
        elif action is not None:
            expects_value = action.nargs != 0
        else:
            num_given += 1
    names = [str(action.metavar) for action in parser.positionals()]
    return names[min(num_given, len(names) - 1)] if names else ""


def _values(metavar: str, before: Sequence[str]) -> list[tuple[str, str]]:
    if "|" in metavar:
        return [(choice, "") for choice in metavar.split("|")]
    if metavar == "rm":
        return [(name, "") for name in CATALOGUE] if "rm" in before else [("rm", "remove a model")]
    models = [(name, entry.good_for) for name, entry in CATALOGUE.items()]
    if metavar in ("MODEL", "NAME", "SRC"):
        return models
    if metavar == "MODEL_OR_PRESET":
        return models + [(name, "preset") for name in PRESETS if name not in CATALOGUE]
    return []
