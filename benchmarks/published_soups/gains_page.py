"""Tables of the results page on Merge to Learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks.published_soups.gains import (
    Estimate,
    Gains,
    SparseMerge,
    Transfer,
    by_ladder,
    over_ladders,
)
from benchmarks.published_soups.merge_to_learn import LADDERS, METHODS, Method
from benchmarks.published_soups.recorded_search import Regret, SearchedPath, mean_regret
from souping.core.text import signed

Value = Callable[[Gains], float]

CLEAR = 0.5  # points by which a soup is clearly below its better parent


def best(gain: Gains) -> float:
    return gain.best


def by_neighbours(gain: Gains) -> float:
    return gain.by_neighbours


def half(gain: Gains) -> float:
    return gain.half


def router(gain: Gains) -> float:
    return gain.router


COLUMNS: Mapping[str, Value] = {
    "best weight": best,
    "chosen by its neighbours": by_neighbours,
    ".5/.5": half,
    "router": router,
}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def points(value: float) -> str:
    """A difference in points."""
    return signed(f"{value:+.1f}")


def interval(estimate: Estimate) -> str:
    """An estimate with its interval."""
    return f"{points(estimate.value)} [{points(estimate.low)}, {points(estimate.high)}]"


def gains_table(found: Sequence[Gains]) -> str:
    """Soup minus the better parent: a row for each ladder and method, then means with intervals."""
    rows = []
    for ladder in LADDERS:
        for method in METHODS:
            mine = [g for g in found if g.path.ladder is ladder and g.path.method is method]
            weights = sorted(gain.best_weight for gain in mine)
            cells = [points(float(np.mean([value(g) for g in mine]))) for value in COLUMNS.values()]
            rows.append([ladder.name, method.name, *cells, f"{weights[0]:g} to {weights[-1]:g}"])
    for method in METHODS:
        rows.append(["**all four**", method.name, *_intervals(found, [method]), ""])
    rows.append(["**all four**", "all", *_intervals(found, METHODS), ""])
    return table(["ladder", "method", *COLUMNS, "best weights"], rows)


def _intervals(found: Sequence[Gains], methods: Sequence[Method]) -> list[str]:
    return [interval(over_ladders(by_ladder(found, value, methods))) for value in COLUMNS.values()]


def below(found: Sequence[Gains], value: Value) -> str:
    """How many soups are clearly below their better parent."""
    return f"{sum(value(gain) < -CLEAR for gain in found)} of {len(found)}"


def mean_of(found: Sequence[Gains], value: Value, ladder: str = "", method: str = "") -> float:
    """Mean over the paths of a ladder and a method, or of all."""
    chosen = [
        value(gain)
        for gain in found
        if ladder in ("", gain.path.ladder.name) and method in ("", gain.path.method.name)
    ]
    return float(np.mean(chosen))


def transfer_table(found: Sequence[Transfer]) -> str:
    """Gains of the weight that was chosen on dev, and their mean over the methods."""
    rows = [
        [each.method, points(each.dev), points(each.test), points(each.best_on_test)]
        for each in found
    ]
    means = np.mean([(each.dev, each.test, each.best_on_test) for each in found], axis=0)
    rows.append(["all", *map(points, means.tolist())])
    return table(["method", "on dev", "on TEST", "best weight on TEST"], rows)


def sparse_table(found: Sequence[SparseMerge]) -> str:
    """TIES and DARE minus plain merges."""
    rows = [
        [each.pair, each.method, each.plain, points(each.best), points(each.equal_weights)]
        for each in found
    ]
    return table(
        ["pair", "variant", "minus", "best weight of each", "mean over equal weights"], rows
    )


def compliance_table(found: Sequence[Gains]) -> str:
    """Safety with harmless requests as one more benchmark."""
    rows = [
        [method.name, *(points(mean_of(found, value, method=method.name)) for value in COLUMNS.values())]
        for method in METHODS
    ]  # fmt: skip
    return table(["method", *COLUMNS], rows)


def search_table(found: Sequence[SearchedPath], cliffs: Mapping[int, Sequence[Regret]]) -> str:
    """What the adaptive search gives away, by ladder and number of items."""
    rows = []
    for items in sorted({each.items for each in found}):
        mine = [each for each in found if each.items == items]
        for ladder in LADDERS:
            regrets = [each.regret for each in mine if each.path.ladder is ladder]
            rows.append([str(items), ladder.name, *_regret_cells(regrets)])
        given_away = over_ladders(given_away_by_ladder(mine))
        rows.append([str(items), "**all four**", "", "", interval(given_away), "", ""])
        rows.append([str(items), "made up, with a cliff", *_regret_cells(cliffs[items])])
    header = ["items a category", "ladder", "search", "full grid", "given away", "most on a path", "cost"]  # fmt: skip
    return table(header, rows)


def given_away_by_ladder(found: Sequence[SearchedPath]) -> dict[str, list[float]]:
    """{ladder: points that the search gives away on each of its paths}"""
    values: dict[str, list[float]] = {ladder.name: [] for ladder in LADDERS}
    for each in found:
        values[each.path.ladder.name].append(each.regret.given_away)
    return values


def _regret_cells(regrets: Sequence[Regret]) -> list[str]:
    mean = mean_regret(regrets)
    return [
        f"{mean.search:.2f}",
        f"{mean.grid:.2f}",
        signed(f"{mean.given_away:+.2f}"),
        signed(f"{max(each.given_away for each in regrets):+.1f}"),
        f"{100 * mean.cost:.0f} %",
    ]
