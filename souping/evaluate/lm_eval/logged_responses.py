"""Responses from a log of lm_eval in place of a model's own: the task scores them again, as if it had just got them."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from souping.core.files import expanded
from souping.core.types import Json, UserError
from souping.evaluate.engines.base import Answer
from souping.evaluate.lm_eval.tasks import LENGTH_KEYS
from souping.logs.lm_eval import requests_of, samples_of

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

log = logging.getLogger(__name__)
DECIDING = ("until", *LENGTH_KEYS, "do_sample", "temperature")
"""Generation settings that must be equal in the log and in the request."""


class LoggedResponses:
    """Responses of one model in a log of lm_eval at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._warned = False
        # {(task, hash of the document, index of the request): (arguments of the request, responses)}
        self._responses: dict[tuple[str, str, int], tuple[list[Any], list[Json]]] = {}
        for task, row in samples_of(path):
            document = str(row.get("doc_hash"))
            for index, (arguments, responses) in enumerate(requests_of(row)):
                if isinstance(arguments, Mapping) and isinstance(responses, list):
                    self._responses[task, document, index] = (list(arguments.values()), responses)

    def find(self, request: Instance, number: int) -> Json:
        """A logged response to a request; `number` counts the responses to one request, from 0 on.

        None, with a warning the first time, if the request's document, prompt or generation settings are not in the
        log.
        """
        from lm_eval.utils import handle_non_serializable, hash_string

        # The text that the harness hashes for a log.
        doc = json.dumps(request.doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
        key = (request.task_name, hash_string(doc), request.idx)
        arguments, responses = self._responses.get(key, ([], []))
        if len(responses) > number and _decisive(arguments) == _decisive(request.args):
            return responses[number]
        if not self._warned:
            what = f"document {request.doc_id} of {request.task_name}, its prompt or its generation settings"
            log.warning(
                "evaluator.logs: %s are not in %s: this and others like it are evaluated",
                what,
                self._path,
            )
        self._warned = True
        return None


def _decisive(arguments: Sequence[Any]) -> list[Json]:
    """The parts of a request's arguments on which its response depends: texts, and the settings in `DECIDING`."""
    decisive = list[Json]()
    for argument in arguments:
        if isinstance(argument, dict):
            decisive.append({key: argument.get(key) for key in DECIDING})
        else:
            decisive.append(str(argument))
    # In the form of a log, where a tuple is a list.
    return list(json.loads(json.dumps(decisive)))


@lru_cache(maxsize=8)
def responses_at(path: str) -> LoggedResponses:
    """The responses in an output folder of lm_eval (UserError if it has none)."""
    if not expanded(path).exists():
        raise UserError(f"evaluator.logs: {path}: no such folder")
    return LoggedResponses(expanded(path))


class LoggedModel:
    """The harness's model `live`, which only gets the requests without a logged response."""

    def __init__(self, live: HFLM, responses: LoggedResponses) -> None:
        self._live = live
        self._responses = responses

    def __getattr__(self, name: str) -> Any:
        """Whatever is not defined here is the live model's."""
        return getattr(self._live, name)

    def generate_until(self, requests: list[Instance]) -> list[Any]:
        return self._respond(requests, self._live.generate_until, self._text)

    def loglikelihood(self, requests: list[Instance]) -> list[Any]:
        return self._respond(requests, self._live.loglikelihood, self._likelihood)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[Any]:
        return self._respond(
            requests, self._live.loglikelihood_rolling, lambda request, value: float(value)
        )

    def _respond(
        self,
        requests: list[Instance],
        evaluate: Callable[[list[Instance]], list[Any]],
        read: Callable[[Instance, Any], Any],
    ) -> list[Any]:
        """Responses to the requests, in order: logged ones through `read`, all others by one call of `evaluate`."""
        # A task may repeat a request: the log then has several responses to it.
        counts = Counter[int]()
        logged = list[Json]()
        for request in requests:
            logged.append(self._responses.find(request, counts[id(request)]))
            counts[id(request)] += 1
        pairs = list(zip(requests, logged, strict=True))
        missing = [request for request, response in pairs if response is None]
        live = iter(evaluate(missing) if missing else [])
        responses = list[Any]()
        for request, response in pairs:
            responses.append(next(live) if response is None else read(request, response))
        return responses

    def _text(self, request: Instance, text: str) -> str:
        """A logged text. Also notes whether it was truncated: it then has all tokens that it may have, or one less,
        because the harness strips texts.
        """
        settings = request.args[1]
        limits = [settings[key] for key in LENGTH_KEYS if key in settings]
        limit = limits[0] if limits else self._live.max_gen_toks
        truncated = len(self._live.tok_encode(text, add_special_tokens=False)) >= limit - 1
        self._note(request, Answer(outcome="truncated" if truncated else "finished"))
        return text

    def _likelihood(self, request: Instance, value: Sequence[str]) -> tuple[float, bool]:
        """A logged (log-likelihood, whether greedy decoding gives this text); a log has both as texts.

        Also notes that the request has an answer.
        """
        self._note(request, Answer())
        return float(value[0]), value[1] == "True"
