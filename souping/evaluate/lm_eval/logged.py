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
from souping.evaluate.engines.transformers import Answer
from souping.evaluate.lm_eval.tasks import LENGTH_KEYS
from souping.logs.lm_eval import requests_of, samples_of

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

log = logging.getLogger(__name__)
DECIDING = ("until", *LENGTH_KEYS, "do_sample", "temperature")
"""Generation settings that must be the log's."""


class LoggedResponses:
    """Responses of one model by task, hash of the document, and place of the request."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._warned = False
        self._rows: dict[tuple[str, str, int], tuple[list[Any], list[Json]]] = {}
        for task, row in samples_of(path):
            document = str(row.get("doc_hash"))
            for place, (arguments, responses) in enumerate(requests_of(row)):
                if isinstance(arguments, Mapping) and isinstance(responses, list):
                    self._rows[task, document, place] = (list(arguments.values()), responses)

    def find(self, request: Instance, number: int) -> Json:
        """The n-th response to a request, None if its document, prompt or generation settings are not the log's."""
        from lm_eval.utils import handle_non_serializable, hash_string

        doc = json.dumps(request.doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
        key = (request.task_name, hash_string(doc), request.idx)
        arguments, responses = self._rows.get(key, ([], []))
        if len(responses) > number and _deciding(arguments) == _deciding(request.args):
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


def _deciding(arguments: Sequence[Any]) -> list[Json]:
    deciding = list[Json]()
    for argument in arguments:
        if isinstance(argument, dict):
            deciding.append({key: argument.get(key) for key in DECIDING})
        else:
            deciding.append(str(argument))
    # As a log has it, where a tuple is a list.
    return list(json.loads(json.dumps(deciding)))


@lru_cache(maxsize=8)
def responses_at(path: str) -> LoggedResponses:
    """The responses in an output folder of lm_eval (UserError if there are none)."""
    if not expanded(path).exists():
        raise UserError(f"evaluator.logs: {path}: no such folder")
    return LoggedResponses(expanded(path))


class LoggedModel:
    """The harness's model, of which only what the log lacks is requested."""

    def __init__(self, live: HFLM, responses: LoggedResponses) -> None:
        self._live = live
        self._responses = responses

    def __getattr__(self, name: str) -> Any:
        return getattr(self._live, name)

    def generate_until(self, requests: list[Instance]) -> list[Any]:
        return self._merged(requests, self._live.generate_until, self._text)

    def loglikelihood(self, requests: list[Instance]) -> list[Any]:
        return self._merged(requests, self._live.loglikelihood, self._likelihood)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[Any]:
        return self._merged(
            requests, self._live.loglikelihood_rolling, lambda request, value: float(value)
        )

    def _merged(
        self,
        requests: list[Instance],
        ask: Callable[[list[Instance]], list[Any]],
        take: Callable[[Instance, Any], Any],
    ) -> list[Any]:
        counts = Counter[int]()
        logged = list[Json]()
        for request in requests:
            logged.append(self._responses.find(request, counts[id(request)]))
            counts[id(request)] += 1
        pairs = list(zip(requests, logged, strict=True))
        missing = [request for request, response in pairs if response is None]
        fresh = iter(ask(missing) if missing else [])
        responses = list[Any]()
        for request, response in pairs:
            responses.append(next(fresh) if response is None else take(request, response))
        return responses

    def _text(self, request: Instance, text: str) -> str:
        """A text; it is cut off if it has all tokens that it may have, or one less, as the harness strips texts."""
        settings = request.args[1]
        limits = [settings[key] for key in LENGTH_KEYS if key in settings]
        limit = limits[0] if limits else self._live.max_gen_toks
        cut = len(self._live.tok_encode(text, add_special_tokens=False)) >= limit - 1
        self._note(request, Answer(outcome="truncated" if cut else "finished"))
        return text

    def _likelihood(self, request: Instance, value: Sequence[str]) -> tuple[float, bool]:
        self._note(request, Answer())
        return float(value[0]), value[1] == "True"
