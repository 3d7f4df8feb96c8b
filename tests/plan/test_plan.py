"""`plan` and `check`: what a run needs and counts, and what it refuses before any work."""

from __future__ import annotations

import csv
import json
import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from souping.answers.evaluation import LocalExecutor
from souping.checkpoints.pool import ModelSize, parameters_in
from souping.core.cuda import Gpu
from souping.evaluate.benchmark import Benchmark, first_items, make_splits
from souping.evaluate.engines.vllm import VllmEngine
from souping.evaluate.generate import LocalEvaluator
from souping.evaluate.lm_eval import HarnessEvaluator, tasks
from souping.evaluate.lm_eval.tasks import Loaded
from souping.merge.local import LocalMerge
from souping.merge.mergekit import MergekitMerge
from souping.plan.planner import missing_here
from souping.plan.speed import PlannedStage, Speed
from souping.runs import requirements
from souping.runs.requirements import Machine, requirements_of, soup_bytes
from souping.runs.steps import SEARCH, STEPS
from souping.search.adaptive import Adaptive
from souping.trackers import NoTracker
from tests.conftest import PAPER, ROOT, Cli, finished_words, pool_of, report_of
from tests.support.adapters import PREFIX, save_adapter
from tests.support.experiments import CHOSEN

GB = 10**9
EIGHT = ModelSize(
    name="m", path="org/m", basis="Hub", nbytes=16 * GB, parameters=8 * GB, download=17 * GB
)
LAPTOP = Machine(cores=8, memory=32 * GB)
HOST = Machine(cores=64, memory=512 * GB, gpus=(Gpu(name="H100", total=80 * GB),) * 2)


def run(**changes: Any) -> Any:
    settings = {"out": Path("soup"), "merge": LocalMerge(), "stop_after": None, "upload": None}
    made = {**settings, "executor": LocalExecutor(), "tracker": NoTracker(), **changes}
    return SimpleNamespace(**made, parts=[made["merge"], made["executor"]])


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 8e9),
        ("Salesforce/Llama-xLAM-2-70b-fc-r@main", 70e9),
        ("org/model-1.5b", 1.5e9),
        ("org/Mixtral-8x7B", 0),
    ],
)
def test_the_number_of_parameters_is_read_from_a_name(name: str, number: float) -> None:
    assert parameters_in(name) == number


class TestSpace:
    @pytest.fixture(autouse=True)
    def disks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(requirements, "disk_space", lambda path: (100 * GB, 1))

    @staticmethod
    def fits(
        kind: str,
        evaluator: LocalEvaluator,
        *models: ModelSize,
        machine: Machine = LAPTOP,
        **run_: Any,
    ) -> bool:
        """Whether the machine has enough of one kind (memory, disk) for a run of these models."""
        requirements = requirements_of(run(**run_), models, machine, [evaluator])
        (fits,) = [one.fits for one in requirements if one.kind == kind]
        return fits

    def test_a_disk_holds_soup_and_downloads_together(self) -> None:
        found = {
            one.kind: one for one in requirements_of(run(), [EIGHT] * 4, LAPTOP, [LocalEvaluator()])
        }
        assert found["disk"].need == 4 * 17 * GB + 16 * GB
        assert found["disk"].fits
        assert not self.fits("disk", LocalEvaluator(), *[EIGHT] * 5)
        assert self.fits("disk", LocalEvaluator(), *[EIGHT] * 5, stop_after="search")

    @pytest.mark.parametrize(("dtype", "fits"), [("bfloat16", True), ("float32", False)])
    def test_memory_of_a_loaded_model(self, dtype: Any, fits: bool) -> None:
        assert self.fits("memory", LocalEvaluator(dtype=dtype), EIGHT, EIGHT) is fits

    def test_a_gpu_holds_the_model_in_the_evaluators_dtype(self) -> None:
        seventy = ModelSize(
            name="m", path="m", basis="headers", nbytes=140 * GB, parameters=70 * GB
        )
        evaluator = LocalEvaluator(dtype="bfloat16", device="cuda")
        assert self.fits("GPU memory", evaluator, EIGHT, machine=HOST)
        assert not self.fits("GPU memory", evaluator, seventy, machine=HOST)

    @pytest.mark.parametrize(
        ("changes", "adapter", "written"),
        [
            ({}, False, False),
            ({}, True, True),
            ({"merge": MergekitMerge()}, False, True),
            ({"merge": LocalMerge(format="same")}, False, True),
        ],
    )
    def test_vllm_needs_room_for_a_soup_only_where_it_is_written(
        self,
        changes: dict[str, Any],
        adapter: bool,
        written: bool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(requirements, "scratch_place", lambda size: Path("/tmp"))
        found = requirements_of(
            run(**changes, stop_after="search"),
            [replace(EIGHT, download=0, adapter=adapter)],
            HOST,
            [LocalEvaluator(engine=VllmEngine())],
        )
        assert ("disk" in {one.kind for one in found}) == written

    def test_a_dtype_of_the_merge_sizes_the_soup(self) -> None:
        assert soup_bytes([EIGHT], LocalMerge(dtype="float32")) == 32 * GB
        adapter = ModelSize(
            name="a", path="a", basis="headers", nbytes=GB // 10, parameters=GB // 20, adapter=True
        )
        # The factors of all adapters in fp32, or a full model.
        assert soup_bytes([adapter, adapter, EIGHT], LocalMerge()) == 2 * 4 * GB // 20
        assert soup_bytes([adapter, EIGHT, EIGHT], LocalMerge()) == EIGHT.nbytes
        assert soup_bytes([adapter, EIGHT], LocalMerge(adapters="merge")) == EIGHT.nbytes


def test_adapters_whose_soups_are_full_models_need_a_disk_for_one(
    family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their own sizes, which are known before they are compared, the disk is large enough."""
    module = "model.layers.0.self_attn.q_proj"
    for seed, name in enumerate("ab"):
        save_adapter(tmp_path / name, family / "base", {module: 2}, seed, use_dora=True)
        path = tmp_path / name / "adapter_model.safetensors"
        magnitude = {f"{PREFIX}{module}.lora_magnitude_vector": torch.ones(24)}
        save_file(load_file(path) | magnitude, path)
    monkeypatch.setattr(requirements, "disk_space", lambda path: (10_000, 1))
    words = ["pool.candidates=[a,b]", f"benchmark.path={family / 'items.jsonl'}", "selector=all"]
    souping(*words, "out=soup").refused("the disk for the soup has 10.00 kB, the run needs 2")
    assert not (tmp_path / "soup").exists()
    souping("plan", *words, "out=soup").refused("the disk for the soup has 10.00 kB")
    monkeypatch.setattr(requirements, "disk_space", lambda path: (30_000, 1))
    # Their configs name the folder of their base.
    assert "23.47 kB" in souping("plan", *words, "out=soup").ok().out


def test_a_full_disk_stops_a_run(
    family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "disk_space", lambda path: (1000, 1))
    souping(*pool_of(family)).refused("the disk for the soup has 1.00 kB, the run needs 23.47 kB")
    assert not list(tmp_path.glob("outputs/fam/*"))
    souping("plan", *pool_of(family)).refused("the disk for the soup has 1.00 kB")
    assert not plan_of(tmp_path)["can_go_on"]


def test_gpus_that_are_missing() -> None:
    evaluator = LocalEvaluator(engine=VllmEngine(tensor_parallel_size=4))
    found = [one.what for one in missing_here(run(), [], HOST, [evaluator])]
    assert "GPUs: vLLM is set to use 4, CUDA finds 2" in found
    found = [one.what for one in missing_here(run(), [], LAPTOP, [LocalEvaluator(device="cuda:1")])]
    assert found == ["a GPU: evaluator.device=cuda:1, CUDA finds 0"]


def ratios(name: str) -> list[tuple[float, float]]:
    from benchmarks.search_sizes import sizes

    size, split, taken = sizes(ROOT / "benchmarks" / "tables" / f"{name}.npz", 232, 3)
    expected, most = Adaptive().workload(size, split) or (0, 0)
    return [(items / expected, items / most) for items in taken]


@pytest.mark.parametrize(
    "more", [(), pytest.param(("demo_other", "digits", "nets6"), marks=pytest.mark.slow)]
)
def test_the_plan_expects_what_searches_take(more: tuple[str, ...]) -> None:
    found = np.array([pair for name in ("demo3", "demo4", *more) for pair in ratios(name)])
    near = (found[:, 0] > 1 / 1.5) & (found[:, 0] < 1.5)
    assert near.mean() >= 0.8
    assert found[:, 1].max() <= 1.1


HUB = {
    "xLAM-2-8b-fc-r": "Salesforce/Llama-xLAM-2-8b-fc-r",
    "ToolACE-2-8B": "Team-ACE/ToolACE-2-Llama-3.1-8B",
    "watt-tool-8B": "watt-ai/watt-tool-8B",
    "BitAgent-8B": "BitAgent/BitAgent-8B",
    "CoALM-8B": "uiuc-convai/CoALM-8B",
}
BEST = ["xLAM-2-8b-fc-r", "ToolACE-2-8B", "watt-tool-8B"]
FIVE = "pool.candidates=[o/m1-8B,o/m2-8B,o/m3-8B,o/m4-8B,o/m5-8B]"
EXPERIMENTS = {
    "bfcl_8b": (),
    "bfcl_70b": (),
    "mgsm": (),
    "infinitebench": (FIVE,),
    "flores": (FIVE,),
}


def saved(place: Path, kind: str = "plan") -> Path:
    """The newest plan or check below `outputs/`."""
    files = place.glob(f"outputs/*/{kind}_*.json")
    return max(files, key=lambda path: (path.stat().st_mtime_ns, path.name))


def plan_of(place: Path) -> dict[str, Any]:
    """The newest plan, with its stages by name."""
    found: dict[str, Any] = json.loads(saved(place).read_text())
    found["by_name"] = {stage["name"]: stage for stage in found["steps"]}
    return found


class TestAgainstRuns:
    def test_the_most_models_of_the_test_are_all_that_a_selection_may_bring(
        self, family: Path, souping: Cli, tmp_path: Path
    ) -> None:
        """The soup, four candidates, and the averages of all, of the ingredients and of the best candidates."""
        souping("plan", *pool_of(family), "selector=soce_cluster", "selector.k=2").ok()
        assert plan_of(tmp_path)["by_name"]["test: soup and baselines"]["models"][1] == 8

    def test_a_plan_counts_what_the_run_then_evaluates(
        self, family: Path, souping: Cli, tmp_path: Path
    ) -> None:
        extra = tmp_path / "side.jsonl"
        extra.write_text(
            "".join((family / "items.jsonl").read_text().splitlines(keepends=True)[:30])
        )
        call = [
            *pool_of(family),
            "selector=topk",
            "selector.k=2",
            f"extra_benchmarks=[{extra}]",
            "expected={ant:{red:50}}",
        ]
        call += ["expected_mismatch=warn", "optimiser=grid"]
        souping("plan", *call).ok()
        assert not (tmp_path / "outputs" / "store.sqlite").exists()
        before = plan_of(tmp_path)
        assert before["can_go_on"]
        done = souping(*call, "hydra.run.dir=out").ok()
        report = report_of(tmp_path / "out")
        stages = before["by_name"]
        assert stages[SEARCH]["models"] == [report["cost"]["trials"]] * 2
        assert stages["test: soup and baselines"]["items"] == report["splits"]["test"]
        # The run performs the stages that the plan counts, in their order.
        names = [stage["name"] for stage in before["steps"]]
        assert {name.split(":")[0] for name in names} == {*STEPS} - {"select", "write", "analyse"}
        said = []
        for line in (done.out + done.err).splitlines():
            said += [name for name in names if line.startswith(name)][:1]
        assert list(dict.fromkeys(said)) == names
        # The winner may be a candidate or a baseline, whose answers are known by then; otherwise counts are exact.
        most = before["evaluations"]["todo"][1]
        assert most - report["splits"]["test"] - 30 <= report["cost"]["evaluated_items"] <= most
        if report["recipe"]["weights"] not in ([1.0], [0.5, 0.5]):
            assert report["cost"]["evaluated_items"] == most

        souping("plan", *call).ok()
        after = plan_of(tmp_path)
        assert after["evaluations"]["todo"] == [0, 0]
        # How many looks the items have had.
        assert "no report in this store" in before["notes"][-1]
        assert re.search(r"look \d", after["notes"][-1])
        assert after["selection"]["selection"]["ingredients"] == report["selection"]["ingredients"]
        assert after["speeds"]["benchmark"]["basis"] == "measured"

    @pytest.mark.slow
    def test_an_open_selection_has_a_range(
        self, finished: Path, family: Path, souping: Cli, tmp_path: Path
    ) -> None:
        """Of an adaptive search: what the middle number of ingredients is expected to take, and the most."""
        souping("plan", *finished_words(family)).ok()
        before = plan_of(tmp_path)
        assert (before["selection"]["selection"], before["selection"]["sizes"]) == (
            None,
            [1, 2, 3, 4],
        )
        search = before["by_name"][SEARCH]
        two = Adaptive().workload(2, search["items"])
        four = Adaptive().workload(4, search["items"])
        assert search["in_parts"]
        assert two is not None
        assert four is not None
        assert search["todo"] == [two[0], four[1]]
        assert (
            report_of(finished / "run")["cost"]["evaluated_items"]
            <= before["evaluations"]["todo"][1]
        )
        souping("plan", *finished_words(family), "optimiser=grid").ok()
        least, most = plan_of(tmp_path)["evaluations"]["todo"]
        assert 0 < least < most

    @pytest.mark.slow
    @pytest.mark.parametrize("optimiser", ["optimiser=greedy_soup", "optimiser.max_items=300"])
    def test_every_search_has_a_count(
        self, family: Path, souping: Cli, tmp_path: Path, optimiser: str
    ) -> None:
        call = [*pool_of(family), "selector=topk", "selector.k=2", "stop_after=search", optimiser]
        souping("plan", *call).ok()
        stage = plan_of(tmp_path)["by_name"][SEARCH]
        souping(*call, "hydra.run.dir=out").ok()
        rows = list(csv.DictReader((tmp_path / "out" / "trials.csv").read_text().splitlines()))
        assert stage["in_parts"] == ("max_items" in optimiser)
        # parts of the split: more soups than whole splits, within the same items
        if "max_items" in optimiser:
            mixed = [row for row in rows if "1.0" not in row.values()]
            assert 0 < sum(int(row["items"]) for row in mixed) <= stage["asked"][1] == 300
        else:
            assert len(rows) <= stage["models"][1] <= len(rows) + 1  # the greedy soup may end early


class TestPublished:
    def test_the_papers_8b_table(
        self, family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        pool = ",".join("{" + f"name: {name}, path: {path}" + "}" for name, path in HUB.items())
        table = [
            "scores=table",
            f"scores.path={PAPER / 'bfcl_8b.csv'}",
            f"benchmark.path={family / 'items.jsonl'}",
        ]
        plan = [f"pool.candidates=[{pool}]", *table, "throughput=20", "optimiser=grid"]
        done = souping("plan", *plan)
        done.refused("cannot start here", "hf download Salesforce/Llama-xLAM-2-8b-fc-r")
        found = plan_of(tmp_path)
        chosen = found["selection"]["selection"]
        assert (chosen["ingredients"], set(chosen["experts"].values())) == (BEST, set(BEST))
        assert len(chosen["low_correlation"]) == 13
        assert "score: every candidate" not in found["by_name"]
        # 36 of the grid, uniform, three candidates
        assert found["by_name"][SEARCH]["models"] == [40, 40]
        assert found["splits"]["select"] == 0
        assert {(model["basis"], model["nbytes"]) for model in found["models"]} == {
            ("name", 16 * GB)
        }
        assert found["seconds"]["evaluate"][0] == pytest.approx(
            found["evaluations"]["todo"][0] / 20
        )
        lacking = [one for one in found["missing"] if one["fix"].startswith("hf download")]
        assert [one["what"].split(":")[0] for one in lacking] == list(HUB)
        assert not found["can_go_on"]

    @pytest.mark.parametrize(
        "name",
        [
            name if name == "bfcl_8b" else pytest.param(name, marks=pytest.mark.slow)
            for name in EXPERIMENTS
        ],
    )
    def test_headers_of_experiments_and_plans_count_the_same(
        self, name: str, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setenv("SOUPING_BFCL", str(tmp_path / "nowhere"))
        monkeypatch.setattr("souping.core.text.find_spec", lambda package: None)
        loads = list[None]()

        def load_documents(evaluator: HarnessEvaluator) -> dict[str, Loaded]:
            loads.append(None)
            return tasks.load_documents(evaluator)

        monkeypatch.setattr("souping.evaluate.lm_eval.load_documents", load_documents)
        done = souping("plan", f"+experiment={name}", *EXPERIMENTS[name])
        done.refused("cannot start here")
        page = done.out
        # It takes twenty seconds to index the harness's tasks.
        assert len(loads) == ("bfcl" not in name)
        found = plan_of(tmp_path)
        # several questions on a book, known by its text
        assert ("its own group" in page) == (name == "infinitebench")
        assert "Missing on this machine" in page
        assert [ingredient for ingredient in CHOSEN.get(name, []) if ingredient not in page] == []
        todo = found["evaluations"]["todo"]
        header = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text()
        for number in re.findall(r"\(([\d,]+) evaluations\)", header):
            assert int(number.replace(",", "")) == todo[0]
        if name == "bfcl_8b":
            assert found["outlined"]
            assert sum(found["splits"].values()) == 4441
            assert 0 < found["power"]["gain"] < 0.03
            assert any(one["fix"].endswith("full.txt") for one in found["missing"])


def test_one_candidate_answers_five_items_per_category(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    done = souping("check", *pool_of(family), "selector=topk").ok()
    words = [
        "(red, split select)",
        "prompt: red ",
        "reference: ",
        "ant: ",
        "prompt tokens",
        "answer tokens",
        "items/s",
    ]
    assert [
        word for word in [*words, "answers were truncated or are missing"] if word not in done.out
    ] == []
    assert "repeat the command without `check`" in done.out.splitlines()[-1]
    made = json.loads(saved(tmp_path, "check").read_text())
    assert (
        made["seconds"]["evaluate"][1]
        >= made["evaluations"]["todo"][1] / made["items_per_second"] * 0.999
    )
    splits = make_splits(Benchmark(path=str(family / "items.jsonl")).items()).items
    wanted = [item.id for item in first_items(splits["select"], 5)]
    assert sorted(sample["item"] for sample in made["samples"]) == sorted(wanted)

    # A plan takes the speed of the check, unless the evaluator, the models or the word of a user differ.
    words = ["plan", *pool_of(family), "selector=topk"]
    souping(*words).ok()
    speed = plan_of(tmp_path)["speeds"]["benchmark"]
    assert (speed["basis"], speed["items_per_second"]) == ("measured", made["items_per_second"])
    assert speed["per_call"] == made["speeds"]["benchmark"]["per_call"]
    cases = (
        ("name=another", "measured"),
        ("evaluator.max_new_tokens=3", "assumed"),
        ("throughput=5", "stated"),
    )
    for word, basis in cases:
        souping(*words, word).ok()
        assert plan_of(tmp_path)["speeds"]["benchmark"]["basis"] == basis
    saved(tmp_path, "check").write_text("{")
    souping(*words).ok()
    assert plan_of(tmp_path)["speeds"]["benchmark"]["basis"] == "assumed"
    assert {path.name for path in tmp_path.glob("outputs/*")} == {"fam", "another"}


def test_the_start_of_a_call_is_counted_once_for_all_of_its_items() -> None:
    stage = PlannedStage(name="s", models=(3, 3), items=100, asked=(300, 300), todo=(150, 300))
    command = Speed(items_per_second=10, per_call=2.0, basis="measured", reason="")
    # 150 or 300 answers at 10 a second, in calls of 100 items that take 2 s to start.
    assert [command.seconds(stage, end) for end in (0, 1)] == [15 + 2 * 2, 30 + 3 * 2]
    batches = replace(command, batch=50)
    assert batches.seconds(stage, end=1) == 30 + 6 * 2
    # A search in parts asks for a quarter of the split at a time.
    samples = replace(stage, in_parts=True)
    assert command.seconds(samples, end=1) == 30 + 12 * 2


@pytest.mark.parametrize(
    "words",
    [
        ("evaluator.repeats=1000000",),
        ("evaluator.repeats=1000000", "evaluator.temperature=1"),
        ("optimiser=nevergrad", "optimiser.max_trials=100000", "evaluator.repeats=1000000"),
    ],
)
def test_large_counts_are_counted_by_arithmetic(
    family: Path, souping: Cli, tmp_path: Path, words: tuple[str, ...]
) -> None:
    base = [*pool_of(family, "ant", "bee"), "selector=all"]
    souping("plan", *base, *words).ok()
    assert plan_of(tmp_path)["evaluations"]["todo"][1] >= 10**8


def test_a_check_gives_one_answer_per_item(family: Path, souping: Cli, tmp_path: Path) -> None:
    base = [*pool_of(family, "ant", "bee"), "selector=all", "evaluator.repeats=1000000"]
    souping("check", *base).ok()
    samples = json.loads(saved(tmp_path, "check").read_text())["samples"]
    assert {len(sample["models"]["ant"]["resps"][0]) for sample in samples} == {1}


def test_the_store_of_a_run_is_not_touched(family: Path, souping: Cli, tmp_path: Path) -> None:
    base = [
        *pool_of(family, "ant", "bee"),
        "selector=all",
        "optimiser=uniform",
        "stop_after=search",
    ]
    souping(*base, "hydra.run.dir=whole").ok()
    with closing(sqlite3.connect(tmp_path / "outputs/store.sqlite")) as db:
        before = list(db.iterdump())
        done = souping("check", *base).ok()
        assert list(db.iterdump()) == before
    # Nothing is left to evaluate, and no duration of 0 is named.
    made = json.loads(saved(tmp_path, "check").read_text())
    assert made["evaluations"]["todo"] == [0, 0]
    assert "as its answers are stored" in done.out.splitlines()[-1]


def test_a_check_refuses_what_a_run_would_refuse(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    souping("check", *pool_of(family), "merge.tokenizer_from=cow").refused(
        "merge.tokenizer_from=cow", "this run cannot start here"
    )
    souping(
        "check", *pool_of(family), "optimiser=fixed", "optimiser.weights=[1]", "selector=all"
    ).refused("weights")
    souping("check", *pool_of(family), "evaluator.engine=vllm").refused("write engine=vllm")
    pool = f"pool.candidates=[{family / 'ant'},{family / 'bee'}]"
    souping("check", "+experiment=merge", pool, "optimiser.weights=[0.5,0.5]", "out=soup").refused(
        "check", "plan merge"
    )
    assert not (tmp_path / "soup").exists()


ALL = ("selector=all",)
CASES: dict[str, tuple[tuple[str, ...], str]] = {
    "budget": (("optimiser.max_items=3",), "optimiser.max_items=3 "),
    "grid": (
        (*ALL, "optimiser=grid", "optimiser.step=0.5"),
        "optimiser=grid has no point for 4 ingredients",
    ),
    "slerp": ((*ALL, "merge.method=slerp"), "exactly 2 ingredients"),
    "overrides": ((*ALL, "merge.tensor_weights={foo.*:[0.1,0.2,0.3,0.4]}"), "matches no tensor"),
    "weights": (
        (*ALL, "optimiser=fixed", "optimiser.weights=[0.5,0.5]"),
        "optimiser.weights has 2 weights",
    ),
    "objective": (
        ("objective=weighted", "objective.category_weights={reed:1}"),
        "objective: category=reed",
    ),
    "also": (("extra_benchmarks=[hellaswag,hellaswag]",), "two entries are called 'hellaswag'"),
    "guard_baseline": (
        ("guard=3", "guard_baseline=nobody"),
        "guard_baseline=nobody is not one of ant",
    ),
}


def check_refused(souping: Cli, tmp_path: Path, needle: str, *overrides: str) -> None:
    """A run and its plan are both refused with these words, and nothing is evaluated."""
    ran = souping(*overrides)
    planned = souping("plan", *overrides)
    ran.refused(needle)
    assert not (tmp_path / "outputs" / "store.sqlite").exists()
    assert planned.code == 2
    assert needle in planned.err.split("this run cannot start here: ")[1]
    assert ran.err.splitlines()[0] in planned.err


@pytest.mark.parametrize("name", CASES)
def test_settings_are_refused_before_work(
    name: str, family: Path, souping: Cli, tmp_path: Path
) -> None:
    overrides, needle = CASES[name]
    check_refused(souping, tmp_path, needle, *pool_of(family), *overrides)


def test_pools_are_refused_before_work_and_the_plan_is_saved(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    from tests.support.family import save_model

    check_refused(
        souping, tmp_path, "needs at least 3; there are 2", *pool_of(family, "ant", "bee")
    )
    save_model(tmp_path / "large", 9, hidden_size=32)
    pool = [f"pool.candidates=[{family / 'ant'},{tmp_path / 'large'}]", *pool_of(family)[1:]]
    planned = souping("plan", *pool, "selector=all")
    assert "this run cannot start here" in planned.err
    assert not json.loads(saved(tmp_path).read_text())["can_go_on"]


@pytest.mark.parametrize(("selector", "warns"), [("soce", True), ("greedy", False)])
def test_few_models_are_named_before_anything_is_evaluated(
    selector: str, warns: bool, family: Path, souping: Cli, tmp_path: Path
) -> None:
    souping("plan", *pool_of(family), f"selector={selector}").ok()
    notes = json.loads(saved(tmp_path).read_text())["notes"]
    assert any("correlations over 4 models" in note for note in notes) == warns


def test_a_category_that_all_fail_is_a_warning_of_both(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (family / "items.jsonl").read_text().splitlines()]
    hard = [{**row, "answer": "never said"} if row["category"] == "red" else row for row in rows]
    (tmp_path / "hard.jsonl").write_text("\n".join(map(json.dumps, hard)))
    call = [*pool_of(family), "benchmark.path=hard.jsonl", "selector=all", "optimiser=uniform"]
    warning = "category red: every model fails all of it"
    ran = souping(*call, "stop_after=search").ok()
    assert warning in ran.out + ran.err
    souping("plan", *call).ok()
    assert any(warning in note for note in json.loads(saved(tmp_path).read_text())["notes"])
