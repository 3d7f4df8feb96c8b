"""What several tests need: the published tables, a score matrix, a fake evaluator."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from souping.answers.claims import Claim, Look, Measurement
from souping.answers.counted_looks import CountedLooks
from souping.core.protocols import Evaluator, LoadedModel, Objective, Sampling
from souping.core.scores import Mean
from souping.core.types import Item, Json, Recipe, Record, ScoreMatrix
from tests.support.composition import compose_once

IGNORED = [
    n
    for n in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
    if signal.getsignal(n) == signal.SIG_IGN
]
"""What a shell's background or nohup ignores. Processes of tests would inherit that; a handler they do not inherit."""
if "PYTEST_XDIST_WORKER" in os.environ:
    # ignored in the process that started this one, as far as nohup goes
    IGNORED.append(signal.SIGHUP)
for _number in IGNORED:
    signal.signal(
        _number, signal.default_int_handler if _number == signal.SIGINT else lambda *_: None
    )
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads of torch that wait for each other sleep: by default they turn in a loop, and hold up the other worker's.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
settings.register_profile(
    "souping",
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
compose_once()
settings.load_profile("souping")  # the same examples at every run, however busy the machine
ROOT = Path(__file__).resolve().parents[1]
PAPER = ROOT / "souping" / "paper"


@pytest.fixture
def matrix() -> ScoreMatrix:
    """Four candidates, four categories: two pairs that move together, weakly against each other. a is best overall."""
    values = np.array(
        [[0.9, 0.8, 0.5, 0.6], [0.7, 0.6, 0.2, 0.1], [0.3, 0.2, 0.8, 0.9], [0.5, 0.5, 0.4, 0.5]]
    )
    return ScoreMatrix(models=("a", "b", "c", "d"), categories=("w", "x", "y", "z"), values=values)


def make_items(
    per_category: int = 40, categories: Sequence[str] = ("w", "x"), scorer: str = "exact"
) -> list[Item]:
    """Items `category-number`, two in a group; FakeEvaluator compares their numbers with a skill."""
    return [
        Item(
            id=f"{c}-{i}",
            category=c,
            group=f"{c}-{i // 2}",
            prompt=f"say {i}",
            answer=str(i),
            scorer=scorer,
        )
        for c in categories
        for i in range(per_category)
    ]


def recipe(*weights: float, names: tuple[str, ...] = ("a", "b")) -> Recipe:
    return Recipe(
        ingredients=names,
        fingerprints=tuple(f"f-{n}" for n in names),
        weights=weights,
        dtype="BF16",
    )


def claim(
    soup: Recipe, items: Sequence[Item], objective: Objective | None = None, **changes: Any
) -> Claim:
    """What a report says of a soup of `recipe`; by default on the mean."""
    fields = {"candidates": ("f-a", "f-b"), "evaluator": "evaluator", **changes}
    return Claim(soup=soup, objective=objective or Mean(), items=tuple(items), **fields)


def show_report(
    counted_looks: CountedLooks,
    claim: Claim,
    models: Sequence[Recipe] = (),
    evaluator: str = "e",
    guards: str = "",
) -> Look:
    """The look of a claim whose numbers are shown, with those of further models."""
    items = counted_looks.items_of(claim)
    shown = [claim.soup, *models]
    measurement = Measurement.of(evaluator, shown, items)
    return counted_looks.show_report(claim, items, shown, measurement, guards)


@dataclass
class FakeEvaluator(Evaluator):
    """Right on an item when the item's number is below the soup's skill; counts what it is asked."""

    skill: Mapping[str, int]
    asked: list[str] = field(default_factory=list)
    batch_size: int = 7
    times: int = 1

    @property
    def settings(self) -> dict[str, Json]:
        return {"name": "fake", "batch_size": self.batch_size}

    @property
    def sampling(self) -> Sampling:
        return Sampling(answers_per_item=self.times)

    def batches(self, items: Sequence[Item], repeat: int = 0) -> list[tuple[Item, ...]]:
        return [
            tuple(items[i : i + self.batch_size]) for i in range(0, len(items), self.batch_size)
        ]

    def evaluate(self, model: LoadedModel, items: Sequence[Item], repeat: int = 0) -> list[Record]:
        self.asked += [item.id for item in items]
        right = {item.id: float(int(str(item.answer)) < self.skill[model.soup]) for item in items}
        return [
            Record(item=name, score=s, output=f"{name} {repeat}", repeat=repeat)
            for name, s in right.items()
        ]


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four tiny models and their items (see tests/support/family.py)."""
    from tests.support.family import make

    return make(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="session")
def bfcl() -> Any:
    from souping.evaluate.bfcl import find_environment, place_of

    if not os.environ.get("SOUPING_BFCL"):
        pytest.skip("needs SOUPING_BFCL, an environment with bfcl-eval (docs/evaluators.md)")
    return find_environment(place_of())


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    def ok(self) -> Outcome:
        assert self.code == 0, self.err
        return self

    def refused(self, *needles: str) -> None:
        """A user error: exit 2, one to four lines, no traceback, and it says what is needed."""
        assert self.code == 2, self.err
        lines = self.err.strip().splitlines()
        assert 1 <= len(lines) <= 4, self.err
        assert "Traceback" not in self.err
        for needle in needles:
            assert needle in self.err, self.err


Cli = Callable[..., Outcome]
DOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)


def command_line(place: Path, *words: str, drawn: bool = False) -> int:
    """Exit status of the command line, run in this process and in that folder.

    A third of a tiny run's time would go into figures, so they are dots and empty elements unless they are wanted
    `drawn`. A single run is not composed twice to find Hydra's mode.
    """
    from hydra._internal.hydra import Hydra

    from souping.cli.main import main
    from souping.report.plots import Drawing

    single = all(
        word.startswith("hydra.run.dir=")
        for word in words
        if "hydra" in word or word.startswith("-")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(sys, "argv", ["souping", *words])
        # spares a composition
        patch.setattr(Hydra, "get_mode", (lambda *_, **__: None) if single else Hydra.get_mode)
        if not drawn:
            patch.setattr(
                Drawing,
                "svg",
                lambda self: f'<svg role="img" aria-label="{escape(self.alt)}"></svg>',
            )
            patch.setattr(Drawing, "png", lambda self, dpi=144: DOT)
        try:
            main()
        except SystemExit as error:
            return int(error.code or 0)
    return 0


@pytest.fixture(scope="session", autouse=True)
def patient_wandb() -> Iterator[None]:
    """Wait for wandb's service: on a busy machine it takes longer to start than a run should wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("souping.trackers.TIMEOUT", 600.0)
        yield


@pytest.fixture
def souping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Cli:
    """Run the command line in this process, in an empty folder."""

    def run(*arguments: str, drawn: bool = False) -> Outcome:
        monkeypatch.chdir(tmp_path)
        code = command_line(tmp_path, *arguments, drawn=drawn)
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def pool_of(family: Path, *names: str) -> list[str]:
    """Arguments of a quick run on the tiny family; the analyses that follow a report take longer than the run."""
    folders = ",".join(str(family / name) for name in names or ("ant", "bee", "cat", "dog"))
    quick = ["evaluator.max_new_tokens=4", "evaluator.threads=1", "name=fam", "analysis=[]"]
    return [f"pool.candidates=[{folders}]", f"benchmark.path={family / 'items.jsonl'}", *quick]


def finished_words(family: Path) -> list[str]:
    return [
        *(word for word in pool_of(family) if word != "analysis=[]"),
        "selector.threshold=0.9",
        "seed=3",
    ]


@pytest.fixture(scope="session")
def finished(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one whole run in `run`, its store in `outputs` and its output in `terminal.txt`.

    A test that writes into it takes `finished_copy`.
    """
    place = tmp_path_factory.mktemp("finished")
    with redirect_stdout(io.StringIO()) as terminal:
        assert command_line(place, *finished_words(family), "hydra.run.dir=run", drawn=True) == 0
    (place / "terminal.txt").write_text(terminal.getvalue())
    return place


def report_of(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


@pytest.fixture
def finished_copy(finished: Path, tmp_path: Path) -> Path:
    """Directory of the finished run, in the folder where `souping` works."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run"
