"""Runner of BFCL items inside bfcl-eval's environment: generates and scores by its own functions.

    python -E -s runner.py REQUEST.json

The request is an object with `root` (a folder of its own, bfcl-eval's project root), `handler` (a name of its model
registry, `chat-template` or `plain`), `ids` ({category: [id, ...]}) and `generate`: null to score the result files
that are below `root` already, else `url` and `model` of the server, `folder` (config and tokenizer), `threads`,
`temperature`, `max_tokens` (null: bfcl-eval's own 4096), `request` (further fields of every request), `seeds` ({item:
seed}, empty for greedy answers) and `alive`, a file that grows with every response. Results are in bfcl-eval's own
files below `root`; `outcome.json` next to them holds `error`: null, or the line that stopped the run.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from handlers import StopError, connect, register  # type: ignore[import-not-found]

SDKS = (
    "anthropic", "boto3", "cohere", "datamodel_code_generator", "google", "mistralai", "qwen_agent", "writerai",
)  # fmt: skip
"""SDKs of vendors that bfcl-eval imports when it starts, whether they are used or not."""


def main(request: dict[str, Any]) -> None:
    """Generate if the request says so, then score."""
    root = Path(request["root"])
    os.environ["BFCL_PROJECT_ROOT"] = str(root)  # read when bfcl_eval is imported
    os.environ.setdefault("OPENAI_API_KEY", "none")  # its client wants one
    stand_in_for_absent(unused=() if request["generate"] else ("openai",))  # half of the time to start
    register(request["handler"])
    if request["generate"]:
        generate(request["handler"], request["ids"], request["generate"])
    evaluate(request["handler"], list(request["ids"]))


def generate(handler: str, ids: dict[str, list[str]], settings: dict[str, Any]) -> None:
    """bfcl-eval's `generate` on the named items, pointed at a server that runs already."""
    from bfcl_eval import _llm_response_generation as generation
    from bfcl_eval.__main__ import generate as bfcl_generate
    from bfcl_eval.constants.eval_config import RESULT_PATH, TEST_IDS_TO_GENERATE_PATH
    from bfcl_eval.model_handler.local_inference import base_oss_handler

    _check_server(settings["url"])
    base_oss_handler.requests = _Requests  # it would poll for ever
    TEST_IDS_TO_GENERATE_PATH.write_text(json.dumps(ids))
    failures: list[str] = []
    build = generation.build_handler
    generation.build_handler = lambda name, temperature: connect(build(name, temperature), settings, failures)
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


def _check_server(url: str) -> SimpleNamespace:
    """Check that the server lists its models; bfcl-eval would wait for ever."""
    import requests

    try:
        with requests.get(f"{url}/models", timeout=60, stream=True, allow_redirects=False) as response:
            status = response.status_code
    except requests.RequestException as error:
        raise StopError(f"the server at {url} does not answer: {type(error).__name__}") from error
    if status != 200:
        raise StopError(f"the server at {url} does not list its models: status {status}")
    return SimpleNamespace(status_code=status)


class _Requests:
    """What bfcl-eval's handlers of served models use of `requests`: one look at the list of models."""

    exceptions = SimpleNamespace(ConnectionError=ConnectionError)

    @staticmethod
    def get(address: str) -> SimpleNamespace:
        return _check_server(address.removesuffix("/models"))


def evaluate(handler: str, categories: list[str]) -> None:
    """bfcl-eval's `evaluate`. Its leaderboard table is left out: it counts what was not evaluated as 0."""
    from bfcl_eval.__main__ import evaluate as bfcl_evaluate
    from bfcl_eval.eval_checker import eval_runner

    for name in ("ast_checker", "agentic_checker", "multi_turn_checker"):
        setattr(eval_runner, name, _guarded(getattr(eval_runner, name)))
    eval_runner.generate_leaderboard_csv = lambda table, folder: None
    bfcl_evaluate(model=[handler], test_category=categories, result_dir=None, score_dir=None, partial_eval=True)


def _guarded(check: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """A checker that trips over an answer has found a wrong answer."""

    def guarded(*arguments: object) -> dict[str, Any]:
        try:
            return check(*arguments)
        except Exception as error:
            reason = f"the checker failed on this answer: {type(error).__name__}: {error}"
            return {"valid": False, "error": [reason], "error_type": "checker_failed"}

    return guarded


class _Named(type):
    """Class that has every name, each of them such a class."""

    def __getattr__(cls, name: str) -> Any:
        return _stand_in(name)


class _Absent(ModuleType):
    """SDK that is not installed: any name can be imported from it, and none is of use."""

    def __getattr__(self, name: str) -> Any:
        return _stand_in(name)


def _stand_in(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    # an exception, since some of them stand after `except`; made with any arguments, since clients are made early
    return _Named(name, (Exception,), {"__init__": lambda self, *_, **__: None})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finder of stand-ins for these SDKs, wherever in the import path it stands."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] not in self._names:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Absent(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def stand_in_for_absent(unused: Sequence[str] = ()) -> None:
    """Let SDKs that are not installed be imported, and skip `unused` ones even if they are installed."""
    alone = importlib.util.find_spec("qwen_agent") is None
    sys.meta_path.append(_Finder(SDKS))
    sys.meta_path.insert(0, _Finder(unused if alone else ()))


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    outcome: dict[str, str | None] = {"error": None}
    try:
        main(request)
    except StopError as stop:
        outcome["error"] = str(stop)
    except Exception as error:
        traceback.print_exc()
        outcome["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    (Path(request["root"]) / "outcome.json").write_text(json.dumps(outcome))
