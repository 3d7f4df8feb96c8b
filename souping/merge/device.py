"""Live pouring on a GPU: blocks of the ingredients go through pinned buffers to the device and are mixed there.

The operations are torch's, in the order of `kernels`: `add_(x, alpha=w)` on fp32 is a fused multiply-add on CUDA as on
CPUs, the divisor is a tensor because torch multiplies by the reciprocal of a plain number. With `resident="device"` the
ingredients stay on the device between pours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from souping.merge.kernels import Raw, delta, linear
from souping.merge.layout import MergePlan, Source
from souping.merge.methods import Combine
from souping.merge.runs import Run, size_of
from souping.merge.targets import TORCH_DTYPES

if TYPE_CHECKING:
    import torch

STEP = 1 << 24  # elements: 64 MB of fp32 on the device at once, and launches that are long enough
FUSED = (linear, delta)
Row = Callable[[MergePlan, Source, int], Raw]
"""row(plan, source, count): an ingredient's bytes in host memory"""


class Device:
    """Mixes runs on one device. Blocks that are not finite are remembered, so that nothing waits for the device."""

    def __init__(self, device: torch.device, row: Row, keep: bool) -> None:
        self._device, self._row, self._keep = device, row, keep
        self._kept: dict[tuple[str, int, int], torch.Tensor] = {}
        self._finite: list[tuple[Run, torch.Tensor]] = []

    def mix(self, plan: MergePlan, run: Run, function: Combine, out: torch.Tensor) -> None:
        """The run's elements into `out`, which is flat, on the device, and of the parameter's dtype."""
        import torch

        for start in range(0, run.count, STEP):
            part = run.part(start, min(STEP, run.count - start))
            soup = self._soup(plan, part, function).to(getattr(torch, TORCH_DTYPES[run.dtype]))
            self._finite.append((part, torch.isfinite(soup).all()))
            out[start : start + part.count].copy_(soup)

    def bad_runs(self) -> list[Run]:
        """Blocks mixed since the last call that hold NaN or infinity. Waits for the device once."""
        import torch

        pending, self._finite = self._finite, []
        if not pending:
            return []
        flags = torch.stack([flag for _, flag in pending]).tolist()
        return [run for (run, _), good in zip(pending, flags, strict=True) if not good]

    def _soup(self, plan: MergePlan, run: Run, function: Combine) -> torch.Tensor:
        """fp32 values of a block."""
        import torch

        if run.op == "copy":
            return self._fetch(plan, run, 0)
        total = torch.zeros(run.count, dtype=torch.float32, device=self._device)
        first = int(function is delta)
        base = self._fetch(plan, run, 0).float() if first else None
        for number in range(first, len(run.sources)):
            row = self._fetch(plan, run, number).float()
            total.add_(row if base is None else row - base, alpha=run.weights[number])
        if base is not None:
            total = base + total
        if plan.divisor is not None:
            total.div_(torch.tensor(plan.divisor, dtype=torch.float32, device=self._device))
        return total

    def _fetch(self, plan: MergePlan, run: Run, number: int) -> torch.Tensor:
        """A source's elements on the device, in their own dtype."""
        source = run.sources[number]
        key = (plan.ingredients[source.ingredient].folder, source.file, source.offset)
        row = self._kept.get(key)
        if row is None or row.numel() != run.count:
            row = self._upload(self._row(plan, source, run.count), source)
            if self._keep:
                self._kept[key] = row
        return row

    def _upload(self, raw: Raw, source: Source) -> torch.Tensor:
        import torch

        pinned = self._device.type == "cuda"
        host = torch.empty(len(raw) // size_of(source.dtype), dtype=getattr(torch, TORCH_DTYPES[source.dtype]))
        if pinned:
            host = host.pin_memory()
        host.view(torch.uint8).numpy()[:] = raw
        return host.to(self._device, non_blocking=pinned)
