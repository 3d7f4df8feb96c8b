"""Rebuild commands run as they are printed: on the page, in report.md, on the card and at the end of a run."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from souping.core.types import UserError
from souping.report.format import quoted
from tests.conftest import Cli, pool_of
from tests.support.adapters import save_adapter

QUICK = ["selector=all", "optimiser=uniform"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def printed(run: Path, out: str) -> dict[str, str]:
    """{where: command}, each as a reader would copy it."""
    places = {"terminal": re.search(r"^  rebuild +(python .*)$", out, re.MULTILINE)}
    places["card"] = re.search(r"```bash\n(python .*)\n```", (run / "soup/README.md").read_text())
    if (run / "report.md").exists():
        places["markdown"] = re.search(r"```bash\n(python .*)\n```", (run / "report.md").read_text())
        page = (run / "report.html").read_text()
        places["page"] = re.search(r'<pre tabindex="0"><code>(python .*)</code></pre>', page)
    assert all(places.values()), places
    return {where: html.unescape(found[1]) if where == "page" else found[1] for where, found in places.items() if found}


def shell(command: str, where: Path) -> None:
    """Run a line in a shell whose `python` is this one."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(command, shell=True, cwd=where, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stderr}"


def check(run: Path, out: str, start: Path) -> None:
    """The run's command makes the soup again and is the same everywhere; the card's is for the soup's folder."""
    commands = printed(run, out)
    card = commands.pop("card")
    assert " recipe=recipe.json " in card
    assert str(start) not in card
    assert len(set(commands.values())) == 1, commands
    shell(commands["terminal"], start)
    assert contents(start / "rebuilt") == contents(run / "soup")


def test_after_a_run(finished_copy: Path, tmp_path: Path) -> None:
    said = (tmp_path / "terminal.txt").read_text()
    assert "store.path" not in printed(finished_copy, said)["terminal"]
    check(finished_copy, said, tmp_path)


def test_a_soup_without_a_report_has_a_card_without_numbers(
    family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise UserError("the report went wrong")

    monkeypatch.setattr("souping.pipeline.run.gather", broken)
    done = souping(*pool_of(family, "ant", "bee", "cat"), *QUICK, "hydra.run.dir=run")
    assert "the report went wrong" in done.err
    card = (tmp_path / "run/soup/README.md").read_text()
    assert not re.search(r"\d\d\.\d", card)
    found = re.search(r"```bash\n(python .*)\n```", card)
    assert found
    shell(f"{found[1]} store.path=../../outputs/store.sqlite", tmp_path / "run/soup")


@pytest.mark.slow
def test_whatever_the_folders_are_called(family: Path, souping: Cli, tmp_path: Path) -> None:
    """The run's folder, the store and the candidates' folders."""
    name = 'it\'s "so" $HOME, b=(c) [d] ${x} & é'
    pool = tmp_path / name
    pool.mkdir()
    for model in ("ant", "bee"):
        (pool / model).symlink_to(family / model, target_is_directory=True)
    run = tmp_path / "outputs" / name
    done = souping(
        "+experiment=merge",
        f"pool.candidates=[{quoted(str(pool / 'ant'))},{quoted(str(pool / 'bee'))}]",
        "optimiser.weights=[0.4,0.6]",
        f"out={quoted(str(run / 'soup'))}",
        f"store.path={quoted(f'outputs/{name}/s.sqlite')}",
    )
    assert done.code == 0, done.err
    check(run, done.out, tmp_path)


@pytest.mark.parametrize(
    "merge",
    ["accelerate", "base", "adapters", *(pytest.param(one, marks=pytest.mark.slow) for one in ("mergekit", "pickled"))],
)
def test_however_it_was_merged(merge: str, family: Path, souping: Cli, tmp_path: Path) -> None:
    candidates, more = [family / "ant", family / "bee"], []
    if merge == "accelerate":
        more = ["merge=accelerate", "merge.num_processes=1"]
    if merge == "mergekit":
        pytest.importorskip("mergekit")
        more = ["merge=mergekit", "merge.method=linear"]
    if merge == "base":
        more = ["merge.method=task_arithmetic", f"merge.base={family / 'base'}"]
    if merge == "adapters":
        modules = {"model.layers.0.mlp.up_proj": 2}
        candidates = [save_adapter(tmp_path / n, family / "base", modules, i) for i, n in enumerate("xy")]
        more = [f"merge.base={family / 'base'}"]
    if merge == "pickled":
        candidates = [pickled(folder, tmp_path / folder.name) for folder in candidates]
        more = ["merge.allow_pickle=true"]
    pool = f"pool.candidates=[{','.join(map(str, candidates))}]"
    done = souping("+experiment=merge", pool, "optimiser.weights=[0.4,0.6]", "out=run/soup", *more)
    assert done.code == 0, done.err
    check(tmp_path / "run", done.out, tmp_path)


def pickled(folder: Path, out: Path) -> Path:
    """The same model with its weights as a pickle."""
    import torch
    from safetensors.torch import load_file

    out.mkdir()
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (out / path.name).write_bytes(path.read_bytes())
    torch.save(load_file(folder / "model.safetensors"), out / "pytorch_model.bin")
    return out
