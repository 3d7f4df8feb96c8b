"""`plan=true` of a full run: it counts what a run then does, and says what is missing before anything is lost."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from souping.checkpoints.pool import ModelSize, parameters_in, weigh
from souping.core.types import Candidate, Missing, UserError
from souping.evaluate.generate import LocalEvaluator
from souping.evaluate.servers import TransformersServer
from souping.merge.local import LocalMerge
from souping.pipeline import requirements
from souping.pipeline.executors import LocalExecutor
from souping.pipeline.requirements import Gpu, Machine, Requirement, requirements_of, soup_bytes
from souping.pipeline.store import Store
from souping.planning.plan import speed
from souping.search.adaptive import Adaptive
from souping.trackers import NoTracker
from tests.conftest import PAPER, ROOT, Cli, finished_words, make_items, pool_of

GB = 10**9
HUB = (
    ("xLAM-2-8b-fc-r", "Salesforce/Llama-xLAM-2-8b-fc-r"),
    ("ToolACE-2-8B", "Team-ACE/ToolACE-2-Llama-3.1-8B"),
    ("watt-tool-8B", "watt-ai/watt-tool-8B"),
    ("BitAgent-8B", "BitAgent/BitAgent-8B"),
    ("CoALM-8B", "uiuc-convai/CoALM-8B"),
)
BEST = ["xLAM-2-8b-fc-r", "ToolACE-2-8B", "watt-tool-8B"]


def plan_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    return found


def report_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


class TestAgainstRuns:
    """Plans of the tiny family beside the runs that they are plans of."""

    def test_it_counts_what_the_run_then_evaluates(self, family: Path, souping: Cli, tmp_path: Path) -> None:
        side = tmp_path / "side.jsonl"
        side.write_text("".join((family / "items.jsonl").read_text().splitlines(keepends=True)[:30]))
        call = [
            *pool_of(family),
            "selector=topk",
            "selector.k=2",
            f"also=[{side}]",
            "expected={ant:{red:50}}",
            "gate=warn",
            "optimiser=grid",
        ]
        planned = souping(*call, "plan=true", "hydra.run.dir=planned")
        assert planned.code == 0, planned.err
        assert planned.out.rstrip().endswith("this run can go on: leave plan=true out")
        assert not (tmp_path / "outputs" / "store.sqlite").exists()
        before = plan_of(tmp_path / "planned")
        done = souping(*call, "hydra.run.dir=out")
        assert done.code == 0, done.err
        report = report_of(tmp_path / "out")
        stages = {stage["name"].split(":")[0]: stage for stage in before["stages"]}
        assert stages["search"]["models"] == [report["cost"]["trials"]] * 2
        assert stages["report"]["items"] == report["folds"]["report"]
        # the winner may be a single or a baseline, of which everything is known by then; else all counts are exact
        least = before["evaluations"]["todo"][1] - report["folds"]["report"] - 30
        assert least <= report["cost"]["evaluated_items"] <= before["evaluations"]["todo"][1]
        if report["recipe"]["weights"] not in ([1.0], [0.5, 0.5]):
            assert report["cost"]["evaluated_items"] == before["evaluations"]["todo"][1]

        again = souping(*call, "plan=true", "hydra.run.dir=again")
        assert again.code == 0, again.err
        after = plan_of(tmp_path / "again")
        assert after["evaluations"]["todo"] == [0, 0]
        assert after["selection"]["selection"]["ingredients"] == report["selection"]["ingredients"]
        assert after["speeds"]["benchmark"]["basis"] == "measured"
        assert "report.md" not in again.out

    def test_an_open_selection_gives_least_and_most(
        self, finished: Path, family: Path, souping: Cli, tmp_path: Path
    ) -> None:
        """Of an adaptive search: what the middle numbers of ingredients are expected to take, and the most."""
        assert souping(*finished_words(family), "plan=true", "hydra.run.dir=planned").code == 0
        before = plan_of(tmp_path / "planned")
        assert before["selection"]["selection"] is None
        assert before["selection"]["sizes"] == [1, 2, 3, 4]
        (search,) = (stage for stage in before["stages"] if stage["in_parts"])
        spans = [Adaptive().workload(size, search["items"]) for size in (2, 4)]
        assert search["todo"] == [spans[0][0], spans[1][1]]
        assert report_of(finished / "run")["cost"]["evaluated_items"] <= before["evaluations"]["todo"][1]
        assert souping(*finished_words(family), "optimiser=grid", "plan=true", "hydra.run.dir=grid").code == 0
        least, most = plan_of(tmp_path / "grid")["evaluations"]["todo"]
        assert 0 < least < most

    def test_a_search_that_was_cut_is_taken_up(self, family: Path, souping: Cli, tmp_path: Path) -> None:
        call = [*pool_of(family), "selector=topk", "selector.k=2", "optimiser=grid", "stop_after=search"]
        assert souping(*call, "optimiser.trials=4", "hydra.run.dir=out").code == 0
        assert souping(*call, "plan=true", "hydra.run.dir=planned").code == 0
        (search,) = (s for s in plan_of(tmp_path / "planned")["stages"] if s["name"].startswith("search"))
        assert search["asked"][0] - search["todo"][0] == 4 * search["items"]

    @pytest.mark.parametrize(
        "optimiser",
        [
            "optimiser=uniform",
            *(pytest.param(one, marks=pytest.mark.slow) for one in ("optimiser=greedy_soup", "optimiser.budget=300")),
        ],
    )
    def test_every_search_has_a_count(self, family: Path, souping: Cli, tmp_path: Path, optimiser: str) -> None:
        call = [*pool_of(family), "selector=topk", "selector.k=2", "stop_after=search", optimiser]
        assert souping(*call, "plan=true", "hydra.run.dir=planned").code == 0
        (stage,) = (s for s in plan_of(tmp_path / "planned")["stages"] if s["name"].startswith("search"))
        assert souping(*call, "hydra.run.dir=out").code == 0
        rows = list(csv.DictReader((tmp_path / "out" / "trials.csv").read_text().splitlines()))
        assert stage["in_parts"] == ("budget" in optimiser)
        if "budget" in optimiser:  # parts of the fold: more soups than whole folds, within the same items
            mixed = [row for row in rows if "1.0" not in row.values()]
            assert 0 < sum(int(row["items"]) for row in mixed) <= stage["asked"][1] == 300
        else:
            assert len(rows) <= stage["models"][1] <= len(rows) + 1  # the greedy soup may end early

    def test_it_loads_nothing_heavy(self, family: Path, tmp_path: Path) -> None:
        words = ["souping", *pool_of(family), "plan=true"]
        code = (
            f"import sys; sys.argv={words!r}\nfrom souping.cli.main import main\nmain()\n"
            "print('|'.join(sorted({'torch', 'transformers', 'nevergrad', 'accelerate'} & set(sys.modules))))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=_environment()
        )
        assert done.stdout.splitlines()[-1] == ""

    @pytest.mark.parametrize(
        ("setting", "needle"),
        [
            ("expected={antt:50}", "expected: candidate=antt"),
            ("optimiser.budget=3", "optimiser.budget=3 "),
            ("also=[hellaswag,hellaswag]", "two entries are called 'hellaswag'"),
        ],
    )
    def test_what_a_run_would_refuse_is_the_last_line(
        self, family: Path, souping: Cli, tmp_path: Path, setting: str, needle: str
    ) -> None:
        done = souping(*pool_of(family), setting, "plan=true", "hydra.run.dir=planned")
        assert done.code == 2
        last = done.err.strip().splitlines()[-1]
        assert last.startswith("this run cannot go on here: ")
        assert needle in last
        assert not plan_of(tmp_path / "planned")["can_go_on"]
        assert "# Plan of fam" in (tmp_path / "planned" / "plan.md").read_text()

    def test_candidates_that_do_not_fit(self, family: Path, souping: Cli, tmp_path: Path) -> None:
        from tests.support.family import save_model

        save_model(tmp_path / "large", 9, hidden_size=32)
        call = [f"pool.candidates=[{family / 'ant'},{tmp_path / 'large'}]", *pool_of(family)[1:], "selector=all"]
        done = souping(*call, "plan=true")
        assert done.code == 2
        assert "this run cannot go on here" in done.err
        assert "differ" in done.err or "shape" in done.err


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}


class TestPublished:
    def test_the_papers_8b_table_with_hub_names(
        self, family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No network and no cache: the selection, the trials, sizes by name, and what is missing."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        pool = ",".join("{" + f"name: {name}, path: {path}" + "}" for name, path in HUB)
        table = ["scores=table", f"scores.path={PAPER / 'bfcl_8b.csv'}", f"benchmark.path={family / 'items.jsonl'}"]
        done = souping(
            f"pool.candidates=[{pool}]", *table, "throughput=20", "optimiser=grid", "plan=true", "hydra.run.dir=out"
        )
        assert done.code == 0, done.err
        assert "this run cannot go on here" in done.out  # the models are not here
        found = plan_of(tmp_path / "out")
        chosen = found["selection"]["selection"]
        assert chosen["ingredients"] == BEST
        assert set(chosen["experts"].values()) == set(BEST)
        assert len(chosen["low_correlation"]) == 13
        assert found["selection"]["steady"][0] <= 0.2 <= found["selection"]["steady"][1] < 0.3
        stages = {stage["name"].split(":")[0]: stage for stage in found["stages"]}
        assert "select" not in stages
        assert stages["search"]["models"] == [40, 40]  # 36 of the grid, uniform, three singles
        assert found["folds"]["select"] == 0
        assert {model["basis"] for model in found["models"]} == {"name"}
        assert found["models"][0]["nbytes"] == 16 * GB
        assert found["speeds"]["benchmark"]["items_per_second"] == 20
        assert found["seconds"]["evaluate"][0] == pytest.approx(found["evaluations"]["todo"][0] / 20)
        lacking = [one for one in found["missing"] if one["mends"].startswith("hf download")]
        assert [one["what"].split(":")[0] for one in lacking] == [name for name, _ in HUB]
        for words in (*BEST, "hf download Salesforce/Llama-xLAM-2-8b-fc-r", "HF_HUB_OFFLINE"):
            assert words in done.out


class TestOutlines:
    """Benchmarks whose items cannot be read here are counted by their published sizes."""

    def test_bfcl_v3_holds_4441_items(self) -> None:
        from souping.evaluate.bfcl.evaluator import BfclEvaluator

        server = TransformersServer()
        items = BfclEvaluator(server=server).outline()
        assert len(items) == 4441
        assert len({item.category for item in items}) == 17
        shared = {item.group for item in items if item.category.startswith("multi_turn")}
        assert len(shared) == 200
        assert len(BfclEvaluator(server=server, categories=["live"], limit=20).outline()) == 4 * 20 + 16 * 2
        assert BfclEvaluator(server=server, version="v4").outline() == ()  # memory and web search are not known

    def test_tasks_by_name(self) -> None:
        from souping.evaluate.lm_eval.evaluator import HarnessEvaluator

        tasks = HarnessEvaluator(tasks=["mgsm_native_cot_de", "mgsm_native_cot_en"], group="doc")
        items = tasks.outline()
        assert len(items) == 500
        assert len({item.group for item in items}) == 250
        assert HarnessEvaluator(tasks=["mgsm_native_cot_de", "hellaswag"]).outline() == ()
        assert LocalEvaluator().outline() == ()

    @pytest.mark.slow
    def test_an_experiment_is_planned_without_its_tools(self, souping: Cli, tmp_path: Path) -> None:
        done = souping("+experiment=bfcl_8b", "evaluator.dir=nowhere", "plan=true", "hydra.run.dir=out")
        assert done.code == 0, done.err
        found = plan_of(tmp_path / "out")
        assert found["outlined"]
        assert sum(found["folds"].values()) == 4441
        assert found["selection"]["selection"]["ingredients"] == BEST
        assert found["evaluations"]["todo"][0] > 90_000
        assert 0 < found["power"]["gain"] < 0.03
        assert found["power"]["assumed"]
        lacking = {one["mends"] for one in found["missing"]}
        assert any(command.endswith("full.txt") for command in lacking)
        assert "published sizes" in done.out


class TestMachine:
    def test_gpus_as_the_driver_lists_them(self) -> None:
        found = requirements.listed_gpus("NVIDIA H100 80GB HBM3, 81559, 81000\nNVIDIA A10, 23028, [N/A]\n")
        assert found == (Gpu(name="NVIDIA H100 80GB HBM3", total=81559 * 2**20, free=81000 * 2**20),)

    @pytest.mark.parametrize(
        ("setting", "seen"), [(None, "abc"), ("", ""), ("2,0", "ca"), ("1,7,0", "b"), ("-1", ""), ("GPU-1f", "abc")]
    )
    def test_cuda_visible_devices(self, setting: str | None, seen: str) -> None:
        three = tuple(Gpu(name=name, total=1, free=1) for name in "abc")
        assert "".join(gpu.name for gpu in requirements.visible(three, setting)) == seen

    def test_a_container_may_have_less_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "memory.max").write_text("123456789\n")
        (tmp_path / "none").write_text("max\n")
        monkeypatch.setattr(requirements, "CGROUPS", (tmp_path / "none", tmp_path / "memory.max", tmp_path / "absent"))
        assert requirements.look().memory == 123456789
        assert requirements.look().available <= 123456789

    def test_room_where_nothing_is_yet(self, tmp_path: Path) -> None:
        assert requirements.disk_space(tmp_path / "a" / "b") == requirements.disk_space(tmp_path)


class TestWeights:
    @pytest.mark.parametrize(
        ("name", "number"),
        [
            ("meta-llama/Llama-3.1-8B-Instruct", 8e9),
            ("Salesforce/Llama-xLAM-2-70b-fc-r@main", 70e9),
            ("HuggingFaceTB/SmolLM2-135M", 135e6),
            ("org/model-1.5b", 1.5e9),
            ("org/Mixtral-8x7B", 0),
            ("org/name", 0),
        ],
    )
    def test_parameters_by_name(self, name: str, number: float) -> None:
        assert parameters_in(name) == number

    def test_a_folder_is_known_from_its_headers(self, family: Path) -> None:
        found = weigh(Candidate(name="ant", path=family / "ant"))
        assert found.basis == "headers"
        assert found.nbytes == 2 * found.parameters
        assert found.download == 0

    def test_what_is_no_model_carries_its_trouble(self, tmp_path: Path) -> None:
        found = weigh(Candidate(name="x", path=tmp_path / "nowhere" / "x" / "y"))
        assert "is not a folder" in found.trouble


def run(**changes: Any) -> SimpleNamespace:
    settings = {"out": Path("soup"), "merge": LocalMerge(), "stop_after": None, "throughput": None, "upload": None}
    made = {**settings, "executor": LocalExecutor(), "tracker": NoTracker(), **changes}
    return SimpleNamespace(**made, parts=[made["merge"], made["executor"]])


EIGHT = ModelSize(name="m", path="org/m", basis="Hub", nbytes=16 * GB, parameters=8 * GB, download=17 * GB)
LAPTOP = Machine(cores=8, memory=32 * GB, available=20 * GB)
HOST = Machine(cores=64, memory=512 * GB, available=500 * GB, gpus=(Gpu(name="H100", total=80 * GB, free=79 * GB),) * 2)


class TestRoom:
    @pytest.fixture(autouse=True)
    def disks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(requirements, "disk_space", lambda path: (100 * GB, 1))

    def kinds(self, found: list[Requirement]) -> dict[str, bool]:
        return {one.kind: one.fits for one in found}

    def test_a_disk_holds_soup_and_downloads_together(self) -> None:
        found = requirements_of(run(), [EIGHT] * 4, LAPTOP, [LocalEvaluator()])
        disk = next(one for one in found if one.kind == "disk")
        assert disk.need == 4 * 17 * GB + 16 * GB
        assert disk.fits
        assert not self.kinds(requirements_of(run(), [EIGHT] * 5, LAPTOP, [LocalEvaluator()]))["disk"]
        assert self.kinds(requirements_of(run(stop_after="search"), [EIGHT] * 5, LAPTOP, [LocalEvaluator()]))["disk"]

    @pytest.mark.parametrize(
        ("dtype", "resident", "fits"),
        [("bfloat16", "none", True), ("float32", "none", False), ("bfloat16", "cpu", False)],
    )
    def test_memory_of_a_live_model(self, dtype: Any, resident: str, fits: bool) -> None:
        merge = LocalMerge(resident=resident)
        found = requirements_of(run(merge=merge), [EIGHT] * 2, LAPTOP, [LocalEvaluator(dtype=dtype)])
        assert self.kinds(found)["memory"] is fits

    def test_a_gpu_holds_the_model_in_the_evaluators_dtype(self) -> None:
        seventy = ModelSize(name="m", path="m", basis="headers", nbytes=140 * GB, parameters=70 * GB)
        evaluator = LocalEvaluator(dtype="bfloat16", device="cuda")
        assert self.kinds(requirements_of(run(), [EIGHT], HOST, [evaluator]))["GPU memory"]
        assert not self.kinds(requirements_of(run(), [seventy], HOST, [evaluator]))["GPU memory"]

    @pytest.mark.parametrize(("ways", "fits"), [(1, False), (2, True), (4, False)])
    def test_vllm_shares_a_model_over_gpus(self, ways: int, fits: bool) -> None:
        from souping.evaluate.engines.vllm import VllmEngine

        model = ModelSize(name="m", path="m", basis="headers", nbytes=100 * GB, parameters=50 * GB)
        evaluator = LocalEvaluator(engine=VllmEngine(tensor_parallel_size=ways))
        assert self.kinds(requirements_of(run(), [model], HOST, [evaluator]))["GPU memory"] is fits

    def test_a_dtype_of_the_merge_sizes_the_soup(self) -> None:
        assert soup_bytes([EIGHT], LocalMerge(dtype="float32")) == 32 * GB
        adapter = ModelSize(name="a", path="a", basis="headers", nbytes=GB // 10, parameters=GB // 20, adapter=True)
        assert soup_bytes([adapter], LocalMerge()) == GB // 10


class TestRefusal:
    """A real run on too small a machine stops before a model is loaded."""

    def test_a_full_disk(self, family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(requirements, "disk_space", lambda path: (1000, 1))
        souping(*pool_of(family)).refused("the disk for the soup has 1.00 kB, the run needs 23.47 kB")
        assert not list(tmp_path.glob("outputs/fam/*"))
        done = souping(*pool_of(family), "plan=true")
        assert done.code == 0, done.err
        assert "the disk for the soup has 1.00 kB" in done.out.splitlines()[-1]

    def test_too_little_memory(self, family: Path, souping: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(requirements, "look", lambda: Machine(cores=1, memory=GB, available=GB))
        souping(*pool_of(family)).refused("this machine's memory has 1.00 GB, the run needs 1.50 GB", "evaluator.dtype")


class TestMissing:
    def test_a_command_in_an_error_is_found(self) -> None:
        error = UserError('evaluator=lm_eval needs lm_eval: pip install "souping[lm_eval]"\nmore')
        assert Missing.from_error(error) == Missing(
            what="evaluator=lm_eval needs lm_eval", mends='pip install "souping[lm_eval]"'
        )
        long = Missing.from_error(UserError("bfcl-eval is not in x: python -m venv x && x/bin/pip install -r full.txt"))
        assert long.mends == "python -m venv x && x/bin/pip install -r full.txt"
        assert Missing.from_error(UserError("no such file")).mends == ""

    def test_vllm_without_a_gpu(self) -> None:
        from souping.evaluate.engines.vllm import VllmEngine

        evaluator = LocalEvaluator(engine=VllmEngine(tensor_parallel_size=4))
        found = requirements.missing(run(), [], HOST, [evaluator])
        assert any(one.what == "GPUs: vLLM is to use 4, nvidia-smi shows 2" for one in found)

    def test_a_gpu_that_is_not_there(self) -> None:
        found = requirements.missing(run(), [], LAPTOP, [LocalEvaluator(device="cuda:1")])
        assert [one.what for one in found] == ["a GPU: evaluator.device=cuda:1, nvidia-smi shows 0"]

    def test_an_upload_needs_a_login(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        found = requirements.missing(run(upload="org/name"), [], LAPTOP, [])
        assert "hf auth login" in found[0].mends

    def test_a_part_may_tell_for_itself(self) -> None:
        class Lacking(NoTracker):
            def needs(self) -> list[Missing]:
                return [Missing(what="a spoon", mends="pip install spoon")]

        assert requirements.missing(run(tracker=Lacking()), [], LAPTOP, []) == Lacking().needs()

    def test_an_executor_is_asked_too(self) -> None:
        class Lacking(LocalExecutor):
            def needs(self) -> list[Missing]:
                return [Missing(what="a second spoon")]

        assert requirements.missing(run(executor=Lacking()), [], LAPTOP, []) == Lacking().needs()
        with pytest.raises(UserError, match="cannot go on here: a second spoon"):
            requirements.check_installed(run(executor=Lacking()), [])


class TestSpeed:
    def test_stated_measured_assumed(self, tmp_path: Path) -> None:
        items, evaluator = make_items(5), LocalEvaluator(threads=1, device="cpu")
        with Store(tmp_path / "s.sqlite") as store:
            assumed = speed(run(), evaluator, items, 8 * GB, LAPTOP, store, ["a"])
            assert assumed is not None
            assert assumed.basis == "assumed"
            store.add_timing("a", evaluator.fingerprint, 30, 2.0)
            store.add_timing("a", evaluator.fingerprint, 30, 4.0)
            store.add_timing("b", evaluator.fingerprint, 1, 99.0)
            measured = speed(run(), evaluator, items, 8 * GB, LAPTOP, store, ["a", "c"])
            assert measured is not None
            assert (measured.basis, measured.items_per_second) == ("measured", 10.0)
            stated = speed(run(throughput=3.5), evaluator, items, 8 * GB, LAPTOP, store, ["a"])
            assert stated is not None
            assert (stated.basis, stated.items_per_second) == ("stated", 3.5)

    def test_a_gpu_is_assumed_faster_and_a_large_model_slower(self, tmp_path: Path) -> None:
        items, evaluator = make_items(5), LocalEvaluator(device="cuda")
        with Store(tmp_path / "s.sqlite") as store:
            rates = [
                speed(run(), evaluator.__class__(device=device), items, size, where, store, [])
                for device, size, where in (("cuda", 8 * GB, HOST), ("cpu", 8 * GB, HOST), ("cpu", 70 * GB, HOST))
            ]
        values = [rate.items_per_second for rate in rates if rate is not None]
        assert values[0] > values[1] > values[2] > 0

    def test_nothing_known_nothing_said(self, tmp_path: Path) -> None:
        with Store(tmp_path / "s.sqlite") as store:
            assert speed(run(), LocalEvaluator(threads=1, device="cpu"), [], 1, LAPTOP, store, []) is None
