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
    """What a thread requests: whether the limit of tokens has cut any of its item's texts, and that limit in the last
    request."""

    cut = False
    limit: int | None = None


class StopError(Exception):
    """The run cannot go on; the message is one line for the user."""


def answer_request(request: Table) -> None:
    """Generate if the request says so, then score."""
    root = Path(request["root"])
    os.environ["BFCL_PROJECT_ROOT"] = str(root)  # read when bfcl_eval is imported
    os.environ.setdefault("OPENAI_API_KEY", "none")  # its client wants one
    sys.meta_path.append(_Finder())
    register_handlers()
    if request["generate"]:
        generate(request["handler"], request["ids"], request["generate"])
    evaluate(request["handler"], list(request["ids"]))


def register_handlers() -> None:
    """Add `chat-template` and `plain` to bfcl-eval's registry."""
    from bfcl_eval.constants.model_config import MODEL_CONFIG_MAPPING, ModelConfig
    from bfcl_eval.model_handler.local_inference.quick_testing_oss import QuickTestingOSSHandler

    handlers = {"chat-template": QuickTestingOSSHandler, "plain": _plain(QuickTestingOSSHandler)}
    for name, kind in handlers.items():
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
    """The functions as JSON, the conversation as text, `Call:`; short, and for models without a chat template."""

    def prepare(handler: OSSHandler, entry: Table) -> Table:
        return {"message": [], "function": entry["function"]}

    def prompt(handler: OSSHandler, messages: list[dict[str, str]], functions: list[Table]) -> str:
        talk = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
        return "\n".join([*(json.dumps(doc) for doc in functions), *talk, "Call:"])

    plain = type(base)("Plain", (base,), {})
    for name, method in (("_pre_query_processing_prompting", prepare), ("_format_prompt", prompt)):
        # not in the class body, where the base's metaclass demands its own decorator
        setattr(plain, name, method)
    return plain


def generate(handler: str, ids: dict[str, list[str]], settings: Table) -> None:
    """bfcl-eval's `generate` on the named items, pointed at a server that runs already."""
    from bfcl_eval import _llm_response_generation as generation
    from bfcl_eval.__main__ import generate as bfcl_generate
    from bfcl_eval.constants.eval_config import RESULT_PATH, TEST_IDS_TO_GENERATE_PATH

    TEST_IDS_TO_GENERATE_PATH.write_text(json.dumps(ids))
    failures: list[str] = []
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
    """The handler with its client turned to the server. What the server cannot do at all goes into `failures`; after
    that no further request is sent. Results say in `truncated` whether a text was cut by the limit of tokens.
    """
    import openai

    now = RequestState()
    handler.base_url = settings["url"]
    handler.client = _client(handler, settings, now)
    handler._parse_query_response_prompting = _watched(
        handler._parse_query_response_prompting, settings, now
    )
    handler._parse_query_response_FC = _watched(handler._parse_query_response_FC, settings, now)
    answer = handler.inference

    def inference(entry: Table, log_input: bool, no_state: bool) -> Any:
        if failures:
            raise StopError(failures[0])
        now.cut = False
        try:
            result, metadata = answer(entry, log_input, no_state)
        except openai.APIError as error:
            # An error without a connection has no status.
            if getattr(error, "status_code", None) not in BAD_REQUEST:
                failures.append(_line(error.__cause__ or error))
            raise
        return result, {**metadata, "truncated": now.cut}

    handler.inference = inference
    return handler


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _watched(
    parse: Callable[[Any], Any], settings: Table, now: RequestState
) -> Callable[[Any], Any]:
    """A handler's reading of a response, which also notes that the server lives and whether the answer was cut."""

    def watched(response: Any) -> Any:
        with Path(settings["alive"]).open("ab") as sign:
            sign.write(b".")
        choice = response.choices[0]
        holder = choice
        key = "text"
        if hasattr(choice, "message"):
            holder = choice.message
            key = "content"
        text = getattr(holder, key)
        if isinstance(text, str):  # half a character stops bfcl-eval when it writes
            setattr(holder, key, text.encode("utf-8", "replace").decode())
        now.cut |= choice.finish_reason == "length"
        now.cut |= now.limit is not None and response.usage.completion_tokens >= now.limit
        return parse(response)

    return watched


def _client(handler: OSSHandler, settings: Table, now: RequestState) -> OpenAI:
    """An OpenAI client that sends requests to the served model by the settings, within the number of tokens and the
    model's context.
    """
    import openai

    def prepare(client: OpenAI, options: FinalRequestOptions) -> FinalRequestOptions:
        body = options.json_data
        assert isinstance(body, dict)
        body |= {"model": settings["model"], **settings["request"]}
        limits = [n for n in (body.get("max_tokens"), settings["max_tokens"]) if n is not None]
        now.limit = min(limits, default=None)
        if now.limit is not None:
            body["max_tokens"] = now.limit
        if "prompt" in body:
            tokens = len(handler.tokenizer.tokenize(body["prompt"]))
            context = handler.max_context_length
            if tokens + 2 > context:
                raise ValueError(f"the prompt does not fit the context of {context} tokens")
        return options

    kind: type[OpenAI] = type("Client", (openai.OpenAI,), {"_prepare_options": prepare})
    return kind(base_url=settings["url"], api_key="none", max_retries=2)


def evaluate(handler: str, categories: list[str]) -> None:
    """bfcl-eval's `evaluate`. Its leaderboard table is left out: it counts what was not evaluated as 0."""
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
    """A checker that trips over an answer has found a wrong answer."""

    def guarded(*arguments: object) -> Table:
        try:
            return check(*arguments)
        except Exception as error:
            reason = f"the checker failed on this answer: {type(error).__name__}: {error}"
            return {"valid": False, "error": [reason], "error_type": "checker_failed"}

    return guarded


class _StandIn(type):
    """Module or class that is not installed: it has every name, each of them such a class, and none is of use."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _stand_in(name)


def _stand_in(name: str) -> Any:
    # an exception, since some of them stand after `except`; made with any arguments, since clients are made early
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
