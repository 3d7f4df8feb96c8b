"""Bad input: one or two clear lines, exit code 2, no traceback, and the refused run leaves nothing."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from souping.cli import config
from souping.cli.job import format_error
from souping.core.types import UserError
from tests.conftest import Cli, pool_of
from tests.support.family import save_model


@pytest.mark.parametrize(
    ("arguments", "needles"),
    [
        (["selector=socee"], ["selector", "did you mean soce"]),
        (["selector.thresold=0.3"], ["selector.thresold", "did you mean threshold"]),
        (["+experiment=bfc"], ["+experiment=bfc: there is no such choice", "did you mean bfcl"]),
        (["experiment=bfcl"], ["+experiment=bfcl"]),
        (["nonsense=1"], ["nonsense", "known keys"]),
        (["selector.threshold=high"], ["selector.threshold='high'", "a number"]),
        (["optimiser.trials=0"], ["optimiser.trials=0", "at least 1"]),
        (["out=taken"], ["out=taken", "not an empty folder"]),
        (["benchmark.path=none.jsonl"], ["benchmark.path=none.jsonl"]),
        (["optimiser.budget=1"], ["optimiser.budget=1", "search fold"]),
        (["optimiser=fixed", "optimiser.weights=[0.5,0.4]"], ["optimiser.weights", "0.9"]),
        (["merge.carry=ent"], ["merge.carry=ent", "did you mean ant"]),
        (["selector=topk", "selector.k=9"], ["selector.k=9", "4 candidates"]),
        (["store.path="], ["store.path", "empty"]),
        (["seed=x"], ["seed=x", "Integer"]),
        (["selector=3"], ["Config group"]),
        (["a(b=c"], ["cannot read the override", "quotes"]),
        (["store.path=/proc/nothing/s"], ["/proc/nothing"]),
        (["evaluator.max_new_tokens=12"], ["in which the models differ"]),
    ],
    ids=lambda value: " ".join(value) if value and isinstance(value, list) else "",
)
def test_bad_settings(family: Path, souping: Cli, tmp_path: Path, arguments: list[str], needles: list[str]) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    souping(*pool_of(family), *arguments).refused(*needles)
    assert not (tmp_path / "outputs" / "fam").exists()


def test_an_error_after_work_stands_alone_on_standard_error(family: Path, souping: Cli, tmp_path: Path) -> None:
    done = souping(*pool_of(family), "selector.threshold=0.001", "selector.otherwise=error")
    done.refused("no low-correlation category", "smallest |rho|")
    assert "select: every candidate" in done.out
    assert not (tmp_path / "outputs" / "fam").exists()


def test_a_candidate_that_is_broken(family: Path, souping: Cli, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(family / "bee", tmp_path / "broken"))
    words = [f"pool.candidates=[{family / 'ant'},{broken}]", *pool_of(family)[1:], "selector=all"]
    for file in broken.glob("tokenizer*"):
        file.unlink()
    souping(*words).refused("no tokenizer")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    souping(*words).refused("model.safetensors")
    save_model(broken, 1, hidden_size=32)
    souping(*words).refused("shape")
    shutil.rmtree(broken)
    souping(*words).refused("broken")


def test_one_candidate_and_twins(family: Path, souping: Cli, tmp_path: Path) -> None:
    rest, ant = pool_of(family)[1:], family / "ant"
    same = shutil.copytree(family / "bee", tmp_path / "x" / "ant")
    pools = {str(ant): "at least two", "": "at least two", f"{ant},{ant}": "same folder"}
    pools |= {f"{ant},{same}": "share the name", "{nme: a}": "pool.candidates"}
    for candidates, needle in pools.items():
        souping(f"pool.candidates=[{candidates}]", *rest).refused(needle)


def test_a_table_that_cannot_be_selected_by(family: Path, souping: Cli, tmp_path: Path) -> None:
    board = tmp_path / "board.csv"
    table = ["scores=table", "scores.path=board.csv", "stop_after=select"]
    board.write_text("model,red,green\nant,1,2\nbee,2,2\ncat,3,2\ndog,4,2\n")
    souping(*pool_of(family), *table).refused("in which the models differ")
    board.write_text("model,red,green\nant,1,2\nbee,2\ncat,3,2\ndog,4,2\n")
    souping(*pool_of(family), *table).refused("board.csv:3")
    board.write_text("model,red,green\nant,1,2\nbee,2,4\ncat,3,6.1\ndog,4,8\n")
    assert "selected as by selector=greedy" in souping(*pool_of(family), *table).out


@pytest.mark.parametrize(
    ("file", "key", "value", "needle"),
    [
        ("tokenizer.json", "pre_tokenizer", {"type": "Nope"}, "cannot load the tokenizer"),
        ("tokenizer_config.json", "pad_token", 5, "cannot load"),
        ("config.json", "rms_norm_eps", "x", "cannot load this model"),
    ],
)
def test_files_that_libraries_refuse(
    family: Path, souping: Cli, tmp_path: Path, file: str, key: str, value: object, needle: str
) -> None:
    folders = [Path(shutil.copytree(family / name, tmp_path / name)) for name in ("ant", "bee")]
    for folder in folders:
        table = json.loads((folder / file).read_text())
        old = table.get(key)
        table[key] = {**old, **value} if isinstance(value, dict) and isinstance(old, dict) else value
        (folder / file).write_text(json.dumps(table))
    souping(f"pool.candidates=[{','.join(map(str, folders))}]", *pool_of(family)[1:], "selector=all").refused(needle)
    assert not (tmp_path / "outputs" / "fam").exists()


def test_a_chat_template_that_fails(family: Path, souping: Cli, tmp_path: Path) -> None:
    folders = [Path(shutil.copytree(family / name, tmp_path / name)) for name in ("ant", "bee")]
    for folder in folders:
        (folder / "chat_template.jinja").write_text("{{ 1/0 }}")
    rows = [json.loads(line) for line in (family / "items.jsonl").read_text().splitlines()]
    chat = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    (tmp_path / "chat.jsonl").write_text("\n".join(json.dumps(row) for row in chat))
    arguments = [f"pool.candidates=[{','.join(map(str, folders))}]", *pool_of(family)[2:], "benchmark.path=chat.jsonl"]
    souping(*arguments, "selector=all").refused("the chat template refuses its messages")


@pytest.mark.parametrize(("sizes", "ran"), [("0,2,-1", 1), ("0,9", 0)])
def test_the_table_of_a_sweep_has_the_refused_jobs_with_their_reason(
    family: Path, souping: Cli, tmp_path: Path, sizes: str, ran: int
) -> None:
    words = ["selector=topk", f"selector.k={sizes}", "optimiser=uniform", "stop_after=search", "hydra.sweep.dir=sweep"]
    done = souping("-m", *pool_of(family), *words)
    assert done.code == 2
    assert done.err.splitlines()[-1].endswith("see sweep.csv")
    rows = list(csv.DictReader((tmp_path / "sweep/sweep.csv").open()))
    assert [row["job"] for row in rows] == [str(number) for number in range(len(sizes.split(",")))]
    assert [bool(row["objective"]) for row in rows].count(True) == ran
    assert rows[0]["refused"] == "selector.k=0 must be an integer at least 1 and at most 1000000000"
    assert len([path for path in (tmp_path / "sweep").iterdir() if path.is_dir()]) == ran


def test_a_second_run_or_multirun_overwrites_no_first_one(family: Path, souping: Cli, tmp_path: Path) -> None:
    words = [*pool_of(family, "ant", "bee"), "selector=all", "optimiser=uniform", "stop_after=search"]
    assert souping(*words, "hydra.run.dir=run").code == 0
    before = (tmp_path / "run/config.yaml").read_bytes()
    done = souping(*words, "seed=1", "hydra.run.dir=run")
    assert done.code == 0
    assert f"{tmp_path}/run holds a run already: this one is in {tmp_path}/run_2\n" in done.err
    assert (tmp_path / "run/config.yaml").read_bytes() == before
    assert (tmp_path / "run_2/trials.csv").is_file()
    for place in ("sweep", "sweep_2"):
        done = souping("-m", *words, "seed=0,1", "hydra.sweep.dir=sweep")
        assert done.code == 0, done.err
        assert (tmp_path / place / "1/trials.csv").is_file()
        assert len((tmp_path / place / "sweep.csv").read_text().splitlines()) == 3
    assert done.err == "note: sweep holds a multirun already: this one is in sweep_2\n"


def test_a_mistyped_folder_that_could_be_a_hub_name_has_a_near_miss(family: Path, souping: Cli, tmp_path: Path) -> None:
    shutil.copytree(family / "ant", tmp_path / "runs/model-a")
    words = ["+experiment=merge", f"pool.candidates=[runs/modle-a,{family / 'bee'}]", "optimiser.weights=[0.5,0.5]"]
    souping(*words).refused("did you mean runs/model-a?")
    souping(*words[:1], words[1].replace("runs/modle-a", "./runs/modle-a"), *words[2:]).refused("mean runs/model-a?")


def test_a_candidate_that_is_a_link_to_itself(family: Path, souping: Cli, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    words = ["+experiment=merge", f"pool.candidates=[loop,{family / 'bee'}]", "optimiser.weights=[0.5,0.5]"]
    souping(*words).refused("candidate loop", "is not a folder")


def test_errors_by_their_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert format_error(UserError("optimiser.step=2 is too much")) == ("optimiser.step=2 is too much", 2)
    assert format_error(MemoryError("no"))[1] == 2
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "CHECKED", {"benchmark": {"path": "none.jsonl"}})
    with pytest.raises(OSError, match=r"none\.jsonl") as caught:
        (tmp_path / "none.jsonl").read_text()
    words, code = format_error(caught.value)
    assert (words.partition("=")[0], code) == ("benchmark.path", 2)
    with pytest.raises(ZeroDivisionError) as fault:
        raise ZeroDivisionError("mine")
    words, code = format_error(fault.value, tmp_path)
    assert (tmp_path / "traceback.txt").read_text().endswith("ZeroDivisionError: mine\n")
    assert code == 2  # the line that raised is in this file, which is a user's to souping
    assert Path(__file__).name in words
