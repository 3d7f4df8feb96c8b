"""What a comparison found: plain data with a JSON form. The fields are the schema of `compare.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from souping.comparison.estimate import VarianceParts
from souping.comparison.verdict import Word

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEMA = 1
Kind = Literal["average", "group", "task", "metric", "length", "cut"]


@dataclass(frozen=True, kw_only=True)
class RowVerdict:
    """A model minus the baseline in one row: the headline, a task, another metric, output length or cut answers.

    Means, differences and margins of scores from 0 to 1 are fractions; others have the unit of their metric.
    `difference` is the model's mean minus the baseline's, whatever the direction of the metric.
    """

    model: str = field(metadata={"doc": "name of the model"})
    baseline: str = field(metadata={"doc": "name of the baseline"})
    name: str = field(metadata={"doc": "`average`, the task or group, `tokens`, `characters` or `cut`"})
    kind: Kind = field(metadata={"doc": "`average` is the headline"})
    metric: str = field(metadata={"doc": "metric of the task"})
    higher_is_better: bool = field(metadata={"doc": "direction of the metric"})
    fraction: bool = field(metadata={"doc": "whether means, differences and the margin are fractions of 1"})
    weight: float = field(metadata={"doc": "share of the headline, 0 for rows that are not averaged"})
    items: int = field(metadata={"doc": "items that are compared"})
    groups: int = field(metadata={"doc": "groups of items"})
    base: float = field(metadata={"doc": "mean of the baseline"})
    mean: float = field(metadata={"doc": "mean of the model"})
    difference: float = field(metadata={"doc": "model minus baseline"})
    low: float = field(metadata={"doc": "lower limit of the interval"})
    high: float = field(metadata={"doc": "upper limit of the interval"})
    level: float = field(metadata={"doc": "level of the interval, after the correction for looks and rows"})
    p_value: float = field(metadata={"doc": "two-sided p-value of no difference, after the same correction"})
    test: str = field(metadata={"doc": "name of the test"})
    discordant: float = field(metadata={"doc": "share of items with different scores"})
    verdict: Word | Literal[""] = field(metadata={"doc": "empty for length and cut answers without a policy"})
    reason: str = field(metadata={"doc": "why it is undecided, if the interval alone does not say so"})
    margin: float | None = field(metadata={"doc": "loss that does not matter"})
    decides: bool = field(metadata={"doc": "whether the exit status depends on it"})
    detectable: float = field(metadata={"doc": "smallest true difference with 80 % power"})
    items_needed: int | None = field(metadata={"doc": "items with which a difference of the margin has 80 % power"})
    missing: int = field(metadata={"doc": "answers of both models that were requested and not scored"})


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """The headline difference of two models, without any correction."""

    model: str = field(metadata={"doc": "name of the first model"})
    other: str = field(metadata={"doc": "name of the second model"})
    difference: float = field(metadata={"doc": "first minus second"})
    low: float = field(metadata={"doc": "lower limit"})
    high: float = field(metadata={"doc": "upper limit"})


@dataclass(frozen=True, kw_only=True)
class Flip:
    """An item on which a model and the baseline score differently. Texts are empty if the log has none."""

    model: str = field(metadata={"doc": "name of the model"})
    task: str = field(metadata={"doc": "task of the item"})
    item: str = field(metadata={"doc": "identity of the item within its task"})
    base: float = field(metadata={"doc": "score of the baseline"})
    score: float = field(metadata={"doc": "score of the model"})
    prompt: str = field(default="", metadata={"doc": "prompt"})
    base_output: str = field(default="", metadata={"doc": "answer of the baseline"})
    output: str = field(default="", metadata={"doc": "answer of the model"})


def _finite(value: Any) -> Any:
    """JSON has no infinity: a limit that is unknown becomes null."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True, kw_only=True)
class CompareResult:
    """A comparison of evaluation logs with a baseline."""

    baseline: str = field(metadata={"doc": "name of the baseline"})
    models: tuple[str, ...] = field(metadata={"doc": "all models, the baseline first"})
    average: str = field(metadata={"doc": "how tasks are averaged"})
    looks: int = field(metadata={"doc": "looks at these items, this one included"})
    status: int = field(metadata={"doc": "exit status: 1 if a deciding row has a verdict of `--fail-on`, else 0"})
    verdicts: tuple[RowVerdict, ...] = field(metadata={"doc": "rows of every model but the baseline"})
    variance: Mapping[str, VarianceParts] = field(metadata={"doc": "{model: variance of its headline difference}"})
    best: tuple[str, ...] = field(metadata={"doc": "models among which the best one is in 95 % of comparisons"})
    pairs: tuple[PairedDifference, ...] = field(metadata={"doc": "each two models, if there are three or more"})
    flips: tuple[Flip, ...] = field(metadata={"doc": "items with different scores, the largest differences first"})
    warnings: tuple[str, ...] = field(metadata={"doc": "what a reader should know"})
    schema: int = field(default=SCHEMA, metadata={"doc": "version of this schema"})

    def rows(self, model: str) -> list[RowVerdict]:
        return [row for row in self.verdicts if row.model == model]

    def headline(self, model: str) -> RowVerdict:
        return self.rows(model)[0]

    def to_json(self, flips: int | None = None) -> str:
        """The content of `compare.json`, with at most so many flips of each model."""
        table: dict[str, Any] = asdict(self)
        kept = self.flips if flips is None else [flip for name in self.models for flip in self.flips_of(name)[:flips]]
        return json.dumps(_finite({**table, "flips": [asdict(flip) for flip in kept]}), indent=1) + "\n"

    def flips_of(self, model: str) -> Sequence[Flip]:
        return [flip for flip in self.flips if flip.model == model]

    def frame(self) -> DataFrame:
        """The verdicts as a pandas DataFrame."""
        from pandas import DataFrame

        return DataFrame([asdict(row) for row in self.verdicts])

    def __repr__(self) -> str:
        from souping.comparison.pages import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        from souping.comparison.pages import tables_html

        return tables_html(self)
