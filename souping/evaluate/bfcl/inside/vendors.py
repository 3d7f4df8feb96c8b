"""Stand-ins for vendors' SDKs that bfcl-eval imports when it starts, whether they are used or not."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
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
    """Class that has every name, each of them such a class."""

    def __getattr__(cls, name: str) -> Any:
        return _stand_in(name)


class _Absent(ModuleType):
    """SDK that is not installed: any name can be imported from it, and none is of use."""

    def __getattr__(self, name: str) -> Any:
        return _stand_in(name)


def _stand_in(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    # an exception, since some of them stand after `except`; made with any arguments, since clients are made early
    return _Named(name, (Exception,), {"__init__": lambda self, *_, **__: None})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finder of stand-ins for these SDKs, wherever in the import path it stands."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] not in self._names:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Absent(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def stand_in_for_absent(unused: Sequence[str] = ()) -> None:
    """From here on, an SDK that is not installed can be imported. Nor is an `unused` one, where it alone is installed:
    others may ask what they build on for its version.
    """
    alone = importlib.util.find_spec("qwen_agent") is None
    sys.meta_path.append(_Finder(SDKS))
    sys.meta_path.insert(0, _Finder(unused if alone else ()))
