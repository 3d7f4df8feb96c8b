"""The SmolLM2 study: its problems, its tunes (the same bytes from the same seed, or none), its tables, its runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.smollm import matrix
from examples.smollm.figures import OURS, View, choices, divisions, page
from examples.smollm.items import choice_row, write_items
from examples.smollm.problems import CHARACTERS, Part, Problems, read_problems
from examples.smollm.scoring import bits_per_byte, score, score_file, soups_of
from examples.smollm.training import RECORD, TUNES, TrainingSettings, Tune, has_failed, make
from souping.core.types import Names, UserError
from tests.conftest import ROOT, Cli
from tests.support import smollm_kit

SIZES: Mapping[Part, int] = {"items": 24, "development": 10}
QUICK = TrainingSettings(batch=2, rate=1e-2, warmup=1)
SHORT = Tune(name="smol_web", languages=("javascript", "php"), steps=2)


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Problems:
    return read_problems(smollm_kit.write(tmp_path_factory.mktemp("mbpp")), SIZES)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smollm_kit.model(tmp_path_factory.mktemp("tiny") / "base")


# ------------------------------------------------------------ problems and items


def test_a_problem_is_in_one_part_with_all_languages_and_its_twin(problems: Problems) -> None:
    part_of = dict[int, str]()
    for part, solutions in problems.parts.items():
        for solution in solutions:
            assert part_of.setdefault(solution.problem, part) == part
    first, second = smollm_kit.TWINS
    assert problems.groups[first] == problems.groups[second]
    assert part_of[first] == part_of[second]
    groups = {problems.groups[solution.problem] for solution in problems.parts["items"]}
    assert len(groups) == SIZES["items"]
    for solution in problems.parts["items"]:
        assert "\r" not in solution.code


def test_items_are_short_in_every_language_and_what_trains_is_short(problems: Problems) -> None:
    per_problem = dict[int, int]()
    for solution in problems.parts["items"]:
        per_problem[solution.problem] = per_problem.get(solution.problem, 0) + 1
    assert set(per_problem.values()) == {len(smollm_kit.LANGUAGES)}
    assert smollm_kit.LONG not in per_problem
    for solution in problems.parts["training"]:
        assert len(solution.prompt) + len(solution.code) <= CHARACTERS
        assert (solution.problem, solution.language) != (smollm_kit.LONG, "rust")


def test_a_file_that_holds_no_requests_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="requests"):
        read_problems(tmp_path)
    folder = smollm_kit.write(tmp_path / "data")
    with pytest.raises(UserError, match="development"):
        read_problems(folder, {"items": 50, "development": 10})


def test_the_wrong_choices_are_solutions_that_no_item_and_no_tune_has(problems: Problems) -> None:
    development = {s.code[:60] for s in problems.parts["development"]}
    labels = set()
    for solution in problems.parts["items"]:
        row = choice_row(solution, problems)
        offered = row["choices"]
        assert isinstance(offered, list)
        assert offered[int(str(row["label"]))] == solution.code[:60]
        assert len(set(offered)) == 4
        assert set(offered) - {solution.code[:60]} <= development
        labels.add(row["label"])
    assert labels == {0, 1, 2, 3}


# ------------------------------------------------------------ tunes


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_the_same_seed_gives_the_same_bytes_and_only_upper_layers_learn(
    problems: Problems, base: Path, tmp_path: Path
) -> None:
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        make(SHORT, problems, replace(QUICK, seed=seed), base, tmp_path / name)
    model = (tmp_path / "one" / "model.safetensors").read_bytes()
    assert (tmp_path / "two" / "model.safetensors").read_bytes() == model
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != model
    before = weights(base)
    after = weights(tmp_path / "one")
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed
    assert all(name.startswith("model.layers.1.") for name in changed)


def test_a_tune_that_learns_nothing_is_trained_again_at_half_the_rate(
    problems: Problems, base: Path, tmp_path: Path
) -> None:
    record = make(SHORT, problems, replace(QUICK, rate=1e-9), base, tmp_path / "lazy")
    attempts = json.loads((tmp_path / "lazy" / RECORD).read_text())["attempts"]
    assert [attempt["rate"] for attempt in attempts] == [1e-9, 5e-10]
    assert has_failed(record)
    learned = make(replace(SHORT, steps=30), problems, QUICK, base, tmp_path / "eager")
    assert not has_failed(learned)


def test_a_tune_that_is_there_stays_unless_it_has_other_settings(
    problems: Problems, base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "made"
    record = make(SHORT, problems, QUICK, base, out)
    written = (out / RECORD).stat().st_mtime_ns
    assert make(SHORT, problems, QUICK, base, out) == json.loads(json.dumps(record))
    assert (out / RECORD).stat().st_mtime_ns == written
    with pytest.raises(UserError, match="other settings"):
        make(replace(SHORT, steps=3), problems, QUICK, base, out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        make(SHORT, problems, QUICK, base, tmp_path / "other")


# ------------------------------------------------------------ scores


def test_a_score_is_the_bits_of_the_solution_over_its_bytes(problems: Problems, base: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from souping.evaluate.engines.transformers import load_tokenizer

    solutions = problems.parts["items"][:3]
    tokenizer = load_tokenizer(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="float32", trust_remote_code=False)
    for solution, score_of in zip(solutions, bits_per_byte({"base": base}, solutions), strict=True):
        prompt = [1, *tokenizer(solution.prompt, add_special_tokens=False)["input_ids"]]
        ids = [*prompt, *tokenizer(solution.code, add_special_tokens=False)["input_ids"]]
        with torch.inference_mode():
            logits = model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
        places = range(len(prompt) - 1, len(ids) - 1)
        nats = -sum(float(logits[place, ids[place + 1]]) for place in places)
        expected = nats / np.log(2) / len(solution.code.encode())
        assert score_of == pytest.approx(expected, rel=0.02)  # bfloat16


def test_only_scores_that_are_missing_are_computed(problems: Problems, tmp_path: Path) -> None:
    solutions = problems.parts["items"][:4]
    models = tmp_path / "models"
    for seed, name in enumerate(("a", "b")):
        smollm_kit.model(models / name, seed)
    first = score(("a", "b"), models, solutions, tmp_path / "scores")
    assert first == bits_per_byte({name: models / name for name in ("a", "b")}, solutions)
    known = dict.fromkeys([solution.id for solution in solutions[:3]], 9.0)
    score_file(tmp_path / "scores", ("a", "b")).write_text(json.dumps(known))
    again = score(("a", "b"), models, solutions, tmp_path / "scores")
    assert again[:3] == [9.0] * 3
    assert again[3] == pytest.approx(first[3], rel=0.02)  # bfloat16, in another batch


def test_all_uniform_soups_are_scored_single_models_first() -> None:
    soups = soups_of([tune.name for tune in TUNES])
    assert len(soups) == len(set(soups)) == 31
    assert [len(members) for members in soups[:16]] == [1] * 5 + [5] + [3] * 10


# ------------------------------------------------------------ figures


def made_up(problems: Problems) -> dict[Names, list[float]]:
    """Scores in which a tune is better by 0.4 in its languages, and a soup of k has the mean of its tunes less 0.1."""
    random = np.random.default_rng(0)
    solutions = problems.parts["items"]
    noise = random.normal(1, 0.05, len(solutions))
    singles = {}
    for tune in TUNES:
        own = np.array([solution.language in tune.languages for solution in solutions])
        singles[tune.name] = noise - 0.4 * own
    scores: dict[Names, list[float]] = {(matrix.BASE,): noise.tolist()}
    for members in soups_of(list(singles)):
        mean = np.mean([singles[name] for name in members], axis=0)
        scores[members] = (mean - 0.1 * (len(members) > 1)).tolist()
    return scores


@pytest.fixture(scope="module")
def scored(problems: Problems, tmp_path_factory: pytest.TempPathFactory) -> matrix.Matrix:
    path = tmp_path_factory.mktemp("scores") / "scores.csv"
    matrix.save(problems, made_up(problems), path)
    return matrix.load(path)


def test_the_file_of_scores_holds_them_to_a_thousandth(
    problems: Problems, scored: matrix.Matrix
) -> None:
    expected = made_up(problems)
    assert scored.scores.keys() == expected.keys()
    for members, column in expected.items():
        np.testing.assert_allclose(scored.scores[members], column, atol=0.0005)
    assert scored.groups == tuple(problems.groups[s.problem] for s in problems.parts["items"])


def test_choices_are_scored_on_problems_that_did_not_choose(scored: matrix.Matrix) -> None:
    view = View(matrix=scored)
    groups = np.array(scored.groups)
    for selecting, choosing in divisions(scored.groups, draws=3):
        assert not set(groups[choosing]) & set(groups[~choosing])
        assert set(groups[selecting]) < set(groups[choosing])
        row = choices(view, selecting, choosing)
        # By construction: the mean of the singles less 0.1 for each soup, 0.4 less in a tune's own languages.
        tunes = view.tunes(~choosing)
        assert row["all five"] == pytest.approx(tunes.mean() - 0.1, abs=0.001)
        assert row["router by language"] == pytest.approx(tunes.min(axis=0).mean(), abs=0.01)
        # What looks best on the problems that choose is at most a little worse than any triple on the others.
        assert row["best triple"] == pytest.approx(row["random triple"], abs=0.01)
        assert row["greedy soup"] <= row[OURS]


def test_the_page_has_a_row_for_each_tune_triple_and_choice(scored: matrix.Matrix) -> None:
    text = page(scored, draws=2)
    for tune in TUNES:
        assert f"| {tune.name} |" in text
    assert text.count("smol_") >= 5 + 30
    assert "| router by language |" in text


# ------------------------------------------------------------ runs


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["languages", "choices"])
def test_the_example_runs_small_from_selection_to_report(
    souping: Cli, tmp_path: Path, problems: Problems, experiment: str
) -> None:
    """In a folder as `python -m examples.smollm train` leaves it, with tiny models."""
    pytest.importorskip("lm_eval")
    command = [str(ROOT / "examples" / "smollm" / f"{experiment}.yaml")]
    folder = tmp_path / "outputs" / "smollm"
    souping(*command).refused("outputs/smollm")
    write_items(problems, folder)
    for seed, tune in enumerate(TUNES):
        smollm_kit.model(folder / "models" / tune.name, seed)
    done = souping(
        *command, "optimiser=grid", "optimiser.max_trials=2", "selector=all", "hydra.run.dir=run"
    )
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert set(report["objective"]["coefficients"]) == set(smollm_kit.LANGUAGES)
    assert set(report["selection"]["candidates"]) == {tune.name for tune in TUNES}
    assert (report["cost"]["trials"], bool(report["verdict"])) == (2, True)


def test_the_page_of_the_study_has_the_tables_of_its_scores() -> None:
    readme = (ROOT / "examples" / "smollm" / "README.md").read_text(encoding="utf-8")
    stored = matrix.load()
    assert page(stored) in readme
    # Means over 17 languages with as many items each, of columns of the file.
    best = stored.of(["smol_script"]).mean()
    assert f"| smol_script | 0.641 | 1.092 | 0.840 | {best:.3f} |" in readme
    assert f"| uniform soup of all | | | 0.753 | {stored.of(stored.tunes).mean():.3f} |" in readme


def test_the_evidence_page_has_the_gains_of_soup_and_router_over_the_best_tune() -> None:
    evidence = " ".join((ROOT / "docs" / "evidence.md").read_text(encoding="utf-8").split())
    stored = matrix.load()
    soups = [scores.mean() for members, scores in stored.scores.items() if len(members) > 1]
    best = min(stored.of([tune]).mean() for tune in stored.tunes)
    assert len(soups) == 26
    assert "each of the 26 uniform soups" in evidence
    assert max(soups) < best
    tables = page(stored)
    assert "| all five | 0.597 | -0.057 |" in tables
    assert "(all five: −0.057)" in evidence
    assert "| router by language | 0.549 | -0.105 |" in tables
    assert "still (−0.105)" in evidence
