"""Tool-selection items: which of these functions, or none?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from souping.smollm.families import Part, families, parts, place
from souping.smollm.questions import FILES, KIND, Function, Question

NONE = "none"
OFFERED = 3
"""Functions that an item shows beside `none`."""
WORDS, PARAMETERS, CHARACTERS = 12, 4, 800
"""Words of a description, parameters of a function, characters of a prompt (about 220 tokens)."""
LIMITS = {"test": 56, "development": 30}
"""Items a category, at most."""
A_FAMILY = 4
"""Items of one category and family, at most, outside training."""


@dataclass(frozen=True, kw_only=True)
class Choice:
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
    spares: Mapping[str, tuple[Function, ...]]

    def asked(self, part: Part) -> tuple[Choice, ...]:
        """The fixed items of `test` or `development`: distractors and order come from the question's id."""
        chosen: list[Choice] = []
        for category in FILES:
            mine = [q for q in self.questions[part] if q.category == category]
            made = (self.choice(q, self.spares, Random(f"{part} {q.id}")) for q in self._thinned(mine))
            chosen += [c for c in made if len(c.prompt) <= CHARACTERS][: LIMITS[part]]
        return tuple(chosen)

    def _thinned(self, questions: Sequence[Question]) -> list[Question]:
        """At most `A_FAMILY` of a family, in an order that only ids decide."""
        seen: dict[str, int] = {}
        kept = []
        for question in sorted(questions, key=lambda q: place("order", q.id)):
            name = self.family[question.id]
            seen[name] = seen.get(name, 0) + 1
            if seen[name] <= A_FAMILY:
                kept.append(question)
        return kept

    def choice(self, question: Question, bank: Mapping[str, Sequence[Function]], dice: Random) -> Choice:
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
        return Choice(
            id=question.id,
            category=question.category,
            group=self.family[question.id],
            prompt=prompt(question.text, shown),
            choices=names,
            label=names.index(question.answer or NONE),
        )


def _own(question: Question, dice: Random) -> list[Function]:
    """The right function and others of the question, at most `OFFERED`."""
    right = [f for f in question.functions if f.name == question.answer]
    wrong = [f for f in question.functions if f.name != question.answer]
    return [*right[:1], *dice.sample(wrong, min(len(wrong), OFFERED - len(right[:1])))]


def prompt(text: str, functions: Sequence[Function]) -> str:
    lines = [f"- {f.name}({', '.join(f.parameters[:PARAMETERS])}): {_short(f.description)}" for f in functions]
    return "\n".join(["Functions:", *lines, f"- {NONE}: no function above fits", f"Request: {text}", "Function:"])


def _short(description: str) -> str:
    first = description.split(". ")[0].rstrip(".")
    words = first.split()
    return " ".join(words[:WORDS])


def gather(questions: Sequence[Question], spare: Mapping[str, Sequence[Function]]) -> Material:
    """Cut questions into parts by family. Distractors of `test` and `development` occur in no question of theirs."""
    part, family = parts(questions), families(questions)
    cut: dict[Part, tuple[Question, ...]] = {
        p: tuple(q for q in questions if part[q.id] == p) for p in ("test", "development", "spare", "train")
    }
    used = {f.name.lower() for q in questions if part[q.id] != "spare" for f in q.functions}
    bank = {kind: [f for f in functions if f.name.lower() not in used] for kind, functions in spare.items()}
    for question in cut["spare"]:
        bank.setdefault(KIND[question.category], []).extend(question.functions)
    return Material(questions=cut, family=family, spares={k: _distinct(v) for k, v in bank.items()})


def _distinct(functions: Sequence[Function]) -> tuple[Function, ...]:
    return tuple({f.name: f for f in functions}.values())
