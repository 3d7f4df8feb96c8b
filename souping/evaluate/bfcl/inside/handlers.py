"""Handlers: bfcl-eval's own by the names of its model registry, two of ours, and their client turned to a server."""

from __future__ import annotations

import json
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bfcl_eval.model_handler.local_inference.base_oss_handler import OSSHandler
    from openai import OpenAI
    from openai._models import FinalRequestOptions

BAD_REQUEST = (400, 413, 422)
"""Answers of a server that concern one prompt (too long, mostly); any other error of a server stops the run."""


class StopError(Exception):
    """The run cannot go on; the message is one line for the user."""


def register(wanted: str) -> None:
    """Add `chat-template` and `plain` to bfcl-eval's registry, and see that the wanted handler is in it."""
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
    if wanted not in MODEL_CONFIG_MAPPING:
        near = get_close_matches(wanted, MODEL_CONFIG_MAPPING, n=1, cutoff=0.0)[0]
        raise StopError(f"handler {wanted!r} is not a model name of bfcl-eval's registry; did you mean {near!r}?")


def _plain(base: type) -> type:
    """The functions as JSON, the conversation as text, `Call:`; short, and for models without a chat template."""

    def prepare(handler: OSSHandler, entry: dict[str, Any]) -> dict[str, Any]:
        return {"message": [], "function": entry["function"]}

    def prompt(handler: OSSHandler, messages: list[dict[str, str]], functions: list[dict[str, Any]]) -> str:
        talk = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
        return "\n".join([*(json.dumps(doc) for doc in functions), *talk, "Call:"])

    plain = type(base)("Plain", (base,), {})
    for name, method in (("_pre_query_processing_prompting", prepare), ("_format_prompt", prompt)):
        setattr(plain, name, method)  # not in the class body, where the base's metaclass asks for its own decorator
    return plain


def pointed(handler: OSSHandler, wanted: dict[str, Any], failures: list[str]) -> OSSHandler:
    """The handler with its client turned to the server. What the server cannot do at all goes into `failures`; after
    that no more is asked of it.
    """
    import openai
    from bfcl_eval.model_handler.api_inference.openai_completion import OpenAICompletionsHandler
    from bfcl_eval.model_handler.local_inference.base_oss_handler import OSSHandler

    if not isinstance(handler, OSSHandler | OpenAICompletionsHandler):
        raise StopError(f"handler {handler.registry_name!r} asks a vendor's API; it cannot speak to a server of ours")
    handler.base_url = wanted["url"]
    handler.client = _client(handler, wanted)
    answer = handler.inference

    def inference(entry: dict[str, Any], log_input: bool, no_state: bool) -> Any:
        if failures:
            raise StopError(failures[0])
        try:
            return answer(entry, log_input, no_state)
        except openai.APIConnectionError as error:
            failures.append(str(error))
            raise
        except openai.APIStatusError as error:
            if error.status_code not in BAD_REQUEST:
                failures.append(" ".join(str(error).split())[:300])
            raise

    handler.inference = inference
    return handler


def _client(handler: OSSHandler, wanted: dict[str, Any]) -> OpenAI:
    """An OpenAI client that asks for the served model, within the wanted number of tokens and the model's context."""
    import openai

    def prepare(client: OpenAI, options: FinalRequestOptions) -> FinalRequestOptions:
        body = options.json_data
        assert isinstance(body, dict)
        body["model"] = wanted["model"]
        limits = [n for n in (body.get("max_tokens"), wanted["max_tokens"]) if n is not None]
        if limits:
            body["max_tokens"] = min(limits)
        if "prompt" in body:
            _check_context(handler, body["prompt"])
        return options

    kind: type[OpenAI] = type("Client", (openai.OpenAI,), {"_prepare_options": prepare})
    return kind(base_url=wanted["url"], api_key="none", max_retries=2)


def _check_context(handler: OSSHandler, prompt: str) -> None:
    tokens, limit = len(handler.tokenizer.tokenize(prompt)), handler.max_context_length
    if tokens + 2 > limit:
        raise ValueError(f"the prompt of {tokens} tokens does not fit the context of {limit}")
