"""How a conversation becomes a prompt: fixed templates, one per kind of model. Starts without JAX.

Templates are data of this package; those inside model files are programs and are never run. What a
person wrote stays plain text, whatever it looks like: only a template places special tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bluejay.core.errors import UsageError
from bluejay.text.conventions import conventions_of
from bluejay.vocab.quoting import quoted
from bluejay.vocab.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, kw_only=True)
class ChatMessage:
    """What somebody said."""

    role: Role
    content: str


@dataclass(frozen=True)
class Special:
    """A special token of a template, by name."""

    name: str


Part = str | Special


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """What stands around each message, by its role, and where the answer begins and ends.

    A prompt is the document start if `starts_document`, every message between its `before` and
    `after`, and `answer`. Where no system message comes first, `default_system` does, if there is
    one. `stops` end an answer, besides the tokens that end every text of the model. With
    `trims_answer` the white space between `answer` and the model's first word is no part of it.
    """

    name: str
    before: Mapping[Role, tuple[Part, ...]]
    after: Mapping[Role, tuple[Part, ...]]
    answer: tuple[Part, ...]
    default_system: str | None = None
    stops: tuple[str, ...] = ()
    starts_document: bool = True
    trims_answer: bool = False

    def is_possible(self, tokenizer: Tokenizer) -> bool:
        """Whether the tokenizer has the template's special tokens."""
        around = [*self.before.values(), *self.after.values(), self.answer]
        specials = {part.name for parts in around for part in parts if isinstance(part, Special)}
        return all(tokenizer.token_id(name) in tokenizer.special_ids for name in specials)


@dataclass(frozen=True, kw_only=True)
class ChatPrompt:
    """Ids that a model reads. The first `num_kept` are the document start and the system message,
    which a conversation that is cut keeps."""

    ids: tuple[int, ...]
    num_kept: int


_CHATML_BEFORE: dict[Role, tuple[Part, ...]] = {
    "system": (Special("<|im_start|>"), "system\n"),
    "user": (Special("<|im_start|>"), "user\n"),
    "assistant": (Special("<|im_start|>"), "assistant\n"),
}
_CHATML_AFTER: tuple[Part, ...] = (Special("<|im_end|>"), "\n")

CHATML = ChatTemplate(
    name="chatml",
    before=_CHATML_BEFORE,
    after={"system": _CHATML_AFTER, "user": _CHATML_AFTER, "assistant": _CHATML_AFTER},
    answer=_CHATML_BEFORE["assistant"],
    starts_document=False,
)
"""`<|im_start|>user` line break, text, `<|im_end|>` line break: of many models that were tuned to
talk, each with the names as tokens."""

SMOLLM2 = ChatTemplate(
    name="smollm2",
    before=CHATML.before,
    after=CHATML.after,
    answer=CHATML.answer,
    default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    starts_document=False,
)
"""ChatML with the system message that SmolLM2-Instruct was trained with (the `chat_template` of its
GGUF files and of tokenizer_config.json)."""

PLAIN = ChatTemplate(
    name="plain",
    before={"system": (), "user": ("User: ",), "assistant": ("Assistant: ",)},
    after={"system": ("\n\n",), "user": ("\n",), "assistant": ("\n",)},
    answer=("Assistant:",),
    stops=("\nUser:", "\nAssistant:"),
    trims_answer=True,
)
"""A written dialogue, for models that were not tuned to talk (GPT-J): they continue it, and end
where the user would speak again."""

ALPACA = ChatTemplate(
    name="alpaca",
    before={
        "system": (),
        "user": ("### Instruction:\n",),
        "assistant": ("### Response:\n",),
    },
    after={"system": ("\n\n",), "user": ("\n\n",), "assistant": ("\n\n",)},
    answer=("### Response:\n",),
    default_system=(
        "Below is an instruction that describes a task. Write a response that appropriately"
        " completes the request."
    ),
    stops=("### Instruction:", "### End"),
    trims_answer=True,
)
"""Instruction and response under headings, of GPT-J's fine-tunes on Alpaca's data (Dolly v1). They
saw one turn; more turns follow each other in the same form."""

PYGMALION = ChatTemplate(
    name="pygmalion",
    before={
        "system": ("Assistant's Persona: ",),
        "user": ("You: ",),
        "assistant": ("Assistant: ",),
    },
    after={"system": ("\n<START>\n",), "user": ("\n",), "assistant": ("\n",)},
    answer=("Assistant:",),
    stops=("\nYou:", "\nAssistant:"),
    trims_answer=True,
)
"""A character and a dialogue with it (the model card of pygmalion-6b); the system message says who
the character is."""

TEMPLATES = {template.name: template for template in (SMOLLM2, CHATML, ALPACA, PYGMALION, PLAIN)}


def template_named(name: str, tokenizer: Tokenizer) -> ChatTemplate:
    """The template of that name. UsageError if there is none, or the tokenizer lacks its tokens."""
    template = TEMPLATES.get(name)
    if template is None:
        raise UsageError(
            f"There is no chat template {quoted(name)}: there are {', '.join(TEMPLATES)}."
        )
    if not template.is_possible(tokenizer):
        raise UsageError(
            f"The chat template {name} needs special tokens that this model's tokenizer lacks: "
            "choose plain."
        )
    return template


def default_template(tokenizer: Tokenizer, *, model: str = "") -> ChatTemplate:
    """The template for a model: by its name where the name says it, else by its tokens."""
    lowered = model.lower()
    named = (("smollm2", SMOLLM2), ("dolly-v1", ALPACA), ("pygmalion", PYGMALION))
    for word, template in named:
        if word in lowered and template.is_possible(tokenizer):
            return template
    return CHATML if CHATML.is_possible(tokenizer) else PLAIN


def chat_prompt(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[ChatMessage]
) -> ChatPrompt:
    """The ids of a conversation up to where the answer begins.

    UsageError for a conversation without messages; DataError for characters that the tokenizer
    cannot write.
    """
    if not messages:
        raise UsageError("A conversation needs at least one message.")
    system = template.default_system
    if system is not None and messages[0].role != "system":
        messages = [ChatMessage(role="system", content=system), *messages]
    start = conventions_of(tokenizer).document_start if template.starts_document else ()
    num_system = 1 if messages[0].role == "system" else 0
    kept = _ids(tokenizer, _parts(template, messages[:num_system]))
    rest = _ids(tokenizer, [*_parts(template, messages[num_system:]), *template.answer])
    return ChatPrompt(ids=(*start, *kept, *rest), num_kept=len(start) + len(kept))


def _parts(template: ChatTemplate, messages: Sequence[ChatMessage]) -> list[Part]:
    return [
        part
        for message in messages
        for part in (*template.before[message.role], message.content, *template.after[message.role])
    ]


def _ids(tokenizer: Tokenizer, parts: Sequence[Part]) -> list[int]:
    """Ids of parts; texts that touch are read as one, as they were when the model was trained."""
    ids: list[int] = []
    text = ""
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        ids += tokenizer.encode(text)
        text = ""
        found = tokenizer.token_id(part.name)
        assert found is not None
        ids.append(found)
    return ids + tokenizer.encode(text)
