"""GPUs in the order, and with the memory, that CUDA's driver tells (a stand-in: no test needs a GPU)."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from souping.core import cuda
from souping.core.cuda import Gpu, visible_gpus

GPUS = (("NVIDIA A", 80 * 2**30), ("NVIDIA B 16GB", 16 * 2**30))


class Driver:
    """CUDA's driver with these GPUs; `status` is what its start returns."""

    def __init__(self, status: int = 0) -> None:
        self.status = status

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(GPUS)
        return 0

    def cuDeviceGet(self, device: Any, number: int) -> int:
        # A handle is no number.
        device._obj.value = 10 + number
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = GPUS[device.value - 10][0].encode()[:size]
        return 0

    def cuDeviceTotalMem_v2(self, total: Any, device: Any) -> int:
        total._obj.value = GPUS[device.value - 10][1]
        return 0


def test_devices_are_those_of_the_driver_in_its_order() -> None:
    assert cuda.devices(Driver()) == [*GPUS]
    assert cuda.devices(Driver(status=100)) == []


def test_a_process_of_its_own_lists_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = "".join(f"{total} {name}\n" for name, total in GPUS)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: SimpleNamespace(stdout=printed))
    assert visible_gpus() == tuple(Gpu(name=name, total=total) for name, total in GPUS)


def test_without_a_driver_no_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", absent)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("started"))
    assert visible_gpus() == ()
