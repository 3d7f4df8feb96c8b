"""Answers measured with lm_eval itself become the very rows that the run would write, or are refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from souping.core.types import Candidate
from souping.pipeline.import_results import whose
from tests.conftest import Cli
from tests.support.imports import DOCS, NAMES, TASKS, adopted, make_models, make_tasks, measure

pytest.importorskip("lm_eval")


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """the models, `tasks`, and `old/NAME`: what lm_eval wrote of each."""
    root = make_models(tmp_path_factory.mktemp("adopt"))
    make_tasks(root / "tasks")
    for name in NAMES:
        measure(root / name, root / "tasks", root / "old" / name)
    return root


def arguments(kit: Path, store: Path, *more: str) -> list[str]:
    return [
        "evaluator=lm_eval",
        f"evaluator.tasks=[{','.join(TASKS)}]",
        f"evaluator.include_path={kit / 'tasks'}",
        "evaluator.metric={tiny_bleu:chrf}",
        "evaluator.device=cpu",
        "evaluator.threads=1",
        f"pool.candidates=[{','.join(str(kit / name) for name in NAMES)}]",
        f"store.path={store}",
        *more,
    ]


@pytest.fixture
def adopt(tmp_path: Path, kit: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Adopt files into `tmp_path/store.sqlite` as the command line does."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: adopted([*arguments(kit, tmp_path / "store.sqlite"), *words], capfd)


def test_files_that_do_not_name_their_model_are_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pool = [Candidate(name="here", path=tmp_path), Candidate(name="there", path=tmp_path / "there")]
    assert whose("", pool, {}) is None
    assert whose(str(tmp_path / "there"), pool, {}) == "there"


def rows(path: Path) -> dict[tuple[str, str], tuple[float, str, str]]:
    """{(soup, item): (score, output, statistics)}."""
    import sqlite3

    query = (
        "SELECT soups.recipe, items.name, score, output, statistics FROM scores JOIN soups ON soups.id = soup "
        "JOIN items ON items.id = item"
    )
    with sqlite3.connect(path) as db:
        return {("+".join(json.loads(r)["ingredients"]), name): tuple(rest) for r, name, *rest in db.execute(query)}  # type: ignore[misc]


def changed(kit: Path, tmp_path: Path, **results: Any) -> Path:
    """The old files of ant, with other entries in their results (a dot goes one level down)."""
    copy = tmp_path / "changed"
    shutil.copytree(kit / "old" / "ant", copy)
    path = next(copy.rglob("results_*.json"))
    found = json.loads(path.read_text())
    for key, value in results.items():
        outer, _, inner = key.partition(".")
        if inner:
            found[outer][inner] = value
        else:
            found[outer] = value
    path.write_text(json.dumps(found))
    return copy


class TestTheRunFindsThem:
    def test_they_are_the_rows_that_the_run_writes(self, kit: Path, tmp_path: Path, adopt: Any, souping: Cli) -> None:
        done = adopt(str(kit / "old"))
        assert done.code == 0, done.err
        fresh = tmp_path / "fresh.sqlite"
        run = souping(*arguments(kit, fresh, "stop_after=search", "selector=all", "optimiser=uniform"))
        assert run.code == 0, run.err
        measured = {key: row for key, row in rows(fresh).items() if key in rows(tmp_path / "store.sqlite")}
        assert len(measured) > DOCS
        for key, (score, output, statistics) in measured.items():
            own = rows(tmp_path / "store.sqlite")[key]
            assert own[0] == pytest.approx(score, abs=1e-9)
            assert (own[1], own[2]) == (output, statistics)
        assert len({score for score, _, _ in measured.values()}) > 2  # not all alike
        assert all(counts for (_, item), (_, _, counts) in measured.items() if item.startswith("tiny_bleu"))

    def test_the_run_asks_the_singles_nothing(
        self, kit: Path, tmp_path: Path, adopt: Any, souping: Cli, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert adopt(str(kit / "old")).code == 0
        from souping.evaluate.lm_eval.evaluator import HarnessEvaluator

        def never(*_: Any) -> Any:
            raise AssertionError("a single was evaluated again")

        monkeypatch.setattr(HarnessEvaluator, "evaluate", never)
        run = souping(*arguments(kit, tmp_path / "store.sqlite", "stop_after=select", "selector=all"))
        assert run.code == 0, run.err
        assert (next((tmp_path / "outputs").rglob("selection.json"))).exists()

    def test_a_second_time_adds_nothing(self, kit: Path, adopt: Any) -> None:
        adopt(str(kit / "old"))
        done = adopt(str(kit / "old" / "ant"))
        assert done.code == 0
        assert all(line.split()[2:4] == ["0", str(DOCS)] for line in done.out.splitlines() if " tiny_" in line)

    def test_one_file_of_samples_is_one_task(self, kit: Path, tmp_path: Path, adopt: Any) -> None:
        path = next((kit / "old" / "bee").rglob("samples_tiny_gen_*"))
        assert adopt(str(path)).code == 0
        assert set(rows(tmp_path / "store.sqlite")) == {("bee", f"tiny_gen/{i}") for i in range(DOCS)}

    def test_a_dry_run_writes_nothing(self, kit: Path, tmp_path: Path, adopt: Any) -> None:
        done = adopt(str(kit / "old"), "--dry-run")
        assert done.code == 0
        assert f"{DOCS}" in done.out
        assert not rows(tmp_path / "store.sqlite")

    def test_the_report_says_where_they_came_from(self, kit: Path, tmp_path: Path, adopt: Any, souping: Cli) -> None:
        adopt(str(changed(kit, tmp_path, **{"config.batch_size": 4})), "--accept", "batch_size")
        run = souping(*arguments(kit, tmp_path / "store.sqlite", "stop_after=select", "selector=all"))
        assert run.code == 0, run.err
        said = " ".join(run.out.split())
        assert f"adopted for ant ({DOCS * len(TASKS)} items), in spite of differences in batch_size" in said


class TestRefused:
    @pytest.mark.parametrize(
        ("key", "value", "says"),
        [
            ("n-shot", dict.fromkeys(TASKS, 5), "num_fewshot is 5 in the files, 0 in the run"),
            ("versions", dict.fromkeys(TASKS, 2.0), "version of the task is '2.0' in the files, '1.0' in the run"),
            ("chat_template", "{{ x }}", "apply_chat_template is True in the files, False in the run"),
            ("system_instruction", "Be brief.", "system_instruction is 'Be brief.' in the files, None in the run"),
            ("config.model_dtype", "torch.bfloat16", "dtype is 'bfloat16' in the files, 'float32' in the run"),
            ("config.model_num_parameters", 8030261248, "model_num_parameters is 8030261248"),
            ("tokenizer_eos_token", ["</s>", "2"], "tokenizer_eos_token is ['</s>', '2']"),
        ],
    )
    def test_another_measurement(self, kit: Path, tmp_path: Path, adopt: Any, key: str, value: Any, says: str) -> None:
        done = adopt(str(changed(kit, tmp_path, **{key: value})))
        assert done.code == 2
        assert says in done.err
        assert "--accept" not in done.err
        assert not rows(tmp_path / "store.sqlite")

    @pytest.mark.parametrize(
        ("key", "value", "says"),
        [
            ("config.batch_size", 4, "batch_size is '4' in the files, '16' in the run"),
            ("config.device", "cuda:0", "device is 'cuda:0'"),
            ("lm_eval_version", "0.4.9", "lm_eval_version is '0.4.9'"),
            ("model_source", "vllm", "model_source is 'vllm' in the files, 'hf' in the run"),
            ("date", 1.0, "weights is 'measured 1970"),
        ],
    )
    def test_a_mild_difference_waits_for_a_word(
        self, kit: Path, tmp_path: Path, adopt: Any, key: str, value: Any, says: str
    ) -> None:
        old = str(changed(kit, tmp_path, **{key: value}))
        done = adopt(old)
        assert done.code == 2
        assert says in done.err
        word = done.err.split("--accept ")[1].split()[0]
        assert not rows(tmp_path / "store.sqlite")
        done = adopt(old, "--accept", word)
        assert done.code == 0, done.err
        assert f"accepted: {word} differs" in done.out
        assert len(rows(tmp_path / "store.sqlite")) == DOCS * len(TASKS)

    def test_other_prompts_and_other_decoding(self, kit: Path, tmp_path: Path, adopt: Any) -> None:
        copy = changed(kit, tmp_path)
        for path in copy.rglob("samples_*.jsonl"):
            text = path.read_text().replace('"max_gen_toks": 5', '"max_gen_toks": 9')
            path.write_text(text.replace('"arg_0": "red', '"arg_0": "Question: red') if "mc" in path.name else text)
        done = adopt(str(copy))
        assert done.code == 2
        assert "gen_kwargs of tiny_gen/0 is {'until': ['#'], 'max_gen_toks': 9" in done.err
        assert "prompt of tiny_mc/0 is 'Question: red" in done.err
        assert not rows(tmp_path / "store.sqlite")

    def test_another_document(self, kit: Path, tmp_path: Path, adopt: Any) -> None:
        copy = changed(kit, tmp_path)
        path = next(copy.rglob("samples_tiny_mc_*"))
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines[4]["doc_hash"] = "0" * 64
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        done = adopt(str(copy))
        assert done.code == 2
        assert "doc_hash of tiny_mc/4" in done.err
        assert {item.split("/")[0] for _, item in rows(tmp_path / "store.sqlite")} == {"tiny_gen", "tiny_bleu"}

    def test_a_tampered_score_changes_nothing(self, kit: Path, tmp_path: Path, adopt: Any) -> None:
        """Scores are made anew from the answers: the file's own are not trusted."""
        copy = changed(kit, tmp_path)
        path = next(copy.rglob("samples_tiny_gen_*"))
        path.write_text(path.read_text().replace('"exact_match": 0.0', '"exact_match": 1.0'))
        assert adopt(str(copy)).code == 0
        scores = [row[0] for (_, item), row in rows(tmp_path / "store.sqlite").items() if item.startswith("tiny_gen")]
        assert min(scores) == 0.0

    def test_few_shot_examples_and_a_chat_template_are_rendered_again(
        self, kit: Path, tmp_path: Path, adopt: Any
    ) -> None:
        settings = {"num_fewshot": 2, "apply_chat_template": True, "system_instruction": "Be brief."}
        old = measure(kit / "ant", kit / "tasks", tmp_path / "shots", ("tiny_gen",), limit=7, **settings)
        same = [
            "evaluator.num_fewshot=2",
            "evaluator.apply_chat_template=true",
            "evaluator.system_instruction='Be brief.'",
        ]
        done = adopt(str(old), *same)
        assert done.code == 0, done.err
        assert f"{DOCS - 7} not in the files" in done.out
        assert len(rows(tmp_path / "store.sqlite")) == 7
        done = adopt(str(old), *same, "evaluator.fewshot_random_seed=7")
        assert done.code == 2
        assert "prompt of tiny_gen/0" in done.err

    def test_files_of_older_versions_and_other_engines(self, kit: Path, tmp_path: Path, adopt: Any) -> None:
        """Arguments as lists, as they were before 0.4.3, and no dtype, as vLLM's results have none."""
        copy = changed(kit, tmp_path, **{"config.model_dtype": None})
        for path in copy.rglob("samples_*.jsonl"):
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            for line in lines:
                line["arguments"] = [list(parts.values()) for parts in line["arguments"].values()]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        done = adopt(str(copy))
        assert done.code == 0, done.err
        assert "not checked: the dtype it computed in" in done.out
        assert len(rows(tmp_path / "store.sqlite")) == DOCS * len(TASKS)

    def test_a_single_that_the_run_converts(self, kit: Path, adopt: Any) -> None:
        done = adopt(str(kit / "old"), "merge.dtype=float32")
        assert done.code == 2
        assert "merge.dtype is 'bfloat16' in the files, 'float32' in the run" in done.err

    def test_weights_written_since(self, kit: Path, tmp_path: Path, adopt: Any) -> None:
        path = kit / "ant" / "model.safetensors"
        before = path.stat()
        os.utime(path, (time.time() + 60, time.time() + 60))
        try:
            done = adopt(str(kit / "old" / "ant"))
        finally:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert done.code == 2
        assert "weights is 'measured" in done.err
        assert "--accept weights" in done.err


def edited(folder: Path, task: str, **changes: Any) -> Path:
    """The folder, with other values in the third sample of a task; `None` takes the key away."""
    path = next(folder.rglob(f"samples_{task}_*"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[2] = {key: value for key, value in {**lines[2], **changes}.items() if value is not None}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


class TestHostileFiles:
    """Whatever the files hold ends in a line, and nothing is written."""

    @pytest.mark.parametrize(
        ("task", "changes", "says"),
        [
            ("tiny_mc", {"doc_id": None}, "it has no doc_id"),
            ("tiny_mc", {"doc_id": 1e400}, "its doc_id is inf"),
            ("tiny_mc", {"doc_id": "two"}, "its doc_id is 'two'"),
            ("tiny_mc", {"doc_id": True}, "its doc_id is True"),
            ("tiny_mc", {"doc_id": 1}, "document 1 stands there twice"),
            ("tiny_mc", {"doc_hash": {"a": [1]}}, "its doc_hash is {'a': [1]}"),
            ("tiny_mc", {"arguments": 7}, "its arguments is 7"),
            ("tiny_mc", {"arguments": [7, None]}, "of tiny_mc/2"),
            ("tiny_mc", {"arguments": {"gen_args_0": [1]}}, "of tiny_mc/2"),
            ("tiny_mc", {"resps": "text"}, "its resps is 'text'"),
            ("tiny_mc", {"resps": []}, "document 2 has 0 requests, 0 answers to each"),
            ("tiny_mc", {"resps": [[["-1.0", "True"]]]}, "document 2 has 1 requests"),
            ("tiny_mc", {"resps": [["-1.0"]] * 3}, "no log-likelihood with whether it is greedy"),
            ("tiny_mc", {"resps": [[["-1.0", "perhaps"]]] * 3}, "no log-likelihood with whether it is greedy"),
            ("tiny_mc", {"resps": [[["nan", "True"]]] * 3}, "has 'nan' as an answer, which is no log-likelihood"),
            ("tiny_mc", {"resps": [[[1e308, "True"]]] * 3}, "has 1e+308 as an answer, which is no log-likelihood"),
            ("tiny_mc", {"resps": [[[{}, "True"]]] * 3}, "has {} as an answer, which is no log-likelihood"),
            ("tiny_gen", {"resps": [[5]]}, "has 5 as an answer, which is no text"),
            ("tiny_gen", {"resps": [[{"a": "b"}]]}, "as an answer, which is no text"),
            ("tiny_bleu", {"resps": [[None]]}, "has None as an answer, which is no text"),
            ("tiny_gen", {"filter": 3}, "its filter is 3"),
        ],
    )
    def test_a_sample(
        self, kit: Path, tmp_path: Path, adopt: Any, task: str, changes: dict[str, Any], says: str
    ) -> None:
        done = adopt(str(edited(changed(kit, tmp_path), task, **changes)))
        assert done.code == 2
        assert says in done.err
        store = tmp_path / "store.sqlite"
        assert not store.exists() or not [item for _, item in rows(store) if item.startswith(task)]

    @pytest.mark.parametrize("line", ["[1, 2]", "7", "null", '"x"', "{}", "[" * 5000, "{" * 99, "\x00", "1" * 5000])
    def test_a_line(self, kit: Path, tmp_path: Path, adopt: Any, line: str) -> None:
        copy = changed(kit, tmp_path)
        path = next(copy.rglob("samples_tiny_mc_*"))
        path.write_text(path.read_text() + line + "\n")
        done = adopt(str(copy))
        done.refused(f"{path}:{DOCS + 1}: ")
        assert not (tmp_path / "store.sqlite").exists() or not rows(tmp_path / "store.sqlite")

    @pytest.mark.parametrize("text", ["", "[]", "7", "{" * 9, "[" * 5000, "\x00", '{"configs": ' + "9" * 5000 + "}"])
    def test_results_that_are_none(self, kit: Path, tmp_path: Path, adopt: Any, text: str) -> None:
        copy = changed(kit, tmp_path)
        path = next(copy.rglob("results_*.json"))
        path.write_text(text)
        adopt(str(copy)).refused("not a results file of lm_eval" if text not in ("[]", "7") else "nothing to adopt")

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"configs": []}, "configuration of the task is None in the files"),
            ({"configs": {"tiny_mc": 7}}, "configuration of the task is None in the files"),
            ({"versions": 3}, "is 'None' in the files"),
            ({"config": "x"}, ""),
            ({"config.model_args": 7}, ""),
            ({"config.model_args": {"pretrained": ["a"], "delta": {"b": [1]}}}, "model_args.delta"),
            ({"date": "yesterday"}, ""),
            ({"date": float("nan")}, ""),
            ({"date": 1e300}, ""),
            ({"model_name": "\x00"}, ""),
            ({"model_name": "~nobody-here/x"}, "~nobody-here/x"),
            ({"model_name": "x" * 9000}, "no candidate is"),
            ({"model_name": {"a": 1}}, "no candidate is"),
            ({"max_length": [1]}, "max_length is [1] in the files"),
            ({"config.model_num_parameters": "many"}, ""),
            ({"n-shot": {"tiny_mc": None}}, "num_fewshot"),
        ],
    )
    def test_values_of_other_kinds(
        self, kit: Path, tmp_path: Path, adopt: Any, changes: dict[str, Any], says: str
    ) -> None:
        done = adopt(str(changed(kit, tmp_path, **changes)))
        assert done.code in (0, 2), done.err
        assert says in done.err
        assert "Traceback" not in done.err + done.out

    def test_what_the_file_can_prove_of_how_answers_ended(self, kit: Path, tmp_path: Path, adopt: Any) -> None:
        import sqlite3

        assert adopt(str(kit / "old" / "ant")).code == 0
        with sqlite3.connect(tmp_path / "store.sqlite") as db:
            found = db.execute("SELECT DISTINCT outcome, prompt_tokens > 0, tokens FROM answers").fetchall()
        assert found == [("finished", 1, b"")]
        old = measure(kit / "ant", kit / "tasks", tmp_path / "short", ("tiny_gen",), max_length=9)
        assert adopt(str(old), "evaluator.max_length=9").code == 0
        with sqlite3.connect(tmp_path / "store.sqlite") as db:
            cut = db.execute("SELECT DISTINCT reason FROM answers WHERE outcome = 'truncated'").fetchall()
        assert cut == [("the prompt was cut on the left to fit the context of 9 tokens",)]


class TestTheCommandLine:
    def test_a_model_that_moved(self, kit: Path, tmp_path: Path, adopt: Any) -> None:
        old = str(changed(kit, tmp_path, model_name="somewhere/else"))
        done = adopt(old)
        assert done.code == 2
        assert "no candidate is 'somewhere/else'" in done.err
        assert "--candidate NAME=somewhere/else" in done.err
        done = adopt(old, "--candidate", "ant=somewhere/else")
        assert done.code == 0, done.err
        assert {name for name, _ in rows(tmp_path / "store.sqlite")} == {"ant"}

    def test_files_of_other_models_are_passed_over(self, kit: Path, tmp_path: Path, adopt: Any) -> None:
        foreign = changed(kit, tmp_path, model_name="somewhere/else")
        done = adopt(str(foreign), str(kit / "old" / "bee"))
        assert done.code == 0
        assert "no candidate is 'somewhere/else'" in done.err
        assert {name for name, _ in rows(tmp_path / "store.sqlite")} == {"bee"}

    def test_the_wrong_model_is_not_hidden_by_its_name(self, kit: Path, tmp_path: Path, adopt: Any) -> None:
        done = adopt(str(kit / "old" / "ant"), "--candidate", f"bee={kit / 'ant'}")
        assert done.code == 0  # two models of one size: nothing in the files tells them apart, and that is said
        assert "keeps no hash of the weights" in done.out

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            ((), "no PATH"),
            (("nowhere",), "nowhere: there is no such file or folder"),
            (("old", "--accept", "batchsize"), "--accept batchsize names no difference found here"),
            (("old", "--candidate", "cow=x"), "cow is not a candidate (ant, bee, cat)"),
            (("tasks",), "nothing to adopt"),
        ],
    )
    def test_what_cannot_be(self, kit: Path, adopt: Any, words: tuple[str, ...], says: str) -> None:
        done = adopt(*[str(kit / w) if w in ("old", "tasks") else w for w in words])
        done.refused(says)

    def test_an_evaluator_that_leaves_no_files(self, kit: Path, capfd: pytest.CaptureFixture[str]) -> None:
        from souping.cli.import_results import main

        assert main([str(kit / "old"), "+experiment=bfcl"]) == 2
        assert "evaluator=lm_eval and evaluator=bfcl leave files to adopt" in capfd.readouterr().err

    def test_samples_without_their_results(self, kit: Path, tmp_path: Path, adopt: Any) -> None:
        lonely = tmp_path / "lonely"
        lonely.mkdir()
        shutil.copy(next((kit / "old" / "ant").rglob("samples_tiny_mc_*")), lonely)
        adopt(str(lonely)).refused("its results file", "is not beside it")

    def test_a_file_that_was_cut_off(self, kit: Path, tmp_path: Path, adopt: Any) -> None:
        copy = changed(kit, tmp_path)
        path = next(copy.rglob("samples_tiny_mc_*"))
        path.write_text(path.read_text()[:-40])
        adopt(str(copy)).refused("samples_tiny_mc_", "cut off")

    def test_as_a_program(self, kit: Path, tmp_path: Path) -> None:
        command = [
            sys.executable,
            "-m",
            "souping.cli.import_results",
            str(kit / "old"),
            *arguments(kit, tmp_path / "s.sqlite"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
        assert len(rows(tmp_path / "s.sqlite")) == len(NAMES) * DOCS * len(TASKS)
