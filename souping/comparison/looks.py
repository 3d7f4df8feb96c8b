"""Looks of a comparison: those of runs of ours are counted in the ledger of their store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from souping.comparison.pooled import items_of
from souping.core.fields import text_of
from souping.core.files import expanded, seen_from
from souping.core.parsing import read_yaml
from souping.core.reading import read
from souping.core.text import first_line
from souping.core.types import Json, UserError, digest, frozen
from souping.logs.match import Matched, MatchedMetric
from souping.logs.records import Log, LoggedAnswer, read_object
from souping.report.content import Report
from souping.statistics.joint import picked_tests
from souping.statistics.levels import Level

MOST_LOOKS = 1000


@frozen
class LookStore:
    """`store` in a run's configuration."""

    path: str | None = None


@frozen
class LookConfig:
    """What a run's configuration says about its store."""

    store: LookStore


@frozen
class ComparisonClaim:
    """What a comparison of runs is about, in digests as the ledger has them."""

    claim: str
    former: str  # as earlier versions wrote it
    identities: list[str]  # of the questions of all items that are compared
    questions: list[str]  # of the items of the headline, [I]


def looks_of(
    logs: Mapping[str, Sequence[Log]],
    common: Matched,
    weights: Mapping[str, float],
    settings: Sequence[Json],
    store: str | Path | None,
    least: int,
) -> tuple[Level, list[str]]:
    """(level of this comparison, whose look is at `least` this one; notes for the reader).

    Runs of ours have a ledger. Models that are compared may have been picked among all whose scores on these items are
    known. `settings` are what else the claim is about; the last of them, the margins, only in earlier versions.

    Raises:
        UserError: there were too many looks, or the store that was named is not there.
    """
    if least > MOST_LOOKS:
        raise UserError(
            f"looks={least}: nothing can be shown after more than {MOST_LOOKS:,} looks at the same items"
        )
    runs: list[Log] = []
    for model_logs in logs.values():
        runs.extend(log for log in model_logs if log.harness == "souping")
    if not runs:
        return Level(least), []
    path = store_of(runs[0].path, store)
    if path is None:
        note = "The store of these runs is not here (--store FILE): earlier looks are not counted."
        return Level(least), [note]
    from souping.pipeline.ledger import Ledger
    from souping.pipeline.store import Store

    metrics = {task: common.metrics[task][0] for task in weights}
    claim = _claim_of(logs, runs, common, metrics, settings)
    with Store(path) as opened:
        ledger = Ledger(opened)
        look = ledger.show_comparison(claim.claim, claim.former, claim.identities, claim.questions)
        scores = ledger.known_scores(look.known, claim.questions)
    level = Level(max(least, look.number))
    pairs = combinations(range(len(scores)), 2)
    tests = picked_tests(scores, pairs, items_of(metrics, weights), level.family)
    return level.among(look.known.missing + tests), []


def _claim_of(
    logs: Mapping[str, Sequence[Log]],
    runs: Sequence[Log],
    common: Matched,
    metrics: Mapping[str, MatchedMetric],
    settings: Sequence[Json],
) -> ComparisonClaim:
    """The claim of a comparison of `runs` of ours and other logs; `metrics` are those of the headline."""
    identity_of = _identities(runs, common)
    identities = sorted(set(identity_of.values()))
    questions = []
    for metric in metrics.values():
        for item in metric.items:
            # An item of a run of ours is its id and 16 letters of its content.
            questions.append(digest([item[:-17], identity_of.get(item, "")]))

    # Another measurement is another comparison: the best of several could be picked.
    scores: list[str] = []
    for model_logs in logs.values():
        scores.extend(map(_scores_of, model_logs))
    baseline, *models = map(_recipe_of, runs)
    return ComparisonClaim(
        claim=digest(
            ["pairs", sorted([baseline, *models]), list(settings[:-1]), identities, sorted(scores)]
        ),
        former=digest(["comparison", baseline, sorted(models), list(settings), identities]),
        identities=identities,
        questions=questions,
    )


def _identities(runs: Sequence[Log], common: Matched) -> dict[str, str]:
    """{item: identity of its question}, of items that are compared."""
    compared: set[str] = set()
    for metrics in common.metrics.values():
        compared.update(metrics[0].items)
    identity_of = {}
    for run in runs:
        for answer in _answers(run):
            if answer.item in compared:
                identity_of[answer.item] = answer.identity
    return identity_of


def _answers(log: Log) -> Iterator[LoggedAnswer]:
    for task in log.tasks.values():
        for metric in task.metrics.values():
            yield from metric.answers


def _scores_of(log: Log) -> str:
    """Digest of the scores of a log."""
    return digest(sorted([a.item, a.replicate, str(a.score)] for a in _answers(log)))


def _recipe_of(run: Log) -> str:
    """Identity of the model of a log."""
    report = read(Report, read_object(run.path / "report.json"))
    names = {row.name: row.recipe_id for row in report.rows or ()}
    return names.get(run.model) or run.model


def store_of(run_dir: Path, given: str | Path | None) -> Path | None:
    """The store of a run: the one that is `given`, else the one that its configuration names, if it is here.

    Raises:
        UserError: the store that is given is not there, or the configuration cannot be read.
    """
    if given:
        if not expanded(given).is_file():
            raise UserError(f"--store {given}: there is no such file")
        return expanded(given)
    import yaml

    config = run_dir / "config.yaml"
    if not config.is_file():
        return None
    try:
        settings = read(LookConfig, read_yaml(text_of(config)))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{config}: not the configuration of a run: {first_line(error)}") from error
    named = settings.store.path
    return None if named is None else seen_from(run_dir, expanded(named))
