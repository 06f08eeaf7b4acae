"""Released models from the files of their authors: from folders as the hub has them, and from a hub."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: see docs/export.md")

from click.testing import CliRunner, Result

from export.__main__ import main
from export.checkpoint import load_checkpoint
from export.config import VaeConfig, parse_config
from export.errors import BadCheckpoint, BadConfig
from export.modules.text_encoder import TextEncoder
from export.modules.transformer import CausalTransformer, TextKv
from export.modules.vace import VaceBranch
from export.modules.vae import VaeDecoder, VaeEncoder
from export.preset_checkpoint import download_parts, find_parts, open_preset, sources_of
from export.presets import PRESETS, UNSUPPORTED, find_preset
from export.tensor_files import Notes, WeightChoice, WeightSet
from tests.models.export.checkpoints import WORDS
from tests.models.export.configs import TINY_TEXT_ENCODER, tiny, tiny_text_encoder
from tests.models.export.networks import normal, random_weights

WAN_CONFIG = {
    "_class_name": "WanModel",
    "model_type": "t2v",
    "dim": 48,
    "ffn_dim": 64,
    "num_heads": 2,
    "num_layers": 3,
    "in_dim": 4,
    "out_dim": 4,
    "freq_dim": 32,
    "text_len": 8,
    "eps": 1e-6,
}
DIFFUSERS_CONFIG = {
    "_class_name": "WanTransformer3DModel",
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "ffn_dim": 64,
    "num_layers": 3,
    "in_channels": 4,
    "out_channels": 4,
    "freq_dim": 32,
    "eps": 1e-6,
    "text_dim": 20,
    "qk_norm": "rms_norm_across_heads",
    "cross_attn_norm": True,
    "patch_size": [1, 2, 2],
    "image_dim": None,
}
VAE = {"base_dim": 8, "z_dim": 4, "num_res_blocks": 1, "latents_mean": [0.1], "latents_std": [1.5]}
CONFIG = tiny(vace_layers=[])
TRANSFORMER = random_weights(CausalTransformer(CONFIG), TextKv(CONFIG))


def write_json(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def save(value: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)


@pytest.fixture
def wan(tmp_path: Path) -> Path:
    """A repository as Wan's: the base transformer, which no preset uses, and the parts that all share."""
    folder = tmp_path / "Wan2.1-T2V-1.3B"
    write_json(folder / "config.json", WAN_CONFIG)
    save({name: value + 1 for name, value in TRANSFORMER.items()}, folder / "diffusion_pytorch_model.pt")
    vae = VaeConfig(**{"dim" if name == "base_dim" else name: value for name, value in VAE.items()})
    save(random_weights(VaeEncoder(vae), VaeDecoder(vae)), folder / "vae" / "Wan2.1_VAE.pth")
    write_json(folder / "vae" / "config.json", VAE)
    encoder = {**TINY_TEXT_ENCODER, "vocab_size": len(WORDS), "num_layers": 1}
    write_json(folder / "text_encoder" / "config.json", encoder)
    weights = random_weights(TextEncoder(tiny_text_encoder(vocab_size=len(WORDS), num_layers=1), 8))
    save(weights, folder / "text_encoder" / "models_t5_umt5-xxl-enc-bf16.pth")
    write_json(folder / "google" / "umt5-xxl" / "tokenizer.json", {})
    return folder


@pytest.fixture
def longlive(tmp_path: Path) -> Path:
    """A repository as LongLive's."""
    folder = tmp_path / "LongLive-1.3B"
    base = {f"model.{name}": value for name, value in TRANSFORMER.items()}
    save({"generator": base}, folder / "models" / "longlive_base.pt")
    lora = {"base_model.model.blocks.0.ffn.0.lora_A.weight": normal(4, 48)}
    lora["base_model.model.blocks.0.ffn.0.lora_B.weight"] = normal(64, 4, seed=1)
    save({"generator_lora": lora, "critic_lora": lora}, folder / "models" / "lora.pt")
    return folder


def opened(preset: str, *sources: Path | str, vace: bool | None = None, choice: WeightChoice | None = None) -> Any:
    found = find_preset(preset)
    files = find_parts(found, sources_of(found, [str(source) for source in sources], vace=bool(vace)), vace=vace)
    return open_preset(found, download_parts(files), choice or WeightChoice(), Notes())


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["longlive", *map(str, arguments)])


# -- Presets --------------------------------------------------------------------------------------------------


def test_every_preset_is_a_configuration_of_wans_network(subtests: pytest.Subtests):
    expected: dict[str, dict[str, Any]] = {
        "longlive-1.3b": {"window": 12, "sink": 3, "latent_frames_per_chunk": 3, "rope_positions": "absolute"},
        "longlive-1.3b-infinite": {"window": 12, "sink": 3, "rope_positions": "window"},
        "self-forcing": {"window": 21, "sink": 0, "latent_frames_per_chunk": 3, "lora_alpha": None},
        "causal-forcing": {"window": 21, "sink": 0, "latent_frames_per_chunk": 3},
        "causal-forcing-framewise": {"window": 21, "sink": 0, "latent_frames_per_chunk": 1, "first_text_steps": None},
        "causal-forcing-framewise-2step": {"text_steps": (1000, 833.3333333333334), "latent_frames_per_chunk": 1},
        "causal-forcing-framewise-1step": {
            "text_steps": (1000,),
            "first_text_steps": (1000, 937.5, 833.3333333333334, 625),
        },
        "reward-forcing": {"window": 9, "sink": 3, "rope_positions": "window", "sink_decay": 0.999},
        "streamdiffusionv2": {"window": 6, "sink": 3, "latent_frames_per_chunk": 1, "video_steps": (750, 250)},
    }
    assert expected.keys() == PRESETS.keys()
    for name, fields in expected.items():
        with subtests.test(name):
            config = parse_config(PRESETS[name].settings)
            assert (config.dim, config.num_layers, config.head_dim, config.text_dim) == (1536, 30, 128, 4096)
            assert {field: getattr(config, field) for field in fields} == fields
    ema = {name for name, preset in PRESETS.items() if preset.weights is WeightSet.EMA}
    assert ema == {"self-forcing", *(name for name in PRESETS if "framewise" in name)}


def test_names_of_presets(subtests: pytest.Subtests):
    assert find_preset("LongLive").name == "longlive-1.3b"
    assert find_preset("causal_forcing-chunkwise").name == "causal-forcing"
    for name, missing in [*UNSUPPORTED.items(), ("krea", "block-causal"), ("longlive-2.0-5b", "UniPC")]:
        with subtests.test(name), pytest.raises(BadConfig, match="is not supported; what is missing: ") as caught:
            find_preset(name)
        assert missing in str(caught.value)
        done = run("--preset", name, "--id", "x", "--size", "64x64")
        assert (done.exit_code, missing.split()[0] in done.output) == (2, True)
    with pytest.raises(BadConfig, match=r"there is no preset other: choose one of longlive-1\.3b"):
        find_preset("other")


# -- Folders --------------------------------------------------------------------------------------------------


def test_a_release_is_put_together_from_two_folders(longlive: Path, wan: Path, subtests: pytest.Subtests):
    for sources in ([longlive, wan], [wan, longlive]):
        with subtests.test(sources=[source.name for source in sources]):
            checkpoint = opened("longlive-1.3b", *sources)
            config = checkpoint.config
            assert (config.dim, config.num_heads, config.text_len, config.text_dim) == (48, 2, 8, 20)
            assert (config.window, config.sink, config.text_steps[2]) == (12, 3, 833.3333333333334)
            assert (config.vae.dim, config.vae.z_dim, config.vae.latents_std) == (8, 4, (1.5,))
            networks = load_checkpoint(checkpoint, Notes())
            delta = 256 / 4 * (normal(64, 4, seed=1) @ normal(4, 48))
            expected = TRANSFORMER["blocks.0.ffn.0.weight"] + delta
            torch.testing.assert_close(networks.transformer.blocks[0].ffn[0].weight.detach(), expected.T)
            assert networks.vace is None
            assert checkpoint.files.tokenizer == wan / "google" / "umt5-xxl" / "tokenizer.json"


def test_diffusers_configuration_is_read(longlive: Path, wan: Path):
    write_json(longlive / "models" / "config.json", DIFFUSERS_CONFIG)
    write_json(wan / "config.json", {**WAN_CONFIG, "num_heads": 1})  # of another repository
    config = opened("longlive-1.3b", longlive, wan).config
    assert (config.dim, config.num_heads, config.head_dim, config.text_len) == (48, 2, 24, 512)


def test_a_configuration_of_another_kind_of_model_is_refused(longlive: Path, wan: Path):
    for values in ({**WAN_CONFIG, "model_type": "i2v"}, {**DIFFUSERS_CONFIG, "image_dim": 1280}):
        write_json(longlive / "models" / "config.json", values)
        with pytest.raises(BadConfig, match=r"describes a.* model; presets are for text-to-video"):
            opened("longlive-1.3b", longlive, wan)


def test_the_weights_that_the_authors_run_are_the_default(wan: Path, tmp_path: Path):
    both = {"generator": TRANSFORMER, "generator_ema": {name: value / 2 for name, value in TRANSFORMER.items()}}
    save(both, tmp_path / "sf" / "checkpoints" / "self_forcing_dmd.pt")
    for choice, name in ((None, "generator_ema"), (WeightSet.ONLINE, "generator")):
        checkpoint = opened("self-forcing", tmp_path / "sf", wan, choice=WeightChoice(choice) if choice else None)
        assert [file.chosen.nest for file in checkpoint.files.transformer] == [name]


def test_vace_is_taken_from_a_folder_that_has_it(longlive: Path, wan: Path, tmp_path: Path):
    config = tiny(vace_layers=[0, 2], vace_in_dim=72)
    branch = random_weights(VaceBranch(config), TextKv(config, vace=True))
    vace = tmp_path / "vace"
    save({name: value for name, value in branch.items() if name.startswith("vace_")}, vace / "vace_module.pt")
    checkpoint = opened("longlive-1.3b", longlive, wan, vace)
    assert (checkpoint.config.vace_layers, checkpoint.config.vace_in_channels) == ((0, 1), 72)
    assert opened("longlive-1.3b", longlive, wan, vace, vace=False).config.vace_layers == ()
    with pytest.raises(BadCheckpoint, match=r"missing: the VACE branch: --from Wan-AI/Wan2\.1-VACE-1\.3B"):
        opened("longlive-1.3b", longlive, wan, vace=True)


def test_what_is_missing_is_listed_with_what_to_do(longlive: Path, subtests: pytest.Subtests):
    done = run("--preset", "longlive-1.3b", "--from", longlive, "--plan")
    assert done.exit_code == 1
    for text in (
        "missing: the VAE (Wan2.1_VAE.pth): --from Wan-AI/Wan2.1-T2V-1.3B or",
        "the text encoder",
        "tokenizer",
    ):
        with subtests.test(text):
            assert text in done.output
    done = run("--preset", "longlive-1.3b", "--from", longlive, "--id", "x", "--size", "64x64")
    assert done.exit_code == 1
    assert "missing: the VAE" in done.output


def test_several_transformers_are_named(wan: Path, tmp_path: Path):
    for name in ("one.pt", "two.pt"):
        save(TRANSFORMER, tmp_path / "cf" / name)
    with pytest.raises(BadCheckpoint, match=r"has several files for the transformer: one\.pt, two\.pt; name one"):
        opened("causal-forcing", tmp_path / "cf", wan)
    assert opened("causal-forcing", tmp_path / "cf" / "two.pt", wan).files.transformer[0].path.name == "two.pt"


def test_a_plan_lists_files_sizes_and_memory_and_does_nothing(longlive: Path, wan: Path, tmp_path: Path):
    done = run(
        *("--preset", "longlive-1.3b", "--from", longlive, "--from", wan, "--plan", "--size", "64x64"),
        *("--repository", tmp_path / "models"),
    )
    assert done.exit_code == 0, done.output
    for text in (
        f"models/longlive_base.pt  from {longlive}",
        "models/lora.pt",
        f"vae/Wan2.1_VAE.pth  from {wan}",
        "google/umt5-xxl/tokenizer.json",
        "missing: nothing",
        "memory on the device at 64x64: ",
        "KV cache",
    ):
        assert text in done.output
    assert "diffusion_pytorch_model" not in done.output
    assert not (tmp_path / "models").exists()


def test_a_plan_of_a_checkpoints_folder(tmp_path: Path):
    from tests.models.export.checkpoints import write_checkpoint  # noqa: PLC0415

    write_checkpoint(tmp_path, vace_layers=[])
    done = run("--checkpoint", tmp_path, "--plan")
    assert done.exit_code == 0, done.output
    for name in ("base.pt", "vae/vae.pth", "text_encoder/encoder.pth", "missing: nothing"):
        assert name in done.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give either --checkpoint DIR or --preset NAME"),
        (["--preset", "longlive", "--checkpoint", "."], "give either"),
        (["--checkpoint", ".", "--from", "x"], "only for --preset"),
        (["--preset", "longlive", "--size", "64x64"], "missing option --id"),
        (["--preset", "longlive", "--id", "x"], "missing option --size"),
    ],
)
def test_options_that_do_not_go_together(options: list[str], message: str):
    done = run(*options)
    assert done.exit_code == 2
    assert message in done.output


# -- A hub ----------------------------------------------------------------------------------------------------


class Hub(ThreadingHTTPServer):
    """As much of the Hugging Face hub as its library asks for, with the repositories in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _HubRequest)
        self.folder = folder
        self.downloaded: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _HubRequest(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            repository = self.server.folder / "/".join(path.split("/")[3:5])
            if not repository.is_dir():
                self._send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
                return
            files = [file for file in sorted(repository.rglob("*")) if file.is_file()]
            siblings = [
                {"rfilename": file.relative_to(repository).as_posix(), "size": file.stat().st_size} for file in files
            ]
            body = {"id": repository.name, "sha": "a" * 40, "siblings": siblings, "private": False, "tags": []}
            self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
            return
        parts = path.strip("/").split("/")  # organisation, name, resolve, revision, the file's path
        file = parts[4:]
        local = self.server.folder.joinpath(*parts[:2], *file)
        if not local.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        if self.command == "GET":
            self.server.downloaded.append("/".join(file))
        self._send(200, local.read_bytes(), {"ETag": f'"{local.stat().st_size:040x}"', "X-Repo-Commit": "a" * 40})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, longlive: Path, wan: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with both repositories, which the hub's library asks."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: see docs/export.md")
    from huggingface_hub import constants  # noqa: PLC0415

    for repository, folder in (("Efficient-Large-Model/LongLive-1.3B", longlive), ("Wan-AI/Wan2.1-T2V-1.3B", wan)):
        (tmp_path / "hub" / repository).parent.mkdir(parents=True)
        folder.rename(tmp_path / "hub" / repository)
    server = Hub(tmp_path / "hub")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    # The library reads its environment when it is imported.
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_plan_of_a_hub_lists_sizes_and_downloads_nothing(hub: Hub):
    done = run("--preset", "longlive-1.3b", "--plan", "--size", "832x480", "--no-vace")
    assert done.exit_code == 0, done.output
    assert "models/longlive_base.pt  from Efficient-Large-Model/LongLive-1.3B (to be downloaded)" in done.output
    assert "vae/Wan2.1_VAE.pth  from Wan-AI/Wan2.1-T2V-1.3B (to be downloaded)" in done.output
    assert "of which to be downloaded" in done.output
    assert hub.downloaded == []


def test_what_is_used_is_downloaded_once(hub: Hub):
    checkpoint = opened("longlive-1.3b")
    assert checkpoint.config.dim == 48
    load_checkpoint(checkpoint, Notes())
    assert "models/lora.pt" in hub.downloaded
    assert not any("diffusion_pytorch_model" in name for name in hub.downloaded)
    assert len(set(hub.downloaded)) == len(hub.downloaded)
    before = list(hub.downloaded)
    opened("longlive-1.3b", "Efficient-Large-Model/LongLive-1.3B", "Wan-AI/Wan2.1-T2V-1.3B")
    assert hub.downloaded == before


def test_a_repository_that_is_not_there_and_a_hub_that_is_not_reached(hub: Hub):
    done = run("--preset", "longlive-1.3b", "--from", "nobody/nothing", "--plan")
    assert done.exit_code == 1
    assert "nobody/nothing can't be downloaded: it does not exist" in done.output
    hub.shutdown()
    hub.server_close()
    done = run("--preset", "longlive-1.3b", "--plan")
    assert done.exit_code == 1
    assert "can't be downloaded: the hub can't be reached" in done.output
    assert "name a folder that has its files" in done.output
    assert "Traceback" not in done.output


def test_without_the_hubs_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    done = run("--preset", "longlive-1.3b", "--plan")
    assert done.exit_code == 1
    assert "pip install huggingface_hub" in done.output
    done = run("--preset", "longlive-1.3b", "--from", "no such thing", "--plan")
    assert "neither a folder or file here nor a hub id" in done.output
