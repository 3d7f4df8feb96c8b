"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from souping.checkpoints.header import inside, small
from souping.comparison.row_verdict import read_policy
from souping.core import folders
from souping.core.fields import load_json
from souping.core.folders import STAGING_MARK, discard, missing_folders, staged, write_files
from souping.core.scores import read_table
from souping.core.types import UserError
from souping.evaluate.benchmark import Benchmark
from souping.logs.sources import read_logs
from souping.report.samples import read_samples


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_run_at_a_time_writes_a_soup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "soup"
    sync = folders._sync

    def other() -> None:
        with pytest.raises(UserError, match="another run is writing there"), staged(out):
            pytest.fail("two at once")

    def slow(path: Path) -> None:
        if path != tmp_path:
            other()  # as another run's start would, between the last byte and the rename
        sync(path)

    monkeypatch.setattr(folders, "_sync", slow)
    with staged(out) as stage:
        other()
        write_files(stage, {"a": "1", "deep/b": "2"})
    assert names(tmp_path) == ["soup"]
    assert names(out) == ["a", "deep"]


READERS: dict[str, Callable[[Path], object]] = {
    "items": lambda path: Benchmark(path=str(path)).items(),
    "log": lambda path: read_logs(path),
    "file of a report": lambda path: load_json(path, dict[str, str]),
    "score table": read_table,
    "samples": lambda path: list(read_samples(path)),
    "small file of a checkpoint": small,
    "file of a checkpoint": lambda path: inside(path.parent, path.name),
    "gate": read_policy,
}


@pytest.mark.parametrize("reader", READERS.values(), ids=list(READERS))
def test_pipes_and_devices_are_refused_where_a_file_is_read(
    tmp_path: Path, reader: Callable[[Path], object]
) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path in (tmp_path / "pipe.jsonl", Path("/dev/zero")):
        with pytest.raises(UserError, match="a pipe, a device or a socket"):
            reader(path)


def test_the_staging_folder_of_a_killed_run_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".soup.part-1").mkdir()
    (tmp_path / ".soup.part-1" / "model").touch()
    (tmp_path / ".soup.part-1" / STAGING_MARK).touch()
    (tmp_path / ".soup.lock").touch()
    (tmp_path / ".other.part-1").mkdir()
    (tmp_path / ".soup.part-mine").mkdir()  # without the mark: the user's
    with staged(tmp_path / "soup") as stage:
        write_files(stage, {"a": "1"})
    assert names(tmp_path) == [".other.part-1", ".soup.part-mine", "soup"]


def test_a_soup_that_somebody_else_put_there_meanwhile_is_not_touched(tmp_path: Path) -> None:
    out = tmp_path / "soup"

    def write() -> None:
        with staged(out) as stage:
            write_files(stage, {"a": "mine"})
            write_files(out, {"b": "theirs"})

    with pytest.raises(OSError, match="soup"):
        write()
    assert names(tmp_path) == ["soup"]
    assert names(out) == ["b"]


def test_a_refused_run_takes_what_it_made_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    run = Path("there/outputs/run")
    made = missing_folders(run)
    assert [path.name for path in made] == ["run", "outputs"]
    run.mkdir(parents=True)
    for name in ("log", "result"):
        (run / name).touch()
    discard(run, made, ["log"])
    assert names(run) == ["log", "result"]
    (run / "result").unlink()
    discard(run, made, ["log"])
    assert names(tmp_path) == ["there"]
    assert names(Path("there")) == []
    discard(run, made)
    discard(Path("there"), made)
    assert Path("there").is_dir()
