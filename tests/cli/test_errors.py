"""Bad input: one or two clear lines, exit code 2, no traceback, and the refused run leaves nothing."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import Cli, pool_of


@pytest.mark.parametrize(
    ("arguments", "needles"),
    [
        (["selector=socee"], ["selector", "did you mean soce"]),
        (["selector.thresold=0.3"], ["selector.thresold", "did you mean threshold"]),
        (["+experiment=bfc"], ["+experiment=bfc: there is no such choice", "did you mean bfcl"]),
        (["experiment=bfcl"], ["+experiment=bfcl"]),
        (["nonsense=1"], ["nonsense", "known keys"]),
        (["engine.tensor_parallel_size=2"], ["engine.tensor_parallel_size"]),
        (["+selector.foo=1"], ["selector.foo", "SoCE"]),
        (["selector.threshold=0"], ["selector.threshold=0"]),
        (["selector.threshold=nan"], ["selector.threshold"]),
        (["selector.threshold=high"], ["selector.threshold='high'", "a number"]),
        (["selector.sign=sined"], ["selector.sign", "did you mean signed"]),
        (["selector=topk", "selector.k=0"], ["selector.k=0"]),
        (["optimiser.trials=0"], ["optimiser.trials=0", "at least 1"]),
        (["optimiser.budget=-1"], ["optimiser.budget=-1"]),
        (["optimiser.budget=1"], ["optimiser.budget=1", "search fold"]),
        (["optimiser.step=0.3"], ["optimiser.step=0.3"]),
        (["optimiser.trials=1.5"], ["optimiser.trials=1.5", "an integer at least 1 and at most 1000000000 or null"]),
        (["optimiser=fixed", "optimiser.weights=[0.5,0.4]"], ["optimiser.weights", "0.9"]),
        (["optimiser=fixed"], ["optimiser.weights is not set"]),
        (["optimiser=nevergrad", "optimiser.name=NGOptt"], ["optimiser.name=NGOptt", "did you mean NGOpt"]),
        (["objective=weighted", "objective.weights={rust:1}"], ["rust", "red"]),
        (["evaluator.batch_size=0"], ["evaluator.batch_size=0"]),
        (["evaluator.dtype=float8"], ["evaluator.dtype"]),
        (["evaluator.device=foo"], ["evaluator.device", "foo", "cuda:N"]),
        (["+foo=1"], ["foo is not a key"]),
        (["+optimizer=1"], ["optimizer is not a key", "did you mean optimiser"]),
        (["merge.carry=ent"], ["merge.carry=ent", "did you mean ant"]),
        (["selector=topk", "selector.k=9"], ["selector.k=9", "4 candidates"]),
        (["objective=tree", "objective.tree={a:[],b:[red]}"], ["objective.tree", "empty group"]),
        (["store.path="], ["store.path", "empty"]),
        (["merge.method=liner"], ["merge.method", "linear"]),
        (["seed=x"], ["seed=x", "Integer"]),
        (["seed=-1"], ["seed=-1"]),
        (["stop_after=never"], ["stop_after", "select"]),
        (["selector=3"], ["selector"]),
        (["scores=table"], ["scores.path is not set"]),
        (["benchmark.path=none.jsonl"], ["benchmark.path=none.jsonl"]),
        (["a(b=c"], ["cannot read the override", "quotes"]),
        (["out=/proc/nothing/soup", "selector=topk"], ["/proc/nothing"]),
        (["store.path=/proc/nothing/s"], ["store.path=/proc/nothing/s"]),
        (["evaluator.max_new_tokens=12"], ["'red' is constant", "are answers cut off"]),
    ],
    ids=lambda value: " ".join(value) if value and isinstance(value, list) else "",
)
def test_bad_settings(family: Path, souping: Cli, tmp_path: Path, arguments: list[str], needles: list[str]) -> None:
    souping(*pool_of(family), *arguments).refused(*needles)
    assert not (tmp_path / "outputs" / "fam").exists()


def test_a_name_that_is_no_folder_name(family: Path, souping: Cli, tmp_path: Path) -> None:
    souping(*pool_of(family)[:-1], "name=../elsewhere").refused("name='../elsewhere'")
    assert not list(tmp_path.parent.glob("elsewhere*"))


def test_a_folder_without_tokenizer_is_refused_before_work(family: Path, souping: Cli, broken: Path) -> None:
    for file in broken.glob("tokenizer*"):
        file.unlink()
    souping(*pool(family, broken)).refused("broken", "no tokenizer")


def test_an_error_after_work_stands_alone_on_standard_error(family: Path, souping: Cli, tmp_path: Path) -> None:
    done = souping(*pool_of(family), "selector.threshold=0.001", "selector.otherwise=error")
    done.refused("no low-correlation category", "smallest |rho|")
    assert "select: every candidate" in done.out
    assert not (tmp_path / "outputs" / "fam").exists()


def test_without_anything(souping: Cli) -> None:
    souping().refused("pool.candidates is not set", "+experiment=demo")


def test_several_problems_are_told_at_once_and_never_more_than_four_lines(family: Path, souping: Cli) -> None:
    wrong = ["selector.sign=x", "selector.ties=y", "evaluator.dtype=z", "optimiser.trials=w", "merge.method=3"]
    done = souping(*pool_of(family), *wrong)
    done.refused("selector.sign", "more)")


@pytest.fixture
def broken(family: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(family / "bee", tmp_path / "broken"))


def pool(family: Path, folder: Path) -> list[str]:
    arguments = pool_of(family)
    return [f"pool.candidates=[{family / 'ant'},{folder}]", *arguments[1:], "selector=all"]


def test_a_missing_folder(family: Path, souping: Cli, tmp_path: Path) -> None:
    souping(*pool(family, tmp_path / "nowhere")).refused("nowhere")


def test_a_folder_without_config_or_weights(family: Path, souping: Cli, broken: Path) -> None:
    (broken / "config.json").rename(broken / "kept")
    souping(*pool(family, broken)).refused("broken", "config.json")
    (broken / "kept").rename(broken / "config.json")
    (broken / "model.safetensors").unlink()
    souping(*pool(family, broken)).refused("broken", "safetensors")


@pytest.mark.parametrize("cut", [4, 200, -10])
def test_a_truncated_file(family: Path, souping: Cli, broken: Path, cut: int) -> None:
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    souping(*pool(family, broken)).refused("model.safetensors")


def test_another_architecture(family: Path, souping: Cli, broken: Path) -> None:
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(
        json.dumps({**config, "architectures": ["MistralForCausalLM"], "model_type": "mistral"})
    )
    souping(*pool(family, broken)).refused("model_type", "mistral")


@pytest.mark.parametrize(
    ("file", "key", "value", "needle"),
    [
        ("tokenizer.json", "model", {"type": "Nope"}, "tokenizer"),
        ("tokenizer.json", "pre_tokenizer", {"type": "Nope"}, "cannot load the tokenizer"),
        ("tokenizer_config.json", "pad_token", 5, "cannot load"),
        ("config.json", "rms_norm_eps", "x", "cannot load this model"),
        ("config.json", "num_attention_heads", 0, "cannot load this model"),
        ("config.json", "pad_token_id", 10**6, "cannot load this model"),
        ("config.json", "dtype", "zzz", "cannot load this model"),
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


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1/0 }}",
        pytest.param("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", marks=pytest.mark.slow),
        pytest.param("{{ messages + 1 }}", marks=pytest.mark.slow),
    ],
)
def test_chat_templates_that_fail(family: Path, souping: Cli, tmp_path: Path, template: str) -> None:
    folders = [Path(shutil.copytree(family / name, tmp_path / name)) for name in ("ant", "bee")]
    for folder in folders:
        (folder / "chat_template.jinja").write_text(template)
    rows = [json.loads(line) for line in (family / "items.jsonl").read_text().splitlines()]
    chat = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    (tmp_path / "chat.jsonl").write_text("\n".join(json.dumps(row) for row in chat))
    arguments = [f"pool.candidates=[{','.join(map(str, folders))}]", *pool_of(family)[2:], "benchmark.path=chat.jsonl"]
    souping(*arguments, "selector=all").refused("the chat template refuses its messages")


def test_other_shapes(family: Path, souping: Cli, tmp_path: Path) -> None:
    from tests.support.family import save_model

    save_model(tmp_path / "wide", 1, hidden_size=32)
    souping(*pool(family, tmp_path / "wide")).refused("shape")


def test_one_candidate_and_twins(family: Path, souping: Cli, broken: Path) -> None:
    rest = pool_of(family)[1:]
    souping(f"pool.candidates=[{family / 'ant'}]", *rest).refused("at least two")
    souping("pool.candidates=[]", *rest).refused("at least two")
    souping(f"pool.candidates=[{family / 'ant'},{family / 'ant'}]", *rest).refused("ant", "twice")
    same = broken.parent / "x" / "ant"
    shutil.copytree(broken, same)
    souping(f"pool.candidates=[{family / 'ant'},{same}]", *rest).refused("share the name")
    souping("pool.candidates=[{nme: a}]", *rest).refused("pool.candidates")


def test_selection_that_cannot_be_made(family: Path, souping: Cli, tmp_path: Path) -> None:
    board = tmp_path / "board.csv"
    table = ["scores=table", "scores.path=board.csv", "stop_after=select"]
    board.write_text("model,red,green\nant,1,2\nbee,2,4\ncat,3,6.1\ndog,4,8\n")
    souping(*pool_of(family), *table, "selector.otherwise=error").refused(
        "no low-correlation category", "smallest |rho|"
    )
    assert "selected as by selector=greedy" in souping(*pool_of(family), *table).out
    board.write_text("model,red,green\nant,1,2\nbee,2,2\ncat,3,2\ndog,4,2\n")
    souping(*pool_of(family), *table).refused("'green' is constant")
    board.write_text("model,red,green\nant,1,2\nbee,2\ncat,3,2\ndog,4,2\n")
    souping(*pool_of(family), *table).refused("board.csv:3")


def test_a_target_that_is_in_use_is_refused_before_work(family: Path, souping: Cli, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    souping(*pool_of(family), "out=taken").refused("out=taken", "not an empty folder")


def test_debug_shows_the_traceback(family: Path, souping: Cli) -> None:
    from souping.core.types import UserError

    with pytest.raises(UserError, match=r"selector\.threshold"):
        souping(*pool_of(family), "selector.threshold=0", "debug=true")


def test_a_failing_job_of_a_sweep_does_not_stop_the_others(family: Path, souping: Cli, tmp_path: Path) -> None:
    done = souping("-m", *pool_of(family), "selector=topk", "selector.k=0,2", "optimiser=uniform", "stop_after=search")
    assert done.code == 2
    assert "job 0: selector.k=0" in done.err
    assert len(list((tmp_path / "outputs/fam").glob("**/trials.csv"))) == 1


@pytest.mark.parametrize(("sizes", "ran"), [("0,2,-1", 1), ("0,9", 0)])
def test_the_table_of_a_sweep_has_the_refused_jobs_with_their_reason(
    family: Path, souping: Cli, tmp_path: Path, sizes: str, ran: int
) -> None:
    words = ["selector=topk", f"selector.k={sizes}", "optimiser=uniform", "stop_after=search", "hydra.sweep.dir=sweep"]
    done = souping("-m", *pool_of(family), *words)
    assert done.code == 2
    assert "Error executing job" not in done.err  # Hydra's own line, with the whole list of overrides
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


def test_a_merge_has_no_search_to_stop_after(family: Path, souping: Cli) -> None:
    words = ["+experiment=merge", pool_of(family, "ant", "bee")[0], "optimiser.weights=[0.5,0.5]"]
    souping(*words, "stop_after=search").refused("stop_after=search: nothing is selected or searched")


def test_the_plan_of_a_merge_lists_what_is_missing(
    family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from souping.core.text import install
    from souping.core.types import Missing
    from souping.merge.mergekit import MergekitMerge

    lacks = [Missing(what="the package mergekit is not installed", mends=install("mergekit"))]
    monkeypatch.setattr(MergekitMerge, "needs", lambda self: lacks)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    words = ["+experiment=merge", pool_of(family, "ant", "bee")[0], "optimiser.weights=[0.5,0.5]"]
    done = souping(*words, "merge=mergekit", "merge.method=linear", "upload=me/soup", "plan=true")
    assert done.code == 0, done.err
    assert f"missing on this machine: the package mergekit is not installed: {install('mergekit')}\n" in done.out
    assert "missing on this machine: a login to the Hub" in done.out


def test_a_mistyped_folder_that_could_be_a_hub_name_has_a_near_miss(family: Path, souping: Cli, tmp_path: Path) -> None:
    shutil.copytree(family / "ant", tmp_path / "runs/model-a")
    words = ["+experiment=merge", f"pool.candidates=[runs/modle-a,{family / 'bee'}]", "optimiser.weights=[0.5,0.5]"]
    souping(*words).refused("did you mean runs/model-a?")
    souping(*words[:1], words[1].replace("runs/modle-a", "./runs/modle-a"), *words[2:]).refused("mean runs/model-a?")
