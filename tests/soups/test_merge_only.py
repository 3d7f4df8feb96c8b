"""Soups by hand and rebuilds: what is evaluated is what is written, and printed commands make it again."""

from __future__ import annotations

import html
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from souping.core.types import Recipe, UserError
from souping.merge.accelerate import AccelerateMerge
from souping.merge.backend import MergeBackend
from souping.merge.local import LocalMerge
from souping.merge.mergekit import BASED, STOCHASTIC, MergekitMerge
from souping.merge.methods import METHODS
from souping.report.format import quoted
from souping.soups.merge_only import read_recipe
from souping.soups.serving import ScratchFolder
from tests.conftest import Cli
from tests.support.adapters import save_adapter

REBUILD = ("rebuild", "soup/recipe.json", "out=again")
SPLIT = (
    "merge.tensor_weights={layers.0:[0.1,0.1,0.8],*.mlp.*:[0.2,0.4,0.4]}",
    "merge.max_shard_size=20KB",
)


def contents(folder: Path, *but: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in but}


def merge(souping: Cli, family: Path, *more: str) -> None:
    """Write `soup/` from three candidates, at fixed weights unless `more` names an optimiser."""
    folders = ",".join(str(family / name) for name in ("ant", "bee", "cat"))
    weights = (
        []
        if any(word.startswith("optimiser=") for word in more)
        else ["optimiser.weights=[0.5,0.2,0.3]"]
    )
    done = souping(
        "+experiment=merge", f"pool.candidates=[{folders}]", "out=soup", *weights, *more
    ).ok()
    assert "B/s" in done.out + done.err


@pytest.mark.parametrize(
    "more", [("optimiser=uniform", "merge.dtype=float32"), SPLIT], ids=["float32", "overrides"]
)
def test_a_soup_is_rebuilt_from_any_store(
    souping: Cli, family: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    merge(souping, family, *more)
    souping(*REBUILD).ok()
    assert contents(tmp_path / "again") == contents(tmp_path / "soup")
    elsewhere = [*REBUILD[:2], "out=other", "store=other.sqlite"]
    souping(*elsewhere).refused("ant", "pool.candidates")
    folders = ",".join(str(family / name) for name in ("cat", "bee", "ant"))
    souping(*elsewhere, f"pool.candidates=[{folders}]").ok()
    assert contents(tmp_path / "other") == contents(tmp_path / "soup")


def test_weights_and_recipes_that_are_none(souping: Cli, family: Path, tmp_path: Path) -> None:
    folders = ",".join(str(family / name) for name in ("ant", "bee"))
    for weights, needle in (
        ("", "is not set"),
        ("[0.5,0.2,0.3]", "3 weights"),
        ("[0.5,0.2]", "0.7"),
    ):
        words = [f"optimiser.weights={weights}"] if weights else []
        souping("merge", f"pool.candidates=[{folders}]", "out=soup", *words).refused(needle)
    (tmp_path / "x.json").write_text("{")
    souping("rebuild", "out=again").refused("recipe")
    for name in ("none.json", "x.json"):
        again = souping("rebuild", name, "out=again")
        again.refused(name)
        assert "action" not in again.err


def test_a_plan_is_shown_saved_and_merged_alone(souping: Cli, family: Path, tmp_path: Path) -> None:
    from souping.merge.__main__ import merge_plan as merge_alone

    folders = ",".join(str(family / name) for name in ("ant", "bee"))
    arguments = [
        "+experiment=merge",
        f"pool.candidates=[{folders}]",
        "optimiser.weights=[0.25,0.75]",
    ]
    assert "0.25 x ant + 0.75 x bee" in souping("plan", *arguments).ok().out
    saved, config = sorted((tmp_path / "outputs" / "merge").iterdir(), reverse=True)
    assert "normalize: false" in config.read_text()
    assert merge_alone([str(saved), str(tmp_path / "alone")]) == 0
    souping(*arguments, "out=soup").ok()
    one = (tmp_path / "alone" / "model.safetensors").read_bytes()
    two = (tmp_path / "soup" / "model.safetensors").read_bytes()
    assert one == two


def test_a_plan_of_a_merge_that_cannot_start_here_ends_with_2(
    souping: Cli, family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("souping.core.text.find_spec", lambda package: None)
    pool = f"pool.candidates=[{family / 'ant'},{family / 'bee'}]"
    words = [pool, "optimiser=uniform", "out=soup", "merge=mergekit", "merge.method=linear"]
    done = souping("plan", "merge", *words)
    done.refused("cannot start here", "mergekit")
    assert list((tmp_path / "outputs" / "merge").glob("plan_*.json"))


@pytest.mark.parametrize(
    "change",
    [
        {"id": "edited"},
        {"weights": [1.0]},
        {"ingredients": [["a"], ["b"], ["c"]]},
        {"ingredients": ["a", "a", "a"]},
        {key: list(map(str, range(200_000))) for key in ("ingredients", "fingerprints")}
        | {"weights": [1] * 200_000},
        {"weights": [10**400, 1, 1]},
        {"weights": [math.nan, 1, 1]},
        {"dtype": "int4"},
        {"sources": {"a": None}},
        {"settings": {"t": json.loads("[" * 300 + "]" * 300)}},
        {"settings": {"overrides": [["x", ["y"]]]}},
        {"settings": {"no_such": 1}},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_recipe_with_values_of_other_kinds_is_refused(
    tmp_path: Path, change: dict[str, object]
) -> None:
    table: dict[str, Any] = {
        "id": "x",
        "ingredients": list("abc"),
        "fingerprints": list("def"),
        "weights": [0.5, 0.2, 0.3],
        "dtype": "float32",
        "method": "linear",
        "settings": {},
        **change,
    }
    # Somebody who edits a recipe may renew its id too.
    with suppress(TypeError, ValueError, AttributeError, OverflowError):
        table["id"] = Recipe.from_dict(table).id if table["id"] == "x" else table["id"]
    (tmp_path / "r.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"^recipe=.*r\.json"):
        read_recipe(tmp_path / "r.json")


# ------------------------------------------------------------ every method of every backend


def theirs() -> list[str]:
    if find_spec("mergekit") is None:
        return []
    from mergekit.merge_methods.registry import registered_methods

    return sorted({method.spec.name for method in registered_methods()} - {"passthrough"})


FROM_A_CANDIDATE = ("slerp", "nearswap", "arcee_fusion")
"""Methods of mergekit between two models, one of which, a candidate, is the base."""
TWO_MODELS = (*FROM_A_CANDIDATE, "nuslerp")
"""Methods that take two models and no more. local's slerp is one of them, without a base."""
PARAMETERS: Mapping[str, dict[str, float | bool]] = {
    "slerp": {"t": 0.3},
    "nearswap": {"t": 0.01},
    **{
        name: {"density": 0.5}
        for name in ("ties", "dare_ties", "dare_linear", "breadcrumbs", "breadcrumbs_ties")
    },
    **{name: {"density": 0.5, "epsilon": 0.1} for name in ("della", "della_linear")},
}
ROWS = [
    *(("local", method) for method in METHODS),
    pytest.param("accelerate", "model_stock", marks=pytest.mark.slow),
    *(
        pytest.param("mergekit", name, marks=() if name == "linear" else pytest.mark.slow)
        for name in theirs()
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
        return subprocess.CompletedProcess(
            command, done.exit_code, "", done.output + repr(done.exception)
        )

    monkeypatch.setattr(subprocess, "run", call)


def settings_of(
    family: Path, backend: str, method: str
) -> tuple[list[str], MergeBackend, tuple[str, ...]]:
    """(arguments of the command line, the backend that they stand for, candidates)"""
    names = ("ant", "bee") if method in TWO_MODELS else ("ant", "bee", "cat")
    words = [f"merge={backend}", f"merge.method={method}"]
    if backend == "mergekit":
        return mergekit_settings(family, method, words, names)
    base = str(family / "base") if METHODS[method].base else None
    if base:
        words.append(f"merge.base_model={base}")
    if backend == "local":
        return words, LocalMerge(method=method, base_model=base), names
    words.append("merge.num_processes=1")
    return words, AccelerateMerge(method=method, base_model=base, num_processes=1), names


def mergekit_settings(
    family: Path, method: str, words: list[str], names: tuple[str, ...]
) -> tuple[list[str], MergeBackend, tuple[str, ...]]:
    """As `settings_of`: the base that the method needs and its parameters, added to the first words."""
    base = None
    if method in BASED:
        base = str(family / ("ant" if method in FROM_A_CANDIDATE else "base"))
        words = [*words, f"merge.base_model={base}"]
    parameters = dict(PARAMETERS.get(method, {}))
    if parameters:
        table = ",".join(f"{key}:{value}" for key, value in parameters.items())
        words = [*words, f"merge.parameters={{{table}}}"]
    merge = MergekitMerge(method=method, base_model=base, parameters=parameters or None)
    return words, merge, names


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("backend", "method"), ROWS)
def test_evaluated_is_written_and_rebuilt(
    backend: str, method: str, family: Path, tmp_path: Path, souping: Cli
) -> None:
    words, merge, names = settings_of(family, backend, method)
    weights = (0.3, 0.7) if len(names) == 2 else (0.5, 0.2, 0.3)
    folders = {name: family / name for name in names}
    pool = f"pool.candidates=[{','.join(map(str, folders.values()))}]"
    souping(
        "+experiment=merge",
        pool,
        f"optimiser.weights=[{','.join(map(str, weights))}]",
        "out=soup",
        *words,
    ).ok()
    written = contents(tmp_path / "soup", "README.md")

    with closing(merge.open(folders)) as opened:
        recipe = opened.recipe(dict(zip(names, weights, strict=True)))
        assert recipe.id == json.loads(written["recipe.json"])["id"]
        assert ("seed" in recipe.settings) == (backend == "mergekit" and method in STOCHASTIC)
        with closing(ScratchFolder(opened)) as scratch:
            evaluated = contents(scratch.write(recipe), "README.md")
            # the evaluator's own, but for the ends
            decoding = json.loads(evaluated.pop("generation_config.json"))
            assert (
                tuple(np.atleast_1d(decoding["eos_token_id"]))
                == opened.eos_token_ids(recipe)
                == (2,)
            )
            assert evaluated == {
                name: data for name, data in written.items() if name != "generation_config.json"
            }
        module = AutoModelForCausalLM.from_pretrained(family / "ant", dtype=torch.bfloat16)
        opened.live(module).load_soup(recipe)
        state = module.state_dict()
        stored = load_file(tmp_path / "soup" / "model.safetensors")
        assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())

    souping(*REBUILD).ok()
    assert contents(tmp_path / "again", "README.md") == written


@pytest.mark.skipif(find_spec("mergekit") is None, reason="mergekit is not installed")
@pytest.mark.parametrize("method", ["dare_ties", "model_stock"])
@pytest.mark.slow
def test_mergekit_in_a_process_of_its_own(
    method: str, family: Path, tmp_path: Path, souping: Cli
) -> None:
    words, _, names = settings_of(family, "mergekit", method)
    pool = f"pool.candidates=[{','.join(str(family / name) for name in names)}]"
    souping("+experiment=merge", pool, "optimiser=uniform", "out=soup", *words).ok()
    souping(*REBUILD, "merge=mergekit").ok()
    assert contents(tmp_path / "again") == contents(tmp_path / "soup")


# ------------------------------------------------------------ commands as they are printed


def check_commands(run: Path, out: str, start: Path) -> None:
    """The rebuild command is the same wherever it stands, and makes the soup again; the card's runs in any folder."""
    (command,) = re.findall(r"^rebuild: (souping .*)$", out, re.MULTILINE)
    (card,) = re.findall(r"```bash\n(cd .*)\n```", (run / "soup/README.md").read_text())
    assert card.endswith(f" && {command}")
    # A copy of a run names the place of the run.
    card = card.replace(card.partition(" && ")[0], f"cd {shlex.quote(str(start))}")
    if (run / "report.md").exists():
        assert f"```bash\n{command}\n```" in (run / "report.md").read_text()
        page = re.findall(
            r'<pre tabindex="0"><code>(souping .*)</code></pre>', (run / "report.html").read_text()
        )
        assert command in map(html.unescape, page)
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    before = contents(run / "soup")
    done = subprocess.run(
        card, shell=True, cwd=run / "soup", env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{card}\n{done.stderr}"
    assert contents(start / "rebuilt") == contents(run / "soup") == before


def test_the_commands_of_a_run(finished_copy: Path, tmp_path: Path) -> None:
    check_commands(finished_copy, (tmp_path / "terminal.txt").read_text(), tmp_path)


@pytest.mark.slow
def test_the_command_whatever_the_folders_are_called(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    name = 'it\'s "so" $HOME, b=(c) [d] ${x} & é'
    (tmp_path / name).mkdir()
    for model in ("ant", "bee"):
        (tmp_path / name / model).symlink_to(family / model, target_is_directory=True)
    run = tmp_path / "outputs" / name
    pool = [quoted(str(tmp_path / name / model)) for model in ("ant", "bee")]
    places = [
        f"out={quoted(str(run / 'soup'))}",
        f"store={quoted(f'outputs/{name}/s.sqlite')}",
    ]
    done = souping(
        "+experiment=merge",
        f"pool.candidates=[{','.join(pool)}]",
        "optimiser.weights=[0.4,0.6]",
        *places,
    ).ok()
    check_commands(run, done.out, tmp_path)


@pytest.mark.parametrize(
    "case",
    [
        "base",
        *(
            pytest.param(one, marks=pytest.mark.slow)
            for one in ("accelerate", "adapters", "pickled")
        ),
    ],
)
def test_the_command_however_it_was_merged(
    case: str, family: Path, souping: Cli, tmp_path: Path
) -> None:
    candidates = [family / "ant", family / "bee"]
    more = ["merge=accelerate", "merge.num_processes=1"]
    if case == "base":
        more = ["merge.method=task_arithmetic", f"merge.base_model={family / 'base'}"]
    if case == "adapters":
        modules = {"model.layers.0.mlp.up_proj": 2}
        candidates = [
            save_adapter(tmp_path / n, family / "base", modules, i) for i, n in enumerate("xy")
        ]
        more = [f"merge.base_model={family / 'base'}"]
    if case == "pickled":
        candidates = [pickled(folder, tmp_path / folder.name) for folder in candidates]
        more = ["merge.allow_pickle=true"]
    pool = f"pool.candidates=[{','.join(map(str, candidates))}]"
    done = souping(
        "+experiment=merge", pool, "optimiser.weights=[0.4,0.6]", "out=run/soup", *more
    ).ok()
    check_commands(tmp_path / "run", done.out, tmp_path)


def test_a_soup_at_a_scale_around_its_base_is_rebuilt(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    folders = {name: family / name for name in ("ant", "bee")}
    backend = LocalMerge(method="task_arithmetic", base_model=str(family / "base"), dtype="float32")
    with closing(backend.open(folders)) as pool:
        made = pool.write(pool.recipe({"ant": 0.9, "bee": 0.6}), tmp_path / "soup")
    base, ant, bee, soup = (
        load_file(one / "model.safetensors") for one in (family / "base", *folders.values(), made)
    )
    for name, tensor in soup.items():
        moved = 0.9 * (ant[name].double() - base[name].double()) + 0.6 * (
            bee[name].double() - base[name].double()
        )
        assert torch.allclose(tensor.double(), base[name].double() + moved, atol=1e-5)
    pool_words = f"pool.candidates=[{','.join(map(str, folders.values()))}]"
    words = (
        str(made / "recipe.json"),
        pool_words,
        f"merge.base_model={family / 'base'}",
        "out=again",
    )
    souping("rebuild", *words).ok()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        made / "model.safetensors"
    ).read_bytes()


def pickled(folder: Path, out: Path) -> Path:
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(load_file(folder / "model.safetensors"), out / "pytorch_model.bin")
    return out
