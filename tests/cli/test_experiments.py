"""Every experiment composes; those at the paper's scale plan offline and run small on stand-ins."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from souping.cli import choices, groups
from souping.core.scores import read_table
from tests.conftest import PAPER, ROOT, Cli
from tests.support.composition import compose
from tests.support.experiments import LANGUAGES, checkpoints, flores, mgsm, pool

FILES = sorted((ROOT / "conf" / "experiment").glob("*.yaml"))
OPEN = ("infinitebench", "flores")
"""Experiments whose candidates were never published."""
REST = {"merge": ["pool.candidates=[a,b]", "optimiser.weights=[0.5,0.5]"], "rebuild": ["recipe=r.json"]}
REST["trajectory"] = ["pool.path=run"]
REST |= {name: ["pool.candidates=[a,b,c]"] for name in OPEN}
CHOSEN = {
    "bfcl_8b": ["xLAM-2-8b-fc-r", "ToolACE-2-8B", "watt-tool-8B"],
    "bfcl_70b": ["xLAM-2-70b-fc-r", "CoALM-70B", "watt-tool-70B", "functionary-medium-v3.1"],
    "mgsm": ["MetaMathOctopus-7B", "MetaMathOctopus-MAPO-DPO-7B"],
}
"""What selection makes of the published scores. At 70B the paper left functionary-medium out."""


def composed(name: str, *more: str) -> dict[str, Any]:
    return compose([f"+experiment={name}", *REST.get(name, []), *more])


def selected(folder: Path) -> list[str]:
    found: list[str] = json.loads(next(folder.rglob("selection.json")).read_text())["ingredients"]
    return found


class TestComposition:
    @pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
    def test_every_file_composes_and_passes_the_check(self, path: Path) -> None:
        assert composed(path.stem)["name"] == path.stem

    @pytest.mark.parametrize("name", ["bfcl_8b", "bfcl_70b", "mgsm"])
    def test_expected_figures_are_the_papers(self, name: str) -> None:
        plain = composed(name)
        with (PAPER / "results.csv").open() as stream:
            printed = {row["row"]: float(row["score"]) for row in csv.DictReader(stream)}
        names = [c["name"] if isinstance(c, dict) else c.rpartition("/")[2] for c in plain["pool"]["candidates"]]
        assert plain["expected"] == {candidate: printed[candidate] for candidate in names}
        assert set(names) == set(read_table(Path(plain["scores"]["path"])).models)


OPEN_KEYS = {
    "optimiser=fixed": "optimiser.weights=[1]",
    "evaluator=command": "evaluator.command=evaluate.sh",
    "evaluator=lm_eval": "evaluator.tasks=[mgsm]",
    "scores=logs": "scores.path={a: a_log, b: b_log}",
    "scores=table": "scores.path=scores.csv",
    "objective=tree": "objective.tree={all:[x]}",
    "objective=weighted": "objective.weights={x:1}",
    "pool=folders": "pool.candidates=[a,b]",
    "pool=trajectory": "pool.path=run",
}
"""What a choice leaves to the user."""
SWAPPED = [group for group in groups() if group != "experiment"]


def swapped(name: str, *swaps: str) -> dict[str, Any]:
    """An experiment with other choices, composed and checked."""
    words = [*swaps, *(OPEN_KEYS[word] for word in swaps if word in OPEN_KEYS)]
    replaced = {word.partition("=")[0] for word in swaps}
    rest = [word for word in REST.get(name, []) if word.partition(".")[0] not in replaced]
    return compose([f"+experiment={name}", *rest, *words])


def swap(group: str, number: int) -> str:
    """The override that takes a choice of a group; numbers beyond the last choice begin again."""
    choice = choices(group)[number % len(choices(group))]
    return f"analysis=[{choice}]" if group == "analysis" else f"{group}={choice}"


class TestSwappedChoices:
    """What an experiment sets for a choice goes with that choice."""

    @pytest.mark.slow
    @pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
    def test_every_experiment_takes_every_choice_of_every_group(self, path: Path) -> None:
        """All groups are swapped at once, as often as the largest group has choices."""
        for number in range(max(len(choices(group)) for group in SWAPPED)):
            swapped(path.stem, *(swap(group, number) for group in SWAPPED))

    @pytest.mark.parametrize("name", ["soce_cluster", "topk", "greedy"])
    def test_settings_of_the_replaced_choice_are_left_out(self, name: str) -> None:
        selector = swapped("mgsm", f"selector={name}")["selector"]
        assert not {"sign", "ties"} & set(selector)
        assert selector["objective"]["_target_"].endswith("Mean")

    def test_a_choice_that_the_experiment_names_keeps_its_settings(self) -> None:
        assert swapped("bfcl_70b", "server=vllm")["server"]["tensor_parallel_size"] == 4
        assert swapped("mgsm", "selector=soce")["selector"]["sign"] == "signed"

    def test_a_typo_in_an_experiment_is_refused(self, souping: Cli, tmp_path: Path) -> None:
        (tmp_path / "own" / "experiment").mkdir(parents=True)
        own = "# @package _global_\ndefaults:\n  - override /selector: topk\nselector: {kk: 2}\n"
        (tmp_path / "own" / "experiment" / "mine.yaml").write_text(own)
        words = ("--config-dir", str(tmp_path / "own"), "+experiment=mine", "pool.candidates=[a,b]")
        souping(*words).refused("selector.kk")
        souping(*words, "selector=topk").refused("selector.kk")


class TestSelection:
    @pytest.mark.parametrize("name", CHOSEN)
    def test_published_scores_select_without_a_weight(self, name: str, souping: Cli, tmp_path: Path) -> None:
        done = souping(f"+experiment={name}", "stop_after=select")
        assert done.code == 0, done.err
        assert selected(tmp_path) == CHOSEN[name]

    def test_flores_selects_without_the_corrupt_column(self, souping: Cli, tmp_path: Path) -> None:
        whole, clean = (read_table(PAPER / f"{name}.csv") for name in ("flores36", "flores36_selection"))
        assert set(whole.categories) - set(clean.categories) == {"eng_spa"}
        columns = [whole.categories.index(name) for name in clean.categories]
        assert (whole.values[:, columns] == clean.values).all()
        names = ",".join(f"candidate_{n}" for n in range(1, 6))
        done = souping(
            "+experiment=flores",
            "scores=table",
            "scores.path=${data:paper/flores36_selection.csv}",
            f"pool.candidates=[{names}]",
            "stop_after=select",
        )
        assert done.code == 0, done.err
        assert len(selected(tmp_path)) > 1


def test_the_harness_has_the_tasks() -> None:
    """Without reading its index, which takes some twenty seconds."""
    lm_eval = pytest.importorskip("lm_eval")
    tasks = Path(lm_eval.__file__).parent / "tasks"
    for task in composed("mgsm")["evaluator"]["tasks"]:
        text = (tasks / "mgsm" / "native_cot" / f"{task}.yaml").read_text()
        assert f"task: {task}\n" in text
        assert "name: flexible-extract" in text
    for task in composed("infinitebench")["evaluator"]["tasks"]:
        assert f"task: {task}\n" in (tasks / "infinitebench" / f"{task}.yaml").read_text()


@pytest.mark.slow
class TestSmall:
    """On tiny checkpoints and stand-in data: the experiment's own settings, but for the machine's."""

    MACHINE = ("evaluator.device=cpu", "evaluator.threads=1", "evaluator.dtype=float32", "evaluator.batch_size=64")

    @pytest.fixture(autouse=True)
    def harness(self) -> None:
        pytest.importorskip("lm_eval")

    def test_mgsm(self, souping: Cli, tmp_path: Path) -> None:
        names = [
            c["name"] if isinstance(c, dict) else c.rpartition("/")[2] for c in composed("mgsm")["pool"]["candidates"]
        ]
        checkpoints(tmp_path / "models", names)
        mgsm(tmp_path / "tasks", 12)
        words = ["+experiment=mgsm", pool(tmp_path / "models", names), f"evaluator.include_path={tmp_path / 'tasks'}"]
        words += [*self.MACHINE, "evaluator.gen_kwargs={max_gen_toks: 3}"]
        stopped = souping(*words)
        stopped.refused("gate:", "score as expected")  # stand-ins are no mathematicians
        done = souping(*words, "gate=warn", "optimiser.trials=3")
        assert done.code == 0, done.err
        report = json.loads(next(tmp_path.rglob("report.json")).read_text())
        assert report["selection"]["ingredients"] == CHOSEN["mgsm"]
        assert list(report["objective"]["coefficients"]) == [f"mgsm_native_cot_{language}" for language in LANGUAGES]
        assert sum(report["folds"].values()) == 120
        assert report["folds"]["select"] == 0  # published scores select
        assert {row["name"] for row in report["rows"]} >= {*names, "soup"}

    def test_flores(self, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("sacrebleu")
        names = ("ant", "bee", "cat")
        checkpoints(tmp_path / "models", names, max_position_embeddings=512)
        monkeypatch.setenv("FLORES_DIR", str(flores(tmp_path / "flores", 8)))
        done = souping(
            "+experiment=flores",
            pool(tmp_path / "models", names),
            *self.MACHINE,
            "evaluator.num_fewshot=1",
            "evaluator.gen_kwargs={max_gen_toks: 8}",
            "evaluator.metric=bleu",
            "selector=all",
            "optimiser.trials=2",
        )
        assert done.code == 0, done.err
        report = json.loads(next(tmp_path.rglob("report.json")).read_text())
        directions = {f"flores36_{name}" for name in read_table(PAPER / "flores36.csv").categories}
        assert set(report["objective"]["coefficients"]) == directions
        assert sum(report["folds"].values()) == 36 * 8


class TestFlores:
    def test_without_the_archive_the_command_is_named(self, souping: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("lm_eval")
        monkeypatch.delenv("FLORES_DIR", raising=False)
        done = souping("+experiment=flores", "pool.candidates=[a,b,c]")
        assert done.code == 2
        assert "FLORES_DIR" in done.err
