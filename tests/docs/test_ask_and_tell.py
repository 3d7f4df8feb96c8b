"""The scripts of docs/large-runs.md, with a stand-in for SLURM."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, Cli, pool_of, report_of
from tests.support.pages import blocks

SBATCH = """#!/bin/bash
for word; do
    case $word in --array=*) ids=${word#--array=} ;; --*) ;; *) break ;; esac
    shift
done
echo "$ids" >> arrays.txt
# The scheduler kills the second job of the first array.
[ "$(wc -l < arrays.txt)" = 1 ] && ids=$(echo "$ids" | cut -d, -f1,3-)
for id in ${ids//,/ }; do
    grep -q "^#SBATCH" "$1" && SLURM_ARRAY_TASK_ID=$id bash "$@" || exit 1
done
"""
SOUPING = '#!/bin/bash\nexec python -m souping "$@"\n'
EVAL = 'exec python -m tests.support.lab "$@"\n'


@pytest.mark.slow
def test_the_scripts_end_with_a_report(souping: Cli, family: Path, tmp_path: Path) -> None:
    texts = blocks(ROOT / "docs" / "large-runs.md", "bash")
    (job,) = [text for text in texts if "#SBATCH" in text]
    (rounds,) = [text for text in texts if "sbatch --wait" in text]
    files = {
        "soup.sbatch": job,
        "rounds.sh": rounds,
        "eval.sh": EVAL,
        "bin/sbatch": SBATCH,
        "bin/souping": SOUPING,
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    words = [word for word in pool_of(family) if not word.startswith("evaluator.")]
    command = "evaluator.command='bash eval.sh {model} {items} {out}'"
    more = ["selector=topk", "selector.k=2", "optimiser=uniform", "hydra.run.dir=soups"]
    souping(*words, "evaluator=command", command, "executor=files", *more).ok()
    folders = [str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join(folders), "PYTHONPATH": str(ROOT)}
    subprocess.run(["bash", "rounds.sh", "soups"], cwd=tmp_path, env=environment, check=True)
    assert report_of(tmp_path / "soups")["verdict"]["sentence"]
    arrays = (tmp_path / "arrays.txt").read_text().splitlines()
    # What was killed came again.
    assert arrays[0].split(",")[1] in arrays[1].split(",")
