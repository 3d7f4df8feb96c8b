"""The comparison as a function: read logs, match them, compare, judge.

A comparison of runs of ours is a look at their report items and goes into the ledger of their store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from souping.comparison.result import CompareResult
from souping.comparison.rows import Options, compare_matched
from souping.comparison.verdict import FAIL_ON, Margin, Policy, Word, read_policy
from souping.core.fields import load, pick
from souping.core.files import expanded, seen_from
from souping.core.types import Json, UserError, digest, entries, part
from souping.logs import read
from souping.logs.match import Matched, matched
from souping.logs.records import Log, read_object
from souping.logs.tables import Frame

AVERAGES = ("task", "item", "leaf")
MOST_LOOKS = 1000
Source = str | Path | Frame
"""A log: its path, or a data frame."""


def compare(
    logs: Mapping[str, Source | list[Source]],
    *,
    baseline: str | None = None,
    margin: float | None = None,
    policy: str | Path | None = None,
    average: str = "task",
    group: str = "",
    looks: int = 1,
    pass_at: int = 0,
    same_prompts: bool = False,
    fail_on: Sequence[Word] = FAIL_ON,
    store: str | Path | None = None,
) -> CompareResult:
    """Compare evaluation logs with the first of them, or with the `baseline`.

    Args:
        logs: {name: log}, or {name: [log, ...]} for several training runs of one recipe.
        margin: a loss in points that does not matter.
        policy: TOML file with margins and critical tasks.
        average: over `task`s that were asked for, `item`s or `leaf` tasks, or a JSON file {task: weight}.
        group: field of the documents, or column, that items share.
        looks: number of this comparison on these items. Runs of souping have it from their store.
        pass_at: k, to score an item by pass@k instead of the mean of its answers.
        same_prompts: refuse logs whose prompts differ.
        fail_on: verdicts of deciding rows that make `status` 1.
        store: results store of runs of souping, where it is not found.

    Raises:
        UserError: a log is damaged, or the logs may not be compared.
    """
    if empty := [name for name, source in logs.items() if isinstance(source, list) and not source]:
        raise UserError(f"{empty[0]} has no log: write {empty[0]}=LOG")
    if len(logs) < 2:
        raise UserError("compare needs two models or more: base=LOG cand=LOG")
    if looks > MOST_LOOKS:
        raise UserError(f"looks={looks}: nothing can be shown after more than {MOST_LOOKS:,} looks at the same items")
    base = pick(baseline, logs, "baseline") if baseline else next(iter(logs))
    found = {name: _read(logs[name], group) for name in dict.fromkeys((base, *logs))}
    whole = None if margin is None else Margin.of(margin, "margin")
    gate = read_policy(expanded(policy), whole) if policy else Policy(margin=whole)
    weights = None if average in AVERAGES else load(expanded(average), dict[str, float], "average")
    table = matched(found, same_prompts=same_prompts)
    settings = [average, weights, repr(gate.margin), sorted(map(repr, gate.margins.items()))]
    look, notes = looks_of(found, table, settings, store)
    options = Options(
        baseline=base,
        average="file" if weights else average,
        weights=weights,
        policy=gate,
        fail_on=fail_on,
        looks=max(looks, look),
        pass_at=pass_at,
    )
    return compare_matched(table, options, found, notes)


def _read(sources: Source | list[Source], group: str) -> list[Log]:
    many = sources if isinstance(sources, list) else [sources]
    return [log for source in many for log in read(source, group=group)]


def looks_of(
    logs: Mapping[str, Sequence[Log]], table: Matched, settings: Sequence[Json], store: str | Path | None
) -> tuple[int, list[str]]:
    """(the look that this comparison is, what to tell about it); look 0 if the logs are not of runs of ours.

    `settings` are what else the claim is about: margins and weights.

    Raises:
        UserError: the store that was named is not there.
    """
    runs = [log for several in logs.values() for log in several if log.harness == "souping"]
    if not runs:
        return 0, []
    if store and not expanded(store).is_file():
        raise UserError(f"--store {store}: there is no such file")
    path = expanded(store) if store else _store_of(runs[0].path)
    if path is None:
        return 0, ["The store of these runs is not here (--store FILE): earlier looks at their items are not counted."]
    from souping.pipeline.ledger import Ledger
    from souping.pipeline.store import Store

    compared = {item for found in table.metrics.values() for item in found[0].items}
    metrics = [metric for log in runs for task in log.tasks.values() for metric in task.metrics.values()]
    identities = {a.prompt_hash for metric in metrics for a in metric.answers if a.item in compared}
    first, *others = map(_recipe_of, runs)
    claim = digest(["comparison", first, sorted(others), list(settings), sorted(identities)])
    with Store(path) as ledger:
        return Ledger(ledger).open_comparison(claim, identities).number, []


def _recipe_of(run: Log) -> str:
    """Identity of the model of a log."""
    rows = entries(read_object(run.path / "report.json"), "rows")
    return next((str(row.get("recipe_id")) for row in rows if row.get("name") == run.model), run.model)


def _store_of(run_dir: Path) -> Path | None:
    """The store that the run's configuration names."""
    import yaml

    config = run_dir / "config.yaml"
    settings = yaml.safe_load(config.read_text("utf-8")) if config.is_file() else None
    named = part(settings, "store").get("path") if isinstance(settings, dict) else None
    return seen_from(run_dir, expanded(named)) if isinstance(named, str) else None
