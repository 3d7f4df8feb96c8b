"""Tables about how far the selection can be trusted: bootstrap of items, threshold sweep, jackknife, intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from souping.report import texts
from souping.report.tables import Cell, Grid, Report, grid, part


def picks(report: Report) -> Grid:
    """How often a category is of low correlation under the bootstrap of items, and then each candidate its expert."""
    stability, chosen = part(report, "stability"), part(part(report, "selection"), "experts")
    found, low = part(stability, "experts"), part(stability, "low_correlation")
    names = sorted({name for shares in found.values() if isinstance(shares, Mapping) for name in shares})
    rows: list[tuple[str | Cell, ...]] = [
        (
            _marked(category, chosen.get(category)),
            texts.share(low.get(category)),
            *(texts.share(part(found, category).get(name)) for name in names),
        )
        for category in found
    ]
    return grid(("category", "is of low correlation", *map(texts.clean, names)), rows)


def _marked(category: str, chosen: Any) -> Cell:
    return Cell(texts.clean(category), f"chose {texts.clean(chosen)}" if chosen else "")


def shares(report: Report) -> Grid:
    """Share of draws in which a candidate is an ingredient, and in which there are K of them."""
    found = part(report, "stability")
    rows = [(f"{texts.clean(name)} is an ingredient", texts.share(v)) for name, v in part(found, "ingredients").items()]
    rows += [(f"K = {texts.clean(size)}", texts.share(v)) for size, v in part(found, "sizes").items()]
    return grid(("event", "share of draws"), rows)


def thresholds(report: Report) -> Grid:
    """What other thresholds would select."""
    stability = part(report, "stability")
    own = texts.number(stability.get("threshold"))
    rows = []
    for entry in stability.get("thresholds") or []:
        value = texts.number(entry.get("threshold"))
        used = " (used)" if value is not None and own is not None and abs(value - own) < 1e-9 else ""
        rows.append((f"{texts.weight(value)}{used}", *_outcome(entry)))
    return grid(("threshold", "ingredients", "low-correlation categories"), rows, left=(0, 1, 2))


def jackknife(report: Report) -> Grid:
    """What the selection becomes when one model is left out."""
    found = part(report, "stability").get("jackknife") or []
    rows = [(texts.clean(entry.get("left_out")), *_outcome(entry)) for entry in found]
    return grid(("left out", "ingredients", "low-correlation categories"), rows, left=(0, 1, 2))


def _outcome(entry: Mapping[str, Any]) -> tuple[str, str]:
    if entry.get("error"):
        return texts.clean(entry["error"]), ""
    low = entry.get("low_correlation") or []
    return texts.listed(entry.get("ingredients") or []) or texts.DASH, ", ".join(map(texts.clean, low)) or texts.DASH


def pairs(report: Report) -> Grid:
    """Every correlation with its intervals: from the bootstrap of items where known, and over models."""
    known = part(report, "stability").get("correlations") or matrix_pairs(report)
    extra = any(texts.number(pair.get("bootstrap_low")) is not None for pair in known)
    rows = []
    for pair in known:
        line = [texts.clean(pair.get("a")), texts.clean(pair.get("b")), texts.rho(pair.get("rho"))]
        line.append(around(pair.get("low"), pair.get("high")))
        if extra:
            line += [
                around(pair.get("bootstrap_low"), pair.get("bootstrap_high")),
                texts.rho(pair.get("disattenuated")),
            ]
        rows.append(line)
    tail = ("95 %, resampled items", "without noise") if extra else ()
    return grid(("category", "category", "rho", "95 %, over models", *tail), rows, left=(0, 1))


def around(low: Any, high: Any) -> str:
    if texts.number(low) is None or texts.number(high) is None:
        return "not estimable"
    return f"{texts.rho(low)} to {texts.rho(high)}"


def matrix_pairs(report: Report) -> list[dict[str, Any]]:
    """[{a, b, rho, low, high}] of the correlation matrix's upper triangle."""
    found = part(part(report, "selection"), "correlation")
    names = found.get("categories") or []
    keys = {"rho": "matrix", "low": "low", "high": "high"}
    return [
        {"a": names[i], "b": names[j], **{key: at(found.get(source), i, j) for key, source in keys.items()}}
        for i in range(len(names))
        for j in range(i + 1, len(names))
    ]


def at(matrix: Any, i: int, j: int) -> Any:
    """matrix[i][j], or None where there is none."""
    try:
        return matrix[i][j]
    except (IndexError, TypeError):
        return None


def notes(report: Report) -> list[str]:
    """Sentences about the bootstrap itself."""
    found = part(report, "stability")
    lines = [texts.clean(note) for note in found.get("notes") or []]
    if found.get("draws"):
        method = f" ({texts.clean(found['method'])})" if found.get("method") else ""
        lines.append(f"{texts.count(found['draws'])} draws{method}; {_failed(found)}.")
    models = part(found, "models")
    if models.get("status"):
        reason = f": {texts.clean(models['reason'])}" if models.get("reason") else ""
        lines.append(f"Resampling models: {texts.clean(models['status']).replace('_', ' ')}{reason}")
    noisy = [f"{texts.clean(name)} {texts.rho(value)}" for name, value in part(found, "reliability").items()]
    if noisy:
        lines.append(f"Reliability of the category scores: {', '.join(noisy)}")
    return lines


def _failed(found: Mapping[str, Any]) -> str:
    """How many draws gave no selection, and why."""
    missing = texts.number(found.get("not_estimable"))
    if not missing:
        return "a selection came out of each"
    why = "; ".join(f"{texts.clean(reason)} ({texts.count(n)})" for reason, n in part(found, "reasons").items())
    return f"no selection came out of {texts.count(missing)}{f': {why}' if why else ''}"
