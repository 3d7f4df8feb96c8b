"""Machine code from LLVM assembly, which llvmlite makes in about 10 ms. It imports faster than torch or numba."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from typing import Any

LOCK = threading.Lock()


def compiled(assembly: str) -> int | None:
    """The address of the function `@kernel` in some assembly, which is compiled once; None if LLVM cannot help."""
    with LOCK:
        return _compiled(assembly)


def features() -> Mapping[str, bool]:
    """What this processor can do, by LLVM's names; empty if LLVM cannot help."""
    with LOCK:
        return _engine()[1]


@functools.cache
def _compiled(assembly: str) -> int | None:
    engine, _ = _engine()
    if engine is None:
        return None
    from llvmlite import binding

    name = f"kernel{abs(hash(assembly))}"
    module = binding.parse_assembly(assembly.replace("@kernel(", f"@{name}("))
    module.verify()
    engine.add_module(module)
    engine.finalize_object()
    return int(engine.get_function_address(name))


@functools.cache
def _engine() -> tuple[Any, Mapping[str, bool]]:
    """(llvmlite's engine or None, the features of this processor)."""
    try:
        from llvmlite import binding

        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        known = binding.get_host_cpu_features()
        target = binding.Target.from_default_triple()
        machine = target.create_target_machine(binding.get_host_cpu_name(), known.flatten(), opt=3, jit=True)
        engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    except (ImportError, RuntimeError, AttributeError, OSError):
        return None, {}
    fused = known.get("fma") or target.name.startswith("aarch64")
    return (engine, dict(known)) if fused else (None, {})
