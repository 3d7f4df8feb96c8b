"""Sharded checkpoints that torch wrote from two ranks: read, averaged and written back as what they stand for.

`tests/data/sharded` was written by `python -m tests.support.sharded`; slow tests run that anew and read all layouts.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.fingerprints import fingerprint
from souping.checkpoints.folder import Like
from souping.checkpoints.pickles import pickled, unpickle
from souping.checkpoints.reader import WeightReader
from souping.checkpoints.views import Part, StoredTensor, View, arrange, row_major
from souping.core.types import UserError
from souping.merge import Format
from souping.merge.accelerate import AccelerateMerge
from souping.merge.local import LocalMerge
from tests.conftest import ROOT, Cli
from tests.support.checkpoints import expected, load, same_bits
from tests.support.texts import write

DATA = ROOT / "tests" / "data" / "sharded"
LAYOUTS = [("fsdp/checkpoint-10", "0"), ("tp/step-1", "1")]
MORE = [
    ("fsdp/checkpoint-20", "1"), ("model/0", "0"), ("model/1", "1"), ("tp/step-0", "0"), ("shards/0", "0"),
    ("shards/1", "1"), ("inner/0", "0"), ("inner/1", "1"), ("ranks/global_step_0", "0"), ("ranks/global_step_1", "1"),
    ("fsdp1", "0"), ("tied", "tied"),
]  # fmt: skip


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All layouts, written by torch from two ranks."""
    out = tmp_path_factory.mktemp("sharded")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.support.sharded", str(out)]
    subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True, timeout=600)
    return out


def tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """{name: its values as our reader gives them}, all bf16."""
    found = {}
    with WeightReader(checkpoint) as reader:
        for name, tensor in checkpoint.tensors.items():
            raw = np.empty(tensor.nbytes, np.uint8)
            reader.read(checkpoint.file_number(tensor), raw, tensor.offset)
            found[name] = torch.from_numpy(raw).view(torch.bfloat16).reshape(tensor.shape)
    return found


def check_is_plain(root: Path, layout: str, seed: str) -> None:
    """A layout holds the very tensors that `save_pretrained` wrote, and is the same model."""
    plain = root / "plain" / seed
    opened = Checkpoint.open(root / layout, allow_pickle=True, like=Like(plain))
    found = tensors(opened)
    wanted = load(plain)
    assert set(found) == set(wanted)
    assert all(same_bits(found[name], wanted[name]) for name in wanted)
    assert fingerprint(root / layout, allow_pickle=True, like=Like(plain)) == fingerprint(plain)


@pytest.mark.parametrize(("layout", "seed"), LAYOUTS)
def test_a_layout_is_what_save_pretrained_writes(layout: str, seed: str) -> None:
    check_is_plain(DATA, layout, seed)


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "seed"), [*LAYOUTS, *MORE])
def test_every_layout_of_torch_is_what_save_pretrained_writes(
    written: Path, layout: str, seed: str
) -> None:
    check_is_plain(written, layout, seed)


def soup(pool: dict[str, Path], out: Path, like: Path | None = None, **settings: Any) -> Path:
    lent = Like(like, stored=settings.get("format") == "same")
    opened = LocalMerge(allow_pickle=True, **settings).open(pool, like=lent)
    return opened.write(opened.recipe({"a": 0.3, "b": 0.7}), out)


@pytest.fixture
def pool() -> dict[str, Path]:
    """The stored sharded forms of `plain/0` (by FSDP) and of `plain/1` (tensor-parallel)."""
    return {"a": DATA / LAYOUTS[0][0], "b": DATA / LAYOUTS[1][0]}


def average(root: Path) -> dict[str, torch.Tensor]:
    """What every `soup` here holds: 0.3 and 0.7 of the two seeds."""
    a = load(root / "plain" / "0")
    b = load(root / "plain" / "1")
    return {name: expected([a[name], b[name]], (0.3, 0.7), torch.bfloat16) for name in a}


def test_a_soup_of_other_shardings_is_byte_for_byte_that_of_the_folders(
    tmp_path: Path, pool: dict[str, Path]
) -> None:
    plain = {"a": DATA / "plain" / "0", "b": DATA / "plain" / "1"}
    alike = [dict.fromkeys("ab", each["b"]) for each in (pool, plain)]
    for number, case in enumerate([(pool, plain), ({**plain, "a": pool["a"]}, plain), alike]):
        made, wanted = (
            soup(one, tmp_path / f"{number}-{kind}", plain["a"]) for kind, one in enumerate(case)
        )
        assert sorted(path.name for path in made.iterdir()) == sorted(
            path.name for path in wanted.iterdir()
        )
        assert all(
            (made / path.name).read_bytes() == path.read_bytes() for path in wanted.iterdir()
        )


def read_by_torch(folder: Path, tmp_path: Path) -> dict[str, Any]:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp_to_torch_save(str(folder), str(tmp_path / "whole.pt"))
    state: dict[str, Any] = torch.load(tmp_path / "whole.pt", weights_only=True)
    return state


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tokenizer_from", ["a", "b", None])
def test_torch_reads_a_soup_that_is_sharded_as_the_newest(
    tmp_path: Path, pool: dict[str, Path], tokenizer_from: str | None
) -> None:
    bare = Path(shutil.copytree(pool["a"] / "pytorch_model_fsdp_0", tmp_path / "bare"))
    strip_prefix(bare)  # now both candidates name their tensors alike
    made = soup(
        {"a": bare, "b": pool["b"]}, tmp_path / "soup", format="same", tokenizer_from=tokenizer_from
    )
    whole = read_by_torch(made, tmp_path)
    assert all(same_bits(whole[name], value) for name, value in average(DATA).items())
    assert len(list(made.glob("*.distcp"))) == 2
    # If none is named for the tokenizer, it is the one with a step in its path.
    newest = bare if tokenizer_from == "a" else pool["b"]
    chunks = [
        unpickle((f / ".metadata").read_bytes(), f)["state_dict_metadata"] for f in (made, newest)
    ]
    assert all(pickled(chunks[0][name]) == pickled(chunks[1][name]) for name in chunks[0])


def test_a_layout_that_is_kept_keeps_its_dtype(tmp_path: Path, pool: dict[str, Path]) -> None:
    alike = dict.fromkeys("ab", pool["b"])
    with pytest.raises(UserError, match=r"merge\.dtype"):
        soup(alike, tmp_path / "other", format="same", dtype="float16")
    written = [
        soup(alike, tmp_path / f"{dtype}", format="same", dtype=dtype)
        for dtype in ("bfloat16", None)
    ]
    assert len({(folder / "recipe.json").read_bytes() for folder in written}) == 1


@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_weights_are_those_of_the_newest_checkpoint(
    tmp_path: Path, pool: dict[str, Path]
) -> None:
    later = Path(shutil.copytree(pool["a"], tmp_path / "checkpoint-30"))
    (later / "trainer_state.json").write_text("{}")
    (later / "optimizer.pt").write_text("")
    made = soup({"a": later, "b": pool["a"]}, tmp_path / "soup", format="same")
    state = read_by_torch(made / "pytorch_model_fsdp_0", tmp_path)
    assert all(
        same_bits(state["model"][n], value) for n, value in load(DATA / "plain" / "0").items()
    )
    assert (state["train_state"].item(), state["rng"], "optimizer" in state) == (
        0,
        {"seed": 0},
        False,
    )
    assert sorted(path.name for path in made.iterdir()) == [
        "pytorch_model_fsdp_0",
        "recipe.json",
        "trainer_state.json",
    ]


def strip_prefix(folder: Path) -> None:
    """Name the weights in a DCP folder as the tensor-parallel one does."""
    table = unpickle((folder / ".metadata").read_bytes(), folder)
    for section in ("state_dict_metadata", "planner_data"):
        own = {name: value for name, value in table[section].items() if name.startswith("model.")}
        table.state[section] = {name.removeprefix("model."): value for name, value in own.items()}
    kept = {
        key: info for key, info in table["storage_data"].items() if key["fqn"].startswith("model.")
    }
    for key in kept:
        key.state["fqn"] = key["fqn"].removeprefix("model.")
    for key, path in table["planner_data"].items():
        table["planner_data"][key] = (key,) if isinstance(path, tuple) else path
    table.state["storage_data"] = kept
    (folder / ".metadata").write_bytes(pickled(table))


def test_checksums_are_those_of_the_new_bytes(tmp_path: Path, pool: dict[str, Path]) -> None:
    pool = {"a": pool["b"], "b": Path(shutil.copytree(pool["b"], tmp_path / "step-2"))}
    made = soup(pool, tmp_path / "soup", format="same")
    table = unpickle((made / ".metadata").read_bytes(), made)
    for info in table["storage_data"].values():
        data = (made / info["relative_path"]).read_bytes()[
            info["offset"] : info["offset"] + info["length"]
        ]
        assert zipfile.ZipFile(io.BytesIO(data)).testzip() is None


def test_a_live_module_becomes_the_soup(pool: dict[str, Path]) -> None:
    opened = LocalMerge().open(pool, like=Like(DATA / "plain" / "0"))
    module = LlamaForCausalLM.from_pretrained(DATA / "plain" / "0", dtype=torch.bfloat16)
    opened.live(module).load_soup(opened.recipe({"a": 0.3, "b": 0.7}))
    assert all(same_bits(module.state_dict()[name], value) for name, value in average(DATA).items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_layout_is_souped_and_written_back_where_it_can_be(
    written: Path, tmp_path: Path
) -> None:
    wanted = average(written)
    for first, second, written_as in (
        ("fsdp/checkpoint-10", "fsdp/checkpoint-20", "dcp"), ("tp/step-0", "tp/step-1", "dcp"),
        ("model/0", "model/1", "dcp"), ("shards/0", "shards/1", "safetensors"), ("inner/0", "inner/1", "hf only"),
        ("ranks/global_step_0", "ranks/global_step_1", "hf only"),
    ):  # fmt: skip
        pool = {"a": written / first, "b": written / second}
        name = first.partition("/")[0]
        made = load(soup(pool, tmp_path / name / "hf", written / "plain" / "0"))
        assert all(same_bits(made[n], value) for n, value in wanted.items())
        if written_as == "hf only":
            with pytest.raises(UserError, match=r"merge\.format=hf"):
                soup(pool, tmp_path / name / "same", format="same")
            continue
        same = soup(pool, tmp_path / name / "same", format="same")
        if written_as == "safetensors":
            again = tensors(Checkpoint.open(same, like=Like(stored=True)))
            assert all(same_bits(again[n], value) for n, value in wanted.items())
            continue
        inner = same / "pytorch_model_fsdp_0" if name == "fsdp" else same
        state = read_by_torch(inner, tmp_path)
        state = state.get("model", state)
        assert all(same_bits(state[n], value) for n, value in wanted.items())
    assert not list(tmp_path.rglob("*.part-*"))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["hf", "same"])
def test_two_ranks_write_the_very_bytes_of_one(
    tmp_path: Path, pool: dict[str, Path], layout: Format
) -> None:
    pool = {"a": pool["b"], "b": Path(shutil.copytree(pool["b"], tmp_path / "step-2"))}
    made = list[Path]()
    for merge in (LocalMerge(format=layout), AccelerateMerge(format=layout, num_processes=2)):
        opened = merge.open(pool, like=Like(DATA / "plain" / "1", stored=merge.format == "same"))
        made.append(
            opened.write(opened.recipe({"a": 0.3, "b": 0.7}), tmp_path / f"soup{len(made)}")
        )
    files = sorted(path.name for path in made[0].iterdir())
    assert files == sorted(path.name for path in made[1].iterdir())
    assert all((made[0] / name).read_bytes() == (made[1] / name).read_bytes() for name in files)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_training_run_becomes_a_soup_and_a_report_and_is_rebuilt(
    souping: Cli, tmp_path: Path
) -> None:
    """Its conversion to folders finds every answer."""
    import torch.distributed.checkpoint as dcp

    home = ROOT / "souping" / "demo" / "models" / "base"
    dice = torch.Generator().manual_seed(0)
    for step in ("step-10", "step-20", "step-30"):
        moved = {
            name: t + 0.003 * torch.randn(t.shape, generator=dice).bfloat16()
            for name, t in load(home).items()
        }
        state = {
            "model": moved,
            "optimizer": {"state": torch.zeros(3)},
            "train_state": {"step": step},
        }
        dcp.save(state, checkpoint_id=tmp_path / "train" / step, no_dist=True)
        save_file(
            moved,
            shutil.copytree(home, tmp_path / "plain" / step) / "model.safetensors",
            {"format": "pt"},
        )
    write(tmp_path / "texts.jsonl")
    words = ["+experiment=trajectory", "benchmark.path=texts.jsonl"]
    souping(*words, "pool.path=train").refused("pool.reference_model=")
    for call in (
        [*words, "pool.path=train", f"pool.reference_model={home}", "hydra.run.dir=run"],
        [*words, "pool.path=plain", "hydra.run.dir=other"],
        ["analyse", "run", "analysis=[category_wins]"],
        ["rebuild", "run/soup/recipe.json", f"pool.reference_model={home}", "out=again"],
    ):
        done = souping(*call)
        assert done.code == 0, done.err
    reports = [
        json.loads((tmp_path / place / "report.json").read_text()) for place in ("run", "other")
    ]
    assert [one["step"] for one in reports[0]["trajectory"]["checkpoints"]] == [10, 20, 30]
    assert reports[1]["cost"]["evaluated_items"] == 0
    made, again = (load(tmp_path / place) for place in ("run/soup", "again"))
    assert all(same_bits(made[name], again[name]) for name in load(home))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_pickle_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        unpickle(pickle.dumps({"a": Evil()}, protocol), tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_a_metadata_that_is_written_again_is_the_same_to_torch() -> None:
    raw = (DATA / "tp" / "step-1" / ".metadata").read_bytes()
    assert pickle.loads(pickled(unpickle(raw, DATA))) == pickle.loads(raw)


FOREIGN_FILES = {
    "half": "x.distcp", "zarr": "w/.zarray", "rank metadata": "__0.metadata", "zero": "zero_to_fp32.py",
}  # fmt: skip
"""{case: the one file of a folder that is no readable checkpoint}"""


def not_a_checkpoint(tmp_path: Path, case: str) -> Path:
    """A folder with nothing but the empty file of a case; with no file if it is "missing"."""
    folder = tmp_path / "step-1"
    folder.mkdir()
    if case != "missing":
        target = folder / FOREIGN_FILES[case]
        target.parent.mkdir(exist_ok=True)
        target.write_text("")
    return folder


def broken_copy(tmp_path: Path, change: str) -> Path:
    """A tensor-parallel DCP folder whose `.metadata` has one fault, at up_proj [5, 6] where it needs one tensor."""
    folder = tmp_path / "step-1"
    shutil.copytree(DATA / "tp" / "step-1", folder)
    table = unpickle((folder / ".metadata").read_bytes(), folder)
    name = "model.layers.0.mlp.up_proj.weight"
    entry = table["state_dict_metadata"][name]
    key = next(key for key in table["storage_data"] if key["fqn"] == name)
    if change == "hole":
        entry["chunks"].pop()
    elif change == "overlap":
        entry["chunks"].append(entry["chunks"][0])
    elif change == "one slice":
        keys = [k for k in table["storage_data"] if k["fqn"].endswith("norm.weight")]
        for other in keys:
            table["storage_data"][other].state |= table["storage_data"][keys[0]].state
    elif change == "half an offset":
        table["storage_data"][key].state["offset"] += 0.0
    elif change == "name of tuples":
        key.state["fqn"] = (name, (name,))
    elif change == "number as a name":
        table["state_dict_metadata"][3] = entry
    elif change == "compressed":
        table["storage_data"][key].state["transform_descriptors"] = ["stream.zstd/1"]
    elif change == "outside":
        table["storage_data"][key].state["relative_path"] = "../../x"
    elif change == "beyond":
        table["storage_data"][key].state["offset"] = 1 << 40
    elif change == "other box":
        entry["size"].args = ((7, 6),)
    (folder / ".metadata").write_bytes(pickled(table))
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("hole", r"up_proj.*hole"),
        ("overlap", r"up_proj.*overlap"),
        ("one slice", "norm.*overlap"),
        ("half an offset", "metadata"),
        ("name of tuples", "metadata"),
        ("number as a name", "metadata"),
        ("compressed", r"up_proj.*transform_descriptors"),
        ("outside", "leaves the folder"),
        ("beyond", r"up_proj.*beyond"),
        ("other box", "up_proj"),
    ],
)
def test_an_unreadable_sharded_checkpoint_is_refused_by_name(
    tmp_path: Path, change: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        Checkpoint.open(broken_copy(tmp_path, change), like=Like(DATA / "plain" / "1"))


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("missing", "config"),
        ("half", "half-written"),
        ("zarr", "older Megatron-Core"),
        ("rank metadata", "use_collectives"),
        ("zero", r"zero_to_fp32\.py"),
    ],
)
def test_a_folder_that_is_no_readable_checkpoint_is_refused_by_what_it_holds(
    tmp_path: Path, case: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        Checkpoint.open(not_a_checkpoint(tmp_path, case), like=Like(DATA / "plain" / "1"))


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.more.weight"], ids=["another shape", "one tensor more"]
)
def test_a_model_that_is_not_like_the_folder_is_refused(
    tmp_path: Path, pool: dict[str, Path], name: str
) -> None:
    like = Path(shutil.copytree(DATA / "plain" / "1", tmp_path / "like"))
    # The sharded model has the norm [6] and no tensor `more`.
    change = {name: torch.zeros(7, dtype=torch.bfloat16)}
    save_file({**load(like), **change}, like / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=name):
        Checkpoint.open(pool["b"], like=Like(like))


def test_any_boxes_and_any_views_give_the_elements_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = random.Random(0)
    numbers = np.random.default_rng(0)
    for _ in range(150):
        monkeypatch.setattr("souping.checkpoints.views.SCRATCH", rng.choice([64, 1 << 20]))
        shape = tuple(rng.randint(1, 7) for _ in range(rng.randint(0, 4)))
        whole = numbers.integers(0, 60_000, shape).astype(np.uint16)
        files, parts = cut(whole, rng)
        stored = {"w": StoredTensor("U16", shape, parts)}

        def fetch(file: str, into: Any, offset: int, files: dict[str, bytes] = files) -> None:
            into[:] = np.frombuffer(files[file], np.uint8)[offset : offset + len(into)]

        # Two copies of the whole with its axes in another order, counted by one more axis at any place.
        # An axis is (size, step within a source, jump from source to source).
        order = rng.sample(range(len(shape)), len(shape))
        axes = tuple((shape[d], row_major(shape)[d], 0) for d in order)
        at = rng.randint(0, len(shape))
        turned = View((2, *shape), ("w", "w"), 0, (*axes[:at], (2, 0, 1), *axes[at:]))
        wanted = np.stack([whole.transpose(order)] * 2, at).ravel()
        start = rng.randrange(len(wanted))
        count = rng.randint(1, len(wanted) - start)
        out = np.empty(2 * count, np.uint8)
        turned.read(start, out, stored, fetch)
        assert np.array_equal(out.view(np.uint16), wanted[start : start + count])
        # The stored tensor as it is, from an element on to its end.
        plain = np.empty(2 * (whole.size - start % whole.size), np.uint8)
        arrange(plain, 2, View.of("w", shape).read(start % whole.size, plain, stored, fetch))
        assert np.array_equal(plain.view(np.uint16), whole.ravel()[start % whole.size :])


def cut(whole: Any, rng: random.Random) -> tuple[dict[str, bytes], list[Part]]:
    """An array as boxes of a random grid, in up to four files."""
    grid = []
    for size in whole.shape:
        edges = [rng.randint(0, size) for _ in range(rng.randint(0, 2))]
        grid.append(sorted({0, size, *edges}))
    files: dict[str, bytes] = {}
    parts = []
    for box in itertools.product(*map(itertools.pairwise, grid)):
        name = f"f{rng.randint(0, 3)}"
        before = files.get(name, b"zz" * rng.randint(0, 3))
        low = tuple(a for a, _ in box)
        sizes = tuple(b - a for a, b in box)
        parts.append(Part(name, len(before), low, sizes))
        files[name] = before + whole[tuple(slice(a, b) for a, b in box)].tobytes()
    rng.shuffle(parts)
    return files, parts
