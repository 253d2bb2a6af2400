"""What the model reads before it fills in: with the tokens made for it, or the prefix alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bluejay.serving.errors import ApiError
from bluejay.serving.infill_bodies import InfillBody
from bluejay.serving.service import TextService
from bluejay.text.fill_in_middle import FillMarks, fill_marks

_FILE_ENDS: Final = ("<file_sep>", "<|file_sep|>", "<fim_pad>", "<|fim_pad|>")
# What is left out goes in steps: from key to key the prompt then begins alike, and is reused.
_STEP: Final = 128
_LINE_CHARACTERS: Final = 64


@dataclass(frozen=True, kw_only=True)
class InfillPrompt:
    """Ids, the ids that end the text, and the strings that do: the suffix begins again there.

    `rest` is what stands behind the cursor on its line, `is_cut` whether the prefix or suffix is
    not whole.
    """

    ids: tuple[int, ...]
    stop_ids: frozenset[int]
    stops: tuple[str, ...] = ()
    rest: str = ""
    is_cut: bool = False


def infill_prompt(service: TextService, body: InfillBody, *, num_new: int) -> InfillPrompt:
    """The prompt of a body, so that `num_new` more ids fit into the context.

    A model with tokens for it reads the other texts, then the prefix, the suffix, and the cursor's
    line behind the last marker. Any other reads the other texts, the prefix and the cursor's line,
    and is stopped where it begins to repeat the first line of the suffix that is not blank.
    ApiError if `num_new` leaves no room.
    """
    room = service.context_length - num_new - len(service.conventions.document_start)
    if room < _STEP:
        raise ApiError(
            400,
            f"n_predict is {num_new}, but the context holds {service.context_length} tokens, the"
            f" prompt's and the new ones, and a prompt needs {_STEP}: lower n_predict.",
            param="n_predict",
        )
    marks = fill_marks(service.tokenizer)
    if marks is None:
        return _prefix_prompt(service, body, room)
    return _marked_prompt(service, body, room, marks)


def _marked_prompt(
    service: TextService, body: InfillBody, room: int, marks: FillMarks
) -> InfillPrompt:
    mark_ids = frozenset({marks.prefix, marks.suffix, marks.middle})
    line = _ids(service, body.prompt or "", room // 4, from_end=True)
    room -= len(line) + len(mark_ids)
    suffix = _ids(service, body.input_suffix, room // 4)
    prefix = _ids(service, body.input_prefix, room - len(suffix), from_end=True)
    extra = _extra(service, body, room - len(suffix) - len(prefix))
    ends = (service.tokenizer.token_id(name) for name in _FILE_ENDS)
    return InfillPrompt(
        ids=(
            *service.conventions.document_start,
            *extra,
            *marks.prompt(prefix, suffix),
            *line,
        ),
        stop_ids=service.conventions.stop_ids | mark_ids | {i for i in ends if i is not None},
        is_cut=_is_cut(service, body.input_prefix, prefix)
        or _is_cut(service, body.input_suffix, suffix),
    )


def _prefix_prompt(service: TextService, body: InfillBody, room: int) -> InfillPrompt:
    text = body.input_prefix + (body.prompt or "")
    ids = _ids(service, text, room, from_end=True)
    extra = _extra(service, body, room - len(ids))
    rest, *lines = body.input_suffix.split("\n")
    following = next((line for line in lines if line.strip()), "")
    stops = [f"{rest[:_LINE_CHARACTERS]}\n"] if rest.strip() else []
    if following:
        stops.append(f"\n{following[:_LINE_CHARACTERS]}")
    return InfillPrompt(
        ids=(*service.conventions.document_start, *extra, *ids),
        stop_ids=service.conventions.stop_ids,
        stops=tuple(stops),
        rest=rest if rest.strip() else "",
        is_cut=_is_cut(service, text, ids),
    )


def _extra(service: TextService, body: InfillBody, room: int) -> list[int]:
    """The other texts that fit, the last ones, whole, in their order."""
    found: list[int] = []
    for item in reversed(body.input_extra or ()):
        text = item.text.rstrip("\n") + "\n"
        if len(text) > _most_characters(service, room - len(found)):
            break
        ids = service.text_ids(text)
        if len(ids) + len(found) > room:
            break
        found = [*ids, *found]
    return found


def _ids(service: TextService, text: str, room: int, *, from_end: bool = False) -> list[int]:
    """The first or last ids of a text, all if they fit."""
    characters = _most_characters(service, room)
    short = text[-characters:] if from_end else text[:characters]
    ids = service.text_ids(short) if short else []
    if len(ids) <= room:
        return ids
    if not from_end:
        return ids[:room]
    excess = len(ids) - room
    steps = -(-excess // _STEP) * _STEP
    return ids[steps if steps < len(ids) else excess :]


def _most_characters(service: TextService, room: int) -> int:
    """More cannot be of use: hardly a token has more than 16, and the server's limit holds."""
    return max(1, min(16 * room, service.limits.request.prompt_characters))


def _is_cut(service: TextService, text: str, ids: Sequence[int]) -> bool:
    return len(service.tokenizer.decode_bytes(ids)) < len(text.encode())
