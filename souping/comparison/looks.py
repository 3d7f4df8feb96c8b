"""Looks of a comparison: the results store of souping's runs counts how often their test items were looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from souping.comparison.pooled import item_table
from souping.core.fields import checked
from souping.core.files import expanded
from souping.core.types import Json, UserError, digest, frozen
from souping.logs.match import Matched, MatchedMetric
from souping.logs.records import Log
from souping.report.files import RunConfig, read_report, read_run_config
from souping.statistics.joint import picked_tests
from souping.statistics.levels import Level
from souping.statistics.scores import ItemTable

if TYPE_CHECKING:
    from souping.pipeline.looks.counted_looks import CountedLooks
    from souping.pipeline.store import Store

MOST_LOOKS = 1000


@frozen
class ComparisonClaim:
    """What a comparison of runs is about, in digests as the store has them."""

    claim: str  # of the models, the settings, the questions and all scores
    identities: list[str]  # of the questions of all items that are compared
    questions: list[str]  # of the items of the average row, [I]
    pairs: list[str]  # of each two models' scores on the items of the average row


def looks_of(
    logs: Mapping[str, Sequence[Log]],
    common: Matched,
    weights: Mapping[str, float],
    settings: Sequence[Json],
    store: str | Path | None,
    least: int,
) -> tuple[Level, str]:
    """(level of this comparison, a sentence on the look or nothing). The number of the look is `least` or more.

    The results store counts looks at souping's runs; logs of other tools are at look `least`. If a report shows the
    difference of these models already, this look is that report's. Otherwise the store counts this comparison as a
    look, and the level corrects for a pick of the models among all whose scores on these items are known. `weights` are
    {task: weight} of the average row, and `settings` are what else the claim is about.

    Raises:
        UserError: there were too many looks, or the store that was named has no answers of these runs.
    """
    if least > MOST_LOOKS:
        raise UserError(
            f"look={least}: nothing can be shown after more than {MOST_LOOKS:,} looks at the same items"
        )
    runs: list[Log] = []
    for model_logs in logs.values():
        runs.extend(log for log in model_logs if log.harness == "souping")
    if not runs:
        return Level(least), _sentence(Level(least))
    from souping.pipeline.looks.counted_looks import CountedLooks

    metrics = {task: common.metrics[task][0] for task in weights}
    table = item_table(metrics, weights)
    claim = _claim_of(logs, runs, common, metrics, table, settings)
    with ExitStack() as stack:
        results = _store_of(stack, runs, claim.questions, store)
        if results is None:
            note = "Looks are not counted: the store of these runs is not here (--store FILE)."
            return Level(least), note
        counted_looks = CountedLooks(results)
        level = _reported(counted_looks, claim.pairs)
        if level is None:
            # Counts this look.
            look = counted_looks.show_comparison(claim.claim, claim.identities, claim.questions)
            level = Level(max(least, look.number))
            # Each two of the models with known scores might have been compared instead.
            scores = counted_looks.known_scores(look.known, claim.questions)
            pairs = combinations(range(len(scores)), 2)
            tests = picked_tests(scores, pairs, table, level.family)
            # A model without stored scores counts as a test of its own.
            level = level.among(look.known.missing + tests)
    level = replace(level, looks=max(least, level.looks))
    return level, _sentence(level)


def _reported(counted_looks: CountedLooks, pairs: Sequence[str]) -> Level | None:
    """The strictest level at which reports showed these pairs of models; None if some pair is in no report."""
    looks = 1
    tests = 1.0
    for pair in pairs:
        level = counted_looks.level_of(pair)
        if level is None:
            return None
        looks = max(looks, level.looks)
        tests = max(tests, level.tests)
    return Level(looks, tests)


def _sentence(level: Level) -> str:
    """What the look costs; empty at the first one."""
    if level.looks == 1:
        return ""
    sentence = (
        f"This is look {level.looks} at these items: p-values and intervals are corrected for it."
    )
    if level.tests == 1:
        return sentence
    return f"{sentence} The models may have been picked by their known scores, which counts as {level.tests:.1f} tests."


def _claim_of(
    logs: Mapping[str, Sequence[Log]],
    runs: Sequence[Log],
    common: Matched,
    metrics: Mapping[str, MatchedMetric],
    table: ItemTable,
    settings: Sequence[Json],
) -> ComparisonClaim:
    """The claim of a comparison of `logs`, among them the `runs` of souping; `metrics` {task: metric} and `table` are
    those of the average row.
    """
    from souping.pipeline.looks.claims import pair_digest

    identity_of = _identities(runs, common)
    identities = sorted(set(identity_of.values()))
    # Both in the order of the items of the average row.
    questions = []
    compared = []
    for metric in metrics.values():
        for item in metric.items:
            identity = identity_of.get(item, "")
            compared.append(identity)
            # An item of a run of ours is named by its id, a separator and 16 digits of its content's digest.
            questions.append(digest([item[:-17], identity]))
    pairs = []
    for a, b in combinations(logs, 2):
        means_a = [metric.item_means(a) for metric in metrics.values()]
        means_b = [metric.item_means(b) for metric in metrics.values()]
        scores = (np.concatenate(means_a), np.concatenate(means_b))
        pairs.append(pair_digest(compared, table.item_weights, *scores))

    # Another measurement is another comparison: the best of several could be picked.
    scores_of_logs: list[str] = []
    for model_logs in logs.values():
        scores_of_logs.extend(map(_scores_of, model_logs))
    models = sorted(map(_model_id, runs))
    return ComparisonClaim(
        claim=digest(["pairs", models, list(settings), identities, sorted(scores_of_logs)]),
        identities=identities,
        questions=questions,
        pairs=pairs,
    )


def _identities(runs: Sequence[Log], common: Matched) -> dict[str, str]:
    """{item: identity of its question} of the compared items that the runs answered."""
    compared: set[str] = set()
    for metrics in common.metrics.values():
        compared.update(metrics[0].items)
    identity_of = {}
    for run in runs:
        for answer in run.answers():
            if answer.item in compared:
                identity_of[answer.item] = answer.identity
    return identity_of


def _scores_of(log: Log) -> str:
    """Digest of all scores of a log, in whatever order it has them."""
    return digest(sorted([a.item, a.repeat, str(a.score)] for a in log.answers()))


def _model_id(run: Log) -> str:
    """What the store calls a run's model: the id of its content, or its name if the log has no id."""
    return run.model_id or run.model


def _store_of(
    stack: ExitStack, runs: Sequence[Log], questions: Sequence[str], named: str | Path | None
) -> Store | None:
    """The results store that has answers of all runs, opened on `stack`: the one that is `named`, else the one of the
    first run's settings; None if that is not on this machine.

    Raises:
        UserError: the store that is named has no answers of a run.
    """
    from souping.pipeline.store import Store

    for place in stores_of(runs[0].path, named):
        results = stack.enter_context(Store(place))
        if all(results.has_answers(_model_id(run), questions) for run in runs):
            return results
    if named:
        raise UserError(
            f"--store {named} has no answers of these runs: name the store that they were evaluated with"
        )
    return None


def stores_of(run_dir: Path, named: str | Path | None) -> list[Path]:
    """Paths of files that may be a run's store: the one that is `named`, else those that its settings may mean.

    A relative path in the settings may start at any folder above the run's: its working directory is not known.

    Raises:
        UserError: the store that is named is not there, or the run's settings cannot be read.
    """
    if named:
        path = expanded(named)
        if not path.is_file():
            raise UserError(f"--store {named}: there is no such file")
        return [path]
    settings = _settings_of(run_dir)
    if "store" not in settings:
        return []
    name = settings["store"]
    paths = [folder / expanded(name) for folder in run_dir.absolute().parents]
    # Opening an empty file would turn it into a store.
    return [path for path in dict.fromkeys(paths) if path.is_file() and path.stat().st_size]


def _settings_of(run_dir: Path) -> RunConfig:
    """A run's config.yaml, or, as a run from Python has none, the settings in its report (UserError)."""
    config = run_dir / "config.yaml"
    if config.is_file():
        return read_run_config(config)
    report = run_dir / "report.json"
    provenance = read_report(report).provenance
    settings = {} if provenance is None else provenance.settings
    return cast(RunConfig, checked(settings, RunConfig, str(report)))
