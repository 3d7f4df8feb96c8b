"""samples.jsonl.gz: every item with the answers of the report's models.

Its shape is near that of lm-evaluation-harness's `--log_samples` (doc_id, doc, target, arguments, resps,
filtered_resps, the three hashes), with one item per line and the models inside it.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from souping.core.files import write_atomically
from souping.core.types import FOLDS, Fold, Item, Json, Recipe, Record, digest
from souping.pipeline.claims import Measurement
from souping.pipeline.state import Reported, Searched, State
from souping.report.samples import SAMPLES_FILE

if TYPE_CHECKING:
    from souping.pipeline.run import Run


def write_samples(run: Run, state: State) -> None:
    """Write what the store has of the run's folds; the report fold once it was opened, which is after the freeze."""
    folds = {**run.folds, "report": ()}
    if isinstance(state, Reported):
        folds["report"] = state.items
    stream = io.BytesIO()
    # no date: equal runs give equal bytes
    with gzip.GzipFile(fileobj=stream, mode="wb", mtime=0) as file:
        for fold in FOLDS:
            for line in _lines(run, state, fold, folds[fold]):
                file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
    write_atomically(run.settings.run_dir / SAMPLES_FILE, stream.getvalue())


def _models(run: Run, state: State) -> dict[str, Recipe]:
    """The report's rows; of a run that stopped before, its candidates and its soup."""
    if isinstance(state, Reported):
        return {row.name: row.recipe for row in state.contenders}
    models = {name: run.single(name) for name in run.pool.names}
    if isinstance(state, Searched):
        models.setdefault("soup", state.winner.recipe)
    return models


def _lines(
    run: Run, state: State, fold: Fold, items: Sequence[Item]
) -> Iterator[dict[str, Json]]:
    """One line per item that a model answered."""
    router = None
    measurements: Sequence[Measurement] = ()
    if isinstance(state, Reported):
        router = state.router
        measurements = state.look.measurements if fold == "report" else ()
    answers = {
        name: run.evaluation.all_answers(recipe, items, measurements)
        for name, recipe in _models(run, state).items()
    }
    keys = {
        one.prompt_key
        for of_model in answers.values()
        for measured in of_model.values()
        for records in measured
        for one in records
    }
    prompts = run.store.prompts(keys)
    evaluator = run.settings.evaluator
    for place, item in enumerate(items):
        records = {}
        scores = {}
        for name, of_model in answers.items():
            if measured := of_model.get(item.id):
                tables = [evaluator.item_scores([item], [own])[0] for own in measured]
                scores[name] = fmean(map(float, tables))
                records[name] = [record for own in measured for record in own]
        if router and (route := router.routes.get(item.category)) in records:
            records[router.name] = records[route]
            scores[router.name] = scores[route]
        if records:
            digest_of = evaluator.scorer_digest(item)
            yield sample(place, fold, item, records, scores, prompts, digest_of)


def sample(
    place: int,
    fold: Fold,
    item: Item,
    answers: Mapping[str, Sequence[Record]],
    scores: Mapping[str, float],
    prompts: Mapping[str, str],
    scorer_hash: str = "",
) -> dict[str, Any]:
    """A line of one item; `answers` and `scores` are by model, `prompts` by `prompt_key`.

    A model's `sent_hash` is that of the prompt as it was sent to it, empty where its evaluator does not say.
    """
    own = (
        item.prompt if isinstance(item.prompt, str) else [dict(message) for message in item.prompt]
    )
    shown = {name: prompts.get(records[0].prompt_key, "") for name, records in answers.items()}
    first = next(iter(shown.values())) or (
        own if isinstance(own, str) else json.dumps(own, ensure_ascii=False)
    )
    tools = {"tools": [dict(tool) for tool in item.tools]} if item.tools else {}
    doc = {
        "id": item.id,
        "category": item.category,
        "group": item.group,
        "prompt": own,
        **tools,
    }
    models = {name: _model(records, scores[name]) for name, records in answers.items()}
    for name, text in shown.items():
        models[name]["sent_hash"] = digest(text) if text else answers[name][0].prompt_key
        # another tokenizer or template
        if text and text != first:
            models[name]["prompt"] = text
    return {
        "doc_id": place,
        "fold": fold,
        "category": item.category,
        "item": item.id,
        "doc": {**doc, "answer": item.answer, "scorer": item.scorer},
        "target": item.answer,
        "arguments": [[first, {}]],
        "doc_hash": digest(doc),
        "prompt_hash": item.identity,
        "target_hash": digest(item.answer),
        "scorer_hash": scorer_hash,
        "models": models,
    }


def _model(records: Sequence[Record], score: float) -> dict[str, Json]:
    outputs = [record.output for record in records]
    model: dict[str, Json] = {"resps": [outputs], "filtered_resps": outputs, "score": score}
    model["outcome"] = max(
        (record.outcome for record in records), key=("finished", "truncated", "unanswered").index
    )
    if len(records) > 1:
        model |= {
            "scores": [record.score for record in records],
            "outcomes": [record.outcome for record in records],
        }
    reasons = [record.reason for record in records if record.reason]
    return {**model, "reason": reasons[0]} if reasons else model
