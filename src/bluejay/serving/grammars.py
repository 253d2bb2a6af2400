"""Grammars of requests, within the server's limits."""

import asyncio

from bluejay.core.errors import BluejayError
from bluejay.serving.errors import ApiError
from bluejay.serving.service import TextService
from bluejay.text.grammar import CompiledGrammar, Grammar, GrammarLimits, compile_grammar


async def compiled_grammar(
    service: TextService, grammar: Grammar, *, param: str
) -> CompiledGrammar:
    """A grammar for the served model. ApiError 400 naming `param` for one that cannot be used."""
    bounds = service.limits.request
    bounds.check("grammar_bytes", grammar.num_bytes, param=param)
    bounds.check("grammar_depth", grammar.depth, param=param)
    limits = GrammarLimits(
        max_bytes=bounds.grammar_bytes,
        max_depth=bounds.grammar_depth,
        max_seconds=bounds.grammar_seconds,
    )
    try:
        return await asyncio.to_thread(
            compile_grammar,
            grammar,
            service.tokenizer,
            vocab_rows=service.config.vocab_size,
            limits=limits,
        )
    except BluejayError as error:
        raise ApiError(400, str(error), param=param) from None
