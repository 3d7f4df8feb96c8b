"""Values in `tests/data/recorded`, and the same values measured by the package as it is now.

A recorded word, such as `evaluator.batch_size=3`, is what was typed when the values were recorded. `RENAMED` says what
to type for it now. It is all that a new name of a key, a choice or a model's row needs; recorded values never change.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from copy import deepcopy
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from souping.core.protocols import Evaluator
from souping.core.types import Item
from souping.evaluate.benchmark import split_folds
from souping.evaluate.identity import fingerprint, look
from souping.merge import MergeBackend
from tests.conftest import ROOT
from tests.support.composition import unchecked

RENAMED: dict[str, str] = {}
"""{recorded word: the words to type for it now, separated by spaces}, for renamed keys, choices and rows."""
DATA = ROOT / "tests" / "data" / "recorded"
CHECKPOINTS = {100: "base_cook", 200: "java_cook", 300: "banquet_cook", 400: "python_cook"}
"""{step: bundled model} of the training run."""
LM_EVAL = "0.4.13"
"""Version of lm_eval in the fingerprints and in the store."""
TABLES = ("soups", "evaluators", "items", "answers", "grades")
"""Tables of the store that grow if something is evaluated or scored."""


def recorded(name: str) -> Any:
    """A file of the recorded values."""
    return json.loads((DATA / f"{name}.json").read_text())


def now(words: Sequence[str]) -> list[str]:
    """What to type for recorded words."""
    typed = list[str]()
    for word in words:
        typed += RENAMED.get(word, word).split()
    return typed


# Evaluators and recipes


def config(words: Sequence[str]) -> dict[str, Any]:
    """The configuration of a run with these recorded words."""
    return unchecked(now(["pool.candidates=[a,b]", *words]))


def changed(plain: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """The configuration with these recorded words too. To compose it anew for each key takes a minute."""
    changed = deepcopy(dict(plain))
    parser = OverridesParser.create()
    for word in now(words):
        override = parser.parse_override(word)
        *path, key = override.key_or_group.split(".")
        node = changed
        for name in path:
            node = node[name]
        node[key] = override.value()
    for group in ("engine", "server"):
        if group in changed["evaluator"]:
            changed["evaluator"][group] = changed[group]
    return changed


def build(plain: Mapping[str, Any], group: str) -> Any:
    """The component of a group."""
    from souping.cli import parts

    return parts.build_part(plain[group], parts.kind_of(group), group)


def identities(plain: Mapping[str, Any]) -> list[str]:
    """What the store and the looks know an evaluator by."""
    evaluator: Evaluator = build(plain, "evaluator")
    return [fingerprint(evaluator), look(evaluator)]


def soup(place: Path, row: Mapping[str, Any]) -> list[str]:
    """Id of a recipe, and the digest of the soup's weights where a recorded one is compared."""
    words = ["+experiment=merge", "optimiser=uniform", *row["words"]]
    merge: MergeBackend = build(config(words), "merge")
    folders = {Path(name).name: place / name for name in row["weights"]}
    pool = merge.open(folders)
    recipe = pool.recipe({Path(name).name: weight for name, weight in row["weights"].items()})
    if len(row["soup"]) < 2:
        return [recipe.id]
    out = pool.write(recipe, place / "soups" / recipe.id)
    return [recipe.id, weights_digest(out)]


def weights_digest(folder: Path) -> str:
    (file,) = folder.glob("*.safetensors")
    return hashlib.sha256(file.read_bytes()).hexdigest()


# Splits


def recorded_items(benchmark: str) -> list[Item]:
    """Items of one of the paper's benchmarks, as far as their split depends on them."""
    with gzip.open(DATA / "groups.json.gz", "rt") as file:
        groups = json.load(file)[benchmark]
    items = list[Item]()
    for category, names in groups.items():
        for number, group in enumerate(names):
            item_id = f"{category}_{number}"
            items.append(Item(id=item_id, category=category, prompt="?", answer="", group=group))
    return items


def splits(items: Sequence[Item], published: bool, key: str) -> dict[str, Any]:
    """Counts by split and category, and the digest of which item is in which split.

    An item is known by its `identity`, the digest of its prompt, or by its `id`: names of the bundled items may change.
    """
    counts = dict[str, dict[str, int]]()
    lines = list[str]()
    # The splits stand in the order of a run.
    for split, members in enumerate(split_folds(items, two=published).items.values()):
        counts[str(split)] = dict(sorted(Counter(item.category for item in members).items()))
        for item in members:
            name = item.identity if key == "identity" else item.id
            lines.append(f"{split} {name}")
    text = "\n".join(sorted(lines))
    return {"counts": counts, "digest": hashlib.sha256(text.encode()).hexdigest()}


# Runs


def make_place(place: Path) -> Path:
    """A folder with all that the recorded runs need: models, adapters, a training run, items, tasks and the store."""
    shutil.copytree(DATA / "place", place, dirs_exist_ok=True)
    for name, folder in bundled_models().items():
        shutil.copytree(folder, place / "models" / name)
    rates = [{"step": step, "learning_rate": 1e-3} for step in CHECKPOINTS]
    for step, name in CHECKPOINTS.items():
        folder = place / "training" / f"checkpoint-{step}"
        shutil.copytree(place / "models" / name, folder)
        state = {"global_step": step, "log_history": rates}
        (folder / "trainer_state.json").write_text(json.dumps(state))
    packed = DATA / "store.sqlite.gz"
    if packed.is_file():
        (place / "store.sqlite").write_bytes(gzip.decompress(packed.read_bytes()))
    return place


def bundled_models() -> dict[str, Path]:
    """{recorded name: folder} of the bundled models, by the content of their weights."""
    names = {digest: name for name, digest in recorded("models").items()}
    folders = dict[str, Path]()
    for file in sorted((ROOT / "souping").rglob("model.safetensors")):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if digest in names:
            folders[names[digest]] = file.parent
    return folders


def table_sizes(store: Path) -> dict[str, int]:
    """Rows of the tables that grow if something is evaluated or scored."""
    with closing(sqlite3.connect(store)) as db:
        return {name: db.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0] for name in TABLES}


def selection_scores(run: Path) -> Any:
    """{candidate: {category: score}} on the select split."""
    return json.loads((run / "selection.json").read_text())["scores"]


def numbers(run: Path) -> dict[str, Any]:
    """What a run found: the selection's scores, the soup, its bytes, the scores of every row, and all trials."""
    report = json.loads((run / "report.json").read_text())
    rows = dict[str, dict[str, float]]()
    for row in report["rows"]:
        categories = {name: score["mean"] for name, score in row["scores"].items()}
        rows[row["name"]] = {"": row["objective"]["mean"], **categories}
    trials = list[list[str | float]]()
    # A line begins with the trial's number, the recipe's id and the objective.
    for line in (run / "trials.csv").read_text().splitlines()[1:]:
        _, recipe, objective, *_ = line.split(",")
        trials.append([recipe, float(objective)])
    return {
        "recipe": report["recipe"]["id"],
        "weights": report["recipe"]["weights"],
        "soup": weights_digest(run / "soup"),
        "rows": rows,
        "selection": selection_scores(run),
        "trials": trials,
    }
