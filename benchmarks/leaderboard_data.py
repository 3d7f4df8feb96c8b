"""Leaderboards that `leaderboards.py` reads: the paper's tables, MMLU-Pro and BFCL v1, and families of models."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from souping.core.types import FloatArray, IntArray, JsonObject, Names, UserError
from souping.paper.published import PAPER_TABLES, leaderboard

MISSING_LIMIT = 0.05
"""Share of missing answers above which a model is left out in the second pass."""
NO_SCORE = 2
"""Mark in the file of MMLU-Pro for a question that a model's answer file lacks."""
FAMILY_WORDS = {
    "llama": ("llama",),
    "mistral": ("mistral", "mixtral", "mathstral"),
    "qwen": ("qwen",),
    "gemini": ("gemini",),
    "claude": ("claude",),
    "gpt": ("gpt-",),
    "command": ("command-r",),
    "firefunction": ("firefunction",),
    "functionary": ("functionary",),
    "xlam": ("xlam",),
    "hermes": ("hermes",),
    "toolace": ("toolace",),
    "deepseek": ("deepseek",),
    "phi": ("phi-",),
    "yi": ("yi-",),
}
"""{family: words of its models' names}; fine-tunes belong to who tuned them, others to the first word of their name."""
TUNED_FAMILIES = ("hermes", "xlam", "functionary", "toolace")
"""Fine-tunes whose names also hold the name of their base."""
BFCL_ITEMS = {
    "non_live_simple": 277,
    "non_live_multiple": 200,
    "non_live_parallel": 200,
    "non_live_parallel_multiple": 200,
    "live_simple": 258,
    "live_multiple": 1053,
    "live_parallel": 16,
    "live_parallel_multiple": 24,
    "multi_turn_base": 200,
    "multi_turn_miss_func": 200,
    "multi_turn_miss_param": 200,
    "multi_turn_long_context": 200,
    "relevance_detection": 18,
    "irrelevance_detection": 755,
}
"""Items of BFCL v3's columns. Two are unweighted means of files: as many items as give the same variance, 9 / (1/400 +
1/100 + 1/50) and 4 / (1/240 + 1/882)."""
MGSM_ITEMS = 250
"""Items of each language of MGSM."""


@dataclass(frozen=True, kw_only=True)
class Board:
    """A leaderboard. `answers` are 1 for right and 0 for wrong; a published table has none, only `items` by category.

    Without `items` too, nothing is known of how its scores came from items.
    """

    name: str
    models: Names
    categories: Names
    means: FloatArray  # [M, C]
    items: IntArray | None = None  # [C]
    answers: FloatArray | None = None  # [M, I]
    category: IntArray | None = None  # [I]

    @property
    def families(self) -> Names:
        return tuple(map(family, self.models))

    def overall(self, means: FloatArray) -> FloatArray:
        """Scores [..., M] by which models are neighbours: the share of all items, else the mean of the categories."""
        if self.items is None:
            return np.asarray(means.mean(axis=-1))
        return np.asarray(means @ self.items / self.items.sum())

    def without(self, models: Sequence[str]) -> Board:
        """The board without some models."""
        rows = [row for row, name in enumerate(self.models) if name not in models]
        return replace(
            self,
            models=tuple(self.models[row] for row in rows),
            means=self.means[rows],
            answers=None if self.answers is None else self.answers[rows],
        )


def family(model: str) -> str:
    """Family by the model's name: who tuned it, or the line of models that it belongs to."""
    text = model.lower()
    for name in (*TUNED_FAMILIES, *FAMILY_WORDS):
        if any(re.search(rf"(?<![a-z]){re.escape(word)}", text) for word in FAMILY_WORDS[name]):
            return name
    return re.split(r"[-_ .\d]", text)[0]


def board_of(
    name: str, models: Names, categories: Names, scored: Mapping[str, FloatArray]
) -> Board:
    """Board of right and wrong answers, {category: answers [M, I]}."""
    columns = [scored[category] for category in categories]
    sizes = np.array([column.shape[1] for column in columns])
    return Board(
        name=name,
        models=models,
        categories=categories,
        means=np.stack([column.mean(axis=1) for column in columns], axis=1),
        items=sizes,
        answers=np.hstack(columns),
        category=np.repeat(np.arange(len(sizes)), sizes),
    )


def paper_boards() -> list[Board]:
    """The paper's tables, and both sizes of its BFCL table together."""
    both = leaderboard()
    tables = [("BFCL v3, both sizes", both)]
    for table in PAPER_TABLES:
        tables.append((table.title.partition(", ")[2], table.scores))
    boards = []
    for name, scores in tables:
        items: IntArray | None = None
        if set(scores.categories) <= set(BFCL_ITEMS):
            items = np.array([BFCL_ITEMS[category] for category in scores.categories])
        elif name.startswith("MGSM"):
            items = np.full(len(scores.categories), MGSM_ITEMS)
        boards.append(
            Board(
                name=f"{name} (paper)",
                models=scores.models,
                categories=scores.categories,
                means=scores.values,
                items=items,
            )
        )
    return boards


def mmlu_pro(path: Path) -> tuple[Board, dict[str, float] | None]:
    """MMLU-Pro, and {model: share of questions without a prediction}, which count as wrong.

    From the folder of answer files; or from an .npz with `models`, `categories`, `category` [I] and `score` [M, I],
    which cannot tell what is missing. Questions that some model's file lacks are left out.
    """
    if path.is_dir():
        return _mmlu_pro_answers(path)
    with np.load(path, allow_pickle=False) as file:
        score = file["score"]
        category = file["category"]
        models = tuple(map(str, file["models"]))
        categories = tuple(map(str, file["categories"]))
    complete = (score != NO_SCORE).all(axis=0)
    scored = {}
    for number, name in enumerate(categories):
        scored[name] = score[:, complete & (category == number)].astype(float)
    return board_of("MMLU-Pro", models, categories, scored), None


def _mmlu_pro_answers(folder: Path) -> tuple[Board, dict[str, float]]:
    right: dict[str, dict[int, bool]] = {}
    missing: dict[str, float] = {}
    category_of: dict[int, str] = {}
    for file in sorted(folder.glob("model_outputs_*_5shots.zip")):
        rows = _answer_rows(file)
        if not rows:
            continue
        model = file.name.removeprefix("model_outputs_").removesuffix("_5shots.zip")
        right[model] = {}
        for row in rows:
            question = row["question_id"]
            assert isinstance(question, int)
            right[model][question] = row["pred"] == row["answer"]
            category_of[question] = str(row["category"])
        missing[model] = sum(row["pred"] is None for row in rows) / len(rows)
    if not right:
        raise UserError(f"{folder}: no model_outputs_*_5shots.zip with predictions")
    questions = sorted(set(category_of).intersection(*right.values()))
    scored = {}
    for name in sorted(set(category_of.values())):
        members = [question for question in questions if category_of[question] == name]
        scores = []
        for answers in right.values():
            scores.append([answers[question] for question in members])
        scored[name] = np.array(scores, dtype=float)
    return board_of("MMLU-Pro", tuple(right), tuple(scored), scored), missing


def _answer_rows(file: Path) -> list[JsonObject]:
    """The rows of a zipped answer file; none if it has another format or no archive."""
    try:
        with zipfile.ZipFile(file) as archive:
            rows = json.loads(archive.read(archive.namelist()[0]))
    except zipfile.BadZipFile:
        return []
    whole = all(isinstance(row, dict) and "pred" in row for row in rows)
    return rows if whole else []


def bfcl_v1(folder: Path) -> tuple[Board, dict[str, float]]:
    """BFCL v1 from its score files, which list failures only, and {model: share of items with an empty output}.

    The output of a right answer is not in the files: it cannot be empty but in `relevance`, where that is right.
    """
    models = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if not models:
        raise UserError(f"{folder}: no folder of a model")
    files = sorted(file.name for file in (folder / models[0]).glob("*_score.json"))
    scored: dict[str, FloatArray] = {}
    empty = dict.fromkeys(models, 0)
    for file in files:
        rows = []
        for model in models:
            right, lacking = _score_file(folder / model / file)
            rows.append(right)
            empty[model] += lacking
        scored[file.removesuffix("_score.json")] = np.stack(rows)
    board = board_of("BFCL v1", models, tuple(scored), scored)
    assert board.items is not None
    total = int(board.items.sum())
    return board, {model: lacking / total for model, lacking in empty.items()}


def _score_file(path: Path) -> tuple[FloatArray, int]:
    """(1 for right and 0 for wrong by item, failures with an empty output)"""
    header, *failures = path.read_text(encoding="utf-8").splitlines()
    totals = json.loads(header)
    right = np.ones(totals["total_count"])
    empty = 0
    for line in filter(str.strip, failures):
        row = json.loads(line)
        right[row["id"] - 1] = 0.0
        output = row.get("model_result_raw", row.get("model_result"))
        empty += not output or str(output).lower().startswith("error")
    if round(right.sum()) != totals["correct_count"]:
        raise UserError(f"{path}: {totals['correct_count']} right, but {right.sum():.0f} by item")
    return right, empty
