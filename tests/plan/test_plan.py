"""`plan=true` of a run: it counts what the run then does, and says what is missing before anything is lost."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from souping.core.types import Missing, UserError
from souping.evaluate.generate import LocalEvaluator
from souping.pipeline.checks import Machine
from souping.plan import speed
from souping.search.adaptive import Adaptive
from tests.cli.test_experiments import CHOSEN
from tests.conftest import PAPER, ROOT, Cli, finished_words, make_items, pool_of
from tests.pipeline.test_checks import GB, HOST, LAPTOP

HUB = {
    "xLAM-2-8b-fc-r": "Salesforce/Llama-xLAM-2-8b-fc-r",
    "ToolACE-2-8B": "Team-ACE/ToolACE-2-Llama-3.1-8B",
    "watt-tool-8B": "watt-ai/watt-tool-8B",
    "BitAgent-8B": "BitAgent/BitAgent-8B",
    "CoALM-8B": "uiuc-convai/CoALM-8B",
}
BEST = ["xLAM-2-8b-fc-r", "ToolACE-2-8B", "watt-tool-8B"]
FIVE = "pool.candidates=[o/m1-8B,o/m2-8B,o/m3-8B,o/m4-8B,o/m5-8B]"
EXPERIMENTS = {"bfcl_8b": (), "bfcl_70b": (), "mgsm": (), "infinitebench": (FIVE,), "flores": (FIVE,)}


def plan_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    found["by_name"] = {stage["name"].split(":")[0]: stage for stage in found["stages"]}
    return found


def report_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


class TestAgainstRuns:
    """Plans of the tiny family beside the runs that they are plans of."""

    def test_it_counts_what_the_run_then_evaluates(self, family: Path, souping: Cli, tmp_path: Path) -> None:
        extra = tmp_path / "side.jsonl"
        extra.write_text("".join((family / "items.jsonl").read_text().splitlines(keepends=True)[:30]))
        call = [*pool_of(family), "selector=topk", "selector.k=2", f"also=[{extra}]", "expected={ant:{red:50}}"]
        call += ["gate=warn", "optimiser=grid"]
        planned = souping(*call, "plan=true", "hydra.run.dir=planned")
        assert planned.code == 0, planned.err
        assert not (tmp_path / "outputs" / "store.sqlite").exists()
        before = plan_of(tmp_path / "planned")
        assert before["can_go_on"]
        done = souping(*call, "hydra.run.dir=out")
        assert done.code == 0, done.err
        report, stages = report_of(tmp_path / "out"), before["by_name"]
        assert stages["search"]["models"] == [report["cost"]["trials"]] * 2
        assert stages["report"]["items"] == report["folds"]["report"]
        # The run performs the stages that the plan counts, in their order.
        names = [stage["name"] for stage in before["stages"]]
        lines = [line for line in (done.out + done.err).splitlines() if line.startswith(tuple(names))]
        assert list(dict.fromkeys(next(n for n in names if line.startswith(n)) for line in lines)) == names
        # The winner may be a candidate or a baseline, whose answers are known by then; otherwise counts are exact.
        most = before["evaluations"]["todo"][1]
        assert most - report["folds"]["report"] - 30 <= report["cost"]["evaluated_items"] <= most
        if report["recipe"]["weights"] not in ([1.0], [0.5, 0.5]):
            assert report["cost"]["evaluated_items"] == most

        again = souping(*call, "plan=true", "hydra.run.dir=again")
        assert again.code == 0, again.err
        after = plan_of(tmp_path / "again")
        assert after["evaluations"]["todo"] == [0, 0]
        assert after["selection"]["selection"]["ingredients"] == report["selection"]["ingredients"]
        assert after["speeds"]["benchmark"]["basis"] == "measured"

    @pytest.mark.slow
    def test_an_open_selection_gives_least_and_most(
        self, finished: Path, family: Path, souping: Cli, tmp_path: Path
    ) -> None:
        """Of an adaptive search: what the middle number of ingredients is expected to take, and the most."""
        assert souping(*finished_words(family), "plan=true", "hydra.run.dir=planned").code == 0
        before = plan_of(tmp_path / "planned")
        assert before["selection"]["selection"] is None
        assert before["selection"]["sizes"] == [1, 2, 3, 4]
        search = before["by_name"]["search"]
        spans = [Adaptive().workload(size, search["items"]) for size in (2, 4)]
        assert search["in_parts"]
        assert search["todo"] == [spans[0][0], spans[1][1]]
        assert report_of(finished / "run")["cost"]["evaluated_items"] <= before["evaluations"]["todo"][1]
        assert souping(*finished_words(family), "optimiser=grid", "plan=true", "hydra.run.dir=grid").code == 0
        least, most = plan_of(tmp_path / "grid")["evaluations"]["todo"]
        assert 0 < least < most

    def test_a_search_that_was_cut_is_continued(self, family: Path, souping: Cli, tmp_path: Path) -> None:
        call = [*pool_of(family), "selector=topk", "selector.k=2", "optimiser=grid", "stop_after=search"]
        assert souping(*call, "optimiser.trials=4", "hydra.run.dir=out").code == 0
        assert souping(*call, "plan=true", "hydra.run.dir=planned").code == 0
        search = plan_of(tmp_path / "planned")["by_name"]["search"]
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
        stage = plan_of(tmp_path / "planned")["by_name"]["search"]
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
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv={words!r}\n"
            "from souping.cli.main import main\nmain()\n"
            "print('|'.join(sorted({'torch', 'transformers', 'nevergrad', 'accelerate'} & set(sys.modules))))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
        assert done.stdout.splitlines()[-1] == ""


class TestPublished:
    def test_the_papers_8b_table_with_hub_names(
        self, family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No network and no cache: the selection, the trials, sizes by name, and what is missing."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        pool = ",".join("{" + f"name: {name}, path: {path}" + "}" for name, path in HUB.items())
        table = ["scores=table", f"scores.path={PAPER / 'bfcl_8b.csv'}", f"benchmark.path={family / 'items.jsonl'}"]
        done = souping(
            f"pool.candidates=[{pool}]", *table, "throughput=20", "optimiser=grid", "plan=true", "hydra.run.dir=out"
        )
        assert done.code == 0, done.err
        found = plan_of(tmp_path / "out")
        chosen = found["selection"]["selection"]
        assert (chosen["ingredients"], set(chosen["experts"].values())) == (BEST, set(BEST))
        assert len(chosen["low_correlation"]) == 13
        assert "select" not in found["by_name"]
        assert found["by_name"]["search"]["models"] == [40, 40]  # 36 of the grid, uniform, three candidates
        assert found["folds"]["select"] == 0
        assert {model["basis"] for model in found["models"]} == {"name"}
        assert found["models"][0]["nbytes"] == 16 * GB
        assert found["speeds"]["benchmark"]["items_per_second"] == 20
        assert found["seconds"]["evaluate"][0] == pytest.approx(found["evaluations"]["todo"][0] / 20)
        lacking = [one for one in found["missing"] if one["fix"].startswith("hf download")]
        assert [one["what"].split(":")[0] for one in lacking] == list(HUB)
        assert not found["can_go_on"]
        assert "hf download Salesforce/Llama-xLAM-2-8b-fc-r" in done.out

    @pytest.mark.parametrize(
        "name", [name if name == "bfcl_8b" else pytest.param(name, marks=pytest.mark.slow) for name in EXPERIMENTS]
    )
    def test_docs_headers_and_plans_count_the_same(
        self, name: str, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Evaluations that docs and headers of experiments state, where no tool is installed."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setenv("SOUPING_BFCL", str(tmp_path / "nowhere"))
        monkeypatch.setattr("souping.evaluate.lm_eval.evaluator.find_spec", lambda package: None)
        done = souping(f"+experiment={name}", *EXPERIMENTS[name], "plan=true", "hydra.run.dir=planned")
        assert done.code == 0, done.err
        page, found = (tmp_path / "planned" / "plan.md").read_text(), plan_of(tmp_path / "planned")
        assert ("its own group" in page) == (name == "infinitebench")  # several questions on a book, known by its text
        assert "Missing on this machine" in page
        assert [ingredient for ingredient in CHOSEN.get(name, []) if ingredient not in page] == []
        todo = found["evaluations"]["todo"]
        assert sorted(set(todo)) == stated(name)
        header = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text()
        for number in re.findall(r"\(([\d,]+) evaluations\)", header):
            assert int(number.replace(",", "")) == todo[0]
        if name == "bfcl_8b":
            assert found["outlined"]
            assert sum(found["folds"].values()) == 4441
            assert 0 < found["power"]["gain"] < 0.03
            assert any(one["fix"].endswith("full.txt") for one in found["missing"])


def stated(name: str) -> list[int]:
    """The evaluations in the row of an experiment."""
    lines = [line for page in (ROOT / "docs").glob("*.md") for line in page.read_text().splitlines()]
    rows = [line for line in lines if line.startswith(f"| `{name}`") and re.search(r"items?/s", line)]
    cell = next(cell for cell in rows[0].split("|") if re.fullmatch(r"\s*\d[\d,]*,\d{3}( to [\d,]+)?\s*", cell))
    return [int(number.replace(",", "")) for number in cell.split(" to ")]


def test_a_command_in_an_error_is_found() -> None:
    error = UserError('evaluator=lm_eval needs lm_eval: pip install "souping[lm_eval]"\nmore')
    assert Missing.from_error(error) == Missing(
        what="evaluator=lm_eval needs lm_eval", fix='pip install "souping[lm_eval]"'
    )
    long = Missing.from_error(UserError("bfcl-eval is not in x: python -m venv x && x/bin/pip install -r full.txt"))
    assert long.fix == "python -m venv x && x/bin/pip install -r full.txt"
    assert Missing.from_error(UserError("no such file")).fix == ""


def test_a_rate_is_stated_measured_or_assumed() -> None:
    def rate(
        stated: float | None, measured: float | None, device: str, size: int, machine: Machine
    ) -> tuple[str, float]:
        evaluator = LocalEvaluator(threads=1, device=device)
        made = speed(stated, measured, evaluator, make_items(5), size, machine)
        assert made is not None
        return made.basis, made.items_per_second

    assert rate(3.5, 10.0, "cpu", 8 * GB, LAPTOP) == ("stated", 3.5)
    assert rate(None, 10.0, "cpu", 8 * GB, LAPTOP) == ("measured", 10.0)
    gpu, cpu, large = (
        rate(None, None, device, size, HOST) for device, size in (("cuda", 8 * GB), ("cpu", 8 * GB), ("cpu", 70 * GB))
    )
    assert {one[0] for one in (gpu, cpu, large)} == {"assumed"}
    assert gpu[1] > cpu[1] > large[1] > 0
    assert speed(None, None, LocalEvaluator(threads=1, device="cpu"), [], 1, LAPTOP) is None
