"""Judge: a scorer that lets a language model behind an OpenAI-compatible endpoint grade answers."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import field
from string import Template
from typing import Annotated

from souping.core.fields import Bounds, Count, Form, Seconds, Threads, component
from souping.core.reading import read
from souping.core.types import Item, Json, JsonObject, UserError, digest, frozen
from souping.evaluate.servers.server_process import ServerError, parsed, post

JUDGE_VERSION = 1
"""Raise when the same settings would give other verdicts."""
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
"""HTTP statuses after which a request is sent again."""
PROMPT = """You grade an answer to a question.

Question:
$question

Reference answer:
$reference

Answer to grade:
$answer

Is the answer correct, judged by the reference? Reply with one word, yes or no."""


@frozen
class ChatMessage:
    """Message of a model; `content` is its text."""

    content: str | None = None


@frozen
class ChatChoice:
    """One of a model's answers."""

    message: ChatMessage


@frozen
class ChatReply:
    """Response of an OpenAI-compatible endpoint to a chat."""

    choices: tuple[ChatChoice, ...]


@component
class Judge:
    """Scorer that shows a model the question, the reference and the answer, and reads a verdict from its reply.

    `prompt` holds `$question`, `$reference` and `$answer`. The last match of `verdict` in the reply is looked up in
    `scores` (small letters); a number that is not there counts as it stands, over `scale`. `key` names the environment
    variable that holds the key, empty for none. Requests have temperature 0. `url`, `model`, prompt, verdict and scores
    enter the fingerprint; retries, threads and times do not.
    """

    model: str
    url: Annotated[str, Form("https?://.*", "an address that begins with http:// or https://")] = (
        "https://api.openai.com/v1"
    )
    key: str = "OPENAI_API_KEY"
    prompt: str = PROMPT
    system: str = ""
    verdict: str = r"\b(yes|no)\b"
    scores: Mapping[str, float] = field(default_factory=lambda: {"yes": 1.0, "no": 0.0})
    scale: float = 1.0
    max_tokens: Count = 512
    extra: JsonObject = field(default_factory=dict)
    threads: Threads = 8
    retries: Annotated[int, Bounds(ge=0)] = 5
    timeout: Seconds = 60.0
    pause: Annotated[float, Bounds(ge=0)] = 1.0

    def __post_init__(self) -> None:
        if "$answer" not in self.prompt:
            raise UserError(
                f"judge {self.model}: the prompt must hold $answer, and may hold $question and $reference"
            )

    @property
    def fingerprint(self) -> str:
        """Digest of what a verdict depends on besides item and answer."""
        rules: list[Json] = [
            self.verdict,
            dict(self.scores),
            self.scale,
            self.max_tokens,
            dict(self.extra),
        ]
        kind = f"{type(self).__module__}.{type(self).__qualname__}"
        return digest(
            [
                "judge",
                JUDGE_VERSION,
                kind,
                self.url.rstrip("/"),
                self.model,
                self.system,
                self.prompt,
                rules,
            ]
        )

    def __call__(self, item: Item, output: str) -> float:
        """Score of an output, a fraction of 1.

        Raises:
            UserError: the endpoint refuses or fails after all retries, or its reply holds no verdict.
        """
        reply = self.reply(self.request(item, output))
        verdicts = re.findall(self.verdict, reply, flags=re.IGNORECASE)
        if not verdicts:
            raise UserError(
                f"judge {self.model}: item {item.id}: no verdict ({self.verdict}) in {reply!r:.80}"
            )
        last = verdicts[-1]
        # A pattern with several groups gives tuples: the first group is the verdict.
        word = str(last if isinstance(last, str) else last[0]).lower()
        if word in self.scores:
            return float(self.scores[word])
        try:
            return float(word) / self.scale
        except ValueError:
            raise UserError(
                f"judge {self.model}: the verdict {word!r} is neither in scores nor a number"
            ) from None

    def request(self, item: Item, output: str) -> JsonObject:
        """Body of the request to the endpoint, with the prompt for this item and output."""
        question = item.prompt if isinstance(item.prompt, str) else _transcript(item)
        reference = item.answer
        if not isinstance(reference, str):
            reference = json.dumps(reference, ensure_ascii=False)
        # A `$` that is no placeholder stays.
        text = Template(self.prompt).safe_substitute(
            question=question, reference=reference, answer=output
        )
        messages: list[Json] = [{"role": "user", "content": text}]
        if self.system:
            messages.insert(0, {"role": "system", "content": self.system})
        settings = {"temperature": 0, "max_tokens": self.max_tokens, **self.extra}
        return {"model": self.model, "messages": messages, **settings}

    def reply(self, body: JsonObject) -> str:
        """The text of the model's answer to a request. A failed request is sent again, after pauses that double.

        Raises:
            UserError: there is no key, or no answer after all retries or a status that is not `RETRIED`.
        """
        secret = os.environ.get(self.key, "").strip() if self.key else ""
        # An HTTP header holds visible ASCII alone.
        if self.key and not re.fullmatch("[!-~]+", secret):
            raise UserError(
                f"judge {self.model}: the environment variable {self.key} holds no key (key='' for none)"
            )
        reason = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                reply = parsed(
                    post(f"{self.url.rstrip('/')}/chat/completions", body, self.timeout, secret)
                )
            except ServerError as error:
                reason = f"HTTP {error.status}: {error}" if error.status else str(error)
                if error.status and error.status not in RETRIED:
                    break
                continue
            choices = read(ChatReply, reply).choices
            content = choices[0].message.content if choices else None
            if content is not None:
                return content
            reason = f"its reply holds no message: {reply!r:.100}"
        raise UserError(
            f"judge {self.model} at {self.url} does not answer: {reason[:200]}\n"
            "all answers and verdicts so far are in the store; the same command continues"
        )


def _transcript(item: Item) -> str:
    """The item's messages as one text, each with its role."""
    messages = () if isinstance(item.prompt, str) else item.prompt
    return "\n\n".join(f"{message.get('role')}: {message.get('content')}" for message in messages)
