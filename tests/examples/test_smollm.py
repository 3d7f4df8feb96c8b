"""The SmolLM2 family's material: questions, families, items, tasks; and its base."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from examples.smollm.data import (
    FILES,
    GROUP,
    LARGEST,
    NONE,
    OFFERED,
    PREFIX,
    Material,
    Question,
    QuestionFunction,
    families,
    gather,
    parts,
    read_questions,
    spare,
    write_tasks,
)
from tests.support import smollm_kit


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smollm_kit.write(tmp_path_factory.mktemp("bfcl") / "data")


@pytest.fixture(scope="module")
def material(data: Path) -> Material:
    return gather(read_questions(data), spare(data))


def ask(number: int, *functions: str, text: str = "") -> Question:
    shown = tuple(QuestionFunction(name=name, description="It does.") for name in functions)
    said = text or f"question {number}"
    return Question(id=f"q{number}", category="simple", text=said, functions=shown, answer=functions[0])


class TestQuestions:
    def test_every_category_is_read_with_its_answers(self, data: Path) -> None:
        read = read_questions(data)
        assert Counter(q.category for q in read) == dict.fromkeys(FILES, smollm_kit.EACH)
        for question in read:
            names = [f.name for f in question.functions]
            assert question.answer == (None if question.category == "irrelevance" else names[0])
            assert question.functions[0].parameters == ("first", "second")

        assert all("live" not in q.id for q in read if q.category == "irrelevance")  # another file ends alike
        assert read[0].text == "Please simple_python 0?"  # only the user is quoted


class TestFamilies:
    def test_a_function_or_a_text_in_common_makes_a_family(self) -> None:
        asked = [ask(0, "a"), ask(1, "b", "A"), ask(2, "c"), ask(3, "d", text="Say: it!"), ask(4, "e", text="say it")]
        asked.append(ask(5, "b"))
        assert families(asked) == {"q0": "q0", "q1": "q0", "q2": "q2", "q3": "q3", "q4": "q3", "q5": "q0"}

    def test_a_family_plays_one_part(self, data: Path) -> None:
        asked = read_questions(data)
        part, family = parts(asked), families(asked)
        assert len({(family[q.id], part[q.id]) for q in asked}) == len(set(family.values()))
        assert set(part.values()) == {"test", "development", "spare", "train"}

        large = [ask(i, "same") for i in range(LARGEST + 1)]
        assert set(parts(large).values()) == {"train"}


class TestItems:
    def test_the_right_choice_is_right(self, material: Material) -> None:
        known = {q.id: q for q in material.questions["test"]}
        for item in material.asked("test"):
            assert item.answer == (known[item.id].answer or NONE)
            assert item.choices[-1] == NONE
            assert len(set(item.choices)) == len(item.choices) == OFFERED + 1
            assert all(f"- {name}" in item.prompt for name in item.choices)
            assert known[item.id].text in item.prompt

    def test_nothing_of_training_is_asked(self, material: Material) -> None:
        taught = {f.name for q in material.questions["train"] for f in q.functions}
        for part in ("test", "development"):
            shown = {name for item in material.asked(part) for name in item.choices} - {NONE}
            assert shown
            assert not shown & taught
        both = [{item.group for item in material.asked(part)} for part in ("test", "development")]
        assert not both[0] & both[1]


class TestTasks:
    def test_the_harness_reads_them(self, material: Material, tmp_path: Path) -> None:
        lm_eval: Any = pytest.importorskip("lm_eval.tasks")
        asked = material.asked("test")
        folder = write_tasks(asked, tmp_path / "tasks")
        manager = lm_eval.TaskManager(include_path=str(folder), include_defaults=False)
        loaded = manager.load(GROUP)["tasks"]
        assert set(loaded) == {PREFIX + category for category in FILES}
        task = loaded["smollm_java"]
        doc, item = task.test_docs()[0], next(i for i in asked if i.category == "java")
        assert (task.doc_to_text(doc), task.doc_to_choice(doc)) == (item.prompt, list(item.choices))
        assert task.doc_to_target(doc) == item.label
