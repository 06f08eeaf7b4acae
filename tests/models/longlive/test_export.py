"""`python -m export longlive`, from a checkpoint on disk to a model's folder that the runtime loads."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: see docs/export.md")

from click.testing import CliRunner, Result

from export.__main__ import main
from export.checkpoint import load_networks
from export.errors import BadConfig
from export.graph_specs import graph_specs
from export.spec import Component, Grid, Precision, Size
from export.verify import compare, require_close
from filmstrip.runtime.engines.engine import load_engine, load_engines
from filmstrip.runtime.engines.manifest import BadEngine, read_manifest
from filmstrip.runtime.longlive_config import LongLiveConfig
from filmstrip.runtime.text import Tokenizer, prompt_encoder
from tests.models.export.checkpoints import WHOLE, WORDS, write_checkpoint, write_lora
from tests.models.export.configs import TINY
from tests.models.export.exported import LORAS, SIDES
from tests.models.export.networks import normal

pytestmark = pytest.mark.timeout(600)  # the first of them waits for the export

GRAPHS = {
    *("text_encoder", "text_kv", "transformer", "vace_text_kv", "vace"),
    *("vae_encoder_image", "vae_encoder_first", "vae_encoder_next", "vae_decoder_first", "vae_decoder_next"),
}
SMALL = {"num_layers": 1, "vace_layers": [], "vae": {"type": "tae", "base_dim": 4, "z_dim": 4, "num_res_blocks": 1}}
LORA_LAYER = "blocks.0.ffn.2"


def run(folder: Path, *more: str, id: str = "small", size: str = "48x32") -> Result:
    """Give the command in this process, for the checkpoint in a folder."""
    given = ["--checkpoint", str(folder / "checkpoint"), "--id", id, "--repository", str(folder / "repository")]
    return CliRunner().invoke(main, ["longlive", *given, "--size", size, *more])


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """When each file below a folder was written, and what it holds."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose graphs are soon made, exported."""
    folder = tmp_path_factory.mktemp("small")
    write_checkpoint(folder / "checkpoint", **SMALL)
    done = run(folder)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Iterator[Path]:
    """The same, to be changed."""
    shutil.copytree(small, tmp_path / "copy")
    return tmp_path / "copy"


# -- What comes out -------------------------------------------------------------------------------------------------


def test_every_network_becomes_an_engine_that_the_runtime_loads_with_its_pipeline(tiny_repository: Path):
    version = tiny_repository / "tiny" / "1"
    config = LongLiveConfig.read(version)
    assert config.loras == LORAS
    assert config.sizes == SIDES
    loaded = load_engines(
        version / "engines",
        device=torch.device("cpu"),
        num_threads=1,
        graphs=GRAPHS,
        loras=config.loras,
        sizes=SIDES,
    )
    assert loaded.keys() == GRAPHS
    assert (version / "tokenizer.json").is_file()
    assert (version / "model.py").is_file()
    assert not list(version.rglob(".making*"))


def test_manifests_say_what_each_engine_is_made_of(tiny_repository: Path):
    engines = tiny_repository / "tiny" / "1" / "engines"
    made_of = {path.name.partition(".")[0]: set(read_manifest(path).checkpoint) for path in engines.glob("*.onnx")}
    assert made_of["vae_decoder_next"] == {"config.json", "text_encoder/config.json", "vae/vae.pth"}
    assert made_of["transformer"] == {"config.json", "text_encoder/config.json", "base.pt", "--lora ink", "--lora neon"}
    assert made_of["text_kv"] == {"config.json", "text_encoder/config.json", "base.pt"}
    manifest = read_manifest(engines / "transformer.onnx")
    assert manifest.loras == LORAS
    assert (manifest.precision, manifest.target, manifest.builder) == ("fp32", "cpu", "onnxruntime")
    assert manifest.profiles["64x64"]["past_k"].max == (2, 1, 2, 12 * 16, 24)
    assert read_manifest(engines / "text_kv.onnx").profiles == {}


def test_the_table_shows_how_close_each_engine_is(tiny_repository: Path):
    log = (tiny_repository.parent / "export.log").read_text()
    rows = re.findall(r"^│ (\S+) +│ onnxruntime │ .*│ (\S+) +│ 1e-04", log, re.MULTILINE)
    assert len(rows) == len(GRAPHS)
    assert all(0 < float(error) < 1e-5 for _, error in rows)


def test_the_text_encoder_and_its_tokenizer_agree_through_the_runtime(tiny_repository: Path):
    version = tiny_repository / "tiny" / "1"
    loaded = load_engines(
        version / "engines", device=torch.device("cpu"), num_threads=1, graphs=GRAPHS, loras=LORAS, sizes=SIDES
    )
    ids, mask = Tokenizer(version, WHOLE["text_len"])("a red circle")
    assert ids[0, :4].tolist() == [WORDS.index(word) for word in ("a", "red", "circle", "</s>")]
    assert mask.sum() == 4
    encode = prompt_encoder(lambda _: (ids, mask), loaded["text_encoder"], torch.device("cpu"))
    embeddings = encode("a red circle")
    assert embeddings.shape == (1, 8, TINY["text_dim"])
    assert embeddings[0, :4].abs().sum(dim=-1).all()
    assert not embeddings[0, 4:].any()


def test_engines_of_tensorrt_rtx_are_built_ahead_of_time_without_a_gpu(small: Path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: see docs/export.md")
    options = ["--builder", "tensorrt-rtx", "--target", "sm89,sm120", "--precision", "fp16", "--no-verify"]
    done = run(small, *options, id="rtx")
    assert done.exit_code == 0, done.output
    assert "The engines were not run" in done.output
    engines = small / "repository" / "rtx" / "1" / "engines"
    manifests = {path.stem: read_manifest(path) for path in engines.glob("*.engine")}
    assert manifests.keys() == GRAPHS - {"vace", "vace_text_kv", "vae_encoder_image"}
    assert {(one.builder, one.target) for one in manifests.values()} == {("tensorrt-rtx", "sm89,sm120")}
    # T5's sums are too large for float16.
    assert {name: one.precision for name, one in manifests.items() if one.precision != "fp16"} == {
        "text_encoder": "bf16"
    }
    assert "KIND_GPU" in (engines.parent.parent / "config.pbtxt").read_text()
    with pytest.raises(BadEngine, match=r"was built for a GPU of compute capability 8\.9 or 12\.0"):
        load_engines(engines, device=torch.device("cpu"), num_threads=1, graphs=GRAPHS)


def test_first_and_next_graphs_of_a_tiny_autoencoder_serve_every_size(small: Path):
    engines = small / "repository" / "small" / "1" / "engines"
    sizes = {Size(32, 48): Grid(2, 3), Size(80, 64): Grid(5, 4)}  # it was exported for the first only
    specs = [spec for spec in graph_specs(load_networks(small / "checkpoint"), 0) if spec.component is Component.VAE]
    assert len(specs) == 4
    for spec in specs:
        engine = load_engine(engines / f"{spec.name}.onnx", device=torch.device("cpu"), num_threads=1)
        require_close(list(compare(spec, sizes, Precision.FP32, "onnxruntime", engine.run)))


# -- Again ----------------------------------------------------------------------------------------------------------


def test_what_is_up_to_date_is_kept(copy: Path):
    before = contents(copy / "repository" / "small" / "1" / "engines")
    assert "built: 0, kept: 7" in run(copy).output
    assert contents(copy / "repository" / "small" / "1" / "engines") == before


def test_other_loras_export_only_the_transformer_again(copy: Path):
    lora = write_lora(copy / "ink.pt", 1, LORA_LAYER)
    assert "built: 1, kept: 6" in run(copy, "--lora", f"ink={lora}").output
    manifest = read_manifest(copy / "repository" / "small" / "1" / "engines" / "transformer.onnx")
    assert manifest.loras == ("ink",)
    assert "lora_scales" in [one.name for one in manifest.inputs]
    write_lora(lora, 2, LORA_LAYER)
    assert "built: 1, kept: 6" in run(copy, "--lora", f"ink={lora}").output  # of the same name, but another file
    assert LongLiveConfig.read(copy / "repository" / "small" / "1").loras == ("ink",)


def test_a_damaged_engine_is_built_again(copy: Path):
    engine = copy / "repository" / "small" / "1" / "engines" / "text_kv.onnx.data"
    engine.write_bytes(engine.read_bytes()[:-1] + b"?")
    assert "built: 1, kept: 6" in run(copy).output


def test_engines_that_are_not_of_this_export_are_removed(copy: Path):
    engines = copy / "repository" / "small" / "1" / "engines"
    for name in ("vace.onnx", "vace.onnx.json", "transformer.engine"):
        (engines / name).write_text("old")
    before = set(contents(engines))
    assert run(copy).exit_code == 0
    assert before - set(contents(engines)) == {"vace.onnx", "vace.onnx.json", "transformer.engine"}


# -- What is refused ------------------------------------------------------------------------------------------------


def lora_of_no_layer(folder: Path) -> str:
    weights = {"blocks.9.ffn.0.lora_A.weight": normal(2, 48), "blocks.9.ffn.0.lora_B.weight": normal(64, 2)}
    torch.save(weights, folder / "wrong.pt")
    return f"wrong={folder / 'wrong.pt'}"


def nothing(_folder: Path) -> None:
    """The checkpoint is right, what is asked for is not."""


def without_a_weight(folder: Path) -> None:
    weights = torch.load(folder / "checkpoint" / "base.pt", weights_only=True)["generator"]
    del weights["blocks.0.ffn.0.bias"]
    torch.save(weights, folder / "checkpoint" / "base.pt")


@pytest.mark.parametrize(
    ("break_it", "options", "named"),
    [
        (without_a_weight, [], "missing: blocks.0.ffn.0.bias"),
        (
            lambda folder: (folder / "checkpoint" / "config.json").write_text("{}"),
            [],
            "config.json: missing keys dim, ffn_dim",
        ),
        (lambda folder: (folder / "checkpoint" / "text_encoder" / "tokenizer.json").unlink(), [], "tokenizer.json"),
        (nothing, ["--size", "48x40"], "48x40 must be a multiple of 16x16"),
        (nothing, ["--id", "a/b"], "pipeline id"),
        (nothing, ["--lora", ...], "blocks.9.ffn.0"),
    ],
)
def test_a_bad_configuration_is_an_error_that_names_it_and_nothing_is_lost(copy: Path, break_it, options, named: str):
    break_it(copy)
    given = [lora_of_no_layer(copy) if option is ... else option for option in options]
    before = contents(copy / "repository")
    done = run(copy, *given)
    assert done.exit_code == 1
    assert named in done.output
    assert "Traceback" not in done.output
    assert contents(copy / "repository") == before


def test_a_size_that_is_only_known_turned_round_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch):
    """Until 0.1.0 sizes were HEIGHTxWIDTH; whoever means it gives both sizes, or --fresh."""
    before = contents(copy / "repository")
    done = run(copy, size="32x48")
    assert done.exit_code == 1
    assert "did you mean 48x32? sizes are WIDTHxHEIGHT since 0.1.0" in done.output
    assert contents(copy / "repository") == before

    def stop(*_arguments: object) -> None:
        raise BadConfig("not refused for its size")

    monkeypatch.setattr("export.longlive.open_config", stop)
    for options in (["--size", "48x32"], ["--fresh"]):
        assert "not refused for its size" in run(copy, *options, size="32x48").output


def test_an_engine_that_differs_from_its_module_is_not_put_in_place(copy: Path, monkeypatch: pytest.MonkeyPatch):
    """As close as float32 can be is not close enough for this tolerance."""
    monkeypatch.setattr("export.graph_specs.TOLERANCES", dict.fromkeys(("fp32", "bf16", "fp16"), 1e-12))
    before = contents(copy / "repository")
    done = run(copy, "--fresh")
    assert done.exit_code == 1
    assert "text_encoder.embeddings" in done.output
    assert "allowed 1.0e-12" in done.output
    assert contents(copy / "repository") == before


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--size", "big"], "not a size"),
        (["--lora", "ink"], "not a LoRA"),
        (["--lora", "ink=/nowhere"], "no file"),
        (["--target", "sm89"], "--target: only for TensorRT"),
        (["--precision", "bf16"], "fp32"),
        (["--builder", "tensorrt-rtx"], "needs a target"),
        (["--builder", "tensorrt-rtx", "--target", "sm90"], "--builder tensorrt"),
        (["--builder", "tensorrt", "--target", "sm90"], "leave out the target"),
    ],
)
def test_an_option_that_cannot_be_is_refused_at_once(small: Path, options: list[str], named: str):
    done = run(small, *options)
    assert done.exit_code == 2
    assert named in done.output


def test_help_teaches():
    shown = CliRunner().invoke(main, ["longlive", "--help"]).output
    for word in ("--checkpoint DIR", "--size WxH", "--lora NAME=FILE", "tensorrt-rtx", "sm89", "docs/export.md"):
        assert word in shown
