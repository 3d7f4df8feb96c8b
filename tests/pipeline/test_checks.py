"""What a run needs beside what the machine has: sizes, disks, memory, GPUs, packages."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from souping.checkpoints.pool import ModelSize, parameters_in, weigh
from souping.core.types import Candidate
from souping.evaluate.generate import LocalEvaluator
from souping.merge.local import LocalMerge
from souping.pipeline import checks
from souping.pipeline.checks import Gpu, Machine, requirements_of, soup_bytes
from souping.pipeline.evaluation import LocalExecutor
from souping.trackers import NoTracker
from tests.conftest import Cli, pool_of

GB = 10**9
EIGHT = ModelSize(name="m", path="org/m", basis="Hub", nbytes=16 * GB, parameters=8 * GB, download=17 * GB)
LAPTOP = Machine(cores=8, memory=32 * GB)
HOST = Machine(cores=64, memory=512 * GB, gpus=(Gpu(name="H100", total=80 * GB),) * 2)


def run(**changes: Any) -> Any:
    settings = {"out": Path("soup"), "merge": LocalMerge(), "stop_after": None, "upload": None}
    made = {**settings, "executor": LocalExecutor(), "tracker": NoTracker(), **changes}
    return SimpleNamespace(**made, parts=[made["merge"], made["executor"]])


@pytest.mark.parametrize(
    ("setting", "seen"), [(None, "abc"), ("", ""), ("2,0", "ca"), ("1,7,0", "b"), ("-1", ""), ("GPU-1f", "abc")]
)
def test_gpus_are_those_of_the_driver_that_are_visible(
    setting: str | None, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = SimpleNamespace(stdout="a, 81559\nb, 23028\nc, 1\nNVIDIA X, [N/A]\n")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: listed)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if setting is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    assert "".join(gpu.name for gpu in checks.gpus()) == seen
    assert {gpu.total for gpu in checks.gpus() if gpu.name == "a"} <= {81559 * 2**20}


def test_a_container_may_have_less_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("123456789\n")
    (tmp_path / "none").write_text("max\n")
    monkeypatch.setattr(checks, "CGROUPS", (tmp_path / "none", tmp_path / "memory.max", tmp_path / "absent"))
    assert checks.machine_facts().memory == 123456789


def test_space_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert checks.disk_space(tmp_path / "a" / "b") == checks.disk_space(tmp_path)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 8e9),
        ("Salesforce/Llama-xLAM-2-70b-fc-r@main", 70e9),
        ("HuggingFaceTB/SmolLM2-135M", 135e6),
        ("org/model-1.5b", 1.5e9),
        ("org/Mixtral-8x7B", 0),
        ("org/name", 0),
    ],
)
def test_parameters_by_name(name: str, number: float) -> None:
    assert parameters_in(name) == number


def test_a_folder_is_weighed_by_its_headers(family: Path, tmp_path: Path) -> None:
    found = weigh(Candidate(name="ant", path=family / "ant"))
    assert (found.basis, found.nbytes, found.download) == ("headers", 2 * found.parameters, 0)
    assert "is not a folder" in weigh(Candidate(name="x", path=tmp_path / "nowhere" / "x" / "y")).trouble


class TestSpace:
    @pytest.fixture(autouse=True)
    def disks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checks, "disk_space", lambda path: (100 * GB, 1))

    @staticmethod
    def fits(kind: str, evaluator: LocalEvaluator, *models: ModelSize, machine: Machine = LAPTOP, **run_: Any) -> bool:
        return {one.kind: one.fits for one in requirements_of(run(**run_), models, machine, [evaluator])}[kind]

    def test_a_disk_holds_soup_and_downloads_together(self) -> None:
        disk = next(
            one for one in requirements_of(run(), [EIGHT] * 4, LAPTOP, [LocalEvaluator()]) if one.kind == "disk"
        )
        assert disk.need == 4 * 17 * GB + 16 * GB
        assert disk.fits
        assert not self.fits("disk", LocalEvaluator(), *[EIGHT] * 5)
        assert self.fits("disk", LocalEvaluator(), *[EIGHT] * 5, stop_after="search")

    @pytest.mark.parametrize(
        ("dtype", "resident", "fits"),
        [("bfloat16", "none", True), ("float32", "none", False), ("bfloat16", "cpu", False)],
    )
    def test_memory_of_a_loaded_model(self, dtype: Any, resident: str, fits: bool) -> None:
        merge = LocalMerge(resident=resident)
        assert self.fits("memory", LocalEvaluator(dtype=dtype), EIGHT, EIGHT, merge=merge) is fits

    def test_a_gpu_holds_the_model_in_the_evaluators_dtype(self) -> None:
        seventy = ModelSize(name="m", path="m", basis="headers", nbytes=140 * GB, parameters=70 * GB)
        evaluator = LocalEvaluator(dtype="bfloat16", device="cuda")
        assert self.fits("GPU memory", evaluator, EIGHT, machine=HOST)
        assert not self.fits("GPU memory", evaluator, seventy, machine=HOST)

    @pytest.mark.parametrize(("ways", "fits"), [(1, False), (2, True), (4, False)])
    def test_vllm_shares_a_model_over_gpus(self, ways: int, fits: bool) -> None:
        from souping.evaluate.engines.vllm import VllmEngine

        model = ModelSize(name="m", path="m", basis="headers", nbytes=100 * GB, parameters=50 * GB)
        evaluator = LocalEvaluator(engine=VllmEngine(tensor_parallel_size=ways))
        assert self.fits("GPU memory", evaluator, model, machine=HOST) is fits

    def test_a_dtype_of_the_merge_sizes_the_soup(self) -> None:
        assert soup_bytes([EIGHT], LocalMerge(dtype="float32")) == 32 * GB
        adapter = ModelSize(name="a", path="a", basis="headers", nbytes=GB // 10, parameters=GB // 20, adapter=True)
        assert soup_bytes([adapter], LocalMerge()) == GB // 10


class TestRefusal:
    """A run on too small a machine stops before a model is loaded."""

    def test_a_full_disk(self, family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checks, "disk_space", lambda path: (1000, 1))
        souping(*pool_of(family)).refused("the disk for the soup has 1.00 kB, the run needs 23.47 kB")
        assert not list(tmp_path.glob("outputs/fam/*"))
        done = souping(*pool_of(family), "plan=true")
        assert done.code == 0, done.err
        assert "the disk for the soup has 1.00 kB" in done.out.splitlines()[-1]

    def test_too_little_memory(self, family: Path, souping: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checks, "machine_facts", lambda: Machine(cores=1, memory=GB))
        souping(*pool_of(family)).refused("this machine's memory has 1.00 GB, the run needs 1.50 GB", "evaluator.dtype")


class TestMissing:
    def test_gpus(self) -> None:
        from souping.evaluate.engines.vllm import VllmEngine

        evaluator = LocalEvaluator(engine=VllmEngine(tensor_parallel_size=4))
        found = [one.what for one in checks.missing(run(), [], HOST, [evaluator])]
        assert "GPUs: vLLM is set to use 4, nvidia-smi shows 2" in found
        found = [one.what for one in checks.missing(run(), [], LAPTOP, [LocalEvaluator(device="cuda:1")])]
        assert found == ["a GPU: evaluator.device=cuda:1, nvidia-smi shows 0"]

    def test_an_upload_needs_a_login(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
