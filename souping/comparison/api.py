"""The comparison as a function: read logs, match them, test each row, judge.

A comparison of runs of ours is a look at their test items, which their store counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, combinations
from pathlib import Path

import numpy as np

from souping.comparison.counted_claims import ComparisonLooks, looks_of
from souping.comparison.pooled import task_weights
from souping.comparison.result import CompareResult, Difference, Flip, RowVerdict, RunNoise
from souping.comparison.row_tests import RowTest, decide_rows
from souping.comparison.row_verdict import FAIL_ON, TRUNCATED, Margin, Policy, Word, read_policy
from souping.comparison.rows import RowScores, is_scored, rows_of
from souping.comparison.several import joint_tests
from souping.core.fields import Count, check_arguments, load_json, pick
from souping.core.files import errors_told, expanded
from souping.core.text import listed
from souping.core.types import Names, UserError
from souping.logs.answer_tables import LogSource, is_scores
from souping.logs.match import Matched, MatchedMetric, matched
from souping.logs.records import Log, LoggedAnswer
from souping.logs.sources import read_logs
from souping.statistics.comparison import (
    VarianceParts,
    contrast,
    run_means,
    runs_differ,
    split_variance,
)
from souping.statistics.corrections import Level
from souping.statistics.grouped import ZERO_DIFFERENCE
from souping.statistics.score_table import WARN_LOST, ScoreTable

AVERAGES = ("task", "item", "leaf", "bfcl")
FEW_GROUPS = 30


@errors_told()
def compare(
    logs: Mapping[str, LogSource | list[LogSource]],
    *,
    baseline: str | None = None,
    margin: float | None = None,
    policy: str | Path | None = None,
    average: str = "task",
    group: str = "",
    category: str = "",
    item: str = "",
    score: str = "",
    repeat: str = "",
    look: Count = 1,
    pass_at: Count | None = None,
    same_prompts: bool = False,
    lower_is_better: Sequence[str] = (),
    fail_on: Sequence[Word] = FAIL_ON,
    store: str | Path | None = None,
) -> CompareResult:
    """Compare evaluation logs with the first of them, or with the `baseline`.

    Args:
        logs: {name: log}, or {name: [log, ...]} for several runs of one model, or trainings of one
            recipe. A log is a path, a data frame, or an array of scores; arrays are paired by position.
        margin: a loss in points that does not matter.
        policy: TOML file with margins and critical tasks.
        average: over `task`s that were asked for, `item`s or `leaf` tasks, `bfcl` for BFCL's overall accuracy, or a
            JSON file {task: weight}.
        group: field of the documents, or column, in which items that belong together have the same value.
        category: field of the documents, or column, by whose values the one task of the logs is split.
        item: field of a table that identifies an item. A field inside others is dotted.
        score: field of a table with the score. `repeat` numbers the answers to one item.
        look: number of this comparison on these items, at least. For runs of souping, their store counts looks.
        pass_at: k, to score an item by pass@k instead of the mean of its answers.
        same_prompts: refuse logs whose prompts, as they were sent, differ.
        lower_is_better: tasks of tables in which a lower score is better.
        fail_on: verdicts of deciding rows that make `status` 1.
        store: path of the results store of runs of souping; by default the one that the first run's settings name.

    Raises:
        UserError: a log is damaged, or the logs may not be compared.
    """
    check_arguments(compare, locals())
    columns = {"item": item, "score": score, "repeat": repeat}
    reader = partial(read_logs, group=group, category=category, lower=lower_is_better, **columns)
    model_logs = _read(logs, baseline, reader)
    requirements = _requirements(margin, policy)
    common = matched(model_logs, same_prompts=same_prompts)
    # The baseline comes first. Logs that are compared have one harness and version: its first run stands for all.
    base_log = next(iter(model_logs.values()))[0]
    named_weights = _named_weights(average, base_log, common)
    weights = task_weights(common, average, named_weights)
    rows = _checked_rows(common, weights, pass_at or 0, requirements)
    # What else, besides the models and the items, tells this comparison from another one.
    fields = f"{group} {category}".rstrip()
    settings = [average, named_weights, fields, pass_at or 0]
    looks = looks_of(model_logs, common, weights, settings, store, look)
    notes = list(_average_notes(base_log, common, average))
    name = average if average in AVERAGES else "file"
    return _result(model_logs, common, rows, requirements, fail_on, name, looks, notes)


def _result(
    logs: Mapping[str, Sequence[Log]],
    common: Matched,
    rows: Sequence[RowScores],
    requirements: Policy,
    fail_on: Sequence[Word],
    average: str,
    looks: ComparisonLooks,
    notes: Sequence[str],
) -> CompareResult:
    """The verdicts on all rows, and what else the logs show.

    `average` is the name of the average, and `looks` are those of the comparisons with the baseline.
    """
    models = tuple(logs)
    # The first row is the average row.
    scores = rows[0].scores
    tests, best, pairs = _several(scores, models, looks.strictest)
    # The levels already stand for all tests.
    if not looks.joint:
        tests = [1.0] * len(looks.levels)
    verdicts = _all_verdicts(rows, models, requirements, tests, looks.levels)
    # Scores with too many truncated answers do not show which model is best.
    if any(row.reason == TRUNCATED for row in verdicts):
        best = ()
    return CompareResult(
        baseline=models[0],
        models=models,
        average=average,
        look=max(level.looks for level in looks.levels.values()),
        look_note=looks.note,
        status=_status(verdicts, fail_on),
        fail_on=tuple(fail_on),
        verdicts=tuple(verdicts),
        variance=_variances(scores, models),
        runs=tuple(_run_noises(rows[0], verdicts)),
        best=best,
        pairs=pairs,
        flips=tuple(_flips(common, models, logs)),
        warnings=(*common.notes, *notes, *_warnings(logs, common, verdicts, scores)),
    )


def _requirements(margin: float | None, policy: str | Path | None) -> Policy:
    """The policy of a TOML file, where `margin` wins over the file's own; without a file, one of the margin alone."""
    shared_margin = None if margin is None else Margin.of(margin, "margin")
    if policy:
        return read_policy(expanded(policy), shared_margin)
    return Policy(margin=shared_margin)


def _named_weights(average: str, log: Log, common: Matched) -> dict[str, float] | None:
    """{task: weight} in BFCL's overall accuracy, or as a file says; None for a plain mean."""
    if average == "bfcl":
        return _bfcl_weights(log, common)
    if average in AVERAGES:
        return None
    weights: dict[str, float] = load_json(expanded(average), dict[str, float], "average")
    return weights


def _bfcl_weights(log: Log, common: Matched) -> dict[str, float]:
    """Weights of the categories in the overall accuracy of the version that wrote the log."""
    from souping.logs.bfcl_average import coefficients_of, overall

    if log.harness != "bfcl":
        raise UserError(
            f"--average bfcl: {log.path} is no log of bfcl-eval: use task, leaf or item"
        )
    sizes = {task: float(len(metrics[0].items)) for task, metrics in common.metrics.items()}
    return coefficients_of(overall(_bfcl_version(log), sizes), sizes)


def _bfcl_version(log: Log) -> str:
    """The benchmark's version, `v3` or `v4`, which every task of a log of bfcl-eval has."""
    from souping.logs.bfcl import VERSION

    return next(iter(log.tasks.values())).settings[VERSION]


def _average_notes(log: Log, common: Matched, average: str) -> Iterator[str]:
    """Notes on how the average relates to the one that the harness or the benchmark reports."""
    if average == "task":
        for group in common.groups.values():
            if group.name in common.requested and log.harness == "lm_eval":
                over = "items" if group.weight_by_size else "tasks"
                yield f"{group.name} is the mean over its {over}, as lm_eval has it."
    if log.harness != "bfcl":
        return
    from souping.logs.bfcl_average import categories_of, overall

    version = _bfcl_version(log)
    if average != "bfcl":
        yield f"The average is not BFCL's overall accuracy: --average bfcl weighs as BFCL {version} does."
        return
    absent = [name for name in categories_of(overall(version)) if name not in common.metrics]
    if absent:
        yield (
            f"The average is BFCL {version}'s overall accuracy without {listed(absent)}. Their weight goes to the "
            "others of their part; bfcl-eval counts them as 0."
        )


def _all_verdicts(
    rows: Sequence[RowScores],
    models: Sequence[str],
    requirements: Policy,
    tests: Sequence[float],
    levels: Mapping[str, Level],
) -> list[RowVerdict]:
    """The verdict on each row of each model against the first, the average row of each model first.

    `tests` are numbers of tests that each model's average row is corrected for, beyond those of its level.
    """
    verdicts: list[RowVerdict] = []
    for model, average_tests in zip(models[1:], tests, strict=True):
        row_tests = [RowTest(row, model, models[0], levels[model]) for row in rows]
        verdicts.extend(decide_rows(row_tests, requirements, average_tests))
    return verdicts


def _status(verdicts: Sequence[RowVerdict], fail_on: Sequence[Word]) -> int:
    """The exit status: 1 if a required row has a verdict of `fail_on`, else 0."""
    return int(any(row.required and row.verdict in fail_on for row in verdicts))


def _run_noises(average_row: RowScores, verdicts: Sequence[RowVerdict]) -> Iterator[RunNoise]:
    """How far the runs of each model with several runs differ in the average row."""
    scored = average_row.scores.scored
    differences = {row.model: row.difference for row in verdicts if row.kind == "average"}
    for model, means in run_means(scored).items():
        scores = scored.counted(model)  # [R, I]
        flipped = [np.abs(a - b) > ZERO_DIFFERENCE for a, b in combinations(scores, 2)]
        yield RunNoise(
            model=model,
            runs=len(scores),
            flipped=float(np.mean(flipped)),
            spread=float(np.ptp(means)),
            difference=differences.get(model),
        )


def _variances(scores: ScoreTable, models: Sequence[str]) -> dict[str, VarianceParts]:
    """{model: variance of its difference to the first model}"""
    scored = scores.scored
    return {model: split_variance(scored, model, models[0]) for model in models[1:]}


def _read(
    logs: Mapping[str, LogSource | list[LogSource]],
    baseline: str | None,
    reader: Callable[[LogSource], tuple[Log, ...]],
) -> dict[str, list[Log]]:
    """{model: its logs}, the baseline first. `reader` reads the logs of one source.

    Raises:
        UserError: a model has no log, there is one model, or no model has the name of the baseline.
    """
    sources: dict[str, list[LogSource]] = {}
    for name, source in logs.items():
        sources[name] = _sources(source)
        if not sources[name]:
            raise UserError(f"{name} has no log: write {name}=LOG")
    if len(logs) < 2:
        raise UserError("compare needs two models or more: base=LOG cand=LOG")
    _check_lengths(sources)
    base = next(iter(logs))
    if baseline:
        base = pick(baseline, logs, "baseline")
    model_logs: dict[str, list[Log]] = {}
    for name in dict.fromkeys((base, *logs)):
        model_logs[name] = []
        for source in sources[name]:
            model_logs[name].extend(reader(source))
    return model_logs


def _sources(source: LogSource | list[LogSource]) -> list[LogSource]:
    """The logs of one model as a list. A list of scores is one log."""
    if isinstance(source, list | tuple) and not is_scores(source):
        return list(source)
    return [source]


def _check_lengths(sources: Mapping[str, Sequence[LogSource]]) -> None:
    """Refuse arrays of different lengths (UserError): they are paired by position."""
    names = {}  # {length: a model with an array of this length}
    for name, logs in sources.items():
        for log in logs:
            if is_scores(log):
                names[len(log)] = name
    if len(names) > 1:
        counts = listed(f"{name} has {length}" for length, name in names.items())
        raise UserError(f"scores are paired by position, but {counts}")


def _several(
    scores: ScoreTable, models: Sequence[str], level: Level
) -> tuple[list[float], Names, dict[str, dict[str, Difference]]]:
    """(number of tests that each model after the first is corrected for; models that may be the best; {model: {later
    model: (difference, lower, upper limit)}}).

    With two models there is one test, and the others are empty.
    """
    if len(models) < 3:
        return [1.0], (), {}
    pairs: dict[str, dict[str, Difference]] = {name: {} for name in models[:-1]}
    for a, b in combinations(models, 2):
        comparison = contrast(scores, a, b, tested=False)
        pairs[a][b] = (comparison.difference, comparison.low, comparison.high)
    tests, best = joint_tests(scores, models, level)
    return tests, best, pairs


def _checked_rows(
    common: Matched, weights: Mapping[str, float], pass_at: int, policy: Policy
) -> list[RowScores]:
    """The rows of a comparison, the average row first.

    Raises:
        UserError: there is only one item, two rows have one name, or the policy names a row that does not exist.
    """
    rows = list(rows_of(common, weights, pass_at, policy.named))
    if len(rows[0].scores.items.categories) < 2:
        raise UserError("one item in common: a comparison needs two or more")
    for name, count in Counter(row.name for row in rows).items():
        if count > 1:
            raise UserError(
                f"two rows would have the name {name}: rename that task, group or category in the logs"
            )
    policy.check([row.name for row in rows if row.kind != "average"])
    return rows


def _flips(
    common: Matched, models: Sequence[str], logs: Mapping[str, Sequence[Log]]
) -> Iterator[Flip]:
    """Items that a model and the baseline score differently by the first metric of their task.

    Models are in order, the largest differences of each first; of equal ones, losses come before gains.
    """
    # Of several runs of a model, only the first one's answers are shown.
    base_log = logs[models[0]][0]
    for model in models[1:]:
        flips: list[Flip] = []
        for metrics in common.metrics.values():
            flips.extend(_task_flips(metrics[0], models[0], model, base_log, logs[model][0]))
        yield from sorted(
            flips,
            key=lambda flip: (
                -abs(flip.score - flip.baseline_score),
                flip.score > flip.baseline_score,
            ),
        )


def _task_flips(
    metric: MatchedMetric, baseline: str, model: str, base_log: Log, log: Log
) -> Iterator[Flip]:
    """Items of one task whose mean scores over all runs differ, with the answers in `base_log` and `log`."""
    base_scores = metric.item_means(baseline)
    scores = metric.item_means(model)
    base_answers = _first_answers(base_log, metric)
    answers = _first_answers(log, metric)
    for place in np.flatnonzero(np.abs(scores - base_scores) > ZERO_DIFFERENCE):
        item = metric.items[place]
        yield Flip(
            model=model,
            task=metric.task,
            item=item,
            baseline_score=float(base_scores[place]),
            score=float(scores[place]),
            prompt=answers[item].prompt,
            baseline_output=base_answers[item].output,
            output=answers[item].output,
        )


def _first_answers(log: Log, metric: MatchedMetric) -> Mapping[str, LoggedAnswer]:
    """{item: the first answer to it}"""
    answers = log.tasks[metric.task].metrics[metric.metric].answers
    # Of the answers to one item, the dict keeps the last one.
    return {answer.item: answer for answer in reversed(answers)}


def _unaveraged(common: Matched, averaged: Names) -> Iterator[str]:
    """Warnings on tasks that are left out of the average because of their scale, and the harness's figures of metrics
    without item scores. `averaged` are tasks.
    """
    for task, metrics in common.metrics.items():
        # Only the first metric of a task can be averaged. If it is a mean, the task is only left out by the user's
        # weights, or because no item has a score of every model.
        if task not in averaged and not metrics[0].is_mean:
            yield (
                f"{task} is not averaged: in some log, {metrics[0].metric} is not the mean of the items' scores, "
                "or these are not from 0 to 1."
            )
        for metric in metrics:
            if is_scored(metric):
                continue
            figures = []
            for model, reported in metric.reported.items():
                runs = ", ".join(f"{figure:.4g}" for figure in reported if figure is not None)
                figures.append(f"{model} {runs or 'none'}")
            yield (
                f"{task} {metric.metric}, as reported and without an interval: {'; '.join(figures)}."
            )


def _warnings(
    logs: Mapping[str, Sequence[Log]],
    common: Matched,
    verdicts: Sequence[RowVerdict],
    scores: ScoreTable,
) -> Iterator[str]:
    """Sentences on what limits the comparison."""
    yield from _unaveraged(common, scores.items.names)
    runs = {name: len(answers.counted) for name, answers in scores.answers.items()}
    if max(runs.values()) == 1:
        what = "another run, or a model trained with another seed,"
        if len({log.model for log in chain.from_iterable(logs.values())}) == 1:
            what = "another run of this model"
        yield f"One run per model: {what} may differ by more (several runs: NAME=LOG,LOG)."
    elif min(runs.values()) == 1:
        single = ", ".join(name for name, number in runs.items() if number == 1)
        yield f"{single}: one run. Its variance between runs is taken from the other models."
    if runs_differ(scores.scored):
        yield (
            "The runs of some models vary more than those of others (Bartlett's test, p < 0.05). Intervals take one "
            "variance of runs for all models: those of the models that vary more are too narrow."
        )
    # The average row of the first model: all models are compared on the same items.
    average_row = verdicts[0]
    if average_row.groups == average_row.items:
        yield "Every item counts as independent: name what belongs together with --group FIELD."
    if average_row.groups < FEW_GROUPS:
        yield f"{average_row.groups} independent items are few: intervals are wide, and below 6 nothing can be shown."
    for row in verdicts:
        if row.kind == "cut" and max(row.baseline_mean, row.mean) >= WARN_LOST:
            yield (
                f"Answers are truncated at the token limit: {100 * row.mean:.1f} % of {row.model}, "
                f"{100 * row.baseline_mean:.1f} % of {row.baseline}."
            )
        if row.kind == "average" and row.missing:
            yield (
                f"Items of {row.model} and {row.baseline} with missing answers: {row.missing:,}. "
                "Intervals and p-values hold whether those of one model are right and those of the "
                "other wrong, or the reverse."
            )
