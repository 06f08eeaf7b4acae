"""A builder's configuration: targets, limits, the timing cache."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from export.builders.options import RTX_TARGETS, BuildOptions
from export.errors import BuildFailed
from filmstrip.runtime.engines.manifest import Builder

_GIB = 1 << 30


def configure(library: Any, config: Any, options: BuildOptions) -> None:
    """Set a builder's configuration as the options say.

    Raises:
        BuildFailed: the library refuses a target or the timing cache.
    """
    if options.builder is Builder.TENSORRT_RTX:
        config.num_compute_capabilities = len(options.targets)
        for index, target in enumerate(options.targets):
            capability = getattr(library.ComputeCapability, RTX_TARGETS[target])
            if not config.set_compute_capability(capability, index):
                raise BuildFailed(f"TensorRT-RTX {library.__version__} refuses the target {target}")
    if options.workspace_gib is not None:
        config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, int(options.workspace_gib * _GIB))
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.timing_cache is not None:
        kept = b""
        with suppress(FileNotFoundError):
            kept = options.timing_cache.read_bytes()
        # Without ignore_mismatch, timings of another GPU or version are refused, not used.
        if not config.set_timing_cache(config.create_timing_cache(kept), ignore_mismatch=False):
            raise BuildFailed(f"{options.timing_cache} is of another GPU or version: remove it or name another file")


def keep_timings(config: Any, path: Path) -> None:
    """Write the timing cache of a configuration after a build."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(config.get_timing_cache().serialize())
    part.replace(path)
