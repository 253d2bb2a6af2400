"""`bluejay chat`: a conversation in the terminal, with a model here or on a server."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bluejay.cli.failures import describe
from bluejay.cli.loading import add_model_arguments, load_model
from bluejay.cli.parser import CommandParser, positive_number, real_number, whole_number
from bluejay.cli.remote import add_remote_arguments, connect
from bluejay.cli.samples import WordWrapper
from bluejay.cli.status import Status, status
from bluejay.cli.terminal import argument_text, harmless, is_terminal, styled
from bluejay.core.errors import BluejayError, UsageError

if TYPE_CHECKING:
    from bluejay.runs.language_model import LanguageModel
    from bluejay.text.chat_templates import Role

Message = dict[str, str]
Answerer = Callable[[Sequence[Message], int], Iterator[str]]
"""From the messages of a conversation and a seed to the pieces of the next answer."""

_DEFAULT_MAX_TOKENS = 512
_SEED_BITS = 31
_PROMPT, _MORE = "> ", ". "
_COMMANDS = {
    "/retry": "ask the same again, for another answer",
    "/edit [TEXT]": "change the last question, and ask it in place of the old one",
    "/undo": "take back the last question and its answer",
    "/clear": "begin a new conversation",
    "/save FILE": "write the conversation: as JSON to a name that ends in .json, else as text",
    "/help": "show this",
    "/exit": "end (or Ctrl-D)",
}
_HINT = "Ctrl-C stops an answer, /help lists commands, Ctrl-D ends; a line that ends in \\ goes on."


def add_arguments(parser: CommandParser) -> None:
    """The options of `bluejay chat`."""
    parser.add_argument("named", metavar="MODEL", nargs="?", help="as --model")
    add_model_arguments(parser)
    add_remote_arguments(parser)
    group = parser.add_argument_group("answers")
    group.add_argument("--system", metavar="TEXT", help="who the model is, and how it answers")
    group.add_argument(
        "--max-tokens",
        metavar="N",
        type=positive_number,
        help="stop an answer after so many tokens (default: what a server allows; here "
        f"{_DEFAULT_MAX_TOKENS}, or half of the context)",
    )
    group.add_argument(
        "--temperature",
        metavar="X",
        type=real_number,
        help="0 always takes the likeliest token, 1 follows the model (default: 0.8)",
    )
    group.add_argument(
        "--top-p",
        metavar="X",
        type=real_number,
        help="keep the likeliest tokens up to this probability (default: 0.95)",
    )
    group.add_argument(
        "--seed", metavar="N", type=whole_number, help="the same seed gives the same answers"
    )


def run(arguments: argparse.Namespace) -> int:
    """Answer what is typed, until it ends; without a terminal, the lines of stdin."""
    if arguments.named is not None:
        if arguments.model is not None:
            raise UsageError("Two models are named, one with --model: name one.")
        arguments.model = arguments.named
    system = None if arguments.system is None else argument_text(arguments.system, "system message")
    with status() as shown:
        answerer, name = _answerer(arguments, shown)
    seed = secrets.randbits(_SEED_BITS) if arguments.seed is None else arguments.seed
    Chat(answerer, Conversation(system=system, seed=seed), name=name).run()
    return 0


@dataclass(kw_only=True)
class Conversation:
    """Who said what. Each answer is drawn with a seed of its own, counted on from the first."""

    seed: int
    system: str | None = None
    turns: list[Message] = field(default_factory=list)

    @property
    def messages(self) -> list[Message]:
        """All of it, the system message first."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, *self.turns]

    @property
    def last_question(self) -> str | None:
        """What was asked last."""
        asked = [turn["content"] for turn in self.turns if turn["role"] == "user"]
        return asked[-1] if asked else None

    def ask(self, text: str) -> None:
        """Add a question."""
        self.turns.append({"role": "user", "content": text})

    def answer(self, text: str) -> None:
        """Add the answer; the next one is drawn with the next seed."""
        self.turns.append({"role": "assistant", "content": text})
        self.seed = (self.seed + 1) % 2**_SEED_BITS

    def undo(self) -> str:
        """Take back the last question with its answer, and return it. UsageError if none is there.

        The seed stays that of the next answer, so that asking again may bring another one.
        """
        question = self.last_question
        if question is None:
            raise UsageError("Nothing has been asked yet.")
        while self.turns.pop()["role"] != "user":
            pass
        return question

    def as_text(self) -> str:
        """For people: each message under the name of who said it."""
        return "\n".join(f"{turn['role']}:\n{turn['content']}\n" for turn in self.messages)


class Chat:
    """Reads questions and commands, and prints answers as they come."""

    def __init__(self, answerer: Answerer, conversation: Conversation, *, name: str) -> None:
        self._answerer, self._conversation, self._name = answerer, conversation, name
        self._is_terminal = is_terminal(sys.stdin) and is_terminal(sys.stdout)
        self._saved: set[Path] = set()
        self._unanswered: str | None = None

    def run(self) -> None:
        """Until /exit or the end of the input."""
        if self._is_terminal:
            # Importing it gives `input` its keys: arrows, history, Ctrl-R. What was typed is kept
            # for this process only.
            with suppress(ImportError):
                import readline  # noqa: F401  # for what it does to `input`
            print(styled(f"{self._name}. {_HINT}", "dim"))
        while True:
            try:
                text = self._read()
            except EOFError:
                if self._is_terminal:
                    print()
                return
            except KeyboardInterrupt:
                print(styled("\n(Ctrl-D or /exit ends)", "dim"))
                continue
            if text.strip() in ("/exit", "/quit"):
                return
            try:
                self._take(text)
            except (BluejayError, OSError) as error:
                self._say(describe(error).sentence)

    def _take(self, text: str) -> None:
        """Answer a question, or carry out a command."""
        if not text.strip():
            return
        if not text.startswith("/"):
            self._answer(text)
            return
        command, _, rest = text.partition(" ")
        actions = {
            "/retry": lambda _: self._answer(self._again()),
            "/edit": self._edit,
            "/undo": self._undo,
            "/clear": self._clear,
            "/save": self._save,
            "/help": self._help,
        }
        if command not in actions:
            raise UsageError(f"There is no command {command[:60]!r}: /help lists those there are.")
        actions[command](rest.strip())

    def _answer(self, question: str) -> None:
        """Ask, and print the answer; Ctrl-C ends it, and what came is kept."""
        talk, pieces = self._conversation, list[str]()
        talk.ask(question)
        self._unanswered = question
        printer = _Printer()
        try:
            # Closed at once, so that a server stops, too.
            with closing(_generator(self._answerer(talk.messages, talk.seed))) as answer:
                for piece in _announced(answer):
                    pieces.append(piece)
                    printer.write(piece)
        except KeyboardInterrupt:
            printer.end()
            self._say("Stopped; /retry asks again.")
        finally:
            printer.end()
            if "".join(pieces).strip():
                talk.answer("".join(pieces))
                self._unanswered = None
            else:
                talk.undo()

    def _again(self) -> str:
        """The question to ask again: the one that got no answer, or the last one, taken back."""
        return self._unanswered or self._conversation.undo()

    def _edit(self, text: str) -> None:
        question = self._unanswered or self._conversation.last_question
        if question is None:
            raise UsageError("Nothing has been asked yet.")
        changed = text or self._read_edited(question)
        if changed.strip():
            self._again()
            self._answer(changed)

    def _undo(self, _: str) -> None:
        if self._unanswered is None:
            self._conversation.undo()
        self._unanswered = None
        left = len(self._conversation.turns) // 2
        self._say(f"Taken back; {left} question{'s' * (left != 1)} left.")

    def _clear(self, _: str) -> None:
        self._conversation.turns.clear()
        self._unanswered = None
        self._say("A new conversation.")

    def _save(self, name: str) -> None:
        if not name:
            raise UsageError("/save needs the name of a file.")
        path = Path(name).expanduser()
        if path.exists() and path.resolve() not in self._saved:
            raise UsageError(f"{name} is there already: give another name.")
        document = {"model": self._name, "messages": self._conversation.messages}
        content = json.dumps(document, ensure_ascii=False, indent=2) + "\n"
        if path.suffix != ".json":
            content = self._conversation.as_text()
        path.write_text(content, encoding="utf-8")
        self._saved.add(path.resolve())
        self._say(f"Saved as {name}.")

    def _help(self, _: str) -> None:
        for command, what in _COMMANDS.items():
            self._say(f"{command:14} {what}")

    def _read(self) -> str:
        """A line, with those that its \\ at the end continues. EOFError at the end of the input."""
        lines = [self._line(_PROMPT)]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(self._line(_MORE))
        return "\n".join(lines)

    def _line(self, prompt: str) -> str:
        return input(prompt if self._is_terminal else "")

    def _read_edited(self, text: str) -> str:
        """The text as a person changes it; it is there to begin with."""
        if not self._is_terminal:
            raise UsageError("/edit needs the new text behind it where there is no terminal.")
        import readline

        # One line: readline shows line ends as such, and takes none from the keyboard.
        readline.set_startup_hook(lambda: readline.insert_text(text.replace("\n", " ")))
        try:
            return self._line(_PROMPT)
        except (EOFError, KeyboardInterrupt):
            print()
            return ""
        finally:
            readline.set_startup_hook()

    def _say(self, sentence: str) -> None:
        """To the person, not into the text of the conversation."""
        print(styled(sentence, "dim", sys.stderr), file=sys.stderr, flush=True)


class _Printer:
    """Prints an answer as it grows, and closes its last line once."""

    def __init__(self) -> None:
        self._wrapper = WordWrapper() if is_terminal(sys.stdout) else None
        self._is_open = False

    def write(self, piece: str) -> None:
        self._is_open = not piece.endswith("\n")
        text = piece if self._wrapper is None else self._wrapper.feed(harmless(piece))
        sys.stdout.write(text)
        sys.stdout.flush()

    def end(self) -> None:
        if self._is_open:
            print(flush=True)
        self._is_open = False


def _announced(pieces: Iterator[str]) -> Iterator[str]:
    """The pieces; while the first is not there, the terminal says so."""
    with status() as shown:
        shown.say("Thinking")
        first = next(pieces, None)
    if first is not None:
        yield first
        yield from pieces


def _generator(pieces: Iterator[str]) -> Any:
    """The iterator as one that can be closed."""
    return pieces if hasattr(pieces, "close") else (piece for piece in pieces)


def _answerer(arguments: argparse.Namespace, shown: Status) -> tuple[Answerer, str]:
    """What answers, and the name of its model."""
    from bluejay.generation.sampling_params import DEFAULT_TEMPERATURE, DEFAULT_TOP_P

    given = {"temperature": arguments.temperature, "top_p": arguments.top_p}
    options: dict[str, Any] = {"temperature": DEFAULT_TEMPERATURE, "top_p": DEFAULT_TOP_P}
    options |= {name: value for name, value in given.items() if value is not None}
    if arguments.url is not None:
        remote, name = connect(arguments, shown)
        options |= {"max_tokens": arguments.max_tokens}
        return (lambda messages, seed: remote.chat(messages, seed=seed, **options)), name
    model, name = load_model(arguments, shown)
    half = model.config.context_length // 2
    options |= {"max_tokens": arguments.max_tokens or min(_DEFAULT_MAX_TOKENS, half)}
    return local_answerer(model, name, options), name


def local_answerer(model: LanguageModel, name: str, options: Mapping[str, Any]) -> Answerer:
    """Answers of a model in this process, by its chat template; a conversation that outgrows the
    context loses its oldest part behind the system message. `options` are those of `deltas`, with
    `max_tokens` among them."""
    from bluejay.text.chat_templates import ChatMessage, chat_prompt, default_template
    from bluejay.text.prompt import fit_context

    template = default_template(model.tokenizer, model=name)

    def answer(messages: Sequence[Message], seed: int) -> Iterator[str]:
        said = [
            ChatMessage(role=cast("Role", message["role"]), content=message["content"])
            for message in messages
        ]
        prompt = chat_prompt(model.tokenizer, template, said)
        ids = fit_context(
            prompt.ids,
            context_length=model.config.context_length,
            max_tokens=options["max_tokens"],
            policy="trim",
            num_kept=prompt.num_kept,
        )
        deltas = model.deltas(ids, seed=seed, stop=list(template.stops), **options)
        texts = (delta.text for delta in deltas)
        return _trimmed(texts) if template.trims_answer else texts

    return answer


def _trimmed(pieces: Iterator[str]) -> Iterator[str]:
    """Without white space before the first word."""
    has_begun = False
    for piece in pieces:
        text = piece if has_begun else piece.lstrip()
        has_begun = has_begun or bool(text)
        if text:
            yield text
