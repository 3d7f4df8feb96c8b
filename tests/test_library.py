"""The library's names: each is there, lazily, and nothing else is promised; code of a candidate needs trust."""

from __future__ import annotations

import ast
import html
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import souping
from souping.core.protocols import ModuleSettings
from souping.core.types import UserError
from souping.evaluate.engines.transformers import load_module, load_tokenizer
from souping.report.run_files import as_json
from tests.conftest import ROOT

NAMES = """
__version__ Adaptive All Consistency Fixed Greedy GreedySoup Grid Item LocalEvaluator LocalMerge
Mean Nevergrad CategoryWins Recipe ResponseSurface RunResult ScoreMatrix Selection Shapley SoCE
TopK Tree Uniform UserError Weighted ItemWins WorstCategory compare kendall pearson read_table run
select soup spearman
"""


def test_the_surface_is_what_is_written_here() -> None:
    """A name that comes or goes is a promise made or broken: it is changed here too, and in the changelog."""
    assert sorted(souping.__all__) == sorted(NAMES.split())
    assert all(getattr(souping, name) for name in souping.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'soup_of_the_day'"):
        _ = souping.soup_of_the_day


def test_type_checkers_see_the_same_names() -> None:
    """`from MODULE import NAME as NAME` is how type checkers know a name as exported."""
    tree = ast.parse(Path(souping.__file__).read_text())
    (checked,) = [
        node.body
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    names = {}
    for line in checked:
        assert isinstance(line, ast.ImportFrom)
        assert all(alias.name == alias.asname for alias in line.names)
        assert line.module is not None
        names[line.module] = tuple(alias.name for alias in line.names)
    assert names == souping._MODULES


def test_every_name_is_documented() -> None:
    page = (ROOT / "docs/reference.md").read_text()
    assert [
        name for name in souping.__all__ if not re.search(rf"`(souping\.)?{name}[`(]", page)
    ] == []


@pytest.fixture
def settings(family: Path, tmp_path: Path) -> dict[str, Any]:
    """Arguments of a quick run on the tiny family."""
    return {
        "candidates": {name: family / name for name in ("ant", "bee", "cat")},
        "items": family / "items.jsonl",
        "selector": souping.All(),
        "evaluator": souping.LocalEvaluator(max_new_tokens=4, threads=1),
        "out": tmp_path / "run",
        "store": tmp_path / "store.sqlite",
    }


def test_a_run_returns_what_it_writes_and_a_merge_writes_the_same_soup(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    done = souping.run(**settings, optimiser=souping.Uniform())
    pool = settings["candidates"]
    check_values(done, pool)
    check_files(done)
    assert done.soup == tmp_path / "run/soup"
    made = souping.soup(pool, out=tmp_path / "merged", store=settings["store"])
    assert (made / "model.safetensors").read_bytes() == (
        done.soup / "model.safetensors"
    ).read_bytes()
    with pytest.raises(souping.UserError, match="not an empty folder"):
        souping.soup(pool, out=made)


def check_values(done: souping.RunResult, pool: Mapping[str, Path]) -> None:
    """The values of a run with one trial, the uniform soup of the pool."""
    assert done.weights == pytest.approx(dict.fromkeys(pool, 1 / 3))
    assert done.trials[0].weights == pytest.approx(done.weights)
    assert len(done.trials) == 1
    assert 0 <= done.trials[0].objective <= 1
    assert {"soup", "best_candidate"} <= {row.kind for row in done.report.rows or ()}
    assert sorted(done.report.analyses or ()) == [
        "category_wins",
        "consistency",
        "item_wins",
        "surface",
    ]
    assert done.report.selection is not None
    assert done.report.selection.ingredients == tuple(pool)
    assert done.verdict.claim == done.report.to_json()["verdict"]["claim"]
    assert repr(done.report) == f"Report({done.verdict.sentence})"
    assert done.verdict.sentence in repr(done)
    shown = done.report._repr_html_()
    assert "<table" in shown
    assert html.escape(done.verdict.sentence, quote=True) in shown


def check_files(done: souping.RunResult) -> None:
    """The report and the router are the files of the run; its log and page name the call."""
    assert as_json(done.report.to_json()) == (done.out / "report.json").read_text()
    assert done.router is not None
    assert done.report.router is not None
    assert as_json(done.router) == (done.out / "router.json").read_text()
    assert {
        name: route.model for name, route in done.router.routes.items()
    } == done.report.router.routes
    log = (done.out / "run.log").read_text()
    for needle in ("souping.run(name='souping'", "versions   souping ", "write: the soup"):
        assert needle in log, needle
    assert "souping.run(" in (done.out / "report.html").read_text()


def test_a_merge_takes_weights_by_name(family: Path, tmp_path: Path) -> None:
    pool = [family / name for name in ("ant", "bee", "cat")]
    store = tmp_path / "store.sqlite"
    named = souping.soup(pool, {"cat": 0.75, "ant": 0.25}, out=tmp_path / "named", store=store)
    listed = souping.soup(pool, [0.25, 0, 0.75], out=tmp_path / "listed", store=store)
    assert (named / "model.safetensors").read_bytes() == (listed / "model.safetensors").read_bytes()
    weights: Any = np.array([0.25, 0, 0.75])
    array = souping.soup(pool, weights, out=tmp_path / "array", store=store)
    assert (array / "model.safetensors").read_bytes() == (listed / "model.safetensors").read_bytes()
    with pytest.raises(souping.UserError, match=r"weights.*cap.*did you mean cat"):
        souping.soup(pool, {"cap": 1.0}, out=tmp_path / "none", store=store)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"stop_after": "serch"}, "^stop_after=.*did you mean search"),
        ({"dry_run": 0}, "^dry_run=0 "),
        ({"selector": souping.All}, r"^selector=.*All\(\.\.\.\)"),
        ({"optimiser": souping.All()}, r"^optimiser=All\(.*an Optimiser"),
        ({"candidates": "runs/a"}, r"^candidates='runs/a'"),
        (
            {"items": [souping.Item(id="1", category="c", prompt="p", answer="a", scorer="exakt")]},
            "did you mean exact",
        ),
        ({"items": [{"id": "1"}]}, r"items\[0\]: `category` is missing"),
        ({"items": []}, "holds no items"),
        ({"items": "nope.jsonl"}, "nope.jsonl"),
        ({"name": "../x"}, "^name="),
        ({"name": "\n"}, "^name="),
        ({"name": ""}, "^name="),
        ({"store": ""}, "store="),
        ({"store": "x\0y"}, "^store="),
        ({"out": "x\0y"}, "^out="),
        ({"out": __file__}, "test_library.py"),
        ({"seed": -1}, "^seed="),
        ({"min_gain": float("nan")}, "^min_gain="),
    ],
)
def test_a_wrong_argument_is_named_before_anything_is_written(
    settings: dict[str, Any], tmp_path: Path, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(souping.UserError, match=words):
        souping.run(**(settings | given))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: souping.select("nope.csv"), "nope.csv"),
        (lambda: souping.select("x\0y"), "NUL"),
        (lambda: souping.compare({"a": [0, 1], "b": [1, 1]}, policy="nope.toml"), "nope.toml"),
        (lambda: souping.compare({"a": [0, 1], "b": [1, 1]}, average="nope.json"), "nope.json"),
        (lambda: souping.compare({"a": [0, 1], "b": [1, 1]}, pass_at=0), "^pass_at=0 "),
        (lambda: souping.compare({"a": [0, 1], "b": [1, 1]}, look=0), "^look=0 "),
        (lambda: souping.soup(["a"], out=__file__), "test_library.py"),
    ],
)
def test_files_that_are_not_there_and_counts_below_one_are_one_line(
    call: Callable[[], Any], words: str
) -> None:
    with pytest.raises(souping.UserError, match=words) as refused:
        call()
    assert len(str(refused.value).splitlines()) == 1


def test_items_may_be_objects_or_dicts(
    settings: dict[str, Any], family: Path, tmp_path: Path
) -> None:
    from souping.evaluate.benchmark import Benchmark

    rows: list[Any] = [
        json.loads(line) for line in (family / "items.jsonl").read_text().splitlines()
    ]
    first = souping.run(**(settings | {"items": rows, "stop_after": "select"}))
    assert (first.soup, first.trials, first.verdict.claim) == (None, (), "")
    objects = Benchmark(path=str(family / "items.jsonl")).items()
    second = souping.run(
        **(settings | {"items": objects, "stop_after": "select", "out": tmp_path / "other"})
    )
    chosen = [done.report.to_json()["selection"]["ingredients"] for done in (first, second)]
    assert chosen == [["ant", "bee", "cat"]] * 2
    assert "<table" in first.report._repr_html_()
    with pytest.raises(souping.UserError, match=rf"items\[{len(rows)}\]: id .* appears twice"):
        souping.run(**(settings | {"items": [*rows, rows[0]], "out": tmp_path / "third"}))


def test_a_table_selects_and_a_selectors_choice_is_checked() -> None:
    table = ROOT / "souping/paper/bfcl_8b.csv"
    assert set(souping.select(table).ingredients) <= set(souping.read_table(table).candidates)
    with pytest.raises(souping.UserError, match=r"^selector=.*All.*call it"):
        souping.select(table, souping.All)  # type: ignore[arg-type]


LOADERS = ("from_pretrained", "from_config")


def loader_calls() -> Iterator[tuple[Path, ast.Call]]:
    """(file, call) of each call of a loader of transformers."""
    for folder in ("souping", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if not any(name in text for name in LOADERS):
                continue
            for node in ast.walk(ast.parse(text)):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                if node.func.attr in LOADERS:
                    yield path.relative_to(ROOT), node


def test_every_loader_is_told_whether_to_trust() -> None:
    """Left open, transformers asks on the terminal, and reads the answer from standard input."""
    silent = []
    calls = list(loader_calls())
    for path, node in calls:
        if "trust_remote_code" not in {key.arg for key in node.keywords}:
            silent.append(f"{path}:{node.lineno}")
    assert len(calls) > 5
    assert silent == []


@pytest.fixture
def folder(family: Path, tmp_path: Path) -> Path:
    """A model whose tokenizer is code of its folder, which leaves a file RAN when it runs."""
    shutil.copytree(family / "ant", tmp_path / "evil")
    trace = f"open({str(tmp_path / 'RAN')!r}, 'w').close()\n"
    (tmp_path / "evil" / "evil.py").write_text(
        f"{trace}class Evil:\n    @classmethod\n    def from_pretrained(cls, *a, **k): return cls()\n"
        "    register_for_auto_class = classmethod(lambda cls: None)\n"
    )
    path = tmp_path / "evil" / "tokenizer_config.json"
    own = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    path.write_text(json.dumps(own | {"tokenizer_class": "Evil"}))
    return tmp_path / "evil"


def test_a_tokenizers_code_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"evaluator\.trust_remote_code=true"):
        load_tokenizer(folder)
    assert not (folder.parent / "RAN").exists()


def test_a_tokenizers_code_runs_if_trusted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    load_tokenizer(folder, True)
    assert (folder.parent / "RAN").exists()


@pytest.mark.parametrize("key", ["attn_implementation", "experts_implementation"])
def test_kernels_that_a_config_names_are_refused(family: Path, tmp_path: Path, key: str) -> None:
    """transformers would fetch compiled code from the Hub and run it."""
    folder = tmp_path / "model"
    shutil.copytree(family / "ant", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: "somebody/kernel"}))
    with pytest.raises(UserError, match=r"somebody/kernel.*evaluator\.trust_remote_code=true"):
        load_module(folder, ModuleSettings())
