"""Benchmarks beside the one that is optimised: what else the soup gained or lost. Nothing is ever chosen on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from souping.analysis.significance import Comparison, compare, holm
from souping.core.objectives import Mean
from souping.core.protocols import Evaluator, Objective
from souping.core.text import nearest
from souping.core.types import FloatArray, Item, ItemScores, Recipe, UserError
from souping.evaluate.generate import LocalEvaluator
from souping.pipeline.evidence import Contender, ItemTable, row

HARNESS = "souping.evaluate.lm_eval.evaluator.HarnessEvaluator"
KEYS = ("name", "path", "benchmark", "evaluator", "objective", "tasks")
SHARED = ("dtype", "device", "threads", "trust_remote_code")
"""How the module is held: evaluators that agree on it share one live module."""
DTYPES = ("float32", "bfloat16", "float16")
ALPHA = 0.05


@dataclass(frozen=True, kw_only=True)
class SideEntry:
    """An entry of `also` with its parts built; `evaluator` or `benchmark` is None where the entry leaves it open."""

    name: str
    evaluator: Any = None
    benchmark: Any = None
    objective: Any = None


@dataclass(frozen=True, kw_only=True)
class SideBenchmark:
    """A benchmark that is evaluated once the recipe is frozen: all of its items."""

    name: str
    evaluator: Evaluator
    items: tuple[Item, ...]
    objective: Objective


def nodes(entry: Any, number: int, own: Mapping[str, Any]) -> dict[str, Any]:
    """An entry as its configuration nodes: `name`, and `evaluator`, `benchmark`, `objective` where it says them.

    `own` is the run's evaluator node: lm_eval takes its dtype and device where the entry is silent. A text is the path
    of a JSON Lines file or the name of an lm_eval task. A mapping has `path` or `benchmark` (items) and `evaluator`, or
    `tasks` with any other key of evaluator=lm_eval; and `name`, `objective`.

    Raises:
        UserError: it is neither, or a file is not there.
    """
    where = f"also[{number}]"
    if isinstance(entry, str) and entry.strip():
        return _file(entry, where) if _is_path(entry) else _tasks({"name": entry, "tasks": [entry]}, own)
    if not isinstance(entry, Mapping) or not entry:
        raise UserError(f"{where}={entry!r:.60} must be a JSON Lines file, an lm_eval task or a mapping")
    if "tasks" in entry:
        if not entry["tasks"]:
            raise UserError(f"{where}.tasks is empty: name tasks or groups of lm_eval")
        return _tasks(entry, own)
    unknown = [key for key in entry if key not in KEYS]
    if unknown:
        raise UserError(f"{where}.{unknown[0]} is not a key of an entry{nearest(str(unknown[0]), KEYS)}")
    if "path" in entry and "benchmark" in entry:
        raise UserError(f"{where} has both path and benchmark: give one")
    if not {"path", "benchmark", "evaluator"} & set(entry):
        raise UserError(f"{where} names no items: give path, tasks, benchmark, or an evaluator that brings its own")
    given = {key: entry[key] for key in ("evaluator", "benchmark", "objective") if key in entry}
    found = _file(str(entry["path"]), where) if "path" in entry else {"name": f"also {number}"}
    return {**found, **given, **({"name": str(entry["name"])} if "name" in entry else {})}


def _is_path(text: str) -> bool:
    return text.endswith((".jsonl", ".json")) or text.startswith((".", "/", "~")) or Path(text).is_file()


def _file(text: str, where: str) -> dict[str, Any]:
    path = Path(text).expanduser()
    if not path.is_file():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{where}={text}: there is no such file{nearest(path.name, beside)}")
    return {"name": path.stem, "benchmark": {"_target_": "souping.evaluate.benchmark.Benchmark", "path": str(path)}}


def held(own: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an evaluator that say how the module is held, where it has a live one."""
    return {key: own[key] for key in SHARED if key in own} if own.get("dtype") in DTYPES else {}


def _tasks(entry: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    tasks = entry["tasks"]
    name = entry.get("name") or (tasks if isinstance(tasks, str) else "+".join(map(str, tasks)))
    own_tasks = {"include_path": own.get("include_path")} if own.get("_target_") == HARNESS else {}
    settings = held(own) | own_tasks | {key: value for key, value in entry.items() if key not in ("name", "objective")}
    settings["tasks"] = [tasks] if isinstance(tasks, str) else tasks
    found = {"name": str(name), "evaluator": {"_target_": HARNESS, **settings}}
    return {**found, "objective": entry["objective"]} if "objective" in entry else found


def sides(entries: Sequence[SideEntry], own: Evaluator) -> tuple[SideBenchmark, ...]:
    """The benchmarks with their items read. Where an entry names no evaluator, the run's own answers if its items come
    from outside, else `evaluator=local` with its defaults and the run's dtype and device.

    Raises:
        UserError: items cannot be had, or two entries share a name.
    """
    check_entries(entries)
    return tuple(_side(entry, own) for entry in entries)


def check_entries(entries: Sequence[SideEntry]) -> None:
    """Refuse two entries of one name."""
    names = [entry.name for entry in entries]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise UserError(f"also[{number}]: two entries are called {name!r}: give one a name of its own")


def _side(entry: SideEntry, own: Evaluator) -> SideBenchmark:
    evaluator = entry.evaluator
    if evaluator is None:
        evaluator = own if getattr(own, "benchmark", None) is None else LocalEvaluator(**held(vars(own)))
    benchmark = entry.benchmark if entry.benchmark is not None else getattr(evaluator, "benchmark", None)
    if benchmark is None:
        raise UserError(f"also: {entry.name} has an evaluator that brings no items: give it path or benchmark")
    try:
        items = benchmark.items()
    except UserError as error:
        raise UserError(f"also: {entry.name}: {error}") from error
    objective = entry.objective or Mean()
    objective.coefficients(list(dict.fromkeys(item.category for item in items)))
    return SideBenchmark(name=entry.name, evaluator=evaluator, items=items, objective=objective)


def compare_on(
    side: SideBenchmark, soup: Recipe, ingredients: Mapping[str, Recipe], scores_of: Callable[[Recipe], ItemScores]
) -> dict[str, Any]:
    """One entry of `also` in the report: rows, and the soup's paired differences to each ingredient, also by category.

    Holm's correction is over the ingredients for the whole benchmark, and over all pairs of ingredient and category.
    """
    singles = [Contender(name=name, kind="ingredient", recipe=recipe) for name, recipe in ingredients.items()]
    rows = [*singles, Contender(name="soup", kind="soup", recipe=soup)]
    measured = {c.recipe.id: scores_of(c.recipe) for c in rows}
    design = ItemTable.of(side.items, side.objective)
    pairs = [_Pair.of(c, soup, measured, design) for c in singles]
    parts = [(name, pair.category(name)) for pair in pairs for name in design.names]
    judged = zip(parts, _judged([found for _, found in parts]), strict=True)
    return {
        "name": side.name,
        "evaluator": _called(side.evaluator),
        "items": len(side.items),
        "groups": len(np.unique(design.groups)),
        "coefficients": dict(zip(design.names, design.coefficients.tolist(), strict=True)),
        "rows": [row(c, measured[c.recipe.id], design) for c in rows],
        "comparisons": _judged([pair.whole() for pair in pairs]),
        "categories": [{"category": name, **found} for (name, _), found in judged],
    }


def _called(evaluator: Evaluator) -> str:
    settings = evaluator.settings
    return str(settings.get("evaluator") or settings.get("name") or type(evaluator).__name__)


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Scores [I] of the soup and of one ingredient."""

    single: str
    soup: FloatArray
    other: FloatArray
    design: ItemTable
    same: bool

    @classmethod
    def of(cls, single: Contender, soup: Recipe, measured: Mapping[str, ItemScores], design: ItemTable) -> _Pair:
        ours, theirs = measured[soup.id].values, measured[single.recipe.id].values
        return cls(single=single.name, soup=ours, other=theirs, design=design, same=soup.id == single.recipe.id)

    def whole(self) -> Comparison:
        design = self.design
        return self._compare(np.ones(len(self.soup), dtype=bool), design.categories, design.coefficients)

    def category(self, name: str) -> Comparison:
        mask = self.design.categories == self.design.names.index(name)
        return self._compare(mask, np.zeros(int(mask.sum()), dtype=np.int64), np.ones(1))

    def _compare(self, mask: NDArray[np.bool_], categories: NDArray[np.int64], coefficients: FloatArray) -> Comparison:
        ours, theirs, groups = self.soup[mask], self.other[mask], self.design.groups[mask]
        return compare("soup", self.single, ours, theirs, categories, groups, coefficients, same_model=self.same)


def _judged(found: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Comparisons as JSON with Holm's p-value, and what it allows to be said of the soup."""
    adjusted = holm([c.p_value for c in found])
    words = {1: "higher", -1: "lower"}
    return [
        {
            **c.as_dict(),
            "p_holm": p,
            "verdict": words[int(np.sign(c.difference))] if p < ALPHA and c.difference else "no difference shown",
        }
        for c, p in zip(found, adjusted, strict=True)
    ]
