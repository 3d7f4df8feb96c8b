"""The run's own evaluator asks its questions, and a file of old samples answers them.

Prompts are rendered anew with the candidate's tokenizer, filters and metrics run anew on the old answers: what comes
out is what the run would have written, and a question that the file was never asked shows itself.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from souping.core import Record, UserError
from souping.evaluate.adopt.parts import Difference
from souping.evaluate.harness.live import build
from souping.evaluate.harness.run import run
from souping.evaluate.loading import first_line, quiet

ARGUMENTS = {
    "generate_until": ("prompt", "gen_kwargs"),
    "loglikelihood": ("prompt", "continuation"),
    "loglikelihood_rolling": ("prompt",),
}


def model_of(folder: Path, tokenizer: Any, evaluator: Any) -> Any:
    """The harness's model of a candidate without its weights: tokenizer, chat template and lengths are the real ones.

    Raises:
        UserError: its configuration is of no kind that transformers knows.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    quiet()
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=evaluator.trust_remote_code)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        with torch.device("meta"):
            module = kind.from_config(  # type: ignore[no-untyped-call]
                config, trust_remote_code=evaluator.trust_remote_code
            )
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot read its configuration: {first_line(error)}") from error
    return build(SimpleNamespace(module=module, tokenizer=tokenizer, folder=folder), evaluator)


class Replay:
    """Stands in front of the harness's model: answers each request from the file, and compares what was asked.

    `rows` are the samples by document number, `ids` the documents in the order in which they are asked. `differences`
    holds the first request that the file does not know, by the part of it that differs.
    """

    def __init__(self, model: Any, task: str, rows: Mapping[int, Mapping[str, Any]], ids: Sequence[int]) -> None:
        self._model, self._task, self._rows, self._ids = model, task, rows, list(ids)
        self._told: Counter[tuple[int, int]] = Counter()
        self.differences: dict[str, Difference] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """What the evaluator sets (tool schemas) is for the chat template, which is the model's."""
        target = self if name.startswith("_") or name == "differences" else self._model
        object.__setattr__(target, name, value)

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        return [str(self._answer(request)) for request in requests]

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        return [_pair(self._answer(request)) for request in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[Any]:
        return [_single(self._answer(request)) for request in requests]

    def _answer(self, request: Any) -> Any:
        number = self._ids[request.doc_id]
        row, place = self._rows[number], (number, request.idx)
        self._compare(request, row, f"{self._task}/{number}")
        told = self._told[place]
        self._told[place] += 1
        try:
            return row["resps"][request.idx][told]
        except IndexError:
            raise UserError(
                f"{self._task}/{number}: the files hold {len(row['resps'])} requests, {told} answers to each; "
                "the run makes more"
            ) from None

    def _compare(self, request: Any, row: Mapping[str, Any], item: str) -> None:
        """The request as it is made now against the one that was made then."""
        then = row["arguments"].get(f"gen_args_{request.idx}", {})
        for number, part in enumerate(ARGUMENTS[request.request_type]):
            now = _plain(request.args[number])
            if then.get(f"arg_{number}") != now and part not in self.differences:
                found, wanted = _apart(then.get(f"arg_{number}"), now)
                self.differences[part] = Difference(key=f"{part} of {item}", found=found, wanted=wanted)


def replay(
    model: Any, loaded: Mapping[str, Any], task: str, rows: Mapping[int, Mapping[str, Any]], evaluator: Any
) -> tuple[dict[str, Record], list[Difference]]:
    """({item id: record}, differences between the requests then and now) of the documents that `rows` has."""
    ids = sorted(rows)
    if not ids:
        return {}, []
    front = Replay(model, task, rows, ids)
    records = run(front, loaded, {task: ids}, evaluator)
    return records, list(front.differences.values())


def _plain(value: Any) -> Any:
    """A request's argument as the harness logs it."""
    return json.loads(json.dumps(value, default=str))


def _apart(then: Any, now: Any) -> tuple[Any, Any]:
    """Two values, texts cut to where they part."""
    if not (isinstance(then, str) and isinstance(now, str)):
        return then, now
    same = next((i for i, (a, b) in enumerate(zip(then, now, strict=False)) if a != b), min(len(then), len(now)))
    start = max(0, same - 10)
    return tuple(("..." if start else "") + text[start : start + 40] for text in (then, now))  # type: ignore[return-value]


def _pair(answer: Any) -> tuple[float, bool]:
    """(log-likelihood, whether greedy decoding gives it); the harness logs both as texts."""
    likelihood, greedy = answer
    return float(likelihood), str(greedy) == "True"


def _single(answer: Any) -> float:
    return float(answer[0] if isinstance(answer, list | tuple) else answer)
