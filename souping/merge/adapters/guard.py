"""NaN and infinity while adapters are souped: an error that names file and tensor, or one warning."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from souping.core import UserError
from souping.merge.checkpoint import Checkpoint
from souping.merge.header import Tensor, shown
from souping.merge.kernels import Float32

log = logging.getLogger(__name__)


class Guard:
    """`nonfinite=error` refuses, `warn` lets through and says so once a tensor."""

    def __init__(self, checkpoints: Mapping[str, Checkpoint], nonfinite: str) -> None:
        self._checkpoints, self._nonfinite = dict(checkpoints), nonfinite
        self._warned: set[str] = set()

    def __call__(self, values: Float32, name: str, tensor: Tensor) -> None:
        """Judge values that were read from a checkpoint."""
        if not np.isfinite(values).all():
            path = self._checkpoints[name].folder / tensor.file
            self._complain(f"NaN or infinity in tensor {shown(tensor.name)} in {path}")

    def soup(self, values: Float32, tensor: str) -> None:
        """Judge values of the soup whose parts were finite."""
        if not np.isfinite(values).all():
            self._complain(f"overflow to infinity in tensor {shown(tensor)} of the soup")

    def _complain(self, what: str) -> None:
        if self._nonfinite == "error":
            raise UserError(f"{what}. Set merge.nonfinite=warn to let it through.")
        if what not in self._warned:
            self._warned.add(what)
            log.warning("%s", what)
