"""What is evaluated is what is written, and is rebuilt byte for byte: every method of every backend."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from souping.merge import MergeBackend
from souping.merge.accelerate import AccelerateMerge
from souping.merge.kernels import METHODS
from souping.merge.local import LocalMerge
from souping.merge.mergekit import BASED, STOCHASTIC, MergekitMerge
from souping.pipeline.models import ScratchFolder
from tests.conftest import Cli

mergekit = pytest.importorskip("mergekit.merge_methods.registry", reason="mergekit is not installed")
THEIRS = sorted(method.spec.name for method in mergekit.registered_methods())
PAIRS = ("slerp", "nearswap", "arcee_fusion")
"""Methods of mergekit between a base and one other model."""
PARAMETERS: Mapping[str, dict[str, float | bool]] = {
    "slerp": {"t": 0.3},
    "nearswap": {"t": 0.01},
    **{name: {"density": 0.5} for name in ("ties", "dare_ties", "dare_linear", "breadcrumbs", "breadcrumbs_ties")},
    **{name: {"density": 0.5, "epsilon": 0.1} for name in ("della", "della_linear")},
}
ROWS = [
    *(("local", method) for method in METHODS),
    pytest.param("accelerate", "model_stock", marks=pytest.mark.slow),
    ("mergekit", "linear"),
    *(
        pytest.param("mergekit", method, marks=pytest.mark.slow)
        for method in THEIRS
        if method not in ("linear", "passthrough")  # passthrough takes one model alone
    ),
]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """mergekit's own command in this process: a start costs seconds."""
    run = subprocess.run

    def call(command: list[str], **more: object) -> object:
        if "mergekit.scripts.run_yaml" not in command:
            return run(command, **more)  # type: ignore[call-overload]
        from mergekit.scripts.run_yaml import main

        torch.manual_seed(torch.seed())  # a process of its own starts anywhere
        done = CliRunner().invoke(main, command[3:])
        return subprocess.CompletedProcess(command, done.exit_code, "", done.output + repr(done.exception))

    monkeypatch.setattr(subprocess, "run", call)


def settings_of(family: Path, backend: str, method: str) -> tuple[list[str], MergeBackend, tuple[str, ...]]:
    """The command line's settings, the backend, and the candidates."""
    based = method in BASED if backend == "mergekit" else METHODS[method].base
    pair = method in ("slerp", "nuslerp", *PAIRS)
    base = str(family / ("ant" if backend == "mergekit" and method in PAIRS else "base")) if based else None
    names = ("ant", "bee") if pair else ("ant", "bee", "cat")
    parameters = PARAMETERS.get(method, {}) if backend == "mergekit" else {}
    said = [f"merge={backend}", f"merge.method={method}", *([f"merge.base={base}"] if base else [])]
    said += [f"merge.parameters={{{','.join(f'{k}:{v}' for k, v in parameters.items())}}}"] if parameters else []
    if backend == "mergekit":
        return said, MergekitMerge(method=method, base=base, parameters=dict(parameters) or None), names
    if backend == "local":
        return said, LocalMerge(method=method, base=base), names
    return said, AccelerateMerge(method=method, base=base, num_processes=1), names


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("backend", "method"), ROWS)
def test_evaluated_written_and_rebuilt_are_one(
    backend: str, method: str, family: Path, tmp_path: Path, souping: Cli
) -> None:
    said, merge, names = settings_of(family, backend, method)
    weights = (0.3, 0.7) if len(names) == 2 else (0.5, 0.2, 0.3)
    folders = {name: family / name for name in names}
    pool = f"pool.candidates=[{','.join(map(str, folders.values()))}]"
    hand = [f"optimiser.weights=[{','.join(map(str, weights))}]", "out=soup"]
    said += ["merge.num_processes=1"] if backend == "accelerate" else []
    done = souping("+experiment=merge", pool, *hand, *said)
    assert done.code == 0, done.err
    written = content(tmp_path / "soup")

    with closing(merge.open(folders)) as opened:
        recipe = opened.recipe(dict(zip(names, weights, strict=True)))
        assert recipe.id == json.loads(written["recipe.json"])["id"]
        assert ("seed" in recipe.settings) == (backend == "mergekit" and method in STOCHASTIC)
        with closing(ScratchFolder(opened)) as scratch:
            evaluated = content(scratch.write(recipe))
            decoding = json.loads(evaluated.pop("generation_config.json"))  # the evaluator's own, but for the ends
            assert tuple(np.atleast_1d(decoding["eos_token_id"])) == opened.eos_token_ids(recipe) == (2,)
            assert evaluated == {name: data for name, data in written.items() if name != "generation_config.json"}
        module = AutoModelForCausalLM.from_pretrained(family / "ant", dtype=torch.bfloat16)
        opened.live(module).pour(recipe)
        state, stored = module.state_dict(), load_file(tmp_path / "soup" / "model.safetensors")
        assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())

    done = souping("+experiment=rebuild", "recipe=soup/recipe.json", "out=again")
    assert done.code == 0, done.err
    assert content(tmp_path / "again") == written


@pytest.mark.parametrize("method", ["dare_ties", "model_stock"])
@pytest.mark.slow
def test_a_process_of_mergekits_own_says_the_same_again(
    method: str, family: Path, tmp_path: Path, souping: Cli
) -> None:
    said, _, names = settings_of(family, "mergekit", method)
    pool = f"pool.candidates=[{','.join(str(family / name) for name in names)}]"
    assert souping("+experiment=merge", pool, "optimiser=uniform", "out=soup", *said).code == 0
    done = souping("+experiment=rebuild", "recipe=soup/recipe.json", "out=again", "merge=mergekit")
    assert done.code == 0, done.err
    assert content(tmp_path / "again") == content(tmp_path / "soup")
