"""Candidates in a bucket, by a local server that speaks S3 (needs s3fs, moto and flask)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from souping.checkpoints import ranges, remote
from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.fingerprints import fingerprint
from souping.core.types import UserError
from souping.merge import weight_samples
from tests.conftest import ROOT, Cli
from tests.support.checkpoints import family
from tests.support.fp8 import DATA as FP8

pytestmark = pytest.mark.bucket


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an S3 server."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket, as fsspec's file system, and an empty cache."""
    names = {"AWS_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    for key, value in {**names, "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(ranges, "RANGE_BYTES", 64)  # several to a tensor
    files = ranges.filesystem("s3://")
    files.mkdir("soups")
    yield files
    files.rm("soups", recursive=True)


def put(bucket: Any, folders: dict[str, Path]) -> dict[str, str]:
    for name, folder in folders.items():
        bucket.put(str(folder), f"soups/{name}", recursive=True)
    return {name: f"s3://soups/{name}" for name in folders}


@pytest.fixture
def pool(tmp_path: Path) -> dict[str, Path]:
    folders = family(tmp_path / "here", 2)
    (folders["m0"] / "additional_chat_templates").mkdir()
    (folders["m0"] / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    (folders["m0"] / "optimizer.pt").write_bytes(b"x" * 100)
    (folders["m0"] / "modeling.py").write_text("")
    return {**folders, "fp8": Path(shutil.copytree(FP8 / "block-0", tmp_path / "here" / "fp8"))}


@pytest.mark.parametrize("weights", [False, True])
def test_a_model_in_a_bucket_is_the_model_that_was_put_there(
    bucket: Any, pool: dict[str, Path], weights: bool
) -> None:
    for name, url in put(bucket, pool).items():
        folder = remote.remote_folder(url, weights=weights)
        assert Checkpoint.open(folder).tensors == Checkpoint.open(pool[name]).tensors
        assert fingerprint(folder) == fingerprint(pool[name])
        there = {path.name for path in folder.rglob("*") if path.is_file()}
        assert not there & {"optimizer.pt", "modeling.py"}
        small = folder / "model.safetensors"
        assert (ranges.pointer_in(small) is None) == weights


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*") if path.is_file()}


def test_a_soup_from_buckets_is_that_of_the_folders_and_rebuilds(
    souping: Cli, bucket: Any, tmp_path: Path, pool: dict[str, Path]
) -> None:
    del pool["fp8"]
    urls = put(bucket, pool)
    words = ["+experiment=merge", "optimiser.weights=[0.3,0.7]"]
    for out, places in (("far", urls), ("near", pool)):
        done = souping(
            *words, f"pool.candidates=[{','.join(map(str, places.values()))}]", f"out={out}"
        )
        assert done.code == 0, done.err
    far = contents(tmp_path / "far")
    near = contents(tmp_path / "near")
    assert far["model.safetensors"] == near["model.safetensors"]
    recipes = [json.loads(one["recipe.json"]) for one in (far, near)]
    assert recipes[0]["fingerprints"] == recipes[1]["fingerprints"]
    assert recipes[0]["sources"] == urls
    shutil.rmtree(tmp_path / "cache")  # so that the recipe's sources are read
    again = souping("rebuild", "far/recipe.json", "out=again")
    assert again.code == 0, again.err
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == far["model.safetensors"]


def test_a_run_fetches_its_candidates_once(souping: Cli, bucket: Any, tmp_path: Path) -> None:
    models = {
        name: ROOT / "souping" / "demo" / "models" / name
        for name in ("tuned_python", "tuned_java", "tuned_parallel")
    }
    words = ["+experiment=bfcl", "pool=folders", "dry_run=1", "optimiser=uniform"]
    for out, places in (("first", put(bucket, models)), ("second", models)):
        done = souping(
            *words, f"pool.candidates=[{','.join(map(str, places.values()))}]", f"out={out}"
        )
        assert done.code == 0, done.err
    costs = [json.loads(path.read_text())["cost"] for path in sorted(tmp_path.rglob("report.json"))]
    assert (costs[0]["evaluated_items"] > 0, costs[1]["evaluated_items"]) == (True, 0)


def test_a_change_in_the_bucket_is_noticed(bucket: Any, pool: dict[str, Path]) -> None:
    url = put(bucket, {"m0": pool["m0"]})["m0"]
    opened = Checkpoint.open(remote.remote_folder(url))
    opened.check_unchanged()
    bucket.put(str(pool["m1"] / "model.safetensors"), "soups/m0/model.safetensors")
    with pytest.raises(UserError, match=r"s3://soups/m0/model\.safetensors has changed"):
        opened.check_unchanged()
    assert fingerprint(remote.remote_folder(url)) != fingerprint(pool["m0"])


@pytest.mark.parametrize("name", ["nothing", "bin"])
def test_a_folder_of_the_bucket_without_safetensors_is_named(
    bucket: Any, tmp_path: Path, name: str
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pytorch_model.bin").write_bytes(b"x")
    urls = put(bucket, {"bin": tmp_path / "bin"})
    with pytest.raises(UserError, match=f"s3://soups/{name}"):
        remote.remote_folder(urls.get(name, "s3://soups/nothing"))


@pytest.mark.parametrize(("source", "requests"), [("m0", 1), ("fp8", 4)])
def test_weights_in_a_bucket_are_compared_by_a_few_bytes(
    bucket: Any,
    pool: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    requests: int,
) -> None:
    """A block is a request; one of an FP8 weight also needs its scales."""
    folders = {"a": pool[source], "b": Path(shutil.copytree(pool[source], pool["m0"] / "../b"))}
    fetched = list[int]()
    fetch = ranges.Pointer.fetch

    def counted(remote: ranges.Pointer, start: int, end: int) -> bytes:
        fetched.append(end - start)
        return fetch(remote, start, end)

    models = {
        name: Checkpoint.open(remote.remote_folder(url))
        for name, url in put(bucket, folders).items()
    }
    monkeypatch.setattr(ranges.Pointer, "fetch", counted)
    monkeypatch.setattr(weight_samples, "MOST_BLOCKS", weight_samples.FEWEST_BLOCKS)
    result = weight_samples.WeightSample.of(models, base=None).similarity()
    here = {name: Checkpoint.open(folder) for name, folder in folders.items()}
    assert result == weight_samples.WeightSample.of(here, base=None).similarity()
    assert result is not None
    assert max(fetched) <= 4 * weight_samples.BLOCK
    assert len(fetched) <= requests * len(models) * weight_samples.FEWEST_BLOCKS
