"""Held-out texts for evaluator=loss, made of the demo's items: each category is a source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from souping import demo
from souping.core.types import Item
from souping.evaluate.benchmark import ListedItems

SOURCES = ("simple_python", "parallel", "live")


def lines(sources: tuple[str, ...] = SOURCES, each: int = 20) -> list[dict[str, Any]]:
    """`{id, source, group, text}` of the first items of each source: a prompt with a call as its answer."""
    kept = dict[str, list[dict[str, Any]]]()
    for line in demo.path("items").read_text("utf-8").splitlines():
        row = json.loads(line)
        some = kept.setdefault(row["category"], [])
        if row["category"] in sources and len(some) < each:
            calls = ", ".join(
                f"{name}({_arguments(given)})"
                for one in row["answer"]
                for name, given in one.items()
            )
            text = f"{row['prompt']} {calls}"
            some.append(
                {"id": row["id"], "source": row["category"], "group": row["group"], "text": text}
            )
    return [row for source in sources for row in kept[source]]


def _arguments(given: dict[str, Any]) -> str:
    return ", ".join(f"{name}={values[0]}" for name, values in given.items())


def texts() -> tuple[Item, ...]:
    return ListedItems(listed=lines()).items()


def write(path: Path, **which: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines(**which)))
    return path
