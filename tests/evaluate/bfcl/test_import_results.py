"""Result folders of BFCL become the candidates' rows: judged anew by bfcl-eval, or refused."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from souping.core.types import Item
from souping.evaluate.bfcl.benchmark import BfclBenchmark
from souping.evaluate.bfcl.environment import Environment, call
from tests.support.bfcl import right_answer, wrong_answers
from tests.support.family import save_model
from tests.support.imports import adopted

HANDLERS = {"watt-tool-8B": "watt-ai/watt-tool-8B", "ToolACE-2-8B": "Team-ACE/ToolACE-2-8B"}
CATEGORIES = ("simple_python", "live_simple", "irrelevance")
LIMIT = 12


@pytest.fixture(scope="module")
def kit(bfcl: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models under the names of large ones, and `old`: their results and scores as bfcl-eval leaves them."""
    root = tmp_path_factory.mktemp("adopt-bfcl")
    base = save_model(root / "base", 0)
    items = BfclBenchmark(environment=bfcl, categories=CATEGORIES, limit=LIMIT).items()
    for seed, (name, handler) in enumerate(HANDLERS.items(), start=1):
        save_model(root / name, seed, base)
        wrong = {item.id for number, item in enumerate(items) if number % (seed + 1) == 0}
        said = {i.id: wrong_answers(i).popitem()[1] if i.id in wrong else right_answer(i) for i in items}
        _project(bfcl, root / "old", handler, items, said)
    return root


def _project(bfcl: Environment, root: Path, handler: str, items: Sequence[Item], said: dict[str, str]) -> None:
    """A project root of bfcl-eval: result files of ours, score files of its own."""
    ids: dict[str, list[str]] = {}
    for item in items:
        ids.setdefault(item.category, []).append(item.id)
    for category, own in ids.items():
        group = "live" if category.startswith("live") else "non_live"
        folder = root / "result" / handler.replace("/", "_") / group
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"id": name, "result": said[name], "latency": 0.1}) for name in own]
        (folder / f"BFCL_v4_{category}_result.json").write_text("\n".join(lines) + "\n")
    call(bfcl, root, handler, ids)


def arguments(kit: Path, store: Path, *more: str) -> list[str]:
    handlers = ",".join(f"{name}:'{handler}'" for name, handler in HANDLERS.items())
    return [
        "evaluator=bfcl",
        f"evaluator.categories=[{','.join(CATEGORIES)}]",
        f"evaluator.limit={LIMIT}",
        f"evaluator.handlers={{{handlers}}}",
        f"pool.candidates=[{','.join(str(kit / name) for name in HANDLERS)}]",
        f"store.path={store}",
        *more,
    ]


@pytest.fixture
def adopt(tmp_path: Path, kit: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)
    return lambda *words: adopted([*arguments(kit, tmp_path / "store.sqlite"), *words], capfd)


def rows(path: Path) -> dict[tuple[str, str], float]:
    query = "SELECT recipe, name, score FROM scores JOIN soups ON soups.id = soup JOIN items ON items.id = item"
    with sqlite3.connect(path) as db:
        return {(json.loads(r)["ingredients"][0], name): value for r, name, value in db.execute(query)}


@pytest.fixture
def old(kit: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kit / "old", tmp_path / "old"))


def test_every_item_is_taken_and_judged(kit: Path, tmp_path: Path, adopt: Any) -> None:
    done = adopt(str(kit / "old"))
    assert done.code == 0, done.err
    found = rows(tmp_path / "store.sqlite")
    assert len(found) == 2 * LIMIT * len(CATEGORIES)
    for name, share in (("watt-tool-8B", 2), ("ToolACE-2-8B", 3)):
        scores = [score for (model, _), score in found.items() if model == name]
        assert sum(scores) == len(scores) - -(-len(scores) // share)
    assert "temperature" in done.out  # what BFCL's files do not say is said


def test_the_run_finds_them(kit: Path, tmp_path: Path, adopt: Any) -> None:
    """The keys are those that an evaluation of the same configuration looks up."""
    from souping.cli import config
    from souping.pipeline.evaluation import Evaluation
    from souping.pipeline.models import OpenPool
    from souping.pipeline.store import Store

    assert adopt(str(kit / "old")).code == 0
    parts = config.build(config.compose(arguments(kit, tmp_path / "store.sqlite")))
    with Store(tmp_path / "store.sqlite") as store:
        pool = OpenPool(parts["pool"].resolve(), parts["merge"], store)
        asking = pool.bound(parts["evaluator"])
        evaluation = Evaluation(store, asking, pool.serving(asking), pool.ends, lambda _: None)
        items = parts["evaluator"].benchmark.items()
        for name in pool.names:
            assert evaluation.scores(pool.recipe({name: 1.0}), items).values.mean() > 0.4
        assert (evaluation.evaluated, evaluation.reused) == (0, 2 * len(items))


def test_results_alone_are_enough(tmp_path: Path, old: Path, adopt: Any) -> None:
    shutil.rmtree(old / "score")
    assert adopt(str(old / "result" / "watt-ai_watt-tool-8B")).code == 0
    assert {name for name, _ in rows(tmp_path / "store.sqlite")} == {"watt-tool-8B"}


@pytest.mark.bfcl_full
def test_multi_turn_results_are_judged_too(kit: Path, tmp_path: Path, adopt: Any) -> None:
    from souping.core.types import UserError
    from souping.evaluate.bfcl.environment import find, place_of

    try:
        full = find(place_of(), full=True)
    except UserError:
        pytest.skip("needs bfcl-eval's full environment")
    items = BfclBenchmark(environment=full, categories=("multi_turn_base",), limit=4).items()
    lines = []
    for number, item in enumerate(items):
        turns = [[f"[{', '.join(calls)}]", "done"] if number % 2 else ["no"] for calls in item.answer["turns"]]
        lines.append(json.dumps({"id": item.id, "result": turns}))
    folder = tmp_path / "old" / "result" / "watt-ai_watt-tool-8B" / "multi_turn"
    folder.mkdir(parents=True)
    (folder / "BFCL_v4_multi_turn_base_result.json").write_text("\n".join(lines) + "\n")
    done = adopt(str(tmp_path / "old"), "evaluator.categories=[multi_turn_base]", "evaluator.limit=4")
    assert done.code == 0, done.err
    assert list(rows(tmp_path / "store.sqlite").values()) == [0.0, 1.0, 0.0, 1.0]


def test_what_is_not_there_is_counted(tmp_path: Path, old: Path, adopt: Any) -> None:
    path = next((old / "result" / "watt-ai_watt-tool-8B").rglob("*irrelevance_result.json"))
    lines = [json.loads(line) for line in path.read_text().splitlines()][2:]
    lines[0] |= {"result": "Error during inference: connection refused", "traceback": "..."}
    lines.append({"id": "irrelevance_200", "result": "no"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = adopt(str(old))
    assert done.code == 0, done.err
    for note in ("1 not in the run", "2 not in the files", "1 without an answer"):
        assert note in " ".join(done.out.split())
    assert len(rows(tmp_path / "store.sqlite")) == 2 * LIMIT * len(CATEGORIES) - 3


def test_another_handler_is_refused(tmp_path: Path, old: Path, adopt: Any) -> None:
    (old / "result" / "watt-ai_watt-tool-8B").rename(old / "result" / "BitAgent_BitAgent-8B")
    done = adopt(str(old), "--candidate", "watt-tool-8B=BitAgent_BitAgent-8B")
    assert done.code == 2
    assert "handler is 'BitAgent_BitAgent-8B' in the files, 'watt-ai_watt-tool-8B' in the run" in done.err
    assert {name for name, _ in rows(tmp_path / "store.sqlite")} == {"ToolACE-2-8B"}


def test_an_older_version_of_the_data_is_refused(old: Path, adopt: Any) -> None:
    for path in list((old / "result" / "watt-ai_watt-tool-8B").rglob("*_result.json")):
        path.rename(path.with_name(path.name.replace("v4", "v3")))
    done = adopt(str(old))
    assert done.code == 2
    assert "version of the data is 'v3' in the files, 'v4' in the run" in done.err


def test_another_question_is_refused(old: Path, adopt: Any) -> None:
    path = next((old / "score" / "watt-ai_watt-tool-8B").rglob("*simple_python_score.json"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["prompt"]["question"][0][0]["content"] = "Something else?"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = adopt(str(old))
    assert done.code == 2
    assert "question of simple_python_" in done.err


def test_a_score_file_that_says_otherwise(tmp_path: Path, old: Path, adopt: Any) -> None:
    path = next((old / "score" / "watt-ai_watt-tool-8B").rglob("*live_simple_score.json"))
    path.write_text("\n".join(path.read_text().splitlines()[:1]) + "\n")
    done = adopt(str(old))
    assert done.code == 0
    assert "live_simple: the score file judges" in done.out
    scores = [v for (name, item), v in rows(tmp_path / "store.sqlite").items() if "watt" in name and "live" in item]
    assert 0.0 in scores


def test_a_file_that_was_cut_off(old: Path, adopt: Any) -> None:
    path = next(old.rglob("*live_simple_result.json"))
    path.write_text(path.read_text()[:-9])
    adopt(str(old)).refused("live_simple_result.json", "cut off")


GARBAGE = {
    "no text": b"\xff\xfe\x00",
    "no JSON": b"{{{{",
    "no end": b"[" * 100_000,
    "a list": b"[1, 2]",
    "a number": b"5",
    "no id": b'{"result": "x"}',
    "no result": b'{"id": "live_simple_0-0-0"}',
    "a number too long": b'{"id": "live_simple_0-0-0", "result": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_files_that_are_none_of_bfcls(tmp_path: Path, old: Path, adopt: Any, kind: str) -> None:
    """A line, and nothing is written, not even what the sound files hold."""
    next((old / "result" / "watt-ai_watt-tool-8B").rglob("*live_simple_result.json")).write_bytes(GARBAGE[kind])
    told = adopt(str(old))
    told.refused("live_simple_result.json")
    assert len(told.err) < 600
    assert not (tmp_path / "store.sqlite").exists()


def test_a_file_larger_than_any_is_not_read(old: Path, adopt: Any) -> None:
    with next(old.rglob("*live_simple_result.json")).open("wb") as file:
        file.truncate((1 << 31) + 1)
    adopt(str(old)).refused("live_simple_result.json", "larger than any file of BFCL's (2.1 GB)")


def test_odd_values_are_wrong_answers_and_their_ends_are_told(tmp_path: Path, old: Path, adopt: Any) -> None:
    """What a sound line may hold beside a text: numbers that are none, other types, characters that are halves."""
    path = next((old / "result" / "watt-ai_watt-tool-8B").rglob("*live_simple_result.json"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    odd = [float("nan"), None, {"a": [[]]}, ["x", 5], "\ud800\x1b[2J", 1e308, True, "x" * 10**6]
    for line, value in zip(lines, odd, strict=False):
        line["result"] = value
    lines[0] |= {"output_token_count": [[1, 4096], [float("nan")]], "input_token_count": [[7, 9], [8.0]]}
    lines[1] |= {"output_token_count": 10**30, "input_token_count": -5}
    lines[2] |= {"output_token_count": "many", "input_token_count": {"a": 1}, "truncated": 3}
    lines[3] |= {"truncated": True}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert adopt(str(old)).code == 0
    query = (
        "SELECT name, outcome, prompt_tokens, score FROM scores JOIN items ON items.id = item "
        "JOIN answers USING (soup, evaluator, item, block, replicate) JOIN soups ON soups.id = soup "
        "WHERE recipe LIKE '%watt%'"
    )
    query = query.replace("outcome,", "answers.outcome,", 1)
    with sqlite3.connect(tmp_path / "store.sqlite") as db:
        told = {name: tuple(rest) for name, *rest in db.execute(query)}
    assert [told[line["id"]] for line in lines[:4]] == [
        ("truncated", 9, 0.0),
        ("finished", 0, 0.0),
        ("finished", 0, 0.0),
        ("truncated", 0, 0.0),
    ]
    assert len(told) == LIMIT * len(CATEGORIES)
