"""Looks of a comparison: those of runs of ours are counted in the ledger of their store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from souping.analysis.intervals import ItemTable
from souping.analysis.shown import picked_tests
from souping.analysis.sign_flip import ALPHA
from souping.analysis.significance import penalty
from souping.core.fields import text_of
from souping.core.files import expanded, seen_from
from souping.core.reading import read
from souping.core.text import first_line, read_yaml
from souping.core.types import Json, UserError, digest, frozen
from souping.logs.match import Matched, MatchedMetric
from souping.logs.records import Log, LoggedAnswer, read_object
from souping.report.content import Report

MOST_LOOKS = 1000


@frozen
class LookStore:
    """`store` in a run's configuration."""

    path: str | None = None


@frozen
class LookConfig:
    """What a run's configuration says about its store."""

    store: LookStore


def looks_of(
    logs: Mapping[str, Sequence[Log]],
    table: Matched,
    weights: Mapping[str, float],
    settings: Sequence[Json],
    store: str | Path | None,
    least: int,
) -> tuple[int, float, list[str]]:
    """(the look that this comparison is, at `least` this one; the factor of its p-values; what to tell about it).

    Runs of ours have a ledger. Models that are compared may have been picked among all whose scores on these items are
    known. `settings` are what else the claim is about; the last of them, the margins, only in earlier versions.

    Raises:
        UserError: there were too many looks, or the store that was named is not there.
    """
    if least > MOST_LOOKS:
        raise UserError(
            f"looks={least}: nothing can be shown after more than {MOST_LOOKS:,} looks at the same items"
        )
    runs = [log for several in logs.values() for log in several if log.harness == "souping"]
    if not runs:
        return least, penalty(least), []
    path = store_of(runs[0].path, store)
    if path is None:
        note = "The store of these runs is not here (--store FILE): earlier looks are not counted."
        return least, penalty(least), [note]
    from souping.pipeline.ledger import Ledger
    from souping.pipeline.store import Store

    metrics = {task: table.metrics[task][0] for task in weights}
    keys = [item for metric in metrics.values() for item in metric.items]
    compared = {item for found in table.metrics.values() for item in found[0].items}
    identities = {
        answer.item: answer.identity
        for log in runs
        for answer in _answers(log)
        if answer.item in compared
    }
    # An item of a run of ours is its id and 16 letters of its content.
    questions = [digest([key[:-17], identities.get(key, "")]) for key in keys]
    first, *others = map(_recipe_of, runs)
    content = sorted(set(identities.values()))
    former = digest(["comparison", first, sorted(others), list(settings), content])
    # Another measurement is another comparison: the best of several could be picked.
    scores = sorted(_scores_of(log) for several in logs.values() for log in several)
    models = sorted([first, *others])
    claim = digest(["pairs", models, list(settings[:-1]), content, scores])
    with Store(path) as opened:
        ledger = Ledger(opened)
        look = ledger.show_comparison(claim, former, content, questions)
        known = ledger.known_scores(look.known, questions)
    looks = max(least, look.number)
    pairs = combinations(range(len(known)), 2)
    tests = picked_tests(known, pairs, _item_table(metrics, weights), ALPHA / penalty(looks))
    return looks, penalty(looks) * (look.known.missing + tests), []


def _answers(log: Log) -> Iterator[LoggedAnswer]:
    for task in log.tasks.values():
        for metric in task.metrics.values():
            yield from metric.answers


def _scores_of(log: Log) -> str:
    """Digest of the scores of a log."""
    return digest(sorted([a.item, a.replicate, str(a.score)] for a in _answers(log)))


def _item_table(metrics: Mapping[str, MatchedMetric], weights: Mapping[str, float]) -> ItemTable:
    """The compared items of the headline."""
    groups = []
    categories = []
    for number, (task, metric) in enumerate(metrics.items()):
        categories += [number] * len(metric.items)
        names = zip(metric.groups, metric.items, strict=True)
        groups += [group or f"{task} {item}" for group, item in names]
    return ItemTable(
        names=tuple(metrics),
        categories=np.array(categories),
        groups=np.unique(groups, return_inverse=True)[1],
        coefficients=np.array([weights[task] for task in metrics]),
    )


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
    try:
        settings = read(LookConfig, read_yaml(text_of(config)) if config.is_file() else None)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{config}: not the configuration of a run: {first_line(error)}") from error
    named = settings.store.path
    return None if named is None else seen_from(run_dir, expanded(named))
