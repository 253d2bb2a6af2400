"""`POST /v1/suggest`: the next words, as a keyboard shows them while one types."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta
from starlette.responses import Response

from bluejay.core.errors import BluejayError
from bluejay.serving.desk import Desk
from bluejay.serving.errors import ApiError
from bluejay.serving.limits import Limits
from bluejay.serving.routes import Call, Route, StrictBody, json_answer
from bluejay.serving.searches import Search, Searches
from bluejay.serving.service import TextService
from bluejay.serving.sse import until_disconnect
from bluejay.text.next_tokens import Asking, NextTokens
from bluejay.text.suggestions import MAX_CALLS, SearchBounds, Suggestion, suggesting

MAX_WORDS: Final = 20
MOST_CALLS: Final = 128
_SESSION_CHARACTERS: Final = 64
# Each a name and a number; a session that is forgotten only loses its number.
_REMEMBERED_SESSIONS: Final = 1024


class SuggestBody(StrictBody, frozen=True, kw_only=True):
    """What has been typed, half a word too. null is as if absent."""

    text: str
    k: (
        Annotated[
            int,
            Meta(
                description="How many words at most; 5 if absent.",
                extra_json_schema={"minimum": 1, "maximum": MAX_WORDS},
            ),
        ]
        | None
    ) = None
    max_calls: (
        Annotated[
            int,
            Meta(
                description=f"How often the model may be asked; {MAX_CALLS} if absent.",
                extra_json_schema={"minimum": 1, "maximum": MOST_CALLS},
            ),
        ]
        | None
    ) = None
    session: (
        Annotated[
            str,
            Meta(
                description="Who types: a new request ends the one before of the same session,"
                " which is answered with 409.",
                extra_json_schema={"minLength": 1, "maxLength": _SESSION_CHARACTERS},
            ),
        ]
        | None
    ) = None
    sequence: (
        Annotated[
            int,
            Meta(
                description="Counts the keys of a session: a request that arrives behind a later"
                " one is ended at once.",
                extra_json_schema={"minimum": 0},
            ),
        ]
        | None
    ) = None
    model: str | None = None


class SuggestedWord(msgspec.Struct, frozen=True, kw_only=True):
    """A word and its probability. `appended` behind the typed text makes it; `completes` tells a
    completion of the typed word from a word after it."""

    word: str
    probability: float
    appended: str
    completes: bool


class SuggestAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Words, the most probable first; none where the model expects no word."""

    object: Literal["suggestions"]
    model: str
    suggestions: list[SuggestedWord]


def suggest_routes(service: TextService, model: NextTokens) -> list[Route]:
    """The route that suggests words; `model` is asked by one thread, for several searches in turn
    if it is a `SharedModel`."""
    return [
        Route(
            method="POST",
            path="/v1/suggest",
            summary="The next words.",
            handler=partial(_suggest, service, Typists(model, service.limits)),
            body=SuggestBody,
            answer=SuggestAnswer,
        )
    ]


class SupersededError(ApiError):
    """A later request of the same session has come."""

    def __init__(self) -> None:
        super().__init__(
            409,
            "A later request of this session has come, so this one was ended.",
            param="session",
            code="superseded",
            headers={"x-should-retry": "false"},
        )


@dataclass(kw_only=True, eq=False)
class Job:
    """One request, while it waits or runs."""

    search: Search
    superseded: asyncio.Event = field(default_factory=asyncio.Event)


class Typists:
    """Those who type: their searches, of which those that nobody wants any more are ended.

    Used on the event loop. A session is a tenant's: nobody can end another's requests.
    """

    def __init__(self, model: NextTokens, limits: Limits) -> None:
        self._desk = Desk(limits, "suggestions", Searches(model))
        self._jobs: dict[tuple[str, str], Job] = {}
        self._sequences: OrderedDict[tuple[str, str], int] = OrderedDict()

    async def run(
        self, search: Search, *, session: str | None, sequence: int | None
    ) -> list[Suggestion]:
        """What the search finds. SupersededError if a later request of the session comes before."""
        job = Job(search=search)
        key = None if session is None else (search.tenant, session)
        if key is not None:
            self._replace(key, job, sequence)
        try:
            with self._desk.place():
                return await self._wait(job)
        finally:
            search.is_cancelled.set()
            if key is not None and self._jobs.get(key) is job:
                del self._jobs[key]

    async def _wait(self, job: Job) -> list[Suggestion]:
        turn = self._desk.turn(job.search, tenant=job.search.tenant)
        finding = asyncio.create_task(turn)
        waiting = asyncio.create_task(job.superseded.wait())
        try:
            await asyncio.wait((finding, waiting), return_when=asyncio.FIRST_COMPLETED)
            if job.superseded.is_set():
                raise SupersededError
            return finding.result()
        finally:
            waiting.cancel()
            # Not begun, it never will be; begun, it ends by itself and nobody looks at how.
            finding.cancel()
            await asyncio.wait((finding,))
            _ = finding.cancelled() or finding.exception()

    def _replace(self, key: tuple[str, str], job: Job, sequence: int | None) -> None:
        """End the session's request before, unless this one is the earlier of the two."""
        if sequence is not None:
            if sequence < self._sequences.get(key, 0):
                raise SupersededError
            self._sequences[key] = sequence
            self._sequences.move_to_end(key)
            if len(self._sequences) > _REMEMBERED_SESSIONS:
                self._sequences.popitem(last=False)
        if before := self._jobs.get(key):
            before.superseded.set()
            before.search.is_cancelled.set()
        self._jobs[key] = job


async def _suggest(service: TextService, typists: Typists, call: Call[SuggestBody]) -> Response:
    body = call.body
    if service.adapter_of(body.model) is not None:
        raise ApiError(
            400, "Words are suggested by the model itself, without adapters.", param="model"
        )
    k = _bounded("k", body.k, 5, MAX_WORDS)
    max_calls = _bounded("max_calls", body.max_calls, MAX_CALLS, MOST_CALLS)
    _check_session(body)
    service.limits.request.check("prompt_characters", len(body.text), param="text")

    bounds = SearchBounds(k=k, max_calls=max_calls)

    def asking(model: NextTokens) -> Asking[list[Suggestion]]:
        return suggesting(model, service.tokenizer, body.text, bounds)

    search = Search(asking=asking, tenant=call.tenant)
    work = typists.run(search, session=body.session, sequence=body.sequence)
    try:
        found = await until_disconnect(call, work)
    except BluejayError as error:
        raise ApiError(400, str(error), param="text") from None
    words = [
        SuggestedWord(
            word=item.word,
            probability=item.probability,
            appended=item.appended,
            completes=item.completes,
        )
        for item in found
    ]
    return json_answer(
        SuggestAnswer(object="suggestions", model=body.model or service.model, suggestions=words)
    )


def _bounded(name: str, value: int | None, default: int, most: int) -> int:
    if value is None:
        return default
    if not 1 <= value <= most:
        raise ApiError(400, f"{name} is {value}, but it must be from 1 to {most}.", param=name)
    return value


def _check_session(body: SuggestBody) -> None:
    if body.session is not None and not 1 <= len(body.session) <= _SESSION_CHARACTERS:
        raise ApiError(
            400,
            f"session has {len(body.session)} characters, but it must have from 1 to"
            f" {_SESSION_CHARACTERS}.",
            param="session",
        )
    if body.sequence is not None and (body.session is None or body.sequence < 0):
        raise ApiError(
            400, "sequence counts the requests of a session from 0: send both.", param="sequence"
        )
