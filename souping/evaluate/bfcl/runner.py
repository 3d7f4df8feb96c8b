"""Runner of BFCL items inside bfcl-eval's environment: generates and scores by its own functions.

    python -I runner.py REQUEST.json

The request is an object with `root` (a folder of its own, bfcl-eval's project root), `handler` (a name of its model
registry, `chat-template` or `plain`), `ids` ({category: [id, ...]}) and `generate`: null to score the result files
that are below `root` already, else `url` and `model` of the server, `folder` (config and tokenizer), `threads`,
`temperature`, `max_tokens` (null: bfcl-eval's own 4096), `request` (further fields of every request) and `alive`, a
file that grows with every response. Results are in bfcl-eval's own files below `root`; `outcome.json` next to them
holds `error`: null, or the line that stopped the run.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bfcl_eval.model_handler.local_inference.base_oss_handler import OSSHandler
    from openai import OpenAI
    from openai._models import FinalRequestOptions

Table = dict[str, Any]
SDKS = (
    "anthropic", "boto3", "cohere", "datamodel_code_generator", "google", "mistralai", "qwen_agent", "writerai",
)  # fmt: skip
"""SDKs of vendors that bfcl-eval imports when it starts, whether they are used or not."""
BAD_REQUEST = (400, 413, 422)
"""Answers of a server that concern one prompt (too long, mostly); any other error of a server stops the run."""


class RequestState(threading.local):
    """State of the item that a thread evaluates, seen by that thread alone.

    `cut` says whether the limit of tokens has cut off one of the item's answers so far; `limit` is that limit in the
    thread's last request.
    """

    cut = False
    limit: int | None = None


class StopError(Exception):
    """The run cannot go on; the message is one line for the user."""


def answer_request(request: Table) -> None:
    """Generate answers if the request says so, then score them. The results are files."""
    root = Path(request["root"])
    # bfcl_eval reads both when it is imported: its folder, and a key that its client wants.
    os.environ["BFCL_PROJECT_ROOT"] = str(root)
    os.environ.setdefault("OPENAI_API_KEY", "none")
    sys.meta_path.append(_Finder())
    register_handlers()
    if request["generate"]:
        generate(request["handler"], request["ids"], request["generate"])
    evaluate(request["handler"], list(request["ids"]))


def register_handlers() -> None:
    """Add our handlers `chat-template` and `plain` to bfcl-eval's registry of models, by which it finds handlers."""
    from bfcl_eval.constants.model_config import MODEL_CONFIG_MAPPING, ModelConfig
    from bfcl_eval.model_handler.local_inference.quick_testing_oss import QuickTestingOSSHandler

    handlers = {"chat-template": QuickTestingOSSHandler, "plain": _plain(QuickTestingOSSHandler)}
    for name, kind in handlers.items():
        # The empty texts would stand in bfcl-eval's leaderboard, which is not written.
        MODEL_CONFIG_MAPPING[name] = ModelConfig(
            model_name=name,
            display_name=name,
            url="",
            org="",
            license="",
            model_handler=kind,
            is_fc_model=False,
        )


def _plain(base: type) -> type:
    """Handler class `plain`, derived from bfcl-eval's `base`. It needs no chat template.

    Its prompts are the functions as JSON, the conversation as text, and `Call:`.
    """

    # Without BFCL's system prompt, which the base adds here.
    def prepare(handler: OSSHandler, entry: Table) -> Table:
        return {"message": [], "function": entry["function"]}

    def prompt(handler: OSSHandler, messages: list[dict[str, str]], functions: list[Table]) -> str:
        turns = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
        return "\n".join([*(json.dumps(doc) for doc in functions), *turns, "Call:"])

    plain = type(base)("Plain", (base,), {})
    for name, method in (("_pre_query_processing_prompting", prepare), ("_format_prompt", prompt)):
        # Set later, because in a class body the base's metaclass demands its own decorator.
        setattr(plain, name, method)
    return plain


def generate(handler: str, ids: dict[str, list[str]], settings: Table) -> None:
    """bfcl-eval's `generate` on the items `ids`, {category: ids}, by a server that runs already.

    Raises:
        StopError: the server failed.
    """
    from bfcl_eval import _llm_response_generation as generation
    from bfcl_eval.__main__ import generate as bfcl_generate
    from bfcl_eval.constants.eval_config import RESULT_PATH, TEST_IDS_TO_GENERATE_PATH

    TEST_IDS_TO_GENERATE_PATH.write_text(json.dumps(ids))
    failures: list[str] = []
    # bfcl-eval builds its handler by this function, which now also connects it.
    build = generation.build_handler
    generation.build_handler = lambda name, temperature: connect(
        build(name, temperature), settings, failures
    )
    bfcl_generate(
        model=[handler],
        test_category=["all"],
        temperature=settings["temperature"],
        include_input_log=False,
        exclude_state_log=True,
        num_gpus=1,
        num_threads=settings["threads"],
        gpu_memory_utilization=0.9,
        backend="vllm",
        skip_server_setup=True,
        local_model_path=settings["folder"],
        result_dir=str(RESULT_PATH),
        allow_overwrite=False,
        run_ids=True,
        enable_lora=False,
        max_lora_rank=None,
        lora_modules=None,
    )
    if failures:
        raise StopError(f"the server at {settings['url']} failed: {failures[0]}")


def connect(handler: OSSHandler, settings: Table, failures: list[str]) -> OSSHandler:
    """Change a handler so that it sends its requests to the server of the settings, and return it.

    A failure of the server itself is added to `failures`; after that no further request is sent. Results say in
    `truncated` whether an answer was cut off by the limit of tokens.
    """
    import openai

    state = RequestState()
    handler.base_url = settings["url"]
    handler.client = _client(handler, settings, state)
    handler._parse_query_response_prompting = _watched(
        handler._parse_query_response_prompting, settings, state
    )
    handler._parse_query_response_FC = _watched(handler._parse_query_response_FC, settings, state)
    answer = handler.inference

    # bfcl-eval calls this for each item, in several threads.
    def inference(entry: Table, log_input: bool, no_state: bool) -> Any:
        if failures:
            raise StopError(failures[0])
        state.cut = False
        try:
            result, metadata = answer(entry, log_input, no_state)
        except openai.APIError as error:
            # An error without a connection has no status.
            if getattr(error, "status_code", None) not in BAD_REQUEST:
                failures.append(_line(error.__cause__ or error))
            raise
        return result, {**metadata, "truncated": state.cut}

    handler.inference = inference
    return handler


def _line(error: BaseException) -> str:
    """The message of an error on one line of at most 300 characters; its class if it has none."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _watched(
    parse: Callable[[Any], Any], settings: Table, state: RequestState
) -> Callable[[Any], Any]:
    """A function that reads a response like the handler's `parse`, and also notes that the server is alive and whether
    the answer was cut off.
    """

    def watched(response: Any) -> Any:
        with Path(settings["alive"]).open("ab") as alive:
            alive.write(b".")
        choice = response.choices[0]
        # The answer of a chat is a message, the answer of a completion a text.
        holder = choice
        key = "text"
        if hasattr(choice, "message"):
            holder = choice.message
            key = "content"
        text = getattr(holder, key)
        # bfcl-eval cannot write an unpaired surrogate.
        if isinstance(text, str):
            setattr(holder, key, text.encode("utf-8", "replace").decode())
        # Not every server gives the reason.
        state.cut |= choice.finish_reason == "length"
        state.cut |= state.limit is not None and response.usage.completion_tokens >= state.limit
        return parse(response)

    return watched


def _client(handler: OSSHandler, settings: Table, state: RequestState) -> OpenAI:
    """OpenAI client that completes the handler's requests by the settings, and notes their limit of tokens.

    A prompt that is too long for the model's context is a ValueError.
    """
    import openai

    # The client calls this before it sends a request.
    def prepare(client: OpenAI, options: FinalRequestOptions) -> FinalRequestOptions:
        body = options.json_data
        assert isinstance(body, dict)
        body |= {"model": settings["model"], **settings["request"]}
        limits = [n for n in (body.get("max_tokens"), settings["max_tokens"]) if n is not None]
        state.limit = min(limits, default=None)
        if state.limit is not None:
            body["max_tokens"] = state.limit
        # A request to the chat endpoint has messages instead.
        if "prompt" in body:
            tokens = len(handler.tokenizer.tokenize(body["prompt"]))
            context = handler.max_context_length
            # bfcl-eval adds two tokens as well.
            if tokens + 2 > context:
                raise ValueError(f"the prompt does not fit the context of {context} tokens")
        return options

    kind: type[OpenAI] = type("Client", (openai.OpenAI,), {"_prepare_options": prepare})
    return kind(base_url=settings["url"], api_key="none", max_retries=2)


def evaluate(handler: str, categories: list[str]) -> None:
    """bfcl-eval's `evaluate` on the results of a handler, without its leaderboard.

    The leaderboard counts a category that was not evaluated as 0.
    """
    from bfcl_eval.__main__ import evaluate as bfcl_evaluate
    from bfcl_eval.eval_checker import eval_runner

    for name in ("ast_checker", "multi_turn_checker"):
        setattr(eval_runner, name, _guarded(getattr(eval_runner, name)))
    eval_runner.generate_leaderboard_csv = lambda table, folder: None
    bfcl_evaluate(
        model=[handler],
        test_category=categories,
        result_dir=None,
        score_dir=None,
        partial_eval=True,
    )


def _guarded(check: Callable[..., Table]) -> Callable[..., Table]:
    """A function like `check`, a checker of bfcl-eval, that counts an answer as wrong if the checker fails on it."""

    def guarded(*arguments: object) -> Table:
        try:
            return check(*arguments)
        except Exception as error:
            reason = f"the checker failed on this answer: {type(error).__name__}: {error}"
            return {"valid": False, "error": [reason], "error_type": "checker_failed"}

    return guarded


class _StandIn(type):
    """Metaclass of stand-ins for modules and classes that are not installed: any attribute is another stand-in."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _stand_in(name)


def _stand_in(name: str) -> Any:
    """A stand-in class. It is an exception, as it may stand after `except`, and takes any arguments, as a client may be
    made from it.
    """
    return _StandIn(name, (Exception,), {"__init__": lambda self, *_, **__: None})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finder of stand-ins for the SDKs that are not installed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] not in SDKS:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Any:
        return _stand_in(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    outcome: dict[str, str | None] = {"error": None}
    try:
        answer_request(request)
    except StopError as stop:
        outcome["error"] = str(stop)
    except Exception as error:
        traceback.print_exc()
        outcome["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    (Path(request["root"]) / "outcome.json").write_text(json.dumps(outcome))
