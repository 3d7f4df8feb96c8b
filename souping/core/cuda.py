"""GPUs as CUDA's driver lists them: those of `CUDA_VISIBLE_DEVICES` (numbers, UUIDs, MIG), by `CUDA_DEVICE_ORDER`.

    python -m souping.core.cuda

prints `BYTES NAME` for each. It is a process of its own, because one that has asked the driver cannot be forked.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from typing import Any

from souping.core.system import package_environment
from souping.core.types import frozen

DRIVER = "libcuda.so.1"
TIMEOUT_S = 60
NAME_BYTES = 256


@frozen
class Gpu:
    """GPU that this process may use, with the bytes of its memory."""

    name: str
    total: int


def devices(driver: Any) -> list[tuple[str, int]]:
    """(name, bytes of memory) of each GPU, by a loaded driver; none if it has none."""
    count = ctypes.c_int()
    device = ctypes.c_int()
    total = ctypes.c_size_t()
    name = ctypes.create_string_buffer(NAME_BYTES)
    # Each function returns 0, or an error's number.
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    found = []
    for number in range(count.value):
        driver.cuDeviceGet(ctypes.byref(device), number)
        driver.cuDeviceGetName(name, NAME_BYTES, device)
        driver.cuDeviceTotalMem_v2(ctypes.byref(total), device)
        found.append((name.value.decode(errors="replace"), total.value))
    return found


def visible_gpus() -> tuple[Gpu, ...]:
    """NVIDIA GPUs that a new process can use, in CUDA's order."""
    command = [sys.executable, "-m", __name__]
    try:
        # No process is started without a driver.
        ctypes.CDLL(DRIVER)
        lines = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
            env=package_environment(),
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return ()
    pairs = [line.split(" ", 1) for line in lines]
    return tuple(Gpu(name=name, total=int(total)) for total, name in pairs)


if __name__ == "__main__":
    for gpu, memory in devices(ctypes.CDLL(DRIVER)):
        print(memory, gpu)
