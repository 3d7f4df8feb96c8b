"""The comparison as a function: read logs, match them, compare, judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from souping.comparison.looks import looks_of
from souping.comparison.result import CompareResult
from souping.comparison.rows import Options, compare_matched
from souping.comparison.verdict import FAIL_ON, Margin, Policy, Word, read_policy
from souping.core.fields import load, pick
from souping.core.files import expanded
from souping.core.types import UserError
from souping.logs import read
from souping.logs.match import matched
from souping.logs.records import Log
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
    gate = read_policy(expanded(policy), margin) if policy else Policy(margin=_margin(margin))
    weights = None if average in AVERAGES else load(expanded(average), dict[str, float], "average")
    table = matched(found, same_prompts=same_prompts)
    settings = [average, weights, repr(gate.margin), sorted(map(repr, gate.margins.items()))]
    look, notes = looks_of(found, table, settings, store)
    options = Options(
        baseline=base,
        average=average if average in AVERAGES else "file",
        weights=weights,
        policy=gate,
        fail_on=fail_on,
        looks=max(looks, look),
        pass_at=pass_at,
    )
    return compare_matched(table, options, found, notes)


def _margin(margin: float | None) -> Margin | None:
    return None if margin is None else Margin.of(margin, "margin")


def _read(sources: Source | list[Source], group: str) -> list[Log]:
    many = sources if isinstance(sources, list) else [sources]
    return [log for source in many for log in read(source, group=group)]
