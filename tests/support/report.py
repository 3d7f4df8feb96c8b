"""Reports as a run would build them, of any size, from a seed: what the report's tests and pictures are made of."""

from __future__ import annotations

from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np

from souping.core.reading import read
from souping.core.unit import POINTS
from souping.report.content import TrialRow
from souping.search.points import uniform, vertices, weight_grid

CATEGORIES = [
    "simple_python", "simple_java", "simple_javascript", "multiple", "parallel", "parallel_multiple", "live",
    "irrelevance", "multi_turn_base", "multi_turn_miss_function", "multi_turn_miss_parameter",
    "multi_turn_long_context", "live_parallel_multiple", "a_category_with_quite_a_long_name_indeed",
]  # fmt: skip
MODELS = [
    "demo-java", "demo-parallel", "demo-live", "demo-refuser",
    "Team-ACE/ToolACE-2-Llama-3.1-8B-instruct-long-suffix", "demo-python", "demo-generalist", "watt-tool-8B",
]  # fmt: skip


def score(mean: float, n: int = 52) -> dict[str, Any]:
    half = 1.96 * (mean * (1 - mean) / n) ** 0.5 + 0.01
    limits = {"low": max(0.0, mean - half), "high": min(1.0, mean + half)}
    return {"mean": mean, **limits, "n": n, "groups": n, "effective_n": float(n)}


def row(
    rng: np.random.Generator, name: str, kind: str, categories: list[str], level: float
) -> dict[str, Any]:
    means = np.clip(level + rng.normal(0, 0.09, len(categories)), 0.02, 0.99)
    scores = {c: score(float(m)) for c, m in zip(categories, means, strict=True)}
    total = score(float(means.mean()), 52 * len(categories))
    return {
        "name": name,
        "kind": kind,
        "recipe_id": f"{int(1e9 * level):012x}",
        "scores": scores,
        "objective": total,
    }


def rows(
    rng: np.random.Generator, names: list[str], k: int, categories: list[str]
) -> list[dict[str, Any]]:
    """Candidates, of which the first `k` are ingredients; the best candidate; four soups, ours last."""
    made = [
        row(rng, n, "ingredient" if i < k else "candidate", categories, 0.62 + 0.01 * i)
        for i, n in enumerate(names)
    ]
    levels = {"uniform_all": 0.68, "uniform_selected": 0.70, "uniform_topk": 0.69, "soup": 0.76}
    soups = [row(rng, name, name, categories, level) for name, level in levels.items()]
    return [*made, {**made[0], "kind": "best_candidate"}, *soups]


def comparisons(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last row, our soup, against every other one."""
    made = []
    for i, other in enumerate(found[:-1]):
        gap = found[-1]["objective"]["mean"] - other["objective"]["mean"]
        limits = {
            "low": gap - 0.024,
            "high": gap + 0.024,
            "p_value": 0.0004 if i % 3 == 0 else 0.013 * (i + 1),
        }
        pair = {
            "a": found[-1]["name"],
            "b": other["name"],
            "kind": other["kind"],
            "difference": gap,
            **limits,
        }
        made.append(
            {**pair, "n": 416, "groups": 400, "discordant": 0.12, "test": "studentised sign-flip"}
        )
    return made


def losses(found: list[dict[str, Any]], categories: list[str]) -> dict[str, Any]:
    """The soup against the first candidate; what is lost by 8 points is lost beyond chance."""
    pairs = []
    for category in categories:
        gap = found[-1]["scores"][category]["mean"] - found[0]["scores"][category]["mean"]
        limits = {
            "low": gap - 0.06,
            "high": gap + 0.06,
            "level": 0.95,
            "p_value": 0.2,
            "least": 0.07,
        }
        words = "lower" if gap < -0.08 else "no difference shown"
        pairs.append(
            {
                "category": category,
                "b": found[0]["name"],
                "difference": gap,
                **limits,
                "verdict": words,
            }
        )
    above = sum(pair["difference"] > 0 for pair in pairs)
    return {
        "against": found[0]["name"],
        "above": above,
        "below": len(pairs) - above,
        "same": 0,
        "categories": pairs,
    }


def outcomes(i: int, categories: list[str]) -> dict[str, Any]:
    """Ends of a model's answers: the first was truncated now and then, the second not answered at times."""
    ends = {"items": 52, "truncated": 0.05 * (i == 0), "unanswered": 0.01 * (i == 1)}
    reasons = {"prompt does not fit the context": 3} if i == 1 else {}
    return {**ends, "reasons": reasons, "categories": dict.fromkeys(categories, ends)}


def selection(
    rng: np.random.Generator, names: list[str], categories: list[str], k: int
) -> dict[str, Any]:
    """`k` ingredients and the experts of the first four categories."""
    raw = np.corrcoef(rng.normal(size=(len(categories), max(4, len(names)))))
    low = categories[:4]
    wide = {"low": np.clip(raw - 0.5, -1, 1).tolist(), "high": np.clip(raw + 0.5, -1, 1).tolist()}
    return {
        "ingredients": names[:k],
        "experts": {c: names[i % k] for i, c in enumerate(low)},
        "low_correlation": low,
        "metric": "pearson",
        "threshold": 0.2,
        "correlation": {"categories": categories, "matrix": raw.tolist(), **wide},
        "notes": ["ties on live went to the candidate with the better overall score"],
        "published": False,
        "selector": "soce",
    }


def stability(names: list[str], found: dict[str, Any]) -> dict[str, Any]:
    """The stability of that selection, in which every expert was picked in 70 % of the draws."""
    matrix = found["correlation"]
    low = found["low_correlation"]
    pairs = [
        {"a": a, "b": b, "rho": matrix["matrix"][i][j], "bootstrap_low": matrix["low"][i][j],
         "bootstrap_high": matrix["high"][i][j], "low": None, "high": None, "disattenuated": None}
        for (i, a), (j, b) in combinations(enumerate(matrix["categories"]), 2)
    ]  # fmt: skip
    shares = {}
    for category, expert in found["experts"].items():
        shares[category] = {**dict.fromkeys(names, 0.3 / len(names)), expert: 0.7}
    other = {"ingredients": found["ingredients"], "low_correlation": low, "error": None}
    return {
        "method": "bootstrap over items",
        "draws": 500,
        "not_estimable": 20,
        "reasons": {"no category is below the threshold": 20},
        "experts": shares,
        "ingredients": {name: 0.9 - 0.1 * i for i, name in enumerate(names)},
        "low_correlation": dict.fromkeys(low, 0.8),
        "sizes": {"2": 0.2, "3": 0.7, "4": 0.1},
        "correlations": pairs,
        "reliability": dict.fromkeys(low, 0.71),
        "threshold": 0.2,
        "thresholds": [
            {"threshold": 0.1, **other, "error": "no low category"},
            {"threshold": 0.2, **other},
        ],
        "jackknife": [{"left_out": name, **other} for name in names],
        "notes": [],
    }


def trials(k: int, names: list[str], categories: list[str], seed: int = 0) -> list[dict[str, Any]]:
    """At most 130 soups of `k` ingredients, whose scores fall with the distance from a random best point."""
    rng = np.random.default_rng(seed)
    points = [uniform(k), *vertices(k), *weight_grid(k)] if k > 1 else [(1.0,)]
    peak = rng.dirichlet(np.full(k, 3.0))
    made = []
    for number, point in enumerate(points[:130], start=1):
        value = (
            0.76 - 0.3 * float(((np.array(point) - peak) ** 2).sum()) + float(rng.normal(0, 0.006))
        )
        parts = {c: float(np.clip(value + rng.normal(0, 0.05), 0, 1)) for c in categories}
        weights = dict(zip(names, map(float, point), strict=False))
        entry = {
            "number": number,
            "recipe_id": f"{number:012x}",
            "weights": weights,
            "objective": value,
        }
        made.append(
            {**entry, "categories": parts, "items": 168, "reused": 168 if number <= 3 else 0}
        )
    return made


def sample(
    k: int = 3, models: int = 5, columns: int = 8, stop: str = "", seed: int = 0
) -> tuple[dict[str, Any], list[TrialRow]]:
    """(report, trials) of a run with K ingredients out of `models`, over `columns` categories; `stop` = stop_after."""
    rng = np.random.default_rng(seed)
    names = list(MODELS[:models])
    categories = list(CATEGORIES[:columns])
    chosen = selection(rng, names, categories, k)
    report: dict[str, Any] = {
        "schema": 1,
        "name": "bfcl",
        "unit": asdict(POINTS),
        "benchmark": {"name": "demo", "note": "demo: BFCL-style questions, not BFCL"},
        "selection": chosen,
        "stability": stability(names, chosen),
        "warnings": ["2 categories have fewer than 20 items on the select split"],
        "provenance": {
            "command": "python -m souping name=<b>",
            "settings": {"name": "<b>"},
            "version": "0.1.0",
            "date": "2026-11-01 12:00:00 +0000",
            "platform": "Linux-6.1-x86_64",
            "cpus": 2,
            "gpus": ["NVIDIA A <b>100"],
        },
        "cost": {"evaluated_items": 12648, "reused_items": 504, "trials": 0, "seconds": 71.234},
    }
    if stop == "select":
        return {**report, "splits": {"select": 168}}, []
    found = trials(k, names, categories, seed)
    best = max(found, key=lambda trial: trial["objective"])
    kept = {name: w for name, w in best["weights"].items() if w}
    report["recipe"] = {
        "ingredients": list(kept),
        "weights": list(kept.values()),
        "method": "linear",
        "dtype": "bfloat16",
        "settings": {},
        "fingerprints": [f"{i:064x}" for i, _ in enumerate(kept, start=10**9)],
        "id": "3f9c01ab77de",
    }
    weights = dict.fromkeys(categories, 1 / len(categories))
    report["objective"] = {"name": "mean", "coefficients": weights, "search": best["objective"]}
    report["splits"] = {"select": 168, "search": 168}
    report["cost"]["trials"] = len(found)
    rows = [read(TrialRow, trial) for trial in found]
    if stop == "search":
        return report, rows
    return finish(report, rng, names, k, categories), rows


def finish(
    report: dict[str, Any],
    rng: np.random.Generator,
    names: list[str],
    k: int,
    categories: list[str],
) -> dict[str, Any]:
    """What the test split adds."""
    report["splits"]["test"] = 416
    report["rows"] = rows(rng, names, k, categories)
    report["comparisons"] = comparisons(report["rows"])
    if k == 1:
        # One expert: there are no soups, and nothing is compared.
        report["rows"] = report["rows"][:-4]
        report["comparisons"] = []
    report["selection_bias"] = 0.018
    report["router"] = {
        "score": 0.71,
        "routes": dict.fromkeys(categories, names[0]),
        "models": 1,
        "answers": 1,
    }
    report["upper_bound"] = {"score": 0.83, "models": k, "answers": k}
    report["outcomes"] = {name: outcomes(i, categories) for i, name in enumerate(names)}
    if k > 1:
        report["losses"] = losses(report["rows"], categories)
        report["variance"] = {"soup": {"objective": 0.0004, "items": 0.0003, "answers": 0.0001}}
        report["rebuild"] = "souping rebuild run/soup/recipe.json out=rebuilt"
    sentence = "The soup is better than the best candidate model, by 9.1 points (95 % interval 6.7 to 11.5, p 0.013)."
    report["verdict"] = {
        "claim": "better_than_best_candidate",
        "sentence": sentence,
        "p_value": 0.013,
    }
    if k == 1:
        only = f"One expert for everything: keep {names[0]}, there is nothing to soup."
        report["verdict"] = {"claim": "nothing_to_soup", "sentence": only, "p_value": None}
    return report
