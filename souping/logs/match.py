"""Which answers of several models may be compared, item by item."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from souping.core.types import FloatArray
from souping.logs.records import Group


@dataclass(frozen=True, kw_only=True)
class MatchedMetric:
    """Answers of all models to the items of one task by one metric, for the items that every model was asked.

    The mappings are {model: array}, and each array is [runs, replicates, items]. The numbers of runs and replicates may
    differ between models. `scores` and `tokens` are nan where there is none: a replicate that an item lacks, or an item
    that the harness left out of its mean. `missing` marks answers that were asked for and not scored, whether the
    harness counted them (a score) or not (nan). `groups` are those of the items, the item's own name without one.
    """

    task: str
    metric: str
    higher_is_better: bool
    is_mean: bool
    items: tuple[str, ...]
    groups: tuple[str, ...]
    scores: Mapping[str, FloatArray]
    missing: Mapping[str, NDArray[np.bool_]]
    cut: Mapping[str, FloatArray]
    tokens: Mapping[str, FloatArray]
    characters: Mapping[str, FloatArray]


@dataclass(frozen=True, kw_only=True)
class Matched:
    """What several models have in common, in the order in which they were named.

    `metrics` is {task: its metrics}, the first of them stands for the task. `groups` are those whose members are all
    here, `asked` the tasks and groups whose mean is the headline. `notes` are sentences for the reader: what was left
    out, and how the prompts differ.
    """

    models: tuple[str, ...]
    metrics: Mapping[str, tuple[MatchedMetric, ...]]
    groups: Mapping[str, Group]
    asked: tuple[str, ...]
    notes: tuple[str, ...] = ()
