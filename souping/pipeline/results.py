"""Files that a run leaves beside its report: samples.jsonl.gz, and what a multirun compares.

Samples are every item with the answers of the report's models. Their shape is near that of lm-evaluation-harness's
`--log_samples` (doc_id, doc, target, arguments, resps, filtered_resps, the three hashes), with one item per line and
the models inside it.
"""

from __future__ import annotations

import gzip
import io
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from souping.analysis.intervals import ItemTable
from souping.analysis.significance import shrunken
from souping.core.files import write_atomically
from souping.core.types import FOLDS, Fold, Item, Json, Recipe, Record, digest, number, texts
from souping.pipeline.run import Run
from souping.report.files import as_json, selection_dict, trial_rows, write_trials
from souping.search.loop import SearchResult

SAMPLES, TRIED = "samples.jsonl.gz", "tried.json"


def write_samples(run: Run) -> None:
    """Write what the store has of the run's folds; the report fold once it was opened, which is after the freeze."""
    folds: dict[Fold, tuple[Item, ...]] = {**run.folds, "report": run.reported}
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", mtime=0) as file:  # no date: equal runs give equal bytes
        for fold in FOLDS:
            for line in _lines(run, fold, folds[fold]) if folds[fold] else ():
                file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
    write_atomically(run.settings.run_dir / SAMPLES, stream.getvalue())


def _lines(run: Run, fold: Fold, items: Sequence[Item]) -> Iterator[dict[str, Json]]:
    """One line per item that a model answered."""
    answers = {name: run.evaluation.given(recipe, items, handler) for name, recipe, handler in _models(run)}
    keys = {one.prompt_key for of_model in answers.values() for records in of_model.values() for one in records}
    prompts = run.store.prompts(keys)
    for place, item in enumerate(items):
        records = {name: of_model[item.id] for name, of_model in answers.items() if item.id in of_model}
        if records:
            evaluator = run.settings.evaluator
            scores = {name: float(evaluator.item_scores([item], [own])[0]) for name, own in records.items()}
            yield _line(place, fold, item, records, scores, prompts)


def _models(run: Run) -> Iterator[tuple[str, Recipe, str]]:
    """(name, recipe, handler) of the report's rows; of a run that stopped before, its candidates and its soup."""
    rows = dict(run.rows or ((name, run.single(name)) for name in run.pool.names))
    handler = ""
    if run.winner is not None:
        handler = run.winner.handler
        rows.setdefault("soup", run.winner.recipe)
    yield from ((name, recipe, handler) for name, recipe in rows.items())


def _line(
    place: int,
    fold: Fold,
    item: Item,
    answers: Mapping[str, Sequence[Record]],
    scores: Mapping[str, float],
    prompts: Mapping[str, str],
) -> dict[str, Json]:
    own = item.prompt if isinstance(item.prompt, str) else [dict(message) for message in item.prompt]
    shown = {name: prompts.get(records[0].prompt_key, "") for name, records in answers.items()}
    first = next(iter(shown.values())) or (own if isinstance(own, str) else json.dumps(own, ensure_ascii=False))
    tools = {"tools": [dict(tool) for tool in item.tools]} if item.tools else {}
    doc: dict[str, Json] = {"id": item.id, "category": item.category, "group": item.group, "prompt": own, **tools}
    models = {name: _model(records, scores[name]) for name, records in answers.items()}
    for name, text in shown.items():  # another tokenizer or template
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
        "models": models,
    }


def sample_of(place: int, fold: Fold, item: Item, name: str, record: Record) -> dict[str, Json]:
    """A line of one item and one model, with the lengths of prompt and answer."""
    line = _line(place, fold, item, {name: [record]}, {name: record.score}, {record.prompt_key: record.prompt})
    lengths = {"prompt_tokens": record.prompt_tokens, "tokens": len(record.tokens)}
    return {**line, "models": {name: {**_model([record], record.score), **lengths}}}


def _model(records: Sequence[Record], score: float) -> dict[str, Json]:
    outputs = [record.output for record in records]
    model: dict[str, Json] = {"resps": [outputs], "filtered_resps": outputs, "score": score}
    model["outcome"] = max((record.outcome for record in records), key=("finished", "truncated", "unanswered").index)
    if len(records) > 1:
        model |= {"scores": [record.score for record in records], "outcomes": [record.outcome for record in records]}
    reasons = [record.reason for record in records if record.reason]
    return {**model, "reason": reasons[0]} if reasons else model


def write_search(run: Run, winner: SearchResult) -> dict[str, Json]:
    """What a run that stops after its search leaves: trials, recipe, and what a multirun compares."""
    assert run.selection is not None
    run_dir = run.settings.run_dir
    parts: dict[str, Json] = {"selection": selection_dict(run.selection), "recipe": winner.recipe.as_dict()}
    write_trials(trial_rows(winner.trials, run.selection), parts, run_dir / "trials.csv")
    write_atomically(run_dir / "recipe.json", as_json(winner.recipe.as_dict()).encode())
    write_atomically(run_dir / TRIED, as_json(_tried(run, winner)).encode())
    return parts


def _tried(run: Run, winner: SearchResult) -> dict[str, Json]:
    """What each group of the search fold adds to the score of each soup that answered all of it."""
    items = run.folds["search"]
    asks = {trial.recipe.id: (trial.recipe, trial.handler) for trial in winner.trials if trial.whole}
    asks |= {winner.recipe.id: (winner.recipe, winner.handler)}
    table = ItemTable.of(items, run.settings.objective)
    share = (table.coefficients / np.bincount(table.categories))[table.categories]
    scores = {name: run.evaluation.found(recipe, items, handler) for name, (recipe, handler) in asks.items()}
    sums = {n: np.bincount(table.groups, share * s.values) for n, s in scores.items() if len(s.items) == len(items)}
    fold = digest([[[i.fingerprint, i.group] for i in items], table.coefficients.tolist()])
    return {"fold": fold, "winner": winner.recipe.id, "soups": {n: s.round(6).tolist() for n, s in sums.items()}}


def finish_lines(sweep_dir: Path, jobs: Sequence[Mapping[str, Json]], flags: Sequence[str]) -> list[str]:
    """The best job of a multirun that stopped after the search, and the command that reports on it.

    Its score is shrunk towards all soups that any job tried on the same items. `flags` are those of the command line.
    """
    done = [job for job in jobs if (sweep_dir / str(job["run_dir"]) / TRIED).is_file()]
    if not done:
        return []
    best = max(done, key=lambda job: number(job["objective"]) or 0.0)
    tables = {str(job["job"]): json.loads((sweep_dir / str(job["run_dir"]) / TRIED).read_text()) for job in done}
    own, soups = tables[str(best["job"])], dict[str, list[float]]()
    for table in tables.values():
        soups |= table["soups"] if table["fold"] == own["fold"] else {}
    score = shrunken(np.array(list(soups.values())), list(soups).index(own["winner"]))
    words = [word.replace("${hydra:job.num}", str(best["job"])) for word in texts(best, "overrides")]
    command = ["python", "-m", "souping", *flags, *(w for w in words if not w.lstrip("+").startswith("stop_after="))]
    note = f"job {best['job']}, about {100 * score:.1f} % on new items (shrunk towards the {len(soups)} soups tried)"
    return [f"  {'best':16} {note}", f"  {'finish':16} {shlex.join(command)}"]
