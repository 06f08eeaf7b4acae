"""What only TensorRT is asked for, on the part of its API that TensorRT-RTX has too."""

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")
library = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: see docs/export.md")

from export.spec import Precision
from export.tensorrt import BuildLog, BuildOptions, configure, make_logger, save_timing_cache
from filmstrip.runtime.engines.manifest import Builder


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
def test_limits_and_timings_reach_the_library(tmp_path: Path):
    logger = make_logger(library, BuildLog())
    builder = library.Builder(logger)
    options = BuildOptions(
        Builder.TENSORRT,
        Precision.FP16,
        workspace_gib=1.5,
        optimization_level=1,
        timing_cache=tmp_path / "timings",
    )
    config = builder.create_builder_config()
    configure(library, config, options)
    assert config.get_memory_pool_limit(library.MemoryPoolType.WORKSPACE) == 3 << 29
    assert config.builder_optimization_level == 1
    save_timing_cache(config, tmp_path / "timings")
    kept = (tmp_path / "timings").read_bytes()
    assert kept
    again = builder.create_builder_config()
    configure(library, again, options)
    assert bytes(again.get_timing_cache().serialize()) == kept


def test_targets_reach_the_library():
    logger = make_logger(library, BuildLog())
    builder = library.Builder(logger)
    config = builder.create_builder_config()
    configure(library, config, BuildOptions(Builder.TENSORRT_RTX, Precision.FP16, ("sm75", "sm120")))
    capabilities = [config.get_compute_capability(index) for index in range(config.num_compute_capabilities)]
    assert capabilities == [library.ComputeCapability.SM75, library.ComputeCapability.SM120]
