"""Digests of files that pass by while they are averaged: those that hashing alone gives, whatever the order."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from souping.checkpoints import Checkpoint, fingerprint
from souping.checkpoints.header import Tensor
from souping.core.types import UserError
from souping.merge.writer import PassingDigest
from tests.conftest import Cli

CONTENT = np.random.default_rng(0).integers(0, 256, 10_000, np.uint8)
SIZES = (0, 900, 4000, 0, 3, 4997, 0)


def opened(path: Path, *, gap: int = 0) -> tuple[PassingDigest, list[str]]:
    """A digest of tensors in a file, which begin at byte 100, and what it has to be."""
    path.write_bytes(CONTENT.tobytes())
    ends = list(itertools.accumulate(SIZES, initial=100))
    group = [Tensor(f"t{i}", "U8", (n,), path.name, ends[i], n) for i, n in enumerate(SIZES)]
    group[5] = replace(group[5], offset=group[5].offset + gap, nbytes=group[5].nbytes - gap)
    checkpoint = Checkpoint.of(path.parent, {t.name: t for t in group}, {}, (), {})
    values = [hashlib.sha256(CONTENT[t.offset : t.offset + t.nbytes].tobytes()).hexdigest() for t in group]
    return PassingDigest(checkpoint, group), values


def kept(digest: PassingDigest) -> list[str]:
    known = dict[str, str]()
    digest.finish()
    digest.keep(known)
    return next(iter(known.values())).split()


@pytest.mark.parametrize(
    "order",
    [
        [(100, 5000), (5000, 10_000)],
        [(5000, 10_000), (100, 5000)],
        [(100, 5000), (100, 5000), (5000, 10_000)],
        [(2000, 5000)],
        [],
        [(a, a + 100) for a in range(9900, 0, -100)],
        [(a, a + 100) for a in range(100, 10_000, 100)],
    ],
    ids=["in order", "turned round", "twice", "with gaps", "none", "backwards", "in many pieces"],
)
@pytest.mark.parametrize("threads", [1, 4])
def test_it_is_the_digest_of_every_tensor(tmp_path: Path, order: list[tuple[int, int]], threads: int) -> None:
    digest, values = opened(tmp_path / "file")
    with ThreadPoolExecutor(threads) as pool:
        promised = [(a, b) for a, b in order if digest.promise(a, b - a)]
        for job in [pool.submit(digest.feed, a, CONTENT[a:b]) for a, b in promised]:
            job.result()
    assert kept(digest) == values


def test_bytes_between_tensors_do_not_count(tmp_path: Path) -> None:
    digest, values = opened(tmp_path / "file", gap=64)
    for start, end in ((100, 5003), (5067, 6000)):
        assert digest.promise(start, end - start)
        digest.feed(start, CONTENT[start:end])
    assert kept(digest) == values


def test_nobody_waits_for_a_thread_that_failed(tmp_path: Path) -> None:
    digest, values = opened(tmp_path / "file")
    assert digest.promise(100, 900)
    assert digest.promise(1000, 500)
    assert not digest.promise(2000, 500)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(digest.feed, 1000, CONTENT[1000:1500])
        digest.abandon()
        waits.result(timeout=600)
    assert kept(digest) == values


def test_a_file_that_changes_meanwhile_gets_no_digest(tmp_path: Path) -> None:
    digest, known = opened(tmp_path / "file")[0], dict[str, str]()
    (tmp_path / "file").write_bytes(CONTENT[::-1].tobytes())
    digest.finish()
    with pytest.raises(UserError, match="has changed"):
        digest.keep(known)
    assert known == {}


def test_a_first_merge_names_its_ingredients_by_content(family: Path, souping: Cli, tmp_path: Path) -> None:
    shutil.copytree(family / "ant", tmp_path / "twin")
    pool = [f"pool.candidates=[{family / 'ant'},{family / 'bee'},{tmp_path / 'twin'}]"]
    words = ["+experiment=merge", *pool, "optimiser.weights=[0.5,0.3,0.2]"]
    first, second = souping(*words, "out=soup_1"), souping(*words, "out=soup_2")
    assert (first.code, second.code) == (0, 0), first.err + second.err
    recipe = json.loads((tmp_path / "soup_1/recipe.json").read_text())
    assert recipe["fingerprints"] == [fingerprint(family / name) for name in ("ant", "bee", "ant")]
    for path in (tmp_path / "soup_1").iterdir():
        own = path.read_bytes().replace(b"soup_1", b"soup_2")
        assert own == (tmp_path / "soup_2" / path.name).read_bytes()
    assert all("ant and twin hold the same bytes" in done.out + done.err for done in (first, second))
    assert souping("+experiment=rebuild", "recipe=soup_1/recipe.json", "out=third").code == 0
