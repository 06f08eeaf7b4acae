"""The modules can be traced for export: no control flow on data, one graph for any chunk and length of the cache."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from torch import Tensor
from torch.export import Dim

from export.checkpoint import load_into
from export.lora import Adapter, LowRank, attach
from export.modules.layers import PositionEmbedding
from export.modules.transformer import Rope, TextKv
from export.modules.vace import VaceBranch
from export.modules.vae import VaeDecoder, VaeEncoder
from tests.models.export.configs import tiny
from tests.models.export.networks import HEIGHT, TOKENS, WIDTH, normal, random_weights, rope, transformer

CONFIG = tiny()


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def assert_same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, atol=5e-6, rtol=0)


def test_one_graph_of_the_transformer_serves_every_chunk_and_length_of_the_cache():
    network, text_kv, _ = transformer(CONFIG)
    attach([Adapter("one", {"blocks.0.ffn.0": LowRank(normal(2, 48), normal(64, 2), 1.0)})], network)
    text = text_kv(normal(1, 6, 20, seed=1))

    def inputs(num_frames: int, past: int) -> tuple[object, ...]:
        return (
            normal(1, 4, num_frames, HEIGHT, WIDTH),
            torch.full((1, num_frames), 500.0),
            *text,
            rope(CONFIG, 3, num_frames),
            *normal(2, CONFIG.num_layers, 1, CONFIG.num_heads, past, CONFIG.head_dim, seed=past),
            torch.zeros(past),
            normal(2, 1, num_frames * TOKENS, CONFIG.dim),
            torch.tensor([0.5]),
        )

    past, frames = Dim("past", min=0, max=65536), Dim("frames", min=1, max=CONFIG.window)
    tokens = {0: TOKENS * frames}
    axes = (
        *({2: frames}, {1: frames}, None, None, Rope(tokens, tokens)),
        *({3: past}, {3: past}, {0: past}, {2: TOKENS * frames}, None),
    )
    graph = torch.export.export(network, inputs(3, 18), dynamic_shapes=axes).module()
    for num_frames, length in ((1, 0), (3, 0), (3, 54), (4, 18), (12, 18)):
        given = inputs(num_frames, length)
        assert_same(graph(*given), network(*given))


def test_the_vace_branch_and_the_texts_part_become_graphs():
    branch, text_kv = VaceBranch(CONFIG).eval(), TextKv(CONFIG, vace=True).eval()
    load_into(random_weights(branch, text_kv), branch, text_kv)
    embeddings = normal(1, 6, 20)
    text = text_kv(embeddings)
    assert_same(torch.export.export(text_kv, (embeddings,)).module()(embeddings), text)
    latents, context = normal(1, 4, 3, HEIGHT, WIDTH), normal(1, 12, 4, HEIGHT, WIDTH)
    given = latents, torch.full((1, 4), 500.0), context, *text, rope(CONFIG, 0, 4), torch.ones(1)
    torch.testing.assert_close(torch.export.export(branch, given).module()(*given), branch(*given), atol=5e-6, rtol=0)


@pytest.mark.parametrize(("network", "shape"), [(VaeEncoder, (1, 3, 25, 16, 16)), (VaeDecoder, (1, 4, 7, 2, 2))])
def test_the_vae_becomes_a_first_and_a_next_graph(network: type[VaeEncoder | VaeDecoder], shape: tuple[int, ...]):
    vae = network(CONFIG.vae).eval()
    load_into(random_weights(vae), vae)
    first, following = normal(*shape).split([13, 12] if network is VaeEncoder else [4, 3], dim=2)
    expected, caches = vae(first)
    got, given = torch.export.export(vae, (first,)).module()(first)
    assert_same((got, *given), (expected, *caches))
    expected, after = vae(following, caches)
    got, given = torch.export.export(vae, (following, caches)).module()(following, caches)
    assert_same((got, *given), (expected, *after))


def test_places_in_the_picture_have_one_graph_for_all_sizes():
    embedding = PositionEmbedding(CONFIG.dim).eval()
    load_into(random_weights(embedding), embedding)

    class Placed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = embedding

        def forward(self, x: Tensor) -> Tensor:  # [B, C, T, rows, cols], as the patch embedding makes them
            return self.embedding(x.flatten(2).transpose(1, 2), *x.shape[2:])

    rows, cols = Dim("rows", min=1, max=64), Dim("cols", min=1, max=64)
    graph = torch.export.export(Placed(), (normal(1, 48, 3, 4, 6),), dynamic_shapes=({3: rows, 4: cols},)).module()
    for size in ((1, 1), (4, 4), (7, 2)):
        x = normal(1, 48, 3, *size)
        torch.testing.assert_close(graph(x), Placed()(x), atol=5e-6, rtol=0)
