"""Samples of a run: every item with the answers of the report's models, as `samples.jsonl.gz` in its directory.

The shape is near that of lm-evaluation-harness's `--log_samples` (doc_id, doc, target, arguments, resps,
filtered_resps, the three hashes), with a line an item and the models inside it.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from souping.core.files import put
from souping.core.types import FOLDS, Fold, Item, Json, Recipe, Record, digest
from souping.pipeline.stages import RunStages

FILE = "samples.jsonl.gz"


def write_samples(stages: RunStages) -> Path:
    """Write what the store has of the run's folds; the report fold once it was opened, which is after the freeze."""
    folds: dict[Fold, tuple[Item, ...]] = {fold: stages.folds.items[fold] for fold in ("select", "search")}
    folds["report"] = stages.on_report if stages.evidence else ()
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", mtime=0) as file:  # no date: equal runs give equal bytes
        for fold in FOLDS:
            for line in _lines(stages, fold, folds[fold]):
                file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
    return put(stages.run.run_dir / FILE, stream.getvalue())


def _lines(stages: RunStages, fold: Fold, items: Sequence[Item]) -> Iterator[dict[str, Json]]:
    """A line an item that somebody answered."""
    if not items:
        return
    given = {name: stages.evaluation.given(recipe, items, handler) for name, recipe, handler in _models(stages)}
    given = {name: answers for name, answers in given.items() if answers}
    keys = {record.prompt_key for answers in given.values() for records in answers.values() for record in records}
    prompts = stages.store.prompts(keys)
    for number, item in enumerate(items):
        mine = {name: answers[item.id] for name, answers in given.items() if item.id in answers}
        if mine:
            scores = {name: float(stages.run.evaluator.item_scores([item], [own])[0]) for name, own in mine.items()}
            yield _line(number, fold, item, mine, scores, prompts)


def _models(stages: RunStages) -> Iterator[tuple[str, Recipe, str]]:
    """(name, recipe, handler) of the report's rows; of a run that ended before, its candidates and its soup."""
    outcome, names = stages.outcome, stages.pool.names
    handler = outcome.handler if outcome is not None else ""
    rows = stages.rows or tuple((name, stages.pool.recipe({name: 1.0})) for name in names)
    soup = () if outcome is None or any(name == "soup" for name, _ in rows) else (("soup", outcome.recipe),)
    yield from ((name, recipe, handler) for name, recipe in dict([*rows, *soup]).items())


def _line(
    number: int,
    fold: Fold,
    item: Item,
    given: Mapping[str, Sequence[Record]],
    scores: Mapping[str, float],
    prompts: Mapping[str, str],
) -> dict[str, Json]:
    own = item.prompt if isinstance(item.prompt, str) else [dict(message) for message in item.prompt]
    asked = {name: prompts.get(records[0].prompt_key, "") for name, records in given.items()}
    first = next(iter(asked.values())) or (own if isinstance(own, str) else json.dumps(own, ensure_ascii=False))
    tools = {"tools": [dict(tool) for tool in item.tools]} if item.tools else {}
    doc: dict[str, Json] = {"id": item.id, "category": item.category, "group": item.group, "prompt": own, **tools}
    models = {name: _model(records, scores[name]) for name, records in given.items()}
    for name, text in asked.items():  # another tokenizer or template
        if text and text != first:
            models[name]["prompt"] = text
    return {
        "doc_id": number,
        "fold": fold,
        "category": item.category,
        "item": item.id,
        "doc": {**doc, "answer": item.answer, "scorer": item.scorer},
        "target": item.answer,
        "arguments": [[first, {}]],
        "doc_hash": digest(doc),
        "prompt_hash": item.identity,
        "target_hash": digest(item.answer),
        "models": models,
    }


def sample_of(number: int, fold: Fold, item: Item, name: str, record: Record) -> dict[str, Json]:
    """A line of one item and one model, with how long prompt and answer are."""
    line = _line(number, fold, item, {name: [record]}, {name: record.score}, {record.prompt_key: record.prompt})
    lengths = {"prompt_tokens": record.prompt_tokens, "tokens": len(record.tokens)}
    return {**line, "models": {name: {**_model([record], record.score), **lengths}}}


def _model(records: Sequence[Record], score: float) -> dict[str, Json]:
    outputs = [record.output for record in records]
    made: dict[str, Json] = {"resps": [outputs], "filtered_resps": outputs, "score": score}
    made["outcome"] = max((record.outcome for record in records), key=("finished", "truncated", "unanswered").index)
    if len(records) > 1:
        made |= {"scores": [record.score for record in records], "outcomes": [record.outcome for record in records]}
    reasons = [record.reason for record in records if record.reason]
    return {**made, "reason": reasons[0]} if reasons else made
