"""What the server of tests/fake_completions.py writes, and what it refuses."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

KNOWN = {
    *("model", "prompt", "messages", "max_tokens", "stream", "stream_options", "seed", "logprobs"),
    *("temperature", "top_p", "top_k", "n", "stop", "user", "logit_bias", "text", "k"),
}


def word(prompt: str, seed: object, index: int) -> str:
    """Token `index` of what is written after that prompt with that seed."""
    digest = hashlib.sha256(f"{prompt}|{seed}|{index}".encode()).hexdigest()
    return f" {digest[:4]}"


def text_of(prompt: str, seed: object, num_tokens: int) -> str:
    """All of it."""
    return "".join(word(prompt, seed, index) for index in range(num_tokens))


def check(document: Any) -> None:
    """Raise an error for what a server has to refuse."""
    for name, value in document.items():
        if name not in KNOWN:
            raise ValueError(f"no field {name!r}")
        json.dumps(value, ensure_ascii=False).encode()  # no lone surrogates
    if not {"prompt", "messages", "text"} & set(document):
        raise ValueError("no prompt")
    bounds = {"max_tokens": 2048, "temperature": 2, "top_p": 1, "n": 8}
    for name, most in bounds.items():
        value = document.get(name, 0)
        if isinstance(value, bool) or not 0 <= value <= most:
            raise ValueError(f"{name} is {value}")
    if not isinstance(document.get("max_tokens", 0), int):
        raise TypeError("max_tokens must be whole")
    prompt = document.get("prompt", "")
    if len(prompt) > 32_768:
        raise ValueError("the prompt is too long")
    if isinstance(prompt, list) and min(prompt) < 0:
        raise ValueError("negative ids")


def no_number(name: str) -> None:
    """Refuse NaN and infinities."""
    raise ValueError(name)


@dataclass(kw_only=True)
class Writing:
    """What one request asks for, as the documents that answer it."""

    number: int
    prompt: str
    seed: object
    max_tokens: int
    streams: bool
    has_usage: bool
    is_chat: bool
    has_logprobs: bool
    num_samples: int

    @classmethod
    def of(cls, document: dict[str, Any], path: str, number: int) -> "Writing":
        is_chat = path.endswith("/chat/completions")
        prompt = json.dumps(document["messages"]) if is_chat else str(document["prompt"])
        return cls(
            number=number,
            prompt=prompt,
            seed=document.get("seed"),
            max_tokens=document.get("max_tokens", 16),
            streams=bool(document.get("stream")),
            has_usage=bool(document.get("stream_options", {}).get("include_usage")),
            is_chat=is_chat,
            has_logprobs=document.get("logprobs") is not None,
            num_samples=document.get("n", 1),
        )

    def usage(self) -> dict[str, int]:
        num_prompt, num_new = len(self.prompt.split()), self.num_samples * self.max_tokens
        return {"prompt_tokens": num_prompt, "completion_tokens": num_new}

    def chunk(self, index: int) -> dict[str, Any]:
        finish = "length" if index == self.max_tokens - 1 else None
        return {"choices": self._choices("delta", [index], finish)}

    def whole(self, name: str) -> dict[str, Any]:
        choices = self._choices("message", list(range(self.max_tokens)), "length")
        return {"model": name, "choices": choices, "usage": self.usage()}

    def _choices(self, part: str, indices: list[int], finish: str | None) -> list[dict[str, Any]]:
        return [
            {"index": sample, "finish_reason": finish} | self._written(part, indices, sample)
            for sample in range(self.num_samples)
        ]

    def _written(self, part: str, indices: list[int], sample: int) -> dict[str, Any]:
        seed = f"{self.seed}.{sample}" if sample else self.seed
        tokens = [word(self.prompt, seed, index) for index in indices]
        if self.is_chat:
            return {part: {"role": "assistant", "content": "".join(tokens)}}
        choice: dict[str, Any] = {"text": "".join(tokens)}
        if self.has_logprobs:
            scores = [-(index + 1) / 8 for index in indices]
            top = [{token: score} for token, score in zip(tokens, scores, strict=True)]
            choice["logprobs"] = {"tokens": tokens, "token_logprobs": scores, "top_logprobs": top}
        return choice
