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
from export.compile_full import (
    JOBS,
    LONGLIVE,
    CompileConfig,
    CompileJob,
    CompileResult,
    compile_jobs,
    read_entries,
    weightless_networks,
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
    networks = weightless_networks(LONGLIVE)
    assert sum(weight.numel() for weight in networks.transformer.parameters()) > 1.2e9
    assert all(weight.is_meta for weight in networks.transformer.parameters())
    assert {job.graph for job in JOBS} == {spec.name for spec in graph_specs(networks, 0)}
    assert [job.label for job in JOBS if not job.vace] == ["transformer_without_hints"]


def test_results_have_an_entry_a_graph_and_size_and_are_kept(tmp_path: Path):
    results, told = tmp_path / "out" / "results.json", []
    entries = compile_jobs(CONFIG, (TEXT, WITHOUT_HINTS), results, told.append)
    assert [(entry.graph, entry.size, entry.target) for entry in entries] == [
        ("text_kv", "any", "sm86"),
        ("transformer_without_hints", "32x48", "sm86"),
        ("transformer_without_hints", "64x64", "sm86"),
    ]
    assert read_entries(results) == entries
    keys = {field.name for field in fields(CompileResult)}
    assert {frozenset(entry) for entry in json.loads(results.read_text())} == {frozenset(keys)}
    assert keys >= {"graph", "size", "target", "seconds", "peak_mib", "plan_bytes"}
    for entry in entries:
        assert 0 < entry.compile_seconds <= entry.seconds
        assert entry.peak_mib > 100  # Python and torch alone have more
    networks = weightless_networks(replace(CONFIG.checkpoint, vace_layers=()))
    assert entries[1].plan_bytes > 2 * sum(weight.numel() for weight in networks.transformer.parameters())
    assert {path.name for path in results.parent.iterdir()} == {"results.json"}

    assert compile_jobs(CONFIG, (WITHOUT_HINTS,), results, told.append) == entries[1:]
    assert told == [
        "text_kv (1 of 2)",
        "transformer_without_hints (2 of 2)",
        "transformer_without_hints (1 of 1): done before",
    ]


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def made(made_from: str) -> CompileResult:
    return CompileResult("text_kv", "any", "sm86", 2.0, 1.0, 500, 1 << 20, 8, made_from)


@pytest.fixture
def none_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(_order: CompileConfig, _job: CompileJob, _noise: Path, made_from: str) -> list[CompileResult]:
        return [made(made_from)]

    monkeypatch.setattr(export.compile_full, "_in_own_process", at_once)


def test_a_graph_whose_process_is_killed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(export.compile_full, "compile_job", die)
    with pytest.raises(BuildFailed, match="transformer_without_hints: its process was killed"):
        compile_jobs(CONFIG, (WITHOUT_HINTS,), tmp_path / "results.json", print)


def test_results_of_another_order_are_not_kept(none_compiled: None, tmp_path: Path):
    results = tmp_path / "results.json"
    one, other = (
        compile_jobs(replace(CONFIG, targets=(target,)), (TEXT,), results, print) for target in ("sm86", "sm89")
    )
    assert one[0].made_from != other[0].made_from
    assert read_entries(results) == other


def test_the_command_shows_a_table_and_forgets_results_when_asked_to(none_compiled: None, tmp_path: Path):
    results = tmp_path / "results.json"
    command = ["--out", str(results), "--graph", "text_kv"]
    first, again, fresh = (
        CliRunner().invoke(export.compile_full.main, [*command, *flags]) for flags in ([], [], ["--fresh"])
    )
    assert (first.exit_code, again.exit_code, fresh.exit_code) == (0, 0, 0)
    assert "text_kv" in first.output
    assert "1 entries" in first.output
    assert ["done before" in result.output for result in (first, again, fresh)] == [False, True, False]
    failed = CliRunner().invoke(export.compile_full.main, [*command, "--target", "sm75", "--fresh"])
    assert failed.exit_code == 1
    assert "sm75 (Turing) has no bf16" in failed.output
