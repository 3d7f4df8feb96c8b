"""Stand-ins for vendors' SDKs that bfcl-eval imports when it starts, whether they are used or not."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

SDKS = (
    "anthropic",
    "boto3",
    "cohere",
    "datamodel_code_generator",
    "google",
    "mistralai",
    "qwen_agent",
    "writerai",
)


class _Named(type):
    """A class that has every name, each of them such a class."""

    def __getattr__(cls, name: str) -> Any:
        return _stand_in(name)


class _Absent(ModuleType):
    """An SDK that is not installed: any name can be imported from it, and none is of use."""

    def __getattr__(self, name: str) -> Any:
        return _stand_in(name)


def _stand_in(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Named(name, (Exception,), {})  # an exception, since some of them are named after `except`


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands last in the import path, so it is asked only for what is not installed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] not in SDKS:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Absent(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def stand_in_for_absent() -> None:
    """From here on, an SDK that is not installed can be imported."""
    sys.meta_path.append(_Finder())
