"""Logs of lm-evaluation-harness: a folder with `results_*.json` and `samples_*.jsonl` (`--log_samples`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from souping.core.text import MAX_DEPTH, shown
from souping.core.types import Json, Names, UserError, elements, number, part, texts
from souping.logs.records import (
    LARGEST_FIGURE,
    Group,
    Log,
    LoggedAnswer,
    LogRow,
    Task,
    json_lines,
    metrics_of,
    pick_model,
    read_object,
)

RESULTS = "results_*.json"


def results_of(path: Path, name: str = "") -> list[Path]:
    """The results files of one model at a path, oldest first: a file, a folder, or the only folder below with some."""
    if path.is_file():
        return [path]
    if own := sorted(path.glob(RESULTS)):
        return own
    models = {
        folder.name: folder
        for folder in path.iterdir()
        if folder.is_dir() and any(folder.glob(RESULTS))
    }
    return sorted(models[pick_model(path, list(models), name)].glob(RESULTS)) if models else []


def read_lm_eval(path: Path, name: str, group: str) -> Log:
    """The newest results of one model, with the answers in its samples."""
    *older, newest = results_of(path, name)
    table = read_object(newest)
    tasks = {task: _task(newest, table, task, group) for task in part(table, "configs")}
    if not tasks or not part(table, "results"):
        raise UserError(f"{newest}: no results of lm_eval's tasks")
    groups = _groups(newest, table)
    below = part(table, "group_subtasks")
    members = {member for name in below for member in texts(below, name)}
    note = f"{newest.name} is the newest of {len(older) + 1} results files in {newest.parent}: only it was read"
    return Log(
        path=newest,
        harness="lm_eval",
        model=str(table.get("model_name") or part(table, "config").get("model_args")),
        tasks=tasks,
        groups=groups,
        asked=tuple(name for name in (*groups, *tasks) if name not in members),
        notes=(note,) if older else (),
    )


def samples_of(path: Path) -> Iterator[tuple[str, LogRow]]:
    """(task, sample) of the newest results of one model."""
    if not (found := results_of(path)):
        raise UserError(f"{path}: no {RESULTS} of lm_eval")
    for task in part(read_object(found[-1]), "configs"):
        file = _samples(found[-1], task)
        with file.open(encoding="utf-8", errors="replace") as lines:
            for sample in json_lines(file, lines):
                yield task, sample


def requests_of(sample: LogRow) -> Iterator[tuple[Json, Json]]:
    """(arguments, responses) of each request of a sample."""
    return zip(part(sample, "arguments").values(), elements(sample, "resps"), strict=False)


def _samples(results: Path, task: str) -> Path:
    """The file with a task's samples (UserError if there is none)."""
    path = results.parent / f"samples_{task}_{results.stem.rpartition('_')[2]}.jsonl"
    if not path.is_file():
        raise UserError(f"{results}: no {path.name} beside it: run lm_eval with --log_samples")
    return path


def _groups(path: Path, table: LogRow) -> dict[str, Group]:
    """Groups of leaf tasks: lm_eval aggregates over those, whatever groups are between."""
    below = part(table, "group_subtasks")
    leaves_of = dict[str, dict[str, None]]()

    def leaves(name: str, depth: int) -> dict[str, None]:
        if depth > MAX_DEPTH:
            raise UserError(
                f"{path}: group_subtasks: {shown(name)} contains itself, or is in more than "
                f"{MAX_DEPTH} groups: run lm_eval again"
            )
        if name not in leaves_of:
            known = dict[str, None]()
            for inner in texts(below, name):
                known |= leaves(inner, depth + 1)
            leaves_of[name] = known or {name: None}
        return leaves_of[name]

    found = {}
    for name in (name for name in below if texts(below, name)):
        members = tuple(leaf for leaf in leaves(name, 0) if leaf in table["configs"])
        by_size = _by_size(path, table, name, members)
        found[name] = Group(name=name, members=members, weight_by_size=by_size)
    return found


def _by_size(path: Path, table: LogRow, name: str, members: Names) -> bool | None:
    """Whether a group's figure is the mean over items rather than over tasks, which lm_eval does not write down. None
    if both are the same."""
    results = part(table, "results")
    for key, mean in part(results, name).items():
        found = ((task, number(part(results, task).get(key))) for task in members)
        rows = {
            task: value
            for task, value in found
            if value is not None and abs(value) <= LARGEST_FIGURE
        }
        if "," in key and "_stderr," not in key and isinstance(mean, float) and rows:
            values = list(rows.values())
            weighted = np.average(values, weights=[_size(path, table, task) or 1 for task in rows])
            # false of a figure that is not a number, too
            if abs(weighted - np.mean(values)) > 1e-9:
                return bool(abs(weighted - mean) <= abs(np.mean(values) - mean))
    return None


def _size(path: Path, table: LogRow, task: str) -> float:
    """Number of a task's samples, 0 where the harness does not say."""
    value = part(part(table, "n-samples"), task).get("effective") or 0
    size = number(value)
    if size is None or not 0 <= size <= LARGEST_FIGURE:
        raise UserError(
            f"{path}: n-samples.{task}.effective={shown(str(value))}: not a number of samples: "
            "run lm_eval again"
        )
    return size


def _task(results: Path, table: LogRow, task: str, group: str) -> Task:
    path = _samples(results, task)
    higher, figures = (part(part(table, key), task) for key in ("higher_is_better", "results"))
    with path.open(encoding="utf-8", errors="replace") as lines:
        answers = list(_answers(path, json_lines(path, lines), list(higher), group))
    items = {answer.item for _, answer in answers}
    if not items:
        raise UserError(f"{path}: no samples: run lm_eval again")
    names = dict.fromkeys(name for name, _ in answers)
    reported = {name: figures.get(name if "," in name else f"{name},none") for name in names}
    lower = [name for name in names if higher.get(name.partition(",")[0]) is False]
    keys = {"task version": "versions", "number of shots": "n-shot"}
    settings = {name: str(part(table, key).get(task)) for name, key in keys.items()}
    metrics = metrics_of(path, answers, reported, lower)
    size = _size(results, table, task)
    if len(items) < size and not any(metric.is_mean for metric in metrics.values()):
        raise UserError(f"{path}: {len(items)} of {size:,.0f} samples: the file is cut off")
    return Task(name=task, metrics=metrics, settings=settings)


def _answers(
    path: Path, samples: Iterator[LogRow], names: list[str], group: str
) -> Iterator[tuple[str, LoggedAnswer]]:
    """(`metric,filter`, or `metric` without a filter; answer) of every sample."""
    for sample in samples:
        try:
            doc_hash = sample.get("doc_hash", "")[:16]
            prompt, output = _texts(sample)
            text = sample["resps"][0][0]
            of_doc = str(sample["doc"][group]) if group else doc_hash
            for name in sample.get("metrics", names):
                score = sample.get(name)
                if isinstance(score, int | float):
                    # beyond what a mean can be it does not matter how large it is
                    score = float(max(-2 * LARGEST_FIGURE, min(score, 2 * LARGEST_FIGURE)))
                yield (
                    f"{name},{sample.get('filter', 'none')}".removesuffix(",none"),
                    LoggedAnswer(
                        item=f"{sample['doc_id']} {doc_hash}".rstrip(),
                        score=score if isinstance(score, float) else np.nan,
                        group=of_doc,
                        missing=text is None,
                        characters=len(text) if isinstance(text, str) else None,
                        prompt_hash=sample.get("prompt_hash", ""),
                        prompt=prompt,
                        output=output,
                    ),
                )
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            what = (
                f"lacks {error}" if isinstance(error, KeyError) else "is damaged: run lm_eval again"
            )
            raise UserError(
                f"{path}: not samples of lm_eval: item {sample.get('doc_id')} {what}"
            ) from error


def _texts(sample: LogRow) -> tuple[str, str]:
    """Prompt and answer; of a choice the likeliest continuation."""
    requests = [list(request.values()) for request in sample["arguments"].values()]
    prompt = str(requests[0][0])
    first = sample["resps"][0][0]
    if not isinstance(first, list) or len(first) < 2:
        return prompt, first if isinstance(first, str) else ""
    likelihoods = [float(answers[0][0]) for answers in sample["resps"]]
    return prompt, str(requests[likelihoods.index(max(likelihoods))][1])
