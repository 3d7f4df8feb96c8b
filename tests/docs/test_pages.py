"""README and docs/, followed: blocks of code run as they stand, in an empty folder, by the commands that they print.

What a page shows below a command is compared with what the command printed, numbers included. A page may leave out
lines, columns of a table, and the end of a line that ends in ` ...`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from souping.comparison.row_verdict import read_policy
from tests.conftest import ROOT
from tests.support import lm_eval_tasks, texts, trainers, trajectory
from tests.support.pages import DOCS, FENCE

GENERATED = ("docs/reference.md", "docs/reference-files.md")
PAGES = ["README.md", *(page for page in DOCS if page not in GENERATED)]
HUB = "needs the Hub"
GPU = "needs a GPU"
SLURM = "needs SLURM"
NETWORK = "installs from the network"
ASK = "runs in test_ask_and_tell.py, with a stand-in for SLURM"
LEFT_OUT = {
    # README.md
    'pip install -e ".[dev]" && pytest': "runs this test",
    "import souping\nfrom souping.demo": "runs in test_readme.py",
    # docs/checkpoints.md
    'pip install -e ".[remote]"': NETWORK,
    "souping merge pool.candidates='[s3://": "needs a bucket; tests/checkpoints/test_remote.py has one",
    '{\n  "prefix": "net."': "a file of rules, which tests/checkpoints/test_names.py reads",
    # docs/compare.md
    "souping compare base=all.parquet:small": "needs a table of yours; tests/logs/test_readers.py has one",
    "- run: lm_eval --model hf": "steps of a workflow: needs models, and installs packages",
    # docs/evaluators.md
    '{"id": "w17"': "lines of a file, shortened",
    "souping engine=vllm": GPU,
    'pip install -e ".[lm_eval]"': NETWORK,
    "# the same 250 problems": HUB,
    "python -m venv ~/.cache/souping/bfcl": NETWORK,
    "~/.cache/souping/bfcl/bin/pip install": NETWORK,
    'pip install -e ".[serving]"': NETWORK,
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve BASE": "needs vLLM; tests/evaluate/engines/test_vllm.py runs it",
    "souping evaluator=bfcl evaluator.categories": "needs bfcl-eval; tests/evaluate/bfcl runs with it",
    # docs/large-runs.md
    "souping -m +experiment=bfcl hydra/sweeper=optuna": "needs an old Optuna; tests/cli/test_sweep.py runs with it",
    "souping -m +experiment=bfcl correlation": "generates 20,000 answers; tests/cli/test_sweep.py has a smaller one",
    "souping -m pool.candidates='[/shared/A": SLURM,
    "#!/bin/bash\n#SBATCH --gres=gpu:1": ASK,
    "run=$1\n": ASK,
    # docs/merging.md
    "#!/bin/bash\n#SBATCH --nodes=4": SLURM,
    "souping pool.candidates='[ADAPTER_A": "needs trained adapters; tests/soups/test_merge_only.py has others",
    "souping upload RUN": HUB,
    "souping plan upload RUN": HUB,
    "souping pool.candidates='[org/a": HUB,
    # docs/reading-a-report.md
    "vllm serve BASE": GPU,
    'routes = json.load(open("RUN/router.json"))': "needs the servers above it",
    # docs/method.md
    "score     evaluate every candidate": "no output",
    # docs/your-models.md
    'souping check "pool.candidates=$MODELS" benchmark.path=hf://': HUB,
    "souping evaluator=command pool.candidates": "tests/soups/test_multimodal.py has models for it",
    # docs/paper.md
    "souping +experiment=bfcl_8b": GPU,
}
"""{beginning of a block, or of a command in it: why it does not run here}"""
BEFORE = {
    "souping tell soups": "for i in 2 3; do bash eval.sh soups/asked/$i/model soups/asked/$i/items.jsonl "
    "soups/asked/$i/out; done; mkdir logs; cp soups/asked/3/out/log.csv logs/three.csv"
}
"""{beginning of a command: what the reader has done before it}"""
EVAL = """exec python - "$@" <<'END'
import csv, hashlib, json, sys
model, items, out = sys.argv[1:]
with open(f"{out}/log.csv", "w", newline="") as file:
    table = csv.writer(file)
    table.writerow(("item", "category", "score"))
    for item in map(json.loads, open(items)):
        luck = hashlib.sha256((item["id"] + model[-20:]).encode()).digest()[0]
        table.writerow((item["id"], item["category"], int(luck < 150)))
END
"""
"""An evaluation of one's own, by luck"""
STANDINS = {
    "pip": "",  # what it installs is there
    "sbatch": 'while [[ $1 == --* ]]; do shift; done\nexec bash "$@"\n',
}
DATA = ROOT / "tests" / "data" / "logs"


def reason(text: str) -> str:
    """Why a block or a command does not run; empty if it does."""
    return next((why for start, why in LEFT_OUT.items() if text.startswith(start)), "")


def commands(block: str) -> list[str]:
    """The commands of a block, each with the lines of comment above it; a backslash continues a line."""
    return re.findall(r"(?:#.*\n)*(?:.*\\\n)*.+", block)


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of the blocks of a page that are not left out."""
    found = FENCE.findall((ROOT / page).read_text(encoding="utf-8"))
    return [(language, text) for language, text in found if not reason(text)]


def plain(text: str, folder: Path) -> str:
    """A text without times, and with the folder as pages have it."""
    text = text.replace(str(folder), "/data")
    return re.sub(r"\b\d[\d.,]* (s|min|h|answers/s)\b", "TIME", text)


def missing(shown: str, printed: str) -> list[str]:
    """The lines of a page that are not in this order in what was printed."""
    lines: Iterator[str] = iter(printed.splitlines())
    lost = []
    for line in shown.splitlines():
        parts = [part for part in re.split(r"\s{2,}|\s*\.\.\.$", line.strip()) if part]
        if parts and not any(has_in_order(one, parts) for one in lines):
            lost.append(line)
    return lost


def has_in_order(line: str, parts: Sequence[str]) -> bool:
    place = 0
    for part in parts:
        found = re.compile(rf"(?<!\S){re.escape(part)}").search(line, place)
        if found is None:
            return False
        place = found.end()
    return True


class Reader:
    """Somebody who follows a page in an empty folder, with what the page says that they have."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.variables: list[str] = []
        self.printed = ""
        path = folder.parent / f"{folder.name}-bin"
        path.mkdir()
        for name, text in STANDINS.items():
            (path / name).write_text(f"#!/bin/bash\n{text}")
            (path / name).chmod(0o755)
        places = [str(path), str(Path(sys.executable).parent), os.environ["PATH"]]
        self.environment = {**os.environ, "PATH": os.pathsep.join(places), "PYTHONPATH": str(ROOT)}

    def follow(self, language: str, text: str) -> None:
        """Do what a reader does with a block: write a named file, type commands, compare what is shown."""
        # A line for Hydra or for an editor may stand above the name.
        named = re.match(
            r"(?:# (?:@package|yaml-language-server).*\n)?# (\S+\.(?:py|yaml|toml))\n", text
        )
        if named:
            path = self.folder / named[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            # A package is installed and used by tests/cli/test_installed.py.
            if path.suffix == ".toml" and path.name != "pyproject.toml":
                read_policy(path)
        elif language == "bash":
            self.printed = ""
            for command in commands(text):
                self.type(command)
        elif language == "console":
            command, _, shown = text.removeprefix("$ ").partition("\n")
            self.printed = ""
            self.type(command)
            self.compare(shown)
        elif language == "text":
            self.compare(text)
        elif language == "python":
            self.run([sys.executable, "-c", text])
        else:
            assert language == "json", f"a block of {language}: {text}"
            assert all(json.loads(line)["id"] for line in text.splitlines())

    def type(self, command: str) -> None:
        """Run a command of a page, with the variables that were set before."""
        if reason(command):
            return
        before = next((more for start, more in BEFORE.items() if command.startswith(start)), "")
        script = "\n".join(["set -e", *self.variables, before, command])
        # The models of a plan may be elsewhere: the plan says so, with status 2.
        self.run(["bash", "-c", script], statuses=(0, 2) if " plan " in command else (0,))
        if re.match(r"(export )?\w+=", command):
            self.variables.append(command)

    def run(self, words: Sequence[str], statuses: Sequence[int] = (0,)) -> None:
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode in statuses, f"{words[-1]}\n{done.stdout[-1000:]}{done.stderr}"
        self.printed += done.stdout

    def compare(self, shown: str) -> None:
        printed = plain(self.printed, self.folder)
        lost = missing(plain(shown, self.folder), printed)
        assert lost == [], f"not printed: {lost}\nprinted:\n{printed}"


def three(folder: Path, family: Path) -> None:
    """A, B and C, the tiny models, and items.jsonl."""
    for name, member in {"A": "ant", "B": "bee", "C": "cat"}.items():
        shutil.copytree(family / member, folder / name)
    shutil.copy(family / "items.jsonl", folder)


def give_checkpoints(folder: Path, family: Path) -> None:
    """Checkpoints that Megatron and torchtitan wrote, and files of torch.save."""
    cases = trainers.unpacked(folder / "cases", "megatron_llama_pp", "torchtitan_ema_plain")
    megatron = trainers.step_of(cases / "megatron_llama_pp")
    shutil.copytree(megatron, folder / "A")
    shutil.copytree(megatron, folder / "B")
    titan = trainers.step_of(cases / "torchtitan_ema_plain")
    for name in ("run/step-800", "run/step-1000", "step-100"):
        shutil.copytree(titan, folder / name)
    (folder / "org" / "model").mkdir(parents=True)
    shutil.copy(cases / "megatron_llama_pp" / "config.json", folder / "org" / "model")
    weights = {"w": torch.ones(3)}
    torch.save(weights, folder / "a.pth.tar")
    torch.save({"ema": weights}, folder / "b.pt")


def give_compare(folder: Path, family: Path) -> None:
    (folder / "evals").mkdir()
    for log, tool in {"evals/v12": "tuned_python", "evals/v13": "tuned_java"}.items():
        shutil.copytree(DATA / "lm_eval" / tool, folder / log)
    for side, tool in {"base": "tuned_python", "cand": "tuned_java"}.items():
        place = folder / {"base": "a", "cand": "b"}[side]
        place.mkdir()
        for kind in ("nemo_evaluator", "nemo_gym", "verifiers"):
            shutil.copytree(DATA / kind / side, place, dirs_exist_ok=True)
        shutil.copy(
            DATA / "every_eval_ever" / f"{tool}_samples.jsonl", place / "UUID_samples.jsonl"
        )


def give_evaluators(folder: Path, family: Path) -> None:
    three(folder, family)
    (folder / "eval.sh").write_text(EVAL)
    texts.write(folder / "texts.jsonl")
    (folder / "DIR").mkdir()
    task = lm_eval_tasks.from_family(folder / "DIR", family / "items.jsonl")
    text = (task / "red_green_blue.yaml").read_text()
    (task / "red_green_blue.yaml").write_text(text.replace("task: red_green_blue", "task: mytask"))


def give_extending(folder: Path, family: Path) -> None:
    three(folder, family)
    rows = [json.loads(line) for line in (family / "items.jsonl").read_text().splitlines()]
    lines = [json.dumps({**row, "scorer": "brief"}) + "\n" for row in rows]
    (folder / "items.jsonl").write_text("".join(lines))


def give_large_runs(folder: Path, family: Path) -> None:
    (folder / "eval.sh").write_text(EVAL)
    three(folder, family)


def give_method(folder: Path, finished: Path) -> None:
    shutil.copytree(finished, folder, dirs_exist_ok=True)
    (folder / "run").rename(folder / "RUN")


def give_trajectory(folder: Path, family: Path) -> None:
    trajectory.make_run(folder / "runs" / "sft", seed=0)
    texts.write(folder / "texts.jsonl")


GIVEN: dict[str, Callable[[Path, Path], None]] = {
    "docs/checkpoints.md": give_checkpoints,
    "docs/compare.md": give_compare,
    "docs/evaluators.md": give_evaluators,
    "docs/extending.md": give_extending,
    "docs/large-runs.md": give_large_runs,
    "docs/merging.md": three,
    "docs/trajectory.md": give_trajectory,
}
"""What the reader of a page has: made in their folder, from the tiny family"""
QUICK = ("docs/method.md",)
DEMO = ("docs/compare.md", "docs/extending.md", "docs/goals.md", "docs/large-runs.md")
"""Pages whose main job repeats that of README: they find its answers in their store."""


def test_a_block_that_is_not_run_is_on_a_page_and_has_a_reason() -> None:
    starts = list[str]()
    for page in PAGES:
        for _, text in FENCE.findall((ROOT / page).read_text(encoding="utf-8")):
            starts += [text, *commands(text)]
    assert [start for start in LEFT_OUT if not any(text.startswith(start) for text in starts)] == []
    assert all(LEFT_OUT.values())


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """The reader of README, after its blocks."""
    reader = Reader(tmp_path_factory.mktemp("readme"))
    for language, text in blocks("README.md"):
        reader.follow(language, text)
    return reader


@pytest.mark.slow
def test_the_readme_runs_as_printed(demo: Reader) -> None:
    assert list(demo.folder.glob("outputs/**/soup/model.safetensors"))


def marked(page: str) -> Any:
    return pytest.param(page, marks=() if page in QUICK else pytest.mark.slow)


@pytest.mark.parametrize("page", [marked(page) for page in PAGES[1:] if blocks(page)])
def test_a_page_runs_as_printed(
    page: str, tmp_path: Path, family: Path, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path / "reader"
    folder.mkdir()
    if page in GIVEN:
        GIVEN[page](folder, family)
    if page == "docs/method.md":
        give_method(folder, request.getfixturevalue("finished"))
    if page in DEMO:
        shutil.copytree(request.getfixturevalue("demo").folder / "outputs", folder / "outputs")
    reader = Reader(folder)
    for language, text in blocks(page):
        reader.follow(language, text)


def test_a_line_of_a_page_that_no_command_prints_is_found() -> None:
    printed = "  soup   main   79.6 [74.3, 84.3]   p 0.008\nchose 1 python, 73.1 % on the split\n"
    assert missing("  soup   79.6 [74.3, 84.3]\n...\nchose 1 python ...\n", printed) == []
    assert missing("  soup   79.6 [74.3, 84.4]\n", printed) != []
    assert missing("  soup   9.6 [74.3, 84.3]\n", printed) != []
    assert missing("chose 1 python\n  soup   main\n", printed) != []
