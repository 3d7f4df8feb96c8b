"""Look of a `souping compare` at the test items of souping's runs, entered in their results store."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence, Sized
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from souping.comparison.pooled import item_table
from souping.core.fields import checked
from souping.core.files import expanded
from souping.core.text import listed
from souping.core.types import Json, UserError, digest, frozen
from souping.logs.match import Matched, MatchedMetric
from souping.logs.records import Log
from souping.statistics.corrections import Level, penalty
from souping.statistics.score_table import ItemTable

if TYPE_CHECKING:
    from souping.answers.counted_looks import CountedLooks
    from souping.answers.store import Store
    from souping.report.run_files import RunConfig

MOST_LOOKS = 1000


log = logging.getLogger(__name__)


@frozen
class ComparisonLooks:
    """The looks of a comparison: {model: level of its comparison with the baseline}, and a sentence on what they cost.

    If the comparisons are `joint`, the caller corrects them for each other. Otherwise the tests of the levels already
    stand for whatever else might have been compared.
    """

    levels: Mapping[str, Level]
    note: str
    joint: bool = True

    @property
    def strictest(self) -> Level:
        return min(self.levels.values(), key=lambda level: level.alpha)


@frozen
class ComparisonClaim:
    """What a comparison of runs is about, in digests as the store has them."""

    identities: list[str]  # of the questions of all items that are compared
    questions: list[str]  # of the items of the average row, [I]
    # {model: digest of its and the baseline's scores on the items of the average row}
    pairs: dict[str, str]


def looks_of(
    logs: Mapping[str, Sequence[Log]],
    common: Matched,
    weights: Mapping[str, float],
    settings: Sequence[Json],
    store: str | Path | None,
    least: int,
) -> ComparisonLooks:
    """The looks of the comparisons with the baseline, the first of the `logs`. Their numbers are `least` or more.

    The results store counts looks at souping's runs; logs of other tools are at look `least`. A difference that a
    report shows has the level of that report. The others are one look, which the store counts. Any model with known
    scores on these items might have been compared with the baseline instead, so there are as many tests as such models.
    `weights` are {task: weight} of the average row, and `settings` are what else the claim is about.

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
    least_levels = dict.fromkeys(list(logs)[1:], Level(least))
    if not runs:
        return ComparisonLooks(levels=least_levels, note=_sentence(Level(least)))
    from souping.answers.counted_looks import CountedLooks

    metrics = {task: common.metrics[task][0] for task in weights}
    claim = _claim_of(logs, runs, common, metrics, item_table(metrics, weights))
    with ExitStack() as stack:
        results = _store_of(stack, runs, claim.questions, store)
        if results is None:
            note = "Looks are not counted: the store of these runs is not here (--store FILE)."
            return ComparisonLooks(levels=least_levels, note=note)
        return _counted(CountedLooks(results), claim, logs, settings, least)


def _counted(
    counted_looks: CountedLooks,
    claim: ComparisonClaim,
    logs: Mapping[str, Sequence[Log]],
    settings: Sequence[Json],
    least: int,
) -> ComparisonLooks:
    """What `looks_of` returns, by the looks that the store counts; a difference that no report shows is a look now."""
    reported = _reported(counted_looks, claim, least)
    compared = {model: logs[model] for model in logs if model not in reported}
    # Only the baseline is left: reports show all the differences, and nothing new is looked at.
    if len(compared) == 1:
        looks = ComparisonLooks(levels=reported, note="", joint=False)
        return replace(looks, note=_sentence(looks.strictest))
    level = _count(counted_looks, claim, _digest_of(compared, claim, settings), compared, least)
    note = _sentence(level)
    if reported and note:
        note += (
            f" For {listed(reported)}, the level is that of the report that shows the difference."
        )
    levels = {model: reported.get(model, level) for model in claim.pairs}
    # More tests than one, and a report's level, stand for all that might have been compared.
    joint = level.tests == 1 and not reported
    return ComparisonLooks(levels=levels, note=note, joint=joint)


def _reported(counted_looks: CountedLooks, claim: ComparisonClaim, least: int) -> dict[str, Level]:
    """{model: level of the report that shows its difference to the baseline}, at look `least` or later."""
    levels = {}
    for model, pair in claim.pairs.items():
        if level := counted_looks.level_of(pair):
            levels[model] = replace(level, looks=max(least, level.looks))
    return levels


def _count(
    counted_looks: CountedLooks, claim: ComparisonClaim, comparison: str, models: Sized, least: int
) -> Level:
    """Count the `comparison`, a digest, of these models as a look; the level of its differences.

    A look after the first is announced before it is counted.
    """
    number = max(least, counted_looks.number_of(comparison, claim.identities))
    if number > 1:
        log.warning(
            "this comparison is look %d at these items: p-values are multiplied by %d (k (k + 1) for look k) and by "
            "the number of models that may have been picked",
            number,
            penalty(number),
        )
    look = counted_looks.show_comparison(comparison, claim.identities, claim.questions)
    # Models whose scores on these items may have been seen before.
    known = len(look.known.soups) + look.known.missing
    # At the first look, no scores were known, and the comparisons are corrected for each other. Later, each model but
    # the baseline is a test.
    tests = max(known, len(models)) - 1 if known else 1
    return Level(max(least, look.number), float(tests))


def _sentence(level: Level) -> str:
    """What the look costs; empty at the first one."""
    if level.looks == 1:
        return ""
    sentence = (
        f"This is look {level.looks} at these items: p-values and intervals are corrected for it."
    )
    if level.tests == 1:
        return sentence
    return (
        f"{sentence} Any model with known scores may have been picked to compare with the baseline, which counts as "
        f"{level.tests:.4g} tests."
    )


def _claim_of(
    logs: Mapping[str, Sequence[Log]],
    runs: Sequence[Log],
    common: Matched,
    metrics: Mapping[str, MatchedMetric],
    table: ItemTable,
) -> ComparisonClaim:
    """The claim of a comparison of `logs`, among them the `runs` of souping; `metrics` {task: metric} and `table` are
    those of the average row.
    """
    from souping.answers.claims import pair_digest

    identity_of = _identities(runs, common)
    identities = sorted(set(identity_of.values()))
    # Both in the order of the items of the average row.
    questions = []
    compared = []
    for metric in metrics.values():
        for item in metric.items:
            identity = identity_of.get(item, "")
            compared.append(identity)
            # `logs.runs` names an item of a run of ours by its id, a space and 16 digits of its content's digest.
            questions.append(digest([item[:-17], identity]))
    means = {}
    for model in logs:
        columns = [metric.item_means(model) for metric in metrics.values()]
        means[model] = np.concatenate(columns)
    baseline, *models = logs
    pairs = {}
    for model in models:
        scores = (means[baseline], means[model])
        pairs[model] = pair_digest(compared, table.item_weights, *scores)
    return ComparisonClaim(identities=identities, questions=questions, pairs=pairs)


def _digest_of(
    logs: Mapping[str, Sequence[Log]], claim: ComparisonClaim, settings: Sequence[Json]
) -> str:
    """Digest of a comparison of these models: of their content, the settings, the questions and all scores."""
    models = []
    # Another measurement is another comparison: the best of several could be picked.
    scores = []
    for one in chain.from_iterable(logs.values()):
        scores.append(_scores_of(one))
        if one.harness == "souping":
            models.append(_model_id(one))
    return digest(["pairs", sorted(models), list(settings), claim.identities, sorted(scores)])


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
    from souping.answers.store import Store

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
    from souping.report.run_files import RunConfig, read_report, read_run_config

    config = run_dir / "config.yaml"
    if config.is_file():
        return read_run_config(config)
    report = run_dir / "report.json"
    provenance = read_report(report).provenance
    settings = {} if provenance is None else provenance.settings
    return cast(RunConfig, checked(settings, RunConfig, str(report)))
