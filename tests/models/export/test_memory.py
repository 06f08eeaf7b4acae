"""What `export.memory` says a model takes is what its networks, caches and adapters are, and what the docs say."""

import json
import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")
diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: see docs/export.md")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: see docs/export.md")

from click.testing import CliRunner

from export.config import UMT5_XXL, parse_config, parse_text_encoder_config
from export.lora import Adapter, LowRank, attach
from export.memory import estimate_memory, main, mib
from export.modules.transformer import CausalTransformer, TextKv
from export.modules.vae import VaeDecoder, VaeEncoder
from export.spec import Precision, Size
from filmstrip.runtime.transformer import FrameWindow, KvCache
from tests.models.export.configs import LONGLIVE, tiny
from tests.unit.test_docs import operations, rows, section

VACE_LAYERS = list(range(0, 30, 2))
WITH_VACE = parse_config({**LONGLIVE, "vace_layers": VACE_LAYERS})
UMT5 = parse_text_encoder_config(UMT5_XXL)
SMALL, LARGE = Size(320, 576), Size(480, 832)


def num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_weights_are_those_of_independent_networks() -> None:
    with torch.device("meta"):
        wan = num_parameters(
            diffusers.WanTransformer3DModel(num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=30)
        )
        vace = diffusers.WanVACETransformer3DModel(
            num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=30, vace_layers=VACE_LAYERS
        )
        vae = diffusers.AutoencoderKLWan()
        encoder = transformers.UMT5EncoderModel(transformers.UMT5Config(**UMT5_XXL, feed_forward_proj="gated-gelu"))
    parts = estimate_memory(WITH_VACE, SMALL, Precision.BF16, text_encoder=UMT5)
    assert parts["transformer: weights"] == 2 * wan
    assert parts["text encoder: weights"] == 2 * num_parameters(encoder)
    # Its graphs have the embeddings of latents, timesteps and text for themselves.
    embeddings = num_parameters(vace.patch_embedding) + num_parameters(vace.condition_embedder)
    assert parts["VACE branch: weights"] == 2 * (num_parameters(vace) - wan + embeddings)
    encoders = num_parameters(vae.encoder) + num_parameters(vae.quant_conv)
    decoders = num_parameters(vae.decoder) + num_parameters(vae.post_quant_conv)
    assert parts["VAE: weights, once per graph"] == 2 * (3 * encoders + 2 * decoders)


@pytest.mark.parametrize(("size", "tokens"), [(SMALL, 20 * 36), (LARGE, 30 * 52)])
def test_the_kv_cache_is_the_runtimes(size: Size, tokens: int) -> None:
    cache = KvCache(
        FrameWindow(12, 3, 3),
        num_layers=30,
        num_heads=12,
        head_dim=128,
        tokens_per_frame=tokens,
        dtype=torch.bfloat16,
        device="meta",
    )
    parts = estimate_memory(WITH_VACE, size, Precision.BF16)
    assert parts["KV cache"] == cache.k.nbytes + cache.v.nbytes
    # All 12 frames of the window, in a recache; 30 layers and 15 of VACE with 512 tokens of text; 4 frames' hints.
    assert parts["new keys and values of the longest pass"] == 2 * 30 * 12 * tokens * 1536 * 2
    assert parts["keys and values of the text"] == 2 * (30 + 15) * 512 * 1536 * 2
    assert parts["hints of the VACE branch"] == 15 * 4 * tokens * 1536 * 2


@pytest.mark.parametrize("vace_layers", [[], [0, 2]])
def test_feature_caches_are_those_that_the_vae_makes(vace_layers: list[int]) -> None:
    config = tiny(vace_layers=vace_layers)
    parts = estimate_memory(config, Size(32, 48), Precision.FP32)
    with torch.no_grad():
        _, encoder = VaeEncoder(config.vae)(torch.zeros(1, 3, 13, 32, 48))
        _, decoder = VaeDecoder(config.vae)(torch.zeros(1, 4, 4, 4, 6))
    found = [number for name, number in parts.items() if "feature caches" in name]
    assert found == [
        2 * sum(cache.nbytes for cache in decoder),
        (4 if vace_layers else 2) * sum(cache.nbytes for cache in encoder),
    ]


def test_adapters_are_as_large_as_attached_ones() -> None:
    config = tiny()
    networks = CausalTransformer(config), TextKv(config)
    layers = {
        name: layer.weight.shape
        for network in networks
        for name, layer in network.named_modules()
        if name.startswith("blocks.") and type(layer).__name__ == "Linear"
    }
    adapters = [
        Adapter(
            f"a{rank}",
            {name: LowRank(torch.ones(rank, wide), torch.ones(out, rank), 1.0) for name, (wide, out) in layers.items()},
        )
        for rank in (2, 5)
    ]
    attach(adapters, *networks)
    attached = sum(
        buffer.nbytes
        for network in networks
        for name, buffer in network.named_buffers()
        if name.endswith(("lora_a", "lora_b"))
    )
    assert estimate_memory(config, Size(32, 48), Precision.FP32, lora_ranks=(2, 5))["LoRA adapters"] == attached
    assert "LoRA adapters" not in estimate_memory(config, Size(32, 48), Precision.FP32)


def test_the_table_of_the_docs_is_what_it_says() -> None:
    sizes = [
        estimate_memory(WITH_VACE, size, Precision.BF16, text_encoder=UMT5, lora_ranks=(64,)) for size in (SMALL, LARGE)
    ]
    expected = [[name, *(mib(parts[name]) for parts in sizes)] for name in sizes[0]]
    expected.append(["total", *(mib(sum(parts.values())) for parts in sizes)])
    left = [sum(parts.values()) - parts["text encoder: weights"] for parts in sizes]
    expected.append(["without the text encoder", *map(mib, left)])
    assert rows(section(operations, "### GPU memory")) == expected


def test_the_configuration_of_the_docs_is_the_one_of_the_table() -> None:
    (written,) = re.findall(
        r"<<'EOF'\n(.*?)EOF", section(operations, "### From a checkpoint to a running node"), re.DOTALL
    )
    assert parse_config(json.loads(written)) == WITH_VACE


def test_the_command_reads_a_checkpoints_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LONGLIVE))
    told = CliRunner().invoke(main, [str(tmp_path), "--size", "832x480", "--no-text-encoder"])
    assert told.exit_code == 0, told.output
    parts = estimate_memory(parse_config(LONGLIVE), LARGE, Precision.BF16)
    lines = {name: number for number, name in (line.split(maxsplit=1) for line in told.output.splitlines()[1:-1])}
    assert lines == {name: mib(number) for name, number in parts.items()} | {"total": mib(sum(parts.values()))}
    for size in ("576x321", "big"):
        refused = CliRunner().invoke(main, [str(tmp_path), "--size", size])
        assert refused.exit_code != 0
        assert size in refused.output
