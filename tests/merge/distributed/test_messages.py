"""Messages between ranks, why a group ended, and the arithmetic in torch."""

from __future__ import annotations

import errno
import logging
import os
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from souping.checkpoints.dtypes import FLOATS, size_of
from souping.core.types import UserError
from souping.merge.distributed.backend import environment
from souping.merge.distributed.messages import diagnosis, line, overheard, pack, parse, unpack
from souping.merge.distributed.worker import _arithmetic, check_ranks
from souping.merge.kernels import gpu, reference
from tests.support.ranks import audible

LAUNCHER = """E1124 failed (exitcode: {code}) local_rank: 0 (pid: 7)
[rank1]: RuntimeError: Connection closed by peer
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
worker FAILED
Failures:
[1]:
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 25786)  (SIGTERM)
Root Cause (first observed failure):
[0]:
  rank      : 1 (local_rank: 1)
  exitcode  : {code} (pid: 25783)
============================================================
"""


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (LAUNCHER.format(code=-9), "rank 1 ended with signal 9 (out of memory?)"),
        (LAUNCHER.format(code=-11), "rank 1 ended with signal 11"),
        (LAUNCHER.format(code=1), "rank 1 ended with status 1: RuntimeError: Connection closed by peer"),
        ("CalledProcessError: Command 'x' died with <Signals.SIGSEGV: 11>.", "rank 0 ended with signal 11"),
        ("ImportError: no torch\nsubprocess.CalledProcessError: x", "the ranks ended: ImportError: no torch"),
        ("odd words", "the ranks ended: odd words"),
        ("", "the ranks ended"),
    ],
)
def test_why_a_group_ended(log: str, said: str) -> None:
    assert diagnosis(log) == said


def test_errors_survive_the_way() -> None:
    user = unpack(pack(UserError("what, where")))
    assert isinstance(user, UserError)
    assert str(user) == "what, where"
    full = unpack(pack(OSError(errno.ENOSPC, "No space left on device")))
    assert isinstance(full, OSError)
    assert full.errno == errno.ENOSPC
    bug = unpack(pack(ZeroDivisionError("division by zero")))
    assert isinstance(bug, RuntimeError)
    assert "ZeroDivisionError: division by zero" in str(bug)
    memory = unpack(pack(torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB")))
    assert isinstance(memory, UserError)
    assert "the GPU's memory is full: CUDA out of memory" in str(memory)


def test_chatter_is_no_message() -> None:
    assert parse(line({"done": True})) == {"done": True}
    assert parse(b"Loading weights: 100%\n") is None
    assert parse(b"3\n") is None


def test_environment_forgets_other_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    found = environment()
    assert "WORLD_SIZE" not in found
    assert found["PYTHONPATH"].split(os.pathsep)[1:] == ["elsewhere"]


def test_fewer_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_ranks(2, 2)
    check_ranks(None, 1)
    with pytest.raises(UserError, match="3 ranks were asked for and accelerate started 2"):
        check_ranks(3, 2)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UserError, match="several ranks were asked for and accelerate started 1"):
        check_ranks(None, 1)


def test_torch_on_this_processor_agrees() -> None:
    assert gpu.agrees(torch.device("cpu"))


@pytest.mark.parametrize("broken", ["add_", "to"])
def test_a_device_that_rounds_otherwise_is_found_out(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Multiply, then add; cut instead of rounding."""
    to = torch.Tensor.to

    def add(self: torch.Tensor, other: torch.Tensor, alpha: float = 1.0) -> torch.Tensor:
        return self.copy_(self + other * alpha)

    def cut(self: torch.Tensor, *arguments: Any) -> torch.Tensor:
        if arguments == (torch.bfloat16,):
            return to(self.view(torch.int32) >> 16, torch.int16).view(torch.bfloat16)
        return to(self, *arguments)

    monkeypatch.setattr(torch.Tensor, broken, {"add_": add, "to": cut}[broken])
    assert not gpu.agrees(torch.device("cpu"))
    monkeypatch.setattr(gpu, "agrees", lambda _: False)
    device, note = _arithmetic(torch.device("cuda", 0))
    assert device is None
    assert "cuda:0 rounds otherwise" in note


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dtypes=st.lists(st.sampled_from(sorted(FLOATS)), min_size=2, max_size=4),
    dtype=st.sampled_from(sorted(FLOATS)),
    delta=st.booleans(),
)
def test_torch_mixes_as_the_kernels(seed: int, dtypes: list[str], dtype: str, delta: bool) -> None:
    dice = np.random.default_rng(seed)
    rows = [np.frombuffer(dice.bytes(37 * size_of(tag)), np.uint8).copy() for tag in dtypes]
    weights = dice.uniform(-1, 2, len(rows)).tolist()
    function = reference.delta if delta else reference.linear
    with np.errstate(all="ignore"):
        total = function([reference.widen(row, tag) for row, tag in zip(rows, dtypes, strict=True)], weights)
        wanted = reference.narrow(total, dtype)
    got, finite = gpu.blend(function, [torch.from_numpy(r) for r in rows], dtypes, weights, dtype)
    assert got.numpy().tobytes() == wanted.tobytes()
    assert bool(finite) == reference.finite(wanted, dtype)


def test_warnings_are_overheard_once() -> None:
    audible()
    with overheard() as heard:
        logging.getLogger("souping.merge.chunks").warning("NaN in %s", "x")
        logging.getLogger("souping").info("nothing")
    assert heard == ["NaN in x"]
