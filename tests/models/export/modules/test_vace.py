"""The VACE branch against diffusers' transformer with VACE."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")
diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: see docs/export.md")

from torch import Tensor

from export.checkpoint import load_into
from export.modules.transformer import CausalTransformer, TextKv
from export.modules.vace import VaceBranch
from export.weight_names import wan_names
from tests.models.export.configs import tiny
from tests.models.export.networks import HEIGHT, TOKENS, WIDTH, normal, rope

CONFIG = tiny()
TEXT = normal(2, 6, 20, seed=1)
ONE = torch.ones(1)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    torch.manual_seed(0)
    return diffusers.WanVACETransformer3DModel(
        num_attention_heads=CONFIG.num_heads,
        attention_head_dim=CONFIG.head_dim,
        in_channels=CONFIG.in_channels,
        out_channels=CONFIG.out_channels,
        text_dim=CONFIG.text_dim,
        freq_dim=CONFIG.freq_dim,
        ffn_dim=CONFIG.ffn_dim,
        num_layers=CONFIG.num_layers,
        vace_layers=list(CONFIG.vace_layers),
        vace_in_channels=CONFIG.vace_in_channels,
    ).eval()


@pytest.fixture(scope="module")
def ours(theirs: torch.nn.Module) -> tuple[CausalTransformer, TextKv, VaceBranch, TextKv]:
    """The four modules that share out diffusers' weights."""
    modules = CausalTransformer(CONFIG), TextKv(CONFIG), VaceBranch(CONFIG), TextKv(CONFIG, vace=True)
    load_into(wan_names(theirs.state_dict()), *modules)
    return modules


@pytest.mark.parametrize("num_frames", [1, 3, 4])
@pytest.mark.parametrize("scale", [[1.0, 1.0], [0.5, 1.7]])
def test_hints_and_output_equal_diffusers(theirs, ours, num_frames: int, scale: list[float]):
    network, text_kv, branch, vace_text_kv = ours
    latents = normal(2, 4, num_frames, HEIGHT, WIDTH)
    context = normal(2, 12, num_frames, HEIGHT, WIDTH, seed=2)
    timestep = torch.tensor([937.5, 250.0])

    their_hints: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, _args, out: their_hints.append(out[0])) for block in theirs.vace_blocks
    ]
    expected = theirs(latents, timestep, TEXT, None, context, torch.tensor(scale)).sample
    for hook in hooks:
        hook.remove()

    timesteps = timestep[:, None].expand(2, num_frames)
    tables = rope(CONFIG, 0, num_frames)
    hints = branch(latents, timesteps, context, *vace_text_kv(TEXT), tables, torch.tensor(scale))
    scaled = torch.stack([hint * by for hint, by in zip(their_hints, scale, strict=True)])
    torch.testing.assert_close(hints, scaled, atol=3e-6, rtol=0)
    velocity, _, _ = network(latents, timesteps, *text_kv(TEXT), tables, hints=hints)
    torch.testing.assert_close(velocity, expected, atol=3e-6, rtol=0)
    plain, _, _ = network(latents, timesteps, *text_kv(TEXT), tables)
    assert (velocity - plain).abs().max() > 1e-3


def test_one_scale_applies_to_all_hints_and_zero_disables_conditioning(ours):
    network, text_kv, branch, vace_text_kv = ours
    latents, context = normal(2, 4, 3, HEIGHT, WIDTH), normal(2, 12, 3, HEIGHT, WIDTH, seed=2)
    timesteps, tables = torch.full((2, 3), 500.0), rope(CONFIG, 0, 3)
    given = latents, timesteps, context, *vace_text_kv(TEXT), tables
    assert torch.equal(branch(*given, torch.tensor([0.3])), branch(*given, torch.tensor([0.3, 0.3])))
    plain, _, _ = network(latents, timesteps, *text_kv(TEXT), tables)
    with_zero, _, _ = network(latents, timesteps, *text_kv(TEXT), tables, hints=branch(*given, ONE * 0))
    assert torch.equal(plain, with_zero)


def test_references_are_seen_and_have_no_hints(ours):
    _, _, branch, vace_text_kv = ours
    text = vace_text_kv(TEXT[:1])
    latents, context = normal(1, 4, 3, HEIGHT, WIDTH), normal(1, 12, 5, HEIGHT, WIDTH, seed=2)
    given = torch.full((1, 5), 500.0), context, *text, rope(CONFIG, 0, 5), ONE
    hints = branch(latents, *given)
    assert hints.shape == (2, 1, 3 * TOKENS, CONFIG.dim)

    changed = context.clone()
    changed[:, :, 0] += 1
    other = branch(latents, given[0], changed, *given[2:])
    assert (other - hints).abs().max() > 1e-3

    # The first layer's input at a reference is its own embedding and nothing of the latents'.
    inputs: list[Tensor] = []
    hook = branch.vace_blocks[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    branch(latents, *given)
    hook.remove()
    embedded = branch.vace_patch_embedding(context).flatten(2).transpose(1, 2)
    projected = branch.vace_blocks[0].before_proj(embedded)
    noisy = branch.patch_embedding(latents).flatten(2).transpose(1, 2)
    torch.testing.assert_close(inputs[0][:, : 2 * TOKENS], projected[:, : 2 * TOKENS], atol=0, rtol=0)
    torch.testing.assert_close(inputs[0][:, 2 * TOKENS :], projected[:, 2 * TOKENS :] + noisy, atol=0, rtol=0)
