"""Machine code from LLVM assembly, by llvmlite: compiles in tens of milliseconds, and imports faster than torch."""

from __future__ import annotations

import functools
import threading
from typing import Any

COMPILER_LOCK = threading.Lock()
"""Held while LLVM compiles: all threads share one engine."""


def compiled(assembly: str) -> int | None:
    """The address of the function `@kernel` in some assembly, which is compiled once; None if LLVM cannot help."""
    with COMPILER_LOCK:
        return _compiled(assembly)


@functools.cache
def _compiled(assembly: str) -> int | None:
    """The address that `compiled` returns; each assembly gets a name of its own in the engine."""
    compiler = _compiler()
    if compiler is None:
        return None
    from llvmlite import binding

    engine, machine = compiler
    name = f"kernel{abs(hash(assembly))}"
    module = binding.parse_assembly(assembly.replace("@kernel(", f"@{name}("))
    module.verify()
    passes = binding.create_pass_builder(
        machine, binding.create_pipeline_tuning_options(speed_level=2)
    )
    passes.getModulePassManager().run(module, passes)  # runs the loop vectoriser
    engine.add_module(module)
    engine.finalize_object()
    return int(engine.get_function_address(name))


@functools.cache
def _compiler() -> tuple[Any, Any] | None:
    """(llvmlite's engine, its target machine); None unless the CPU has fused multiply-add and converts fp16."""
    try:
        from llvmlite import binding

        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        features = binding.get_host_cpu_features()
        target = binding.Target.from_default_triple()
        machine = target.create_target_machine(
            binding.get_host_cpu_name(), features.flatten(), opt=3, jit=True
        )
        engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    except (ImportError, RuntimeError, AttributeError, OSError):
        # llvmlite is not installed, or fails on this machine: callers then use numpy.
        return None
    if target.name.startswith("aarch64") or (features.get("fma") and features.get("f16c")):
        return engine, machine
    return None
