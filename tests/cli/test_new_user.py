"""What a new user meets: the same command twice, prompts without a template, near misses, own models end to end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from souping.core.types import Item
from souping.evaluate.generate import LocalEvaluator
from tests.conftest import Cli, pool_of

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' or m.role == 'user' or m.role == 'assistant' %}"
    "[{{ m.content }}]{% endif %}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)
PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"
QUICK = ("selector=all", "optimiser=uniform", "analysis=[]", "out=soup")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def reports(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("outputs/*/*/report.json"))]
    return sorted(found, key=lambda report: report["cost"]["evaluated_items"] == 0)


def chat_family(family: Path, folder: Path, template: str) -> list[str]:
    """Arguments of a run on three of the family with a chat template; `chat.jsonl` has their items as messages."""
    for name in ("ant", "bee", "cat"):
        shutil.copytree(family / name, folder / name)
        (folder / name / "chat_template.jinja").write_text(template)
    rows = [json.loads(line) for line in (family / "items.jsonl").read_text().splitlines()]
    chat = [json.dumps({**row, "prompt": [{"role": "user", "content": row["prompt"]}]}) for row in rows]
    (folder / "chat.jsonl").write_text("\n".join(chat))
    return [*pool_of(folder, "ant", "bee", "cat"), f"benchmark.path={family / 'items.jsonl'}"]


@pytest.mark.slow
def test_own_models_from_check_to_show(family: Path, souping: Cli, tmp_path: Path) -> None:
    chat_family(family, tmp_path, PLAIN)
    own = ("pool.candidates=[ant,bee,cat]", "benchmark.path=chat.jsonl", "evaluator.max_new_tokens=4")
    checked = souping("check", *own)
    assert checked.code == 0, checked.err
    assert "bypass" not in checked.out
    command = (*own, "name=mine", "out=soup", "selector=all", "optimiser=grid", "optimiser.step=0.25")
    assert souping(*command).code == 0
    before = contents(tmp_path / "soup")
    again = souping(*command)
    assert again.code == 0, again.err
    assert contents(tmp_path / "soup") == before
    first, second = reports(tmp_path)
    assert second["cost"]["evaluated_items"] == 0
    assert second["rows"] == first["rows"]
    shown = souping("show", *map(str, sorted(tmp_path.glob("outputs/mine/*"))), "--limit", "1")
    assert shown.code == 0
    assert str(sorted(tmp_path.glob("outputs/mine/*"))[-1]) in shown.out.splitlines()[0]


def test_the_same_command_keeps_its_soup(
    family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("souping.pipeline.run.Run.report", interrupt)
        assert souping(*pool_of(family, "ant", "bee"), *QUICK).code == 130
    before = contents(tmp_path / "soup")
    done = souping(*pool_of(family, "ant", "bee"), *QUICK)
    assert done.code == 0, done.err
    after = contents(tmp_path / "soup")
    assert {name for name in before if before[name] != after[name]} == {"README.md"}
    (report,) = reports(tmp_path)
    assert report["verdict"]["sentence"].split(":")[0] in (tmp_path / "soup/README.md").read_text()
    (tmp_path / "soup/README.md").write_text("mine")
    (tmp_path / "soup/notes.txt").write_text("mine")
    assert souping(*pool_of(family, "ant", "bee"), *QUICK).code == 0
    assert contents(tmp_path / "soup") == {**after, "README.md": b"mine", "notes.txt": b"mine"}


@pytest.mark.slow
def test_a_target_that_holds_another_soup_stays(family: Path, souping: Cli, tmp_path: Path) -> None:
    assert souping(*pool_of(family, "ant", "bee"), *QUICK).code == 0
    before = contents(tmp_path / "soup")
    other = ("optimiser=fixed", "optimiser.weights=[0.7,0.3]", "name=other")
    souping(*pool_of(family, "ant", "bee"), *QUICK, *other).refused("out=soup")
    assert contents(tmp_path / "soup") == before
    (place,) = tmp_path.glob("outputs/other/*")
    report = json.loads((place / "report.json").read_text())  # it is written all the same
    assert report["recipe"]["weights"] == [0.7, 0.3]
    assert json.loads((place / "recipe.json").read_text())["id"] == report["recipe"]["id"]
    souping(*pool_of(family, "ant", "cat"), *QUICK, "store.path=new.sqlite").refused("out=soup")
    souping(*pool_of(family, "ant", "bee"), *QUICK, "merge.dtype=float32").refused("out=soup")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/recipe.json").write_text("{}")
    souping(*pool_of(family, "ant", "bee"), *QUICK, "out=foreign").refused("out=foreign")
    weights = tmp_path / "soup/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2] + b"xx")
    souping(*pool_of(family, "ant", "bee"), *QUICK).refused("out=soup", "model.safetensors")
    assert len(reports(tmp_path)) == 2


def prompts(template: str, *given: Any, folder: Path) -> list[str]:
    (folder / "chat_template.jinja").write_text(template)
    items = [Item(id=str(n), category="c", prompt=prompt, answer="x") for n, prompt in enumerate(given)]
    return LocalEvaluator().prompt_notes(folder, items)


def test_prompts_that_a_chat_model_is_not_meant_to_see_are_noted(tmp_path: Path) -> None:
    user = ({"role": "user", "content": "x"},)
    generic = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    assert prompts("", "plain", folder=tmp_path) == []
    assert prompts(TEMPLATE, user, folder=tmp_path) == prompts(generic, user, folder=tmp_path) == []
    (note,) = prompts(TEMPLATE, "plain", user, folder=tmp_path)
    assert "1 of 2" in note


def test_plain_prompts_are_noted_in_plan_and_check(family: Path, souping: Cli, tmp_path: Path) -> None:
    own = chat_family(family, tmp_path, TEMPLATE)
    for words in (("plan=true",), ("check=true",)):
        assert "180 of 180 prompts are plain texts" in " ".join(souping(*own, *words).out.split())
    (tmp_path / "cat/chat_template.jinja").unlink()
    souping(*own, "benchmark.path=chat.jsonl").refused("candidate cat", "chat template")


@pytest.mark.parametrize(
    ("words", "needles"),
    [
        (["+temperature=0.5"], ["evaluator.temperature"]),
        (["benchmark.path=table.csv"], ["table.csv:1", "JSON"]),
        (["benchmark.path=pointer"], ["pointer:1", "git lfs pull"]),
        (["scores=table", "scores.path=table.csv", "pool.candidates=[m1,m2,m3]"], ["candidate m1"]),
        (["selector=all", "pool.candidates=[~/m1,~/m2]"], ["candidate m1", "home/m1"]),
    ],
)
def test_near_misses_are_told_as_what_they_are(
    family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], needles: list[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "table.csv").write_text("model,a,b,c\nm1,1,.5,.2\nm2,.5,.6,.7\nm3,.2,.3,.9\n")
    (tmp_path / "pointer").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    souping(*pool_of(family), *words).refused(*needles)
