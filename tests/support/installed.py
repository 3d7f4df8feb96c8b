"""Packages that bring parts, installed as pip does it: a folder of modules with a `.dist-info` beside it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

SELECTOR = """
import numpy as np

from souping.core.fields import component
from souping.core.protocols import Objective, Selector
from souping.core.types import ScoreMatrix, Selection


@component
class AboveMedian(Selector):
    objective: Objective

    def select(self, scores: ScoreMatrix) -> Selection:
        totals = scores.rows(scores.candidates) @ self.objective.coefficients(scores.categories)
        names = np.array(scores.candidates)[totals >= np.median(totals)]
        return Selection(ingredients=tuple(map(str, names)), selector=self.label)
"""
LOGS = """
import json

from souping.logs.layouts import LogLayout


def rows(path):
    if path.suffix == ".json":
        for number, score in enumerate(json.loads(path.read_text())["right"]):
            yield {"item": number, "category": "all", "score": score}


LOGS = LogLayout(name="lab's log", rows=rows)
TABLES = LogLayout(
    name="lab's table",
    keys=("question", "right"),
    columns=lambda row: {"item": row["question"], "category": "all", "score": row["right"]},
)
"""
TRAINER = """
from pathlib import Path

from souping.checkpoints.trainers import Trainer

TRAINER = Trainer(
    name="lab", folders=("lab-",), weights=("state",), rules=Path(__file__).with_name("rules.json")
)
"""
RULES = {"anchors": ["emb"], "rules": [["emb", "model.embed_tokens.weight", "vocab hidden"]]}
CHOICE = "_target_: {}.selector.AboveMedian\nobjective: ${{objective}}\n"


def wheel(
    place: Path, name: str, entries: Mapping[str, str], files: Mapping[str, str] | None = None
) -> Path:
    """A wheel of one package in the folder `place`; `entries` are {group: value}, and `files` replace its own."""
    own = {
        "__init__.py": "",
        "selector.py": SELECTOR,
        "logs.py": LOGS,
        "trainer.py": TRAINER,
        "rules.json": json.dumps(RULES),
        f"conf/selector/{name}_median.yaml": CHOICE.format(name),
    }
    about = f"{name}-1.0.dist-info"
    lines = [f"[souping.{group}]\n{name} = {value}\n" for group, value in entries.items()]
    path = place / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in {**own, **(files or {})}.items():
            archive.writestr(f"{name}/{file}", text)
        archive.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        )
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{about}/entry_points.txt", "\n".join(lines))
        archive.writestr(f"{about}/RECORD", "")
    return path


def install(
    site: Path, name: str, entries: Mapping[str, str], files: Mapping[str, str] | None = None
) -> Path:
    """Install such a wheel into the folder `site`, as pip's --target does."""
    site.mkdir(exist_ok=True)
    zipfile.ZipFile(wheel(site, name, entries, files)).extractall(site)
    return site
