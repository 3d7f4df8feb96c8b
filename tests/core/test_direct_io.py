"""Reads and writes past the page cache, at any offset."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from souping.core import direct_io
from souping.core.direct_io import PAGE, PageBuffer, make_direct, read_direct, write_direct
from souping.core.open_files import reserve

PLACES = [
    (0, 3 * PAGE),
    (1, 2),
    (PAGE - 8, 16),
    (PAGE + 8, PAGE),
    (72, 5 * PAGE),
    (2 * PAGE, 5 * PAGE + 77),
]


@pytest.fixture
def small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_io, "BUFFER_BYTES", 2 * PAGE)
    monkeypatch.setattr(direct_io, "_buffer", PageBuffer())


def opened(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR)
    if not make_direct(descriptor):
        pytest.skip("this file system has no direct reads")
    return descriptor


@pytest.mark.usefixtures("small_buffer")
@pytest.mark.parametrize(("offset", "size"), PLACES)
def test_any_part_of_a_file_is_read(offset: int, size: int, tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 256, 7 * PAGE + 77, np.uint8)
    content.tofile(tmp_path / "file")
    descriptor = opened(tmp_path / "file")
    into = np.zeros(size, np.uint8)
    done = 0
    while done < size:
        count = read_direct(descriptor, into[done:], offset + done)
        assert count > 0
        done += count
    assert (into == content[offset : offset + size]).all()
    assert read_direct(descriptor, into, len(content)) == 0, "the end of the file"
    os.close(descriptor)


@pytest.mark.usefixtures("small_buffer")
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("block", [PAGE // 2 - 1, 3 * PAGE, 3 * PAGE + 8])
def test_neighbouring_blocks_that_share_a_page_keep_their_bytes(
    block: int, backwards: bool, tmp_path: Path
) -> None:
    content = np.random.default_rng(0).integers(0, 256, 13 * PAGE + 5, np.uint8)
    with (tmp_path / "file").open("xb") as file:
        file.write(content[:100].data)
        file.flush()
        reserve(file.fileno(), len(content))
    direct = opened(tmp_path / "file")
    cached = os.open(tmp_path / "file", os.O_RDWR)
    offsets = list(range(100, len(content), block))
    for offset in offsets[::-1] if backwards else offsets:
        write_direct(direct, cached, content[offset : offset + block], offset)
    os.close(direct)
    os.close(cached)
    assert (tmp_path / "file").read_bytes() == content.tobytes()


def test_a_file_system_without_direct_reads_reads_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"12345678")
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)

    def unable(*_: object) -> int:
        raise OSError(22, "Invalid argument")

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", unable)
        assert not make_direct(descriptor)
    assert os.pread(descriptor, 3, 1) == b"234"
    os.close(descriptor)
