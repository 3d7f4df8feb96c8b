"""samples.jsonl.gz: every item with the answers of the report's models.

Its shape is near that of lm-evaluation-harness's `--log_samples` (doc_id, doc, target, arguments, resps,
filtered_resps, the three hashes), with one item per line and the models inside it.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from souping.analysis.alternatives import RoutedAnswers
from souping.answers.claims import Measurement
from souping.core.files import write_atomically
from souping.core.types import SPLITS, Item, Json, Recipe, Record, Split, digest
from souping.report.samples import SAMPLES_FILE
from souping.runs.state import Reported, Searched, State

if TYPE_CHECKING:
    from souping.runs.run import Run


def write_samples(run: Run, state: State) -> None:
    """Write what the store has of the run's splits; the test split once it was opened, which is after the freeze."""
    splits = {**run.splits, "test": ()}
    if isinstance(state, Reported):
        splits["test"] = state.items
    stream = io.BytesIO()
    # Without a date, so that equal runs give equal bytes.
    with gzip.GzipFile(fileobj=stream, mode="wb", mtime=0) as file:
        for split in SPLITS:
            for line in _lines(run, state, split, splits[split]):
                file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
    write_atomically(run.settings.run_dir / SAMPLES_FILE, stream.getvalue())


def _models(run: Run, state: State) -> dict[str, Recipe]:
    """{name: recipe} of the report's rows or, if the run stopped before the test, of its candidates and its soup."""
    if isinstance(state, Reported):
        return {row.name: row.recipe for row in state.contenders}
    models = {name: run.single(name) for name in run.pool.names}
    if isinstance(state, Searched):
        models.setdefault("soup", state.winner.recipe)
    return models


def _lines(
    run: Run, state: State, split: Split, items: Sequence[Item]
) -> Iterator[dict[str, Json]]:
    """The lines of a split, which `sample` makes: one per item that a model answered."""
    if not items:
        return
    router: RoutedAnswers | None = None
    # Answers that a report showed stand, even if the store has newer ones.
    measurements: Sequence[Measurement] = ()
    if isinstance(state, Reported):
        router = state.router
        if split == "test":
            measurements = state.look.measurements
    # {model: {item id: its answers}}
    answers = {}
    for name, recipe in _models(run, state).items():
        shown = run.evaluation.first_answers(recipe, items, measurements)
        answers[name] = {**run.evaluation.stored_answers(recipe, items), **shown}
    prompts = run.store.prompts(_prompt_keys(answers.values()))
    evaluator = run.settings.evaluator
    for place, item in enumerate(items):
        records = {}
        scores = {}
        for name, model_answers in answers.items():
            item_answers = model_answers.get(item.id)
            if not item_answers:
                continue
            scores[name] = float(evaluator.scoring.item_scores([item], [item_answers])[0])
            records[name] = item_answers
        # The router's answer is that of the ingredient for the item's category.
        if router is not None:
            route = router.routes.get(item.category)
            if route in records:
                records[router.name] = records[route]
                scores[router.name] = scores[route]
        if records:
            scorer_hash = evaluator.scoring.scorer_digest(item)
            yield sample(place, split, item, records, scores, prompts, scorer_hash)


def _prompt_keys(answers: Iterable[Mapping[str, Sequence[Record]]]) -> set[str]:
    """Keys of the prompts that were sent for these answers."""
    keys = set()
    for model_answers in answers:
        for records in model_answers.values():
            keys |= {record.prompt_key for record in records}
    return keys


def sample(
    place: int,
    split: Split,
    item: Item,
    answers: Mapping[str, Sequence[Record]],
    scores: Mapping[str, float],
    prompts: Mapping[str, str],
    scorer_hash: str = "",
) -> dict[str, Any]:
    """A line of one item, at this place of its split.

    `answers` are {model: records, one for each repeat}, `scores` {model: score}, and `prompts` {`prompt_key`: the text
    that was sent}. A model's `sent_hash` is the digest of the prompt that it got or, if that text is not known, the
    `prompt_key`, which is empty for an evaluator that does not record prompts.
    """
    if isinstance(item.prompt, str):
        prompt: Json = item.prompt
        prompt_text = item.prompt
    else:
        prompt = [dict(message) for message in item.prompt]
        prompt_text = json.dumps(prompt, ensure_ascii=False)
    doc = {
        "id": item.id,
        "category": item.category,
        "group": item.group,
        "prompt": prompt,
    }
    if item.tools:
        doc["tools"] = [dict(tool) for tool in item.tools]

    # All repeats of an answer have one prompt.
    sent_texts = {}
    for name, records in answers.items():
        sent_texts[name] = prompts.get(records[0].prompt_key, "")
    first_text = next(iter(sent_texts.values())) or prompt_text
    models = {}
    for name, records in answers.items():
        model = _model(records, scores[name])
        text = sent_texts[name]
        model["sent_hash"] = digest(text) if text else records[0].prompt_key
        # Another tokenizer or template.
        if text and text != first_text:
            model["prompt"] = text
        models[name] = model
    return {
        "doc_id": place,
        "split": split,
        "category": item.category,
        "item": item.id,
        "doc": {**doc, "answer": item.answer, "scorer": item.scorer},
        "target": item.answer,
        "arguments": [[first_text, {}]],
        "doc_hash": digest(doc),
        "prompt_hash": item.prompt_digest,
        "target_hash": digest(item.answer),
        "scorer_hash": scorer_hash,
        "models": models,
    }


def _model(records: Sequence[Record], score: float) -> dict[str, Json]:
    """What one model answered to an item (a record for each repeat), under the keys of lm-eval's samples.

    The outcome is the worst of the repeats, the reason the first that a repeat has.
    """
    outputs = [record.output for record in records]
    outcomes = [record.outcome for record in records]
    model: dict[str, Json] = {"resps": [outputs], "filtered_resps": outputs, "score": score}
    model["outcome"] = max(outcomes, key=("finished", "truncated", "unanswered").index)
    if len(records) > 1:
        model["scores"] = [record.score for record in records]
        model["outcomes"] = outcomes
    reasons = [record.reason for record in records if record.reason]
    if reasons:
        model["reason"] = reasons[0]
    return model
