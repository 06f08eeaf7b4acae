"""The code that compiles at full size, on a configuration that is as small as they get."""

import json
import os
import signal
from dataclasses import fields, replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")
pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: see docs/export.md")

from click.testing import CliRunner

import export.compile_full
from export.checkpoint import meta_networks
from export.compile_full import (
    JOBS,
    LONGLIVE,
    CompileConfig,
    CompileJob,
    CompileResult,
    compile_jobs,
    read_results,
)
from export.config import parse_config
from export.errors import BuildFailed
from export.graph_specs import graph_specs
from export.spec import Size
from tests.models.export.configs import LONGLIVE as RELEASED
from tests.models.export.configs import tiny

pytestmark = pytest.mark.timeout(600)  # compiling takes its time on a busy machine
CONFIG = CompileConfig(tiny(num_layers=1, vace_layers=[0]), (Size(32, 48), Size(64, 64)), ("sm86",))
TEXT = CompileJob("text_kv", "text_kv")
WITHOUT_HINTS = CompileJob("transformer_without_hints", "transformer", vace=False)


def test_the_jobs_are_all_graphs_of_longlive_with_vace_and_its_transformer_without():
    vace = {"vace_layers": list(range(0, 30, 2)), "lora_alpha": None}
    assert parse_config({key: value for key, value in {**RELEASED, **vace}.items() if value is not None}) == LONGLIVE
    networks = meta_networks(LONGLIVE)
    assert sum(weight.numel() for weight in networks.transformer.parameters()) > 1.2e9
    assert all(weight.is_meta for weight in networks.transformer.parameters())
    assert {job.graph for job in JOBS} == {spec.name for spec in graph_specs(networks, 0)}
    assert [job.label for job in JOBS if not job.vace] == ["transformer_without_hints"]


def test_there_is_a_result_for_each_graph_and_size_and_it_is_kept(tmp_path: Path):
    path, reports = tmp_path / "out" / "results.json", []
    results = compile_jobs(CONFIG, (TEXT, WITHOUT_HINTS), path, reports.append)
    assert [(result.graph, result.size, result.target) for result in results] == [
        ("text_kv", "any", "sm86"),
        ("transformer_without_hints", "48x32", "sm86"),
        ("transformer_without_hints", "64x64", "sm86"),
    ]
    assert read_results(path) == results
    keys = {field.name for field in fields(CompileResult)}
    assert {frozenset(result) for result in json.loads(path.read_text())} == {frozenset(keys)}
    assert keys >= {"graph", "size", "target", "seconds", "peak_mib", "plan_bytes"}
    for result in results:
        assert 0 < result.compile_seconds <= result.seconds
        assert result.peak_mib > 100  # Python and torch alone have more
    networks = meta_networks(CONFIG.checkpoint.model_copy(update={"vace_layers": ()}))
    assert results[1].plan_bytes > 2 * sum(weight.numel() for weight in networks.transformer.parameters())
    assert {path.name for path in path.parent.iterdir()} == {"results.json"}

    assert compile_jobs(CONFIG, (WITHOUT_HINTS,), path, reports.append) == results[1:]
    assert reports == [
        "text_kv (1 of 2)",
        "transformer_without_hints (2 of 2)",
        "transformer_without_hints (1 of 1): already done",
    ]


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def made(made_from: str) -> CompileResult:
    return CompileResult("text_kv", "any", "sm86", 2.0, 1.0, 500, 1 << 20, 8, made_from)


@pytest.fixture
def none_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(_config: CompileConfig, _job: CompileJob, _noise: Path, made_from: str) -> list[CompileResult]:
        return [made(made_from)]

    monkeypatch.setattr(export.compile_full, "_run_in_process", at_once)


def test_a_graph_whose_process_is_killed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(export.compile_full, "compile_job", die)
    with pytest.raises(BuildFailed, match="transformer_without_hints: its process was killed"):
        compile_jobs(CONFIG, (WITHOUT_HINTS,), tmp_path / "results.json", print)


def test_results_of_another_configuration_are_not_kept(none_compiled: None, tmp_path: Path):
    results = tmp_path / "results.json"
    one, other = (
        compile_jobs(replace(CONFIG, targets=(target,)), (TEXT,), results, print) for target in ("sm86", "sm89")
    )
    assert one[0].made_from != other[0].made_from
    assert read_results(results) == other


def test_the_command_shows_a_table_and_forgets_results_when_asked_to(none_compiled: None, tmp_path: Path):
    results = tmp_path / "results.json"
    command = ["--out", str(results), "--graph", "text_kv"]
    first, again, fresh = (
        CliRunner().invoke(export.compile_full.main, [*command, *flags]) for flags in ([], [], ["--fresh"])
    )
    assert (first.exit_code, again.exit_code, fresh.exit_code) == (0, 0, 0)
    assert "text_kv" in first.output
    assert "1 results" in first.output
    assert ["already done" in result.output for result in (first, again, fresh)] == [False, True, False]
    failed = CliRunner().invoke(export.compile_full.main, [*command, "--target", "sm75", "--fresh"])
    assert failed.exit_code == 1
    assert "sm75 (Turing) has no bf16" in failed.output
