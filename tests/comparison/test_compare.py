"""`souping compare`: verdicts, BFCL, what is refused, and what the command needs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import souping as library
from souping.comparison.result import comparison_sections
from souping.core.types import UserError
from souping.logs.bfcl_items import MULTI_TURN
from souping.report.render import sheet_markdown
from souping.statistics.power import RunPower
from tests.conftest import ROOT, Cli
from tests.support.compare import Rows, answers, compared
from tests.support.logs import Frame, write_csv

# Verdicts


@pytest.mark.parametrize(
    ("rate", "words", "verdict", "code"),
    [
        (0.62, [], "better", 0),
        (0.38, [], "worse", 1),
        (0.38, ["--margin", "2"], "much-worse", 1),
        (0.38, ["--margin", "2", "--fail-on", "none"], "much-worse", 0),
        (0.5, ["--margin", "10"], "no-worse", 0),
        (0.5, ["--margin", "10", "--fail-on", "worse,no-worse"], "no-worse", 1),
        (0.5, [], "undecided", 0),
        (0.5, ["--fail-on", "undecided"], "undecided", 1),
    ],
)
def test_the_exit_status_is_that_of_the_verdict(
    souping: Cli, log: Callable[..., Path], rate: float, words: list[str], verdict: str, code: int
) -> None:
    log("base", answers(0.5, 1))
    log("cand", answers(rate, 2))
    ended = souping("compare", "base=base.csv", "cand=cand.csv", "--json", *words)
    table = json.loads(ended.out)
    assert table["verdicts"][0]["verdict"] == verdict
    assert (ended.code, table["status"]) == (code, code)


def test_a_required_task_decides_with_the_average(tmp_path: Path) -> None:
    policy = tmp_path / "gate.toml"
    policy.write_text("margin = 2\n[tasks.words]\nrequired = true\nmargin = 1\n")
    better_sums = [
        row | ({"score": 1} if row["category"] == "sums" else {"score": 0})
        for row in answers(0.5, 1)
    ]
    result = compared(answers(0.5, 1), better_sums, policy=policy)
    decided = {row.name: row.verdict for row in result.verdicts if row.required}
    assert decided == {"average": result.average_row("cand").verdict, "words": "much-worse"}
    assert (decided["average"] == "better", result.status) == (True, 1)
    # The row that failed stands at the top, on the terminal and on the page.
    (first, *_) = comparison_sections(result)[0].lines
    assert "words is much-worse" in first
    assert "average" not in first
    assert first in sheet_markdown("page", comparison_sections(result))
    passed = compared(answers(0.5, 1), better_sums, policy=policy, fail_on=())
    assert "exit status" not in repr(passed)


def test_a_policy_may_name_the_only_task(tmp_path: Path) -> None:
    policy = tmp_path / "gate.toml"
    policy.write_text("[tasks.sums]\nrequired = true\nmargin = 1\n")
    rows = []
    for rate, seed in ((0.6, 1), (0.4, 2)):
        rows.append([row for row in answers(rate, seed) if row["category"] == "sums"])
    assert "sums" not in [row.name for row in compared(*rows).verdicts]
    assert {
        row.name: row.verdict for row in compared(*rows, policy=policy).verdicts if row.required
    } == {
        "average": "worse",
        "sums": "much-worse",
    }


def test_groups_are_those_of_any_log_and_of_more_than_the_item_that_names_them() -> None:
    rows = [answers(0.5, seed) for seed in (1, 2)]
    grouped = [row | {"group": f"i{n // 4 * 4}"} for n, row in enumerate(rows[1])]
    for pair in ((rows[0], grouped), (grouped, rows[0])):
        assert compared(*pair).average_row("cand").groups == 100


def test_runs_that_all_differ_alike_are_tested_by_items() -> None:
    logs: list[Rows] = [[], []]
    for score, rows in enumerate(logs):
        for run in range(3):
            rows += answers(0, 1, 50, run=run)
        for row in rows:
            row["score"] = score
    head = compared(*logs).average_row("cand")
    assert (head.verdict, head.p_value < 1e-9) == ("better", True)


@pytest.mark.parametrize(
    "settings",
    [
        {"fail_on": "worse"},
        {"lower_is_better": "sums"},
        {"fail_on": ["wrose"]},
        {"look": 0},
        {"look": 2.5},
        {"pass_at": -1},
    ],
    ids=str,
)
def test_a_wrong_argument_is_named(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        compared(answers(0.5, 1), answers(0.5, 2), **settings)


def test_missing_answers_leave_a_verdict_undecided() -> None:
    cand = answers(0.5, 2)
    for answer in cand[:100]:
        answer |= {"score": 0, "stop_reason": "error"}
    base = answers(0.5, 1)
    whole = compared(base, [answer | {"stop_reason": ""} for answer in cand]).average_row("cand")
    row = compared(base, [{"stop_reason": ""} | answer for answer in cand]).average_row("cand")
    assert whole.verdict == "worse"
    assert (row.verdict, row.reason, row.missing) == ("undecided", "missing answers", 100)
    assert row.difference == whole.difference  # counted as the harness counts


def test_length_and_cut_answers_are_rows_that_only_a_policy_judges(tmp_path: Path) -> None:
    base = answers(0.5, 1, tokens=100, stop_reason="stop")
    cand = answers(0.5, 2, tokens=120, stop_reason="length")
    for number, row in enumerate(cand):
        row["tokens"] = 120 + number % 3
    policy = tmp_path / "gate.toml"
    policy.write_text('[tasks.tokens]\nmargin = "10%"\nrequired = true\n')
    for gate, verdict, status in ((None, "", 0), (policy, "much-worse", 1)):
        result = compared(base, cand, policy=gate)
        rows = {row.name: row for row in result.verdicts}
        assert (rows["tokens"].verdict, result.status) == (verdict, status)
        assert rows["cut"].mean == 1.0
        assert any("truncated" in line for line in result.warnings)


@pytest.mark.parametrize(("cut", "claimed"), [(80, True), (81, False)])
def test_nothing_is_claimed_if_more_than_a_fifth_of_the_answers_are_cut_off(
    cut: int, claimed: bool
) -> None:
    base = answers(0.5, 1, stop_reason="stop")
    cand = answers(0.7, 2, stop_reason="stop")
    for row in cand[:cut]:
        row["stop_reason"] = "length"
    for logs in ((base, cand), (cand, base)):
        rows = compared(*logs, margin=1.0).rows("cand")
        scored = [row for row in rows if row.kind in ("average", "task")]
        assert len(scored) == 3
        assert all((row.verdict == "undecided") != claimed for row in scored)
        assert all(("truncated" in row.reason) != claimed for row in scored)


@pytest.mark.parametrize(("cut", "claimed"), [(80, True), (81, False)])
def test_no_model_is_among_the_best_if_more_than_a_fifth_of_the_answers_are_cut_off(
    cut: int, claimed: bool
) -> None:
    logs = [answers(0.5, seed, stop_reason="stop") for seed in (1, 2, 3)]
    for row in logs[2][:cut]:
        row["stop_reason"] = "length"
    result = compared(*logs)
    assert bool(result.best) == claimed
    assert result.pairs.keys() == {"base", "cand"}
    assert "Row minus column" in repr(result)


@pytest.mark.parametrize("cut", [0, 40])
def test_answers_are_said_to_be_cut_where_they_are(cut: int) -> None:
    base = answers(0.5, 1, stop_reason="stop")
    cand = answers(0.5, 2, stop_reason="stop")
    for row in cand[:cut]:
        row["stop_reason"] = "length"
    shares = [line for line in compared(base, cand).warnings if "truncated" in line]
    assert len(shares) == (cut > 0)
    assert all("10.0 % of cand, 0.0 % of base" in line for line in shares)


def test_length_is_that_of_the_tasks_that_have_it_and_others_are_named() -> None:
    long = [row | {"tokens": 10 if row["category"] == "sums" else ""} for row in answers(0.5, 1)]
    longer = [row | {"tokens": 12 if row["category"] == "sums" else ""} for row in answers(0.5, 2)]
    (row,) = [row for row in compared(long, longer).verdicts if row.name == "tokens"]
    assert (row.items, row.difference) == (200, 2.0)
    mixed = []
    for rows in (long, longer):
        wide = {"category": "sums", "higher_is_better": True}
        sums = [row | wide | {"score": 10 * row["score"]} for row in rows]
        mixed.append([row for row in rows if row["category"] == "words"] + sums)
    assert any("sums is not averaged" in line for line in compared(*mixed).warnings)


def test_a_loss_is_compared_if_the_command_says_so(souping: Cli, log: Callable[..., Path]) -> None:
    for name, level in (("base", 1.5), ("cand", 2.5)):
        rows = [row for row in answers(0.5, 1, items=100) if row["category"] == "sums"]
        log(name, [row | {"score": level + n % 7 / 10} for n, row in enumerate(rows)])
    words = ("compare", "base=base.csv", "cand=cand.csv", "--json")
    souping(*words).refused("higher_is_better")
    ended = souping(*words, "--lower-is-better", "sums")
    assert (ended.code, json.loads(ended.out)["verdicts"][0]["verdict"]) == (1, "worse")


def test_the_rows_average_to_the_headline_and_holm_covers_the_tasks() -> None:
    result = compared(answers(0.5, 1), answers(0.55, 2))
    head, *tasks = [row for row in result.verdicts if row.kind in ("average", "task")]
    assert head.difference == pytest.approx(sum(row.weight * row.difference for row in tasks))
    assert {row.level for row in tasks} <= {0.95, 0.975}
    for row in result.verdicts:
        assert (row.low > 0 or row.high < 0) == (row.p_value < 0.05), row.name


def test_groups_looks_and_runs(log: Callable[..., Path]) -> None:
    base = answers(0.5, 1)
    cand = answers(0.56, 2)
    plain = compared(base, cand).average_row("cand")
    third = compared(base, cand, look=3)
    assert third.average_row("cand").p_value == pytest.approx(min(1, 12 * plain.p_value), abs=0.02)
    for row in (*base, *cand):
        row["passage"] = int(row["item"][1:]) // 8
    grouped = compared(base, cand, group="passage")
    assert grouped.average_row("cand").groups == 50
    assert not any("--group" in line for line in grouped.warnings)
    base_runs: Rows = []
    cand_runs: Rows = []
    for run in range(3):
        base_runs += answers(0.5, 10 + run, run=run)
        cand_runs += answers(0.6, 20 + run, run=run)
    recipes = compared(base_runs, cand_runs)
    assert "runs" in recipes.average_row("cand").test
    assert recipes.variance["cand"].runs is not None
    assert any("One run per model" in line for line in compared(base, cand).warnings)
    assert not any("One run per model" in line for line in recipes.warnings)


def test_runs_of_a_model_are_the_noise_floor_beside_its_difference() -> None:
    def run(wrong: set[int], name: str) -> Rows:
        rows = answers(1, 1, 40, run=name)
        return [row | {"score": int(n not in wrong)} for n, row in enumerate(rows)]

    base = run({0, 1, 2, 3}, "one") + run({0, 1, 2, 5}, "two") + run({0, 1}, "three")
    result = compared(base, run({0}, "one"))
    (noise,) = result.runs
    # pairs differ on 2, 2 and 2 of 40 items; the averages are 36, 36 and 38 of 40
    assert (noise.model, noise.runs) == ("base", 3)
    assert (noise.flipped, noise.spread) == pytest.approx((2 / 40, 2 / 40))
    assert noise.difference is None
    assert result.variance.keys() == {"cand"}
    other = library.compare({"cand": Frame(run({0}, "one")), "base": Frame(base)}).runs[0]
    assert other.difference == pytest.approx(result.average_row("cand").difference * -1)
    text = repr(result)
    assert "base: 3 runs" in text
    assert "5.0 % of the items" in text
    assert json.loads(result.to_json())["runs"][0]["flipped"] == pytest.approx(0.05)
    assert compared(answers(0.5, 1), answers(0.5, 2)).runs == ()


def test_what_limits_a_comparison_is_said() -> None:
    """One run each, a model with one run beside one with two, and two of each; items with and without groups."""
    one = answers(0.5, 1)
    two = answers(0.55, 2, run="a") + answers(0.56, 3, run="b")

    def said(*logs: Rows, **settings: Any) -> str:
        return "\n".join(compared(*logs, **settings).warnings)

    assert "One run per model" in said(one, answers(0.55, 2))
    beside = said(one, two)
    assert "base: one run" in beside
    assert "One run per model" not in beside
    again = said(two, answers(0.6, 5, run="a") + answers(0.6, 6, run="b"))
    assert "one run" not in again.lower()
    assert "counts as independent" in said(one, two)
    grouped = [[row | {"group": str(n // 2)} for n, row in enumerate(log)] for log in (one, two)]
    assert "independent" not in said(*grouped)
    assert "20 independent items are few" not in said(answers(0.5, 1, 50), answers(0.6, 2, 50))
    few = said(answers(0.5, 1, 12), answers(0.6, 2, 12))
    assert "12 independent items are few" in few


def test_another_seed_is_only_spoken_of_where_models_differ(tmp_path: Path) -> None:
    def note(*paths: Path) -> str:
        logs = {f"m{n}": path for n, path in enumerate(paths)}
        return next(line for line in library.compare(logs).warnings if "One run" in line)

    paths = []
    for folder, seed in (("new", 1), ("old", 2)):
        (tmp_path / folder).mkdir()
        paths.append(write_csv(tmp_path / folder / "served.csv", answers(0.5, seed)))
    assert "seed" not in note(*paths)
    trained = write_csv(tmp_path / "trained.csv", answers(0.5, 2))
    assert "seed" in note(paths[0], trained)


def two_runs(rate: float, seed: int) -> Rows:
    """Answers of two runs of a model, the second right more often by 0.04."""
    return answers(rate, seed, run=0) + answers(rate + 0.04, seed + 1, run=1)


def test_one_more_run_shows_smaller_differences_than_twice_the_items() -> None:
    result = compared(two_runs(0.5, 10), two_runs(0.55, 20), margin=0.5)
    row = result.average_row("cand")
    assert row.detectable is not None
    assert row.detectable_one_more_run is not None
    assert row.detectable_twice_items is not None
    assert row.detectable_one_more_run < row.detectable_twice_items < row.detectable
    # Shifts of runs do not fall with the items.
    assert row.items_needed is None
    assert "add runs" in repr(result)


def test_power_is_asked_for_no_more_for_one_more_run_and_for_twice_the_items(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def asked(self: RunPower, more_runs: int = 0, times_items: float = 1.0) -> float:
        """Both arguments in one number."""
        return 100 * more_runs + times_items

    monkeypatch.setattr(RunPower, "detectable", asked)
    row = compared(two_runs(0.5, 10), two_runs(0.55, 20), margin=0.5).average_row("cand")
    shown = (row.detectable, row.detectable_one_more_run, row.detectable_twice_items)
    assert shown == (1.0, 101.0, 2.0)


def test_power_of_single_runs_is_said_for_more_items_alone() -> None:
    plain = compared(answers(0.5, 1), answers(0.5, 2), margin=0.5).average_row("cand")
    assert plain.detectable_one_more_run is None
    assert plain.items_needed


# BFCL


def test_bfcls_overall_is_that_of_the_version_that_wrote_the_log(
    bfcl_logs: dict[str, Path],
) -> None:
    result = library.compare(bfcl_logs, average="bfcl")
    means = {row.name: row.mean for row in result.verdicts}
    # Live categories weigh by their items. Version 4 gives 10 to calls, 10 to live ones and 30 to multi-turn.
    live = (20 * means["live_simple"] + 60 * means["live_multiple"]) / 80
    multi_turn = np.mean([means[name] for name in MULTI_TURN[:3]])
    overall = (10 * means["simple_python"] + 10 * live + 30 * multi_turn) / 50
    assert means["average"] == pytest.approx(overall)
    weights = {row.name: row.weight for row in result.verdicts}
    assert weights["live_relevance"] == 0
    assert any("overall accuracy without" in line for line in result.warnings)


def test_the_default_says_that_it_is_not_bfcls_overall(bfcl_logs: dict[str, Path]) -> None:
    result = library.compare(bfcl_logs)
    assert any("--average bfcl" in line for line in result.warnings)
    assert not any("--group" in line for line in result.warnings)
    assert result.average_row("cand").groups < result.average_row("cand").items


def test_bfcls_overall_of_other_logs_is_refused() -> None:
    with pytest.raises(UserError, match="--average bfcl"):
        compared(answers(0.5, 1), answers(0.5, 2), average="bfcl")


# Errors


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["base=base.csv"], "two models"),
        (["base=base.csv", "cand"], "NAME=LOG"),
        (["base=base.csv", "base=cand.csv"], "twice"),
        (["base=base.csv", "cand=gone.csv"], "gone.csv"),
        (["base=base.csv", "cand=base.csv"], "same log"),
        (["base=base.csv", "cand=cand.csv", "--baseline", "bse"], "base"),
        (["base=base.csv", "cand=cand.csv", "--fail-on", "worst"], "--fail-on"),
        (["base=base.csv", "cand=cand.csv", "--margin", "-1"], "margin"),
        (["base=base.csv", "cand=cand.csv", "--policy", "gate.toml"], "suns"),
        (["base=base.csv", "cand=cand.csv", "--policy", "deep.toml"], "not TOML"),
        (["base=base.csv", "cand=cand.csv", "--same-prompts"], "prompts of any item"),
        (["base=base.csv", "cand=cand.csv", "--average", "no.json"], "no.json"),
        (["base=base.csv", "cand=cand.csv", "--pass-at", "2"], "pass@2"),
        (["base=base.csv", "cand=cand.csv", "--group", "passage"], "passage"),
        (["base=base.csv", "cand=cut.jsonl"], "cut.jsonl:2"),
        (["base=base.csv", "cand=other.csv"], "common"),
        (["base=base.csv", "cand=nan.csv"], "score"),
        (["base=base.csv", "cand=one.csv"], "two or more"),
        (["base=base.csv", "cand=,"], "cand=LOG"),
        (["base=base.csv", "cand=cand.csv", "--average", "odd.json"], "weights"),
        (["base=base.csv", "cand=cand.csv", "--look", "99999"], "look"),
        (["base=named.csv", "cand=renamed.csv"], "average"),
    ],
)
def test_logs_that_cannot_be_compared_are_refused_in_a_line(
    souping: Cli, log: Callable[..., Path], tmp_path: Path, words: list[str], key: str
) -> None:
    log("base", answers(0.5, 1))
    log("cand", answers(0.6, 2))
    log("other", [row | {"item": f"o{n}"} for n, row in enumerate(answers(0.5, 1))])
    log("nan", [row | {"score": ""} for row in answers(0.5, 1)])
    log("one", answers(0.5, 1)[:1])
    for name, seed in (("named", 1), ("renamed", 2)):
        log(
            name,
            [
                row | {"category": row["category"].replace("sums", "average")}
                for row in answers(0.5, seed)
            ],
        )
    (tmp_path / "odd.json").write_text('{"sums": -1, "words": 2}')
    (tmp_path / "cut.jsonl").write_text(
        '{"item": 1, "category": "sums", "score": 1}\n{"item": 2, "categ'
    )
    (tmp_path / "gate.toml").write_text("[tasks.suns]\nrequired = true\n")
    (tmp_path / "deep.toml").write_text(f"x = {'[' * 5000}")
    souping("compare", *words).refused(key)


def test_one_item_shows_nothing() -> None:
    result = compared(answers(0.0, 1, items=2), answers(1.0, 2, items=2))
    assert result.average_row("cand").verdict == "undecided"
    assert any("few" in line for line in result.warnings)


# What the command needs


def test_compare_imports_neither_torch_nor_hydra(log: Callable[..., Path], tmp_path: Path) -> None:
    log("base", answers(0.5, 1))
    log("cand", answers(0.6, 2))
    code = (
        "import sys; sys.argv = ['souping', 'compare', 'base=base.csv', 'cand=cand.csv']\n"
        "from souping.cli.main import main\ntry: main()\nexcept SystemExit: pass\n"
        "print({'torch', 'hydra', 'omegaconf', 'transformers', 'matplotlib', 'pandas', 'yaml'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("set()\n")


@pytest.mark.parametrize(
    ("words", "code", "key"),
    [
        (["--help"], 2, "yaml"),
        (["compare", "base=run:uniform_all", "soup=run"], 2, "yaml"),
        (["compare", "base=base.csv", "cand=cand.csv", "--average", "fault"], 1, "hydra"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_missing_package_is_named_in_two_lines(
    log: Callable[..., Path],
    finished_copy: Path,
    tmp_path: Path,
    words: list[str],
    code: int,
    key: str,
) -> None:
    log("base", answers(0.5, 1))
    log("cand", answers(0.6, 2))
    start = (
        "import sys\nclass Hidden:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('yaml', 'hydra', 'omegaconf', 'torch'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        f"sys.meta_path.insert(0, Hidden())\nsys.argv = ['souping', *{words}]\n"
        "import souping.cli.compare as command\n"
        "if 'fault' in sys.argv: command.compare = lambda *_, **__: 1 / 0\n"
        "from souping.cli.main import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", start], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    assert key in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def linked(site: Path, *names: str) -> Iterator[Path]:
    """Links to what installed distributions hold."""
    for name in names:
        found = distribution(name)
        for top in {
            file.parts[0]
            for file in found.files or ()
            if file.parts[0] not in ("..", "__pycache__")
        }:
            (site / top).symlink_to(Path(str(found.locate_file(top))).resolve())
            yield site / top


@pytest.mark.slow
def test_compare_runs_where_only_four_packages_are_installed(
    log: Callable[..., Path], tmp_path: Path
) -> None:
    """`pip install --no-deps`, beside numpy, scipy, pydantic, rich and what those need."""
    needed = ["numpy", "scipy", "pydantic", "pydantic-core", "annotated-types"]
    needed += ["typing-extensions"]
    needed += ("typing-inspection", "rich", "markdown-it-py", "mdurl", "pygments")
    (tmp_path / "site").mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), str(ROOT)], check=True)
    assert list(linked(tmp_path / "site", *needed))
    log("base", answers(0.5, 1))
    log("cand", answers(0.38, 2))
    for words, code in (
        (["cand=cand.csv", "--out", "gate"], 1),
        (["cand=gone.csv"], 2),
        (["--help"], 0),
    ):
        start = "import sys, runpy; sys.path.insert(0, 'site'); runpy.run_module('souping', run_name='__main__')"
        command = [sys.executable, "-S", "-c", start, "compare", "base=base.csv", *words]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env={"PATH": ""}
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr


def test_losses_of_several_tasks_are_averaged_if_they_have_one_direction() -> None:
    def losses(level: float, words_are_better_higher: bool) -> list[dict[str, Any]]:
        table = []
        for number, row in enumerate(answers(0.5, 1)):
            higher = words_are_better_higher and row["category"] == "words"
            score = level + number % 7 / 10
            table.append(row | {"score": score, "higher_is_better": higher})
        return table

    head = compared(
        losses(2.5, words_are_better_higher=False), losses(1.5, words_are_better_higher=False)
    ).verdicts[0]
    assert (head.verdict, head.difference, head.higher_is_better) == ("better", -1.0, False)
    with pytest.raises(UserError, match="nothing to average"):
        compared(
            losses(2.5, words_are_better_higher=True), losses(1.5, words_are_better_higher=True)
        )
