"""The text encoder: the same as transformers' UMT5, zero beyond a prompt, and the same again as an ONNX graph."""

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: see docs/export.md")

from torch import Tensor

from export.checkpoint import load_into
from export.config import UMT5_XXL, parse_text_encoder_config
from export.modules.text_encoder import TextEncoder, distance_buckets
from export.weight_names import wan_text_encoder_names
from tests.models.export.configs import TINY_TEXT_ENCODER, tiny_text_encoder
from tests.models.export.networks import normal, random_weights

TEXT_LEN = 160  # beyond the 128 tokens from which on all distances share a bucket
LENGTHS = (1, 7, 90, TEXT_LEN)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def prompts() -> tuple[Tensor, Tensor]:
    """Ids and mask of prompts of several lengths; what pads them is no token that could be told by its id."""
    ids = torch.randint(0, 50, (len(LENGTHS), TEXT_LEN), generator=torch.Generator().manual_seed(0))
    return ids, (torch.arange(TEXT_LEN) < torch.tensor(LENGTHS).unsqueeze(1)).long()


def encoder() -> TextEncoder:
    network = TextEncoder(tiny_text_encoder(), TEXT_LEN).eval()
    load_into(random_weights(network), network)
    return network


def umt5(**changed: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.UMT5Config(**{**TINY_TEXT_ENCODER, **changed}, attn_implementation="eager")
    return transformers.UMT5EncoderModel(config).eval()


@pytest.mark.parametrize(
    "changed",
    [{}, {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "layer_norm_epsilon": 0.1}],
)
def test_it_is_transformers_umt5_within_a_prompt_and_zero_beyond(changed: dict[str, Any]):
    theirs, ours = umt5(**changed), TextEncoder(tiny_text_encoder(**changed), TEXT_LEN).eval()
    weights = dict(theirs.state_dict())
    for name, value in weights.items():  # its norms begin at one and its biases small: an error would not show
        if "norm" in name or "relative_attention_bias" in name:
            weights[name] = value + (0.1 if "norm" in name else 1) * normal(*value.shape, seed=1)
    theirs.load_state_dict(weights)
    load_into(wan_text_encoder_names(weights), ours)
    ids, mask = prompts()
    got, expected = ours(ids, mask), theirs(ids, mask).last_hidden_state
    for row, length in enumerate(LENGTHS):
        torch.testing.assert_close(got[row, :length], expected[row, :length], atol=2e-6, rtol=2e-6)
        assert not got[row, length:].any()


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (4, 2), (6, 5), (64, 1000)])
def test_distances_fall_into_transformers_buckets(num_buckets: int, max_distance: int):
    attention = (
        umt5(relative_attention_num_buckets=num_buckets, relative_attention_max_distance=max_distance)
        .encoder.block[0]
        .layer[0]
        .SelfAttention
    )
    places = torch.arange(512)
    expected = attention._relative_position_bucket(places - places.unsqueeze(1))
    assert torch.equal(distance_buckets(512, num_buckets, max_distance), expected)


def test_what_pads_a_prompt_changes_nothing():
    network = encoder()
    ids, mask = prompts()
    assert torch.equal(network(ids, mask), network(torch.where(mask == 0, 49, ids), mask))
    assert not network(ids, torch.zeros_like(mask)).any()  # no NaN where there is no token at all


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.05), (torch.float16, 0.007)])
def test_sixteen_bits_are_near_float32(dtype: torch.dtype, error: float):
    """Errors of 0.036 and 0.0039 of the embeddings' norm were measured."""
    network = encoder()
    ids, mask = prompts()
    expected = network(ids, mask)
    got = network.to(dtype)(ids, mask)
    assert got.dtype == dtype
    assert (got - expected).norm() / expected.norm() < error


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning")  # torch.onnx's own
@pytest.mark.parametrize("opset", [20, 23])
def test_onnx_runtime_computes_the_same_and_weights_keep_their_names(opset: int):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: see docs/export.md")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: see docs/export.md")
    network = encoder()
    ids, mask = prompts()
    program = torch.onnx.export(
        network,
        (ids[:1], mask[:1]),
        dynamo=True,
        opset_version=opset,
        input_names=["ids", "mask"],
        output_names=["embeddings"],
        verbose=False,
    )
    graph = program.model_proto.graph
    assert {name for name, _ in network.named_parameters()} <= {one.name for one in graph.initializer}
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    for row in range(len(LENGTHS)):
        given = ids[row : row + 1], mask[row : row + 1]
        (got,) = session.run(None, {"ids": given[0].numpy(), "mask": given[1].numpy()})
        torch.testing.assert_close(torch.from_numpy(got), network(*given), atol=1e-5, rtol=1e-5)


def test_the_encoder_of_the_real_size_has_the_weights_of_transformers():
    """Names and shapes of UMT5-XXL, without memory for them."""
    with torch.device("meta"):
        ours = TextEncoder(parse_text_encoder_config(UMT5_XXL), 8)
        theirs = dict(transformers.UMT5EncoderModel(transformers.UMT5Config(**UMT5_XXL)).state_dict())
        del theirs["encoder.embed_tokens.weight"]  # `shared` again; without memory they can't be compared
        weights = wan_text_encoder_names(theirs)
        load_into(weights, ours)
    assert len(weights) == 242
    assert sum(value.numel() for value in weights.values()) == 5_680_910_336
