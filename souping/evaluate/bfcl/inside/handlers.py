"""Handlers: bfcl-eval's own by the names of its model registry, two of ours, and their client turned to a server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bfcl_eval.model_handler.local_inference.base_oss_handler import OSSHandler
    from openai import OpenAI
    from openai._models import FinalRequestOptions

BAD_REQUEST = (400, 413, 422)
"""Answers of a server that concern one prompt (too long, mostly); any other error of a server stops the run."""
NO_ANSWER = "what the server answers is no completion"
LONGEST = 1 << 25
"""Bytes of a server's answer at most."""


class RequestState(threading.local):
    """What a thread requests: its item, which step of it, whether the limit of tokens has cut any of its texts, and
    that limit in the last request."""

    item = ""
    step = 0
    cut = False
    limit: int | None = None


class StopError(Exception):
    """The run cannot go on; the message is one line for the user."""


def register(handler: str) -> None:
    """Add `chat-template` and `plain` to bfcl-eval's registry, and check that the handler is in it."""
    from bfcl_eval.constants.model_config import MODEL_CONFIG_MAPPING, ModelConfig
    from bfcl_eval.model_handler.local_inference.quick_testing_oss import QuickTestingOSSHandler

    own = {"chat-template": QuickTestingOSSHandler, "plain": _plain(QuickTestingOSSHandler)}
    for name, kind in own.items():
        MODEL_CONFIG_MAPPING[name] = ModelConfig(
            model_name=name,
            display_name=name,
            url="",
            org="",
            license="",
            model_handler=kind,
            is_fc_model=False,
        )
    if handler not in MODEL_CONFIG_MAPPING:
        near = get_close_matches(handler, MODEL_CONFIG_MAPPING, n=1, cutoff=0.0)[0]
        raise StopError(f"handler {handler!r} is not a model name of bfcl-eval's registry; did you mean {near!r}?")


def _plain(base: type) -> type:
    """The functions as JSON, the conversation as text, `Call:`; short, and for models without a chat template."""

    def prepare(handler: OSSHandler, entry: dict[str, Any]) -> dict[str, Any]:
        return {"message": [], "function": entry["function"]}

    def prompt(handler: OSSHandler, messages: list[dict[str, str]], functions: list[dict[str, Any]]) -> str:
        talk = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
        return "\n".join([*(json.dumps(doc) for doc in functions), *talk, "Call:"])

    plain = type(base)("Plain", (base,), {})
    for name, method in (("_pre_query_processing_prompting", prepare), ("_format_prompt", prompt)):
        setattr(plain, name, method)  # not in the class body, where the base's metaclass demands its own decorator
    return plain


def connect(handler: OSSHandler, settings: dict[str, Any], failures: list[str]) -> OSSHandler:
    """The handler with its client turned to the server. What the server cannot do at all goes into `failures`; after
    that no further request is sent. Results say in `truncated` whether a text was cut by the limit of tokens.
    """
    import openai
    from bfcl_eval.model_handler.api_inference.openai_completion import OpenAICompletionsHandler
    from bfcl_eval.model_handler.local_inference.base_oss_handler import OSSHandler

    if not isinstance(handler, OSSHandler | OpenAICompletionsHandler):
        raise StopError(f"handler {handler.registry_name!r} asks a vendor's API; it cannot speak to a server of ours")
    now = RequestState()
    handler.base_url = settings["url"]
    handler.client = _client(handler, settings, now)
    handler._parse_query_response_prompting = _watched(handler._parse_query_response_prompting, settings, now)
    handler._parse_query_response_FC = _watched(handler._parse_query_response_FC, settings, now)
    answer = handler.inference

    def inference(entry: dict[str, Any], log_input: bool, no_state: bool) -> Any:
        if failures:
            raise StopError(failures[0])
        now.item, now.step, now.cut = entry["id"], 0, False
        try:
            result, metadata = answer(entry, log_input, no_state)
        except (StopError, openai.APIConnectionError) as error:
            failures.append(_line(error.__cause__ or error))
            raise
        except openai.APIStatusError as error:
            if error.status_code not in BAD_REQUEST:
                failures.append(_line(error))
            raise
        return result, {**metadata, "truncated": now.cut}

    handler.inference = inference
    return handler


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _watched(parse: Callable[[Any], Any], settings: dict[str, Any], now: RequestState) -> Callable[[Any], Any]:
    """A handler's reading of a response, which is first seen to be one and whose end is noted."""

    def watched(response: Any) -> Any:
        with Path(settings["alive"]).open(
            "ab"
        ) as sign:  # the server answers: the process that waits for this one sees the file grow
            sign.write(b".")
        try:
            choice, used = response.choices[0], response.usage.completion_tokens
            text: str | None = getattr(choice, "text", None)  # openai's completions; its chat has messages
            message: Any = getattr(choice, "message", None)  # openai's
            sound = isinstance(used, int) and (isinstance(text, str) or message is not None)
        except (AttributeError, TypeError, IndexError, KeyError):
            sound = False
        if not sound:
            raise ValueError(NO_ANSWER)
        if isinstance(text, str):  # half a character stops bfcl-eval when it writes
            choice.text = text.encode("utf-8", "replace").decode()
        elif message is not None and isinstance(message.content, str):
            message.content = message.content.encode("utf-8", "replace").decode()
        now.cut |= choice.finish_reason == "length" or (now.limit is not None and used >= now.limit)
        now.step += 1
        return parse(response)

    return watched


def _client(handler: OSSHandler, settings: dict[str, Any], now: RequestState) -> OpenAI:
    """An OpenAI client that sends requests to the served model by the settings, within the number of tokens and the
    model's context. It follows no redirect and reads no answer without end.
    """
    import openai

    def prepare(client: OpenAI, options: FinalRequestOptions) -> FinalRequestOptions:
        body = options.json_data
        assert isinstance(body, dict)
        body |= {"model": settings["model"], **settings["request"]}
        if settings["seeds"]:
            body["seed"] = (settings["seeds"].get(now.item, 0) + now.step) % 2**63
        limits = [n for n in (body.get("max_tokens"), settings["max_tokens"]) if n is not None]
        now.limit = min(limits, default=None)
        if now.limit is not None:
            body["max_tokens"] = now.limit
        if "prompt" in body:
            _check_context(handler, body["prompt"])
        return options

    kind: type[OpenAI] = type("Client", (openai.OpenAI,), {"_prepare_options": prepare})
    http = openai.DefaultHttpxClient(
        follow_redirects=False, headers={"Accept-Encoding": "identity"}, event_hooks={"response": [_read]}
    )
    return kind(base_url=settings["url"], api_key="none", max_retries=2, http_client=http)


def _read(response: Any) -> None:
    """Read a response as it comes, up to a limit; httpx itself would read and unpack without end."""
    pieces, size = [], 0
    for piece in response.iter_raw():
        pieces.append(piece)
        size += len(piece)
        if size > LONGEST:
            raise StopError(f"an answer is longer than {LONGEST >> 20} MB")
    response._content = b"".join(pieces)  # where httpx looks first


def _check_context(handler: OSSHandler, prompt: str) -> None:
    tokens, limit = len(handler.tokenizer.tokenize(prompt)), handler.max_context_length
    if tokens + 2 > limit:
        raise ValueError(f"the prompt of {tokens} tokens does not fit the context of {limit}")
