"""What a task file of others may do, and what a user can get wrong: the message names the key, the task or the file."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from souping.core.protocols import evaluator_fingerprint
from souping.core.types import UserError
from souping.evaluate.lm_eval import HarnessEvaluator
from souping.evaluate.lm_eval.task_files import PAPER_TASKS, code_in_task_file, sandbox
from souping.evaluate.lm_eval.tasks import require
from tests.conftest import Cli, pool_of
from tests.support import lm_eval_tasks
from tests.support.models import own_items

pytest.importorskip("lm_eval")

CODE = {
    "function": ("doc_to_text: !function evil.f", "doc_to_text: !function evil.f"),
    "class": ("class: !function evil.f", "class: !function evil.f"),
    "cleaning": ("process_docs: !function evil.f", "process_docs: !function evil.f"),
    "metric": ("metric_list: [{metric: !function evil.f}]", "metric: !function evil.f"),
    "metric's script": (
        "metric_list: [{metric: ./evil}]",
        "metric: ./evil, which is not one of lm_eval's",
    ),
    "script of evaluate": ("metric_list: [{metric: bleu, hf_evaluate: true}]", "hf_evaluate: true"),
    "dataset": ("dataset_path: evil.py", "dataset_path: evil.py, which may be a program"),
    "pickles": ("dataset_path: pandas", "dataset_path: pandas, which may be a program"),
    "trust": ("dataset_kwargs: {trust_remote_code: True}", "trust_remote_code: True"),
    "run what documents hold": ("unsafe_code: false", "unsafe_code: false"),
    "class by an alias": ("class: &a evil.Task\ndescription: *a", "class: evil.Task"),
    "anchor": ("x: &a !function evil.f\ndoc_to_text: *a", "doc_to_text: !function evil.f"),
}


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A folder whose `evil.py` leaves a trace when it is imported, with a harmless task `calm`."""
    (tmp_path / "evil.py").write_text(
        f"open({str(tmp_path / 'RAN')!r}, 'w').close()\ndef f(doc): return 'a'\n"
    )
    lm_eval_tasks.put(tmp_path, "calm", lm_eval_tasks.rows(3, 1), lm_eval_tasks.WRITE)
    return tmp_path


@pytest.fixture
def wild(evil: Path) -> Path:
    """The folder with a task `wild` that names code."""
    lines = [line for line in lm_eval_tasks.WRITE if "doc_to_text" not in line]
    lm_eval_tasks.put(
        evil, "wild", lm_eval_tasks.rows(3, 1), ["doc_to_text: !function evil.f", *lines]
    )
    return evil


def asking(folder: Path, *tasks: str, allow: bool = False) -> HarnessEvaluator:
    own = HarnessEvaluator(
        tasks=list(tasks), include_path=str(folder), device="cpu", allow_task_code=allow
    )
    return replace(own, args={"include_defaults": False})


def told(folder: Path, *tasks: str) -> str:
    with pytest.raises(UserError) as caught:
        _ = asking(folder, *tasks).loaded
    assert not (folder / "RAN").exists()
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


@pytest.mark.parametrize("name", CODE)
def test_code_that_a_task_file_names_does_not_run(evil: Path, name: str) -> None:
    line, said = CODE[name]
    lm_eval_tasks.put(evil, "wild", lm_eval_tasks.rows(3, 1), [line, *lm_eval_tasks.WRITE])
    message = told(evil, "calm", "wild")
    assert message.startswith(f"{evil / 'wild.yaml'}: {said}")
    assert "evaluator.allow_task_code=true" in message


def test_tags_of_pythons_own_are_code(tmp_path: Path) -> None:
    (tmp_path / "wild.yaml").write_text("task: wild\n? !!python/name:os.system x\n: [1]\n")
    (found,) = code_in_task_file(tmp_path / "wild.yaml")
    assert found == f"{tmp_path / 'wild.yaml'}: key: tag:yaml.org,2002:python/name:os.system x"


def test_an_include_that_links_in_a_circle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "circle.yaml").symlink_to("circle.yaml")
    (tmp_path / "wild.yaml").write_text("task: wild\ninclude: circle.yaml\n")
    with pytest.raises(UserError, match=r"circle\.yaml"):
        list(code_in_task_file(tmp_path / "wild.yaml"))


def test_groups_tags_files_and_includes_are_no_way_round(evil: Path) -> None:
    (evil / "part.yaml").write_text("doc_to_text: !function evil.f\n")
    lines = [*lm_eval_tasks.WRITE, "tag: several", "include: part.yaml"]
    lm_eval_tasks.put(
        evil,
        "wild",
        lm_eval_tasks.rows(3, 1),
        [line for line in lines if "doc_to_text" not in line],
    )
    (evil / "all.yaml").write_text(
        "group: all\ntask:\n  - calm\n  - group: inner\n    task: [wild]\n"
    )
    (evil / "own.yaml").write_text(
        "group: own\ntask:\n  - task: new\n    doc_to_text: !function evil.f\n"
    )
    for entry in ("wild", "all", "several", str(evil / "wild.yaml"), "wil*"):
        assert told(evil, entry).startswith(f"{evil / 'part.yaml'}: doc_to_text: !function evil.f")
    assert told(evil, "own").startswith(f"{evil / 'own.yaml'}: doc_to_text")


def test_only_code_that_is_allowed_runs_and_its_source_is_in_the_items(wild: Path) -> None:
    assert [*asking(wild, "calm").loaded] == ["calm"]
    assert not (wild / "RAN").exists()
    own = asking(wild, "wild", allow=True)
    items = own_items(own)
    assert {item.prompt for item in items} == {"a"}
    assert (wild / "RAN").exists()
    assert own.prompts.pool_notes({}) == [
        f"evaluator.allow_task_code: ran {wild / 'wild.yaml'}: doc_to_text: !function evil.f"
    ]
    assert evaluator_fingerprint(own) == evaluator_fingerprint(asking(wild, "wild"))
    assert own_items(replace(own))[0].fingerprint == items[0].fingerprint
    with (wild / "evil.py").open("a") as text:
        text.write("# changed\n")
    assert own_items(replace(own))[0].fingerprint != items[0].fingerprint


def test_a_set_in_a_task_is_known_whatever_its_order(tmp_path: Path) -> None:
    """0 and 8 collide in a small set, which then has them in the order in which they came."""
    end = lm_eval_tasks.WRITE.index("metadata: {version: 2.0}")
    for name, numbers in (("up", "0, 8"), ("down", "8, 0")):
        ignored = f"    regexes_to_ignore: !!set {{{numbers}}}"
        lines = [*lm_eval_tasks.WRITE[:end], ignored]
        lm_eval_tasks.put(tmp_path, name, lm_eval_tasks.rows(1, 1), lines)
    evaluator = asking(tmp_path, "up", "down")
    sets = list[list[object]]()
    for task in evaluator.loaded.values():
        ignored_numbers = task.metric.settings["regexes_to_ignore"]
        assert isinstance(ignored_numbers, Collection)
        sets.append(list(ignored_numbers))
    assert sets == [[0, 8], [8, 0]]
    up, down = own_items(evaluator)
    assert evaluator.scoring.scorer_digest(up) == evaluator.scoring.scorer_digest(down)


def test_task_files_of_lm_eval_and_souping_may_run_code(evil: Path) -> None:
    import lm_eval.tasks

    harness = Path(str(lm_eval.tasks.__file__)).parent
    with_code = next(
        path for path in harness.rglob("*.yaml") if "!function" in path.read_text(errors="replace")
    )
    assert list(code_in_task_file(with_code)) == []
    assert [list(code_in_task_file(path)) for path in PAPER_TASKS.rglob("*.yaml")][:1] == [[]]
    (evil / "mine.yaml").write_text(f"include: {with_code}\ntask: mine\n")
    assert list(code_in_task_file(evil / "mine.yaml")) == []


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ cycler.__init__.__globals__.os.system('touch RAN') }}", "unsafe"),
        ("{{ 'a' * 3000000000 }}", "memory"),
    ],
)
def test_templates_run_in_a_sandbox(wild: Path, template: str, said: str) -> None:
    (wild / "wild.yaml").write_text(
        (wild / "wild.yaml").read_text().replace("!function evil.f", f'"{template}"')
    )
    message = told(wild, "wild")
    assert message.startswith("evaluator.tasks: wild cannot be loaded")
    assert said in message


def test_the_sandbox_renders_what_the_harness_does() -> None:
    from lm_eval import utils

    sandbox()
    doc = {
        "q": "a\n",
        "choices": ["x", "y"],
        "self": 1,
        "kept": (1, {2: 3.5}),
        "day": date(2026, 1, 2),
    }
    assert utils.apply_template("{{ kept }} {{ day }}", doc) == "(1, {2: 3.5}) 2026-01-02"
    text = (
        "{{q.strip()}} {{choices[1]}} {{'a-b'|regex_replace('-', '+')}}{% set n = 2 %}{{ n + 1 }}\n"
    )
    assert utils.apply_template(text, doc) == "a y a+b3\n"
    with pytest.raises(Exception, match="undefined"):
        utils.apply_template("{{ nothing }}", doc)


def test_a_run_with_a_task_file_from_elsewhere(souping: Cli, family: Path, wild: Path) -> None:
    own = [
        "evaluator=lm_eval",
        f"evaluator.include_path={wild}",
        pool_of(family)[0],
        "evaluator.tasks=[wild]",
    ]
    souping(*own).refused(
        "wild.yaml: doc_to_text: !function evil.f", "evaluator.allow_task_code=true"
    )
    assert not (wild / "RAN").exists()


ROWS = lm_eval_tasks.rows(3, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks that are right, and some that are not."""
    folder = lm_eval_tasks.make(tmp_path_factory.mktemp("tasks"), count=4)
    (folder / "broken.yaml").write_text("task: broken\nmetric_list: [\n")
    lm_eval_tasks.put(folder, "lost", ROWS, lm_eval_tasks.CHOICE)
    (folder / "lost.json").unlink()
    lm_eval_tasks.put(folder, "runs", ROWS, ["unsafe_code: true", *lm_eval_tasks.WRITE])
    lm_eval_tasks.put(
        folder, "less", ROWS, [line.replace("true", "false") for line in lm_eval_tasks.WRITE]
    )
    return folder


def refused(folder: Path, *tasks: Any, **settings: Any) -> str:
    """What the user is told of task files that cannot be used."""
    own = HarnessEvaluator(
        tasks=list(tasks), include_path=str(folder), args={"include_defaults": False}, **settings
    )
    with pytest.raises(UserError) as caught:
        own_items(own)
    assert 1 <= len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("tasks", "settings", "words"),
    [
        (["pickk"], {}, "did you mean pick?"),
        (["broken"], {}, "broken.yaml"),
        (["lost"], {}, "lost cannot be loaded"),
        ([{"task": "pick", "num_fewshto": 2}], {}, "num_fewshto"),
        (["picks", "pick"], {}, "pick is in picks and in pick"),
        (["runs"], {}, "evaluator.confirm_run_unsafe_code=true"),
        (["pick"], {"metric": "acc_nor"}, "did you mean acc_norm?"),
        (["pick"], {"filter": "strict"}, "task pick: evaluator.filter=strict"),
        (["less"], {}, "less has no metric to maximise: exact_match is better when lower"),
        (["pick"], {"category": "column:topik"}, "did you mean topic?"),
        (["pick"], {"category": "column:choices"}, "there, no category"),
    ],
)
def test_tasks_metrics_and_items(
    folder: Path, tasks: list[Any], settings: dict[str, Any], words: str
) -> None:
    assert words in refused(folder, *tasks, **settings)


def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("souping.evaluate.lm_eval.tasks.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs lm_eval: .*pip install .*\[lm_eval\]"):
        require()
