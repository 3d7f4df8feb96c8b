"""Checkpoints of a training run: which folders are found, what is left out and said, and at which learning rate."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from souping.checkpoints.checkpoint import Checkpoint
from souping.core.types import UserError
from souping.trajectory import TrajectoryPool

STEPS = (100, 200, 300, 1000)


def write(folder: Path, *names: str, content: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(content or str(folder / name))


def trainer(root: Path, steps: Sequence[int] = STEPS, **state: Any) -> Path:
    """A run of transformers' Trainer whose rate falls by a millionth a step."""
    log = [
        {"step": n, "learning_rate": 2e-5 * (1 - n / 1000), "num_input_tokens_seen": 64 * n}
        for n in steps
    ]
    for step in steps:
        write(root / f"checkpoint-{step}", "model.safetensors")
        text = json.dumps(
            {
                "global_step": step,
                "log_history": [one for one in log if one["step"] <= step],
                **state,
            }
        )
        write(root / f"checkpoint-{step}", "trainer_state.json", content=text)
    return root


LAYOUTS = {
    "Trainer": ("checkpoint-{}", ("model.safetensors",)),
    "Trainer, sharded by FSDP": (
        "checkpoint-{}/pytorch_model_fsdp_0",
        (".metadata", "__0_0.distcp"),
    ),
    "Trainer, LoRA": ("checkpoint-{}", ("adapter_model.safetensors", "adapter_config.json")),
    "Accelerate": ("checkpoint_{}", ("model.safetensors",)),
    "torchtitan": ("step-{}", (".metadata", "__0_0.distcp")),
    "OLMo-core": ("step{}/model_and_optim", (".metadata", "__0_0.distcp")),
    "Megatron": ("iter_{:07}", (".metadata", "metadata.json", "__0_0.distcp")),
    "verl": (
        "global_step_{}/actor",
        ("model_world_size_1_rank_0.pt", "optim_world_size_1_rank_0.pt"),
    ),
    "verl, Megatron": ("global_step_{}/actor/dist_ckpt", (".metadata", "__0_0.distcp")),
    "verl, Hugging Face": (
        "global_step_{}/actor/huggingface",
        ("model.safetensors", "config.json"),
    ),
    "NeMo RL": ("step_{}/policy/weights", (".metadata", "__0_0.distcp")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkpoints_of_every_layout_are_found_in_the_order_of_their_steps(
    layout: str, tmp_path: Path
) -> None:
    place, files = LAYOUTS[layout]
    for step in STEPS:
        write(tmp_path / place.format(step), *files)
    write(tmp_path / place.format(1100).split("/")[0], "config.json")
    write(tmp_path / "logs", "a.txt")
    pool = TrajectoryPool(path=str(tmp_path))
    inner = place if place.endswith("huggingface") else place.split("/")[0]
    assert [one.path for one in pool.resolve()] == [tmp_path / inner.format(step) for step in STEPS]
    assert [one.step for one in pool.trajectory.runs[0].members] == list(STEPS)
    assert pool.trajectory.runs[0].trainer == layout.split(",")[0].replace("Accelerate", "Trainer")
    (note,) = [note for note in pool.trajectory.notes if "no weights" in note]
    assert note.startswith(f"{tmp_path}: {place.format(1100).split('/')[0]}: ")


CHOICES: dict[str, tuple[Mapping[str, Any], list[int]]] = {
    "last": ({"last": 2}, [300, 1000]),
    "every": ({"every": 2}, [200, 1000]),
    "until": ({"until": 300}, [100, 200, 300]),
    "steps": ({"steps": [300, 100]}, [100, 300]),
    "all": ({"until": 300, "every": 2, "last": 2}, [100, 300]),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_members_can_be_chosen(choice: str, tmp_path: Path) -> None:
    settings, expected = CHOICES[choice]
    pool = TrajectoryPool(path=str(trainer(tmp_path)), **settings)
    assert [one.name for one in pool.resolve()] == [f"checkpoint-{step}" for step in expected]


def incomplete(root: Path, case: str) -> str:
    """Make one more checkpoint that is not whole; its name."""
    folder = root / "checkpoint-1100"
    if case == "no mark":
        write(folder, "model.safetensors")
    elif case == "shard":
        write(folder, "trainer_state.json", "a.safetensors")
        write(
            folder,
            "model.safetensors.index.json",
            content='{"weight_map": {"a": "a.safetensors", "b": "b"}}',
        )
    elif case == "distributed":
        write(folder, "trainer_state.json")
        write(folder / "pytorch_model_fsdp_0", "__0_0.distcp")
    elif case == "ranks":
        write(folder, "trainer_state.json", "model_world_size_2_rank_1.pt")
    else:
        folder = root / "tmp-checkpoint-1100"
        write(folder, "model.safetensors")
    return folder.name


@pytest.mark.parametrize("case", ["no mark", "shard", "distributed", "ranks", "temporary"])
def test_a_half_written_checkpoint_is_left_out_and_said(case: str, tmp_path: Path) -> None:
    name = incomplete(trainer(tmp_path), case)
    pool = TrajectoryPool(path=str(tmp_path))
    assert [one.step for one in pool.trajectory.runs[0].members] == list(STEPS)
    assert any(f"{name}: left out, incomplete" in note for note in pool.trajectory.notes)


def test_a_mark_of_another_trainer_says_nothing(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    write(run / "checkpoint-200", "metadata.json")
    assert TrajectoryPool(path=str(run)).trajectory.runs[0].steps == list(STEPS)


def test_copies_rotated_checkpoints_and_the_root_are_said(tmp_path: Path) -> None:
    best = str(tmp_path / "checkpoint-200")
    trainer(tmp_path, (200, 300, 800, 900, 1000), save_steps=100, best_model_checkpoint=best)
    write(tmp_path / "checkpoint-800", "model.safetensors", content="the end")
    write(tmp_path / "checkpoint-1000", "model.safetensors", content="the end")
    write(
        tmp_path,
        "model.safetensors",
        content=(tmp_path / "checkpoint-200" / "model.safetensors").read_text(),
    )
    write(tmp_path / "ema", "model.safetensors")
    pool = TrajectoryPool(path=str(tmp_path), last=2, decayed=str(tmp_path / "decayed"))
    assert [one.name for one in pool.resolve()] == ["checkpoint-900", "checkpoint-1000"]
    rows = {kind: one.path for kind, one in pool.trajectory.rows}
    assert rows == {
        "trainer_best": tmp_path / "checkpoint-200",
        "trainer_average": tmp_path / "ema",
        "decayed": tmp_path / "decayed",
    }
    assert {one.path for one in pool.trajectory.models} == set(rows.values())
    notes = "\n".join(pool.trajectory.notes)
    for line in (
        "checkpoint-800: .* as checkpoint-1000",
        "no checkpoint at steps 100, 400, 500, 600, 700 ",
        "holds checkpoint-200, not",
    ):
        assert re.search(line, notes), line


def test_rates_and_tokens_are_the_trainers_and_a_fall_is_said(tmp_path: Path) -> None:
    found = TrajectoryPool(path=str(trainer(tmp_path))).trajectory
    members = found.runs[0].members
    assert [one.rate for one in members] == pytest.approx([1.8e-5, 1.6e-5, 1.4e-5, 0.0])
    assert [one.tokens for one in members] == [6400, 12800, 19200, 64000]
    line = (
        "The rate fell from 1.8e-05 to 0 over these 4: averages of decayed checkpoints seldom gain."
    )
    assert line in found.sentences
    assert line in found.notes
    constant = TrajectoryPool(path=str(tmp_path), until=300).trajectory
    assert not any("seldom" in one for one in constant.notes)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lr.csv", "step,lr\n0,0.001\n200,0.002\n"),
        ("lr.json", '{"0": 0.001, "200": 0.002}'),
    ],
)
def test_rates_of_a_file(name: str, text: str, tmp_path: Path) -> None:
    for step in STEPS:
        write(tmp_path / "run" / f"step-{step}", ".metadata")
    (tmp_path / name).write_text(text)
    unknown = TrajectoryPool(path=str(tmp_path / "run")).trajectory
    assert any("pool.lr_path" in line for line in unknown.sentences)
    found = TrajectoryPool(path=str(tmp_path / "run"), lr_path=str(tmp_path / name)).trajectory
    assert [one.rate for one in found.runs[0].members] == [0.001, 0.002, 0.002, 0.002]


def test_further_runs_have_the_same_steps_and_names_of_their_own(tmp_path: Path) -> None:
    paths = [str(trainer(tmp_path / name)) for name in ("a", "b")]
    found = TrajectoryPool(path=paths, last=2).trajectory
    assert [one.name for one in found.others[0]] == ["run2-checkpoint-300", "run2-checkpoint-1000"]
    assert found.models == found.others[0]
    write(tmp_path / "b" / "checkpoint-1100", "model.safetensors", "trainer_state.json")
    with pytest.raises(UserError, match="other steps"):
        TrajectoryPool(path=paths).resolve()


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"path": "absent"}, r"pool\.path=absent is not a folder"),
        (
            {"path": "empty"},
            r"pool\.path=empty holds no checkpoints: looked for checkpoint-N, step-N",
        ),
        ({"path": "run", "steps": [150]}, r"pool\.steps: .* 150: 100, 200, 300, 1000"),
        ({"path": "run", "until": 100}, "gives 1 of the 2"),
        ({"path": "run", "lr_path": "lr.csv"}, r"pool\.lr_path=lr\.csv must be a CSV"),
        ({"path": []}, "pool.path is empty"),
        ({"path": "run", "last": 0}, "last=0"),
    ],
)
def test_a_wrong_path_column_or_rate_of_a_training_run_is_refused_by_key(
    settings: Mapping[str, Any], key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer(tmp_path / "run")
    write(tmp_path / "empty", "notes.txt")
    write(tmp_path, "lr.csv", content="when,what\n1,2\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=key):
        TrajectoryPool(**settings).resolve()


@pytest.mark.slow
def test_a_real_trainers_run_opens(tmp_path: Path) -> None:
    import torch
    from transformers import Trainer, TrainingArguments

    from tests.support.family import save_model

    model = save_model(tmp_path / "base", seed=0)
    data = [{"input_ids": torch.arange(3, 9), "labels": torch.arange(3, 9)}] * 4
    settings = TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=3, save_steps=1, logging_steps=1, learning_rate=1e-2,
        lr_scheduler_type="constant", report_to=[], use_cpu=True, include_num_input_tokens_seen=True,
    )  # fmt: skip
    Trainer(model=model, args=settings, train_dataset=data).train()
    pool = TrajectoryPool(path=str(tmp_path / "run"))
    members = pool.trajectory.runs[0].members
    assert [(one.step, one.rate) for one in members] == [(1, 0.01), (2, 0.01), (3, 0.01)]
    assert [one.tokens for one in members] == [24, 48, 72]
    assert len({Checkpoint.open(one.path).folder for one in pool.resolve()}) == 3
    assert pool.trajectory.notes == []


@pytest.mark.parametrize("interval", [None, 0, 1])
def test_missing_steps_cost_nothing_however_large_the_numbers_in_names(
    tmp_path: Path, interval: int | None
) -> None:
    steps = [1, 2, 20261129130000, 10**40]
    write(tmp_path / "run", "x")
    for step in steps:
        write(tmp_path / "run" / f"checkpoint-{step}", "model.safetensors")
    state = json.dumps({"log_history": [], "save_steps": interval})
    for step in steps:
        write(tmp_path / "run" / f"checkpoint-{step}", "trainer_state.json", content=state)
    pool = TrajectoryPool(path=str(tmp_path / "run"))
    assert [member.step for member in pool.trajectory.runs[0].members] == steps
    (note,) = pool.trajectory.runs[0].notes
    assert note.endswith(
        f"3, 4, 5, 6, 7, 8, 9, 10, 11, 12 and {10**40 - 1 - 13} more (deleted by save_total_limit?)"
    )
