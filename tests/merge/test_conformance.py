"""Every merge backend of the configuration: a protocol's members, settings, and soups that are the same three ways."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from souping.checkpoints.checkpoint import Checkpoint, fingerprint_of
from souping.core.text import install
from souping.core.types import UserError
from souping.merge import CandidatePool, MergeBackend
from souping.merge.accelerate import AccelerateMerge
from souping.merge.adapters import AdapterPool
from souping.merge.local import FullModelPool, LocalMerge
from souping.merge.mergekit import MergekitMerge
from tests.conftest import ROOT
from tests.merge.test_live import pool_of
from tests.support.adapters import save_adapter

FAKE = """#!{python}
import shutil, sys, yaml
from pathlib import Path
document, out = yaml.safe_load(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
shutil.copytree(document["models"][0]["model"], out, dirs_exist_ok=True)
flip = Path(__file__).with_name("flip")
if flip.exists():
    with open(flip.read_text(), "r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
"""
"""A mergekit that takes the first model for the soup, and may change the file that is named beside it."""
BACKENDS = ("local", "accelerate", "mergekit")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> MergeBackend:
    program = tmp_path / "mergekit-yaml"
    program.write_text(FAKE.format(python=sys.executable))
    program.chmod(0o755)
    makers: dict[str, Callable[[], MergeBackend]] = {
        "local": LocalMerge,
        "accelerate": lambda: AccelerateMerge(num_processes=1),
        "mergekit": lambda: MergekitMerge(method="linear", command=str(program)),
    }
    return makers[request.param]()


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return pool_of(tmp_path / "pool")


def test_every_choice_of_the_configuration_is_a_row() -> None:
    assert sorted(path.stem for path in (ROOT / "conf" / "merge").glob("*.yaml")) == sorted(BACKENDS)


@pytest.mark.parametrize("name", BACKENDS)
def test_the_configuration_names_the_class_and_its_settings(name: str) -> None:
    table = yaml.safe_load((ROOT / "conf" / "merge" / f"{name}.yaml").read_text())
    module, _, part = table["_target_"].rpartition(".")
    made = vars(importlib.import_module(module))[part]
    assert MergeBackend in made.__mro__
    keys = {key for key in table if not key.startswith("_") and key != "defaults"}
    assert keys <= set(inspect.signature(made).parameters)


def test_other_settings_make_another_backend(backend: MergeBackend) -> None:
    other = backend.with_settings({"dtype": "float32", "base": "somewhere", "no_such_key": 1})
    assert type(other) is type(backend)
    assert (other.dtype, other.base) == ("float32", "somewhere")
    assert backend.dtype is None
    with pytest.raises(UserError, match=r"dtype="):
        backend.with_settings({"dtype": "float8"})


def test_the_base_is_opened_and_read_once(
    backend: MergeBackend, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = folders.pop("m2")
    method = "ties" if isinstance(backend, MergekitMerge) else "task_arithmetic"
    pool = backend.with_settings({"method": method, "base": str(base)}).open(folders)
    read, opened = Checkpoint.open, list[Path]()
    monkeypatch.setattr(
        Checkpoint, "open", lambda folder, pickle=False: opened.append(Path(folder)) or read(folder, pickle)
    )
    content = fingerprint_of(read(base))
    assert pool.known_folders[content] == base
    for weight in (0.25, 0.5):
        recipe = pool.recipe({"m0": weight, "m1": 1 - weight})
        assert recipe.settings["base"] == content
        assert pool.plan(recipe).describe()
    assert opened == [base]


def test_a_pool_of_full_models(backend: MergeBackend, folders: dict[str, Path]) -> None:
    digests: dict[str, str] = {}
    pool = backend.open(folders, digests)
    assert isinstance(pool, FullModelPool)
    assert pool.names == tuple(folders)
    assert list(pool.warnings) == []
    assert len(set(pool.fingerprints.values())) == 3
    assert digests
    assert dict(pool.known_folders) == {pool.fingerprints[name]: folder for name, folder in folders.items()}
    assert pool.architecture_folder == folders["m0"]
    assert pool.soup_bytes > 0
    with pytest.raises(UserError, match=r"candidate m0: .* has no tokenizer"):
        pool.check_tokenizers()
    pool.close()


def test_recipes_keep_the_pools_order_and_drop_zeros(backend: MergeBackend, folders: dict[str, Path]) -> None:
    pool = backend.open(folders)
    recipe = pool.recipe({"m2": 0.75, "m1": 0.0, "m0": 0.25})
    assert (recipe.ingredients, recipe.weights) == (("m0", "m2"), (0.25, 0.75))
    assert pool.recipe({"m0": 0.25, "m2": 0.75}).id == recipe.id
    assert pool.tokenizer_folder(recipe) == folders["m0"]
    assert pool.candidate_folder(recipe) is None
    alone = pool.recipe({"m1": 1.0})
    assert (alone.method, dict(alone.settings)) == ("linear", {})
    assert pool.candidate_folder(alone) == folders["m1"]


@pytest.mark.parametrize("weights", [{"m0": 0.25, "m2": 0.75}, {"m1": 1.0}])
def test_what_is_written_is_what_is_poured(
    backend: MergeBackend, folders: dict[str, Path], weights: Mapping[str, float], tmp_path: Path
) -> None:
    pool, done = backend.open(folders), list[int]()
    recipe = pool.recipe(weights)
    out = pool.write(
        recipe, tmp_path / "soup", extra_files={"README.md": "card"}, progress=lambda now, total: done.append(now)
    )
    assert (out / "README.md").read_text() == "card"
    assert recipe.id in (out / "recipe.json").read_text()
    module: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(folders["m0"], dtype=torch.float32)
    pool.live(module).pour(recipe)
    state = module.state_dict()
    assert all(
        torch.equal(state[name], tensor.float()) for name, tensor in load_file(out / "model.safetensors").items()
    )
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        pool.write(recipe, tmp_path / "soup")


def flip(path: Path) -> None:
    """Another last byte; size and time stay."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_an_ingredient_that_changed_makes_no_soup(
    backend: MergeBackend, folders: dict[str, Path], tmp_path: Path
) -> None:
    pool = backend.open(folders)
    recipe = pool.recipe({"m0": 0.25, "m1": 0.75})
    module: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(folders["m0"], dtype=torch.float32)
    live = pool.live(module)
    flip(folders["m1"] / "model.safetensors")
    for make in (lambda: live.pour(recipe), lambda: pool.write(recipe, tmp_path / "soup")):
        with pytest.raises(UserError, match=r"m1/model\.safetensors has changed since it was opened"):
            make()
    assert not (tmp_path / "soup").exists()


def test_an_ingredient_that_changes_meanwhile_makes_no_soup(
    backend: MergeBackend, folders: dict[str, Path], tmp_path: Path
) -> None:
    pool, victim = backend.open(folders), folders["m1"] / "model.safetensors"
    recipe = pool.recipe({"m0": 0.25, "m1": 0.75})
    if isinstance(backend, MergekitMerge):
        (tmp_path / "flip").write_text(str(victim))
    with pytest.raises(UserError, match=r"m1/model\.safetensors has changed since it was opened"):
        pool.write(recipe, tmp_path / "soup", progress=lambda done, total: flip(victim))
    assert not (tmp_path / "soup").exists()


def test_answers_end_at_any_ingredients_end(backend: MergeBackend, folders: dict[str, Path], tmp_path: Path) -> None:
    for name, ends in {"m0": {"eos_token_id": 7, "top_k": 5}, "m1": {"eos_token_id": [9, 2]}, "m2": {}}.items():
        (folders[name] / "generation_config.json").write_text(json.dumps(ends))
    config = json.loads((folders["m2"] / "config.json").read_text())
    (folders["m2"] / "config.json").write_text(json.dumps({**config, "eos_token_id": 11}))
    pool = backend.open(folders)
    three, two = pool.recipe(dict.fromkeys(folders, 1 / 3)), pool.recipe({"m0": 0.5, "m1": 0.5})
    assert (pool.eos_token_ids(three), pool.eos_token_ids(two)) == ((2, 7, 9, 11), (2, 7, 9))
    assert [pool.eos_token_ids(pool.recipe({name: 1.0})) for name in folders] == [(7,), (2, 9), (11,)]
    assert any("answers end at different tokens (m0 7, m1 2/9, m2 11)" in note for note in pool.warnings)
    written = pool.write(three, tmp_path / "soup") / "generation_config.json"
    assert json.loads(written.read_text()) == {"eos_token_id": [2, 7, 9, 11], "top_k": 5}
    alone = pool.write(pool.recipe({"m1": 1.0}), tmp_path / "alone") / "generation_config.json"
    assert alone.read_bytes() == (folders["m1"] / "generation_config.json").read_bytes()


def test_a_plan_says_what_will_be_done_and_is_saved(
    backend: MergeBackend, folders: dict[str, Path], tmp_path: Path
) -> None:
    pool = backend.open(folders)
    recipe = pool.recipe({"m0": 0.5, "m1": 0.5})
    plan = pool.plan(recipe)
    assert recipe.id in plan.describe()
    assert plan.save(tmp_path / "plan.json") == tmp_path / "plan.json"
    assert recipe.id in (tmp_path / "plan.json").read_text()


def test_a_pool_of_adapters(backend: MergeBackend, folders: dict[str, Path], tmp_path: Path) -> None:
    adapters = {
        name: save_adapter(tmp_path / name, folders["m0"], {"model.layers.0.self_attn.q_proj": 2}, seed)
        for seed, name in enumerate("ab", 1)
    }
    if backend.adapters is None:
        with pytest.raises(UserError, match="does not soup adapters: use merge=local"):
            backend.open(adapters)
        return
    pool: CandidatePool = backend.with_settings({"base": str(folders["m0"])}).open(adapters)
    assert isinstance(pool, AdapterPool)
    recipe = pool.recipe({"a": 0.25, "b": 0.75})
    assert pool.architecture_folder == folders["m0"]
    assert pool.candidate_folder(recipe) is None
    with pytest.raises(UserError, match=r"candidate a: .*m0 has no tokenizer: copy"):
        pool.check_tokenizers()
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="candidate b: "):
        backend.with_settings({"base": str(folders["m0"])}).open(adapters).check_tokenizers()
    plan = pool.plan(recipe)
    assert "0.25 x a + 0.75 x b" in plan.describe()
    assert plan.save(tmp_path / "plan.json") is None
    assert (pool.write(recipe, tmp_path / "soup") / "adapter_config.json").is_file()
    with pytest.raises(UserError, match=r"mixes adapters \(a\) and others \(m1\)"):
        backend.open({"a": adapters["a"], "m1": folders["m1"]})


def test_a_backend_without_its_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("souping.merge.mergekit.importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("souping.merge.accelerate.find_spec", lambda name: None)
    assert LocalMerge().needs() == []
    assert [one.fix for one in MergekitMerge().needs()] == [install("mergekit")]
    assert [one.what for one in AccelerateMerge().needs()] == ["the package accelerate is not installed"]
    assert MergekitMerge(command="there").needs() == []
