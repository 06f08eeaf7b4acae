"""The KV cache's ring through ONNX Runtime: what concatenated and rolled caches give, over twelve chunks."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from torch import Tensor

from filmstrip.runtime.engines.engine import Engine, load_engines
from filmstrip.runtime.longlive_config import LongLiveConfig
from filmstrip.runtime.transformer import CachedTransformer, RopeTables
from tests.models.export.exported import LORAS, SIDES

pytestmark = pytest.mark.timeout(600)  # the first test waits for the export
ROWS = COLS = 4
CHUNKS = [4, *[3] * 11]  # latent frames, as of a video
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config(tiny_repository: Path) -> LongLiveConfig:
    return LongLiveConfig.read(tiny_repository / "tiny" / "1")


@pytest.fixture(scope="module")
def engines(tiny_repository: Path) -> dict[str, Engine]:
    folder = tiny_repository / "tiny" / "1" / "engines"
    return load_engines(folder, device=CPU, num_threads=1, graphs=("transformer", "text_kv"), loras=LORAS, sizes=SIDES)


def concatenated(
    engines: dict[str, Engine], config: LongLiveConfig, text: dict[str, Tensor], chunks: list[Tensor], bias: float
) -> list[Tensor]:
    """Velocities by a cache that is concatenated and cut: the sink, then the latest that have room in the window."""
    tables = RopeTables(config.head_dim, config.rope_theta, ROWS, COLS, CPU)
    tokens = ROWS * COLS
    keys = values = torch.zeros(config.num_layers, 1, config.num_heads, 0, config.head_dim)
    velocities, first = [], 0
    for latents in chunks:
        length = latents.shape[2]
        sink, room = config.sink * tokens, (config.window - config.sink - length) * tokens
        seen = list(range(keys.shape[3]))
        seen = seen[:sink] + seen[sink:][-room:]
        cos, sin = tables.at(range(first, first + length))
        given = {"latents": latents, **text, "rope_cos": cos, "rope_sin": sin}
        given |= {"past_k": keys[:, :, :, seen].contiguous(), "past_v": values[:, :, :, seen].contiguous()}
        given["past_bias"] = torch.tensor([0.0 if token < sink else bias for token in seen])
        given["hints"] = torch.zeros(config.num_vace_layers, 1, length, ROWS, COLS, config.num_heads * config.head_dim)
        noisy = engines["transformer"].run({**given, "timesteps": torch.full((1, length), 700.0)})
        velocities.append(noisy["velocity"])
        plain = {**given, "past_bias": torch.zeros(len(seen)), "timesteps": torch.zeros(1, length)}
        clean = engines["transformer"].run(plain)
        keys, values = torch.cat([keys, clean["new_k"]], dim=3), torch.cat([values, clean["new_v"]], dim=3)
        first += length
    return velocities


@pytest.mark.parametrize("attention_bias", [None, 0.3])
def test_the_ring_gives_what_a_concatenated_cache_gives(
    engines: dict[str, Engine], config: LongLiveConfig, attention_bias: float | None
):
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(1, config.text_len, config.text_dim, generator=generator)
    text = engines["text_kv"].run({"embeddings": embeddings}) | {"lora_scales": torch.tensor([0.5, 0.0])}
    sides = (ROWS * config.patch_size[1], COLS * config.patch_size[2])
    chunks = [torch.randn(1, config.latent_channels, length, *sides, generator=generator) for length in CHUNKS]

    tables = RopeTables(config.head_dim, config.rope_theta, ROWS, COLS, CPU)
    ring = CachedTransformer(engines["transformer"], config, tables, ROWS, COLS)
    bias = 0.0 if attention_bias is None else float(torch.tensor(attention_bias).log())
    for latents, expected in zip(chunks, concatenated(engines, config, text, chunks, bias), strict=True):
        span = ring.chunk_span(latents.shape[2])
        velocity = ring.velocity(span, latents, 700.0, text, attention_bias=attention_bias)
        torch.testing.assert_close(velocity, expected, atol=1e-5, rtol=0)
        ring.write(span, latents, text)
