"""The transformer: properties that hold for any weights, kernel, precision or compiler."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dit.errors import ConfigError
from dit.model.embeddings import patchify, position_table, timestep_features, unpatchify
from dit.model.transformer import AttentionKernel, DiT, mismatch
from dit.study.variants import InputSpec, ModelSpec

DIGITS = InputSpec(channels=1, size=8, classes=10)
# Small enough for milliseconds; heads of 12, 16, 18 and 20 values are sizes that no kernel is tuned for.
SMALL = ModelSpec("test", "S", patch=2, depth=2, hidden=24, heads=2)
SIZES = [
    SMALL,
    ModelSpec("test", "B", patch=4, depth=3, hidden=48, heads=3),
    ModelSpec("test", "L", patch=8, depth=2, hidden=72, heads=4),
    ModelSpec("test", "XL", patch=1, depth=1, hidden=80, heads=4),
]
sizes = pytest.mark.parametrize("spec", SIZES, ids=lambda spec: spec.name)


def batch(inputs: InputSpec = DIGITS, count: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(count, inputs.channels, inputs.size, inputs.size, generator=draw)
    return x, torch.arange(count) * 37 % 1000, torch.arange(count) % (inputs.classes + 1)


def trained(spec: ModelSpec = SMALL, inputs: InputSpec = DIGITS, **options: object) -> DiT:
    """A model whose output depends on every weight, as initial ones do not."""
    model = DiT(spec, inputs, **options)  # type: ignore[arg-type]
    draw = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name != "pos_embed":
            nn.init.normal_(parameter, std=0.1, generator=draw)
    return model


@sizes
def test_initial_blocks_are_the_identity_and_the_output_is_zero(spec: ModelSpec) -> None:
    model = DiT(spec, DIGITS)
    x_NTD, c_ND = torch.randn(5, 4, spec.hidden), torch.randn(5, spec.hidden)
    assert torch.equal(model.blocks[0](x_NTD, c_ND), x_NTD)
    output = model(*batch())
    assert output.shape == (5, 2, 8, 8)
    assert not output.any()


def test_initial_weights_depend_only_on_the_seed() -> None:
    model, other = DiT(SMALL, DIGITS), DiT(SMALL, DIGITS)
    before = torch.get_rng_state()
    model.initialise(3)
    torch.manual_seed(99)
    other.initialise(3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    other.initialise(4)
    assert not torch.equal(model.blocks[0].attn.qkv.weight, other.blocks[0].attn.qkv.weight)
    torch.set_rng_state(before)
    model.initialise(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_meta_model_can_be_moved_to_a_device_and_initialised() -> None:
    with torch.device("meta"):
        model = DiT(SMALL, DIGITS)
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu").initialise(0)
    expected = DiT(SMALL, DIGITS).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_positions_are_frozen_and_everything_else_is_trained() -> None:
    model = trained()
    model(*batch()).square().sum().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == ["pos_embed"]
    assert all(parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("side", [8, 24])
@sizes
def test_attention_kernels_agree(spec: ModelSpec, side: int) -> None:
    """Side 24 at patch 1 gives 576 tokens: more than the plain kernel takes under `auto`."""
    inputs = InputSpec(channels=1, size=side, classes=10)
    outputs = {}
    kernels: list[AttentionKernel] = ["sdpa", "plain", "auto"]
    for kernel in kernels:
        with torch.inference_mode():
            outputs[kernel] = trained(spec, inputs, attention=kernel)(*batch(inputs))
    torch.testing.assert_close(outputs["plain"], outputs["sdpa"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs["auto"], outputs["sdpa"], rtol=1e-4, atol=1e-4)


def test_attention_is_softmax_attention() -> None:
    attention = trained(SIZES[1]).blocks[0].attn
    x_NTD = torch.randn(2, 7, 48)
    q, k, v = (part.view(2, 7, 3, 16) for part in attention.qkv(x_NTD).chunk(3, dim=-1))
    weights = torch.einsum("nqhe,nkhe->nhqk", q, k).div(16**0.5).softmax(dim=-1)
    expected = attention.proj(torch.einsum("nhqk,nkhe->nqhe", weights, v).flatten(2))
    torch.testing.assert_close(attention(x_NTD), expected, rtol=1e-5, atol=1e-5)


def gradients(model: DiT) -> dict[str, Tensor]:
    model.zero_grad()
    model(*batch()).square().mean().backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def test_activation_checkpointing_changes_no_gradient() -> None:
    kept, recomputed = gradients(trained()), gradients(trained(activation_checkpointing=True))
    assert kept.keys() == recomputed.keys()
    for name, gradient in kept.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=name)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_model_compiles_without_a_graph_break(checkpointing: bool) -> None:
    model = trained(activation_checkpointing=checkpointing)
    eager = gradients(model)
    expected = model(*batch())
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*batch()), expected)
    for name, gradient in gradients(compiled).items():
        torch.testing.assert_close(gradient, eager[name.removeprefix("_orig_mod.")], msg=name)


def test_bf16_is_near_float32() -> None:
    model = trained(SIZES[1])
    with torch.inference_mode():
        exact = model(*batch())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(*batch())
    error = (rounded - exact).square().mean().sqrt() / exact.std()
    assert 0 < error < 0.05


def test_samples_of_a_batch_are_independent() -> None:
    model = trained()
    x, t, y = batch()
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(model(x[order], t[order], y[order]), model(x, t, y)[order], rtol=1e-4, atol=1e-5)


def test_output_depends_on_latent_timestep_and_label() -> None:
    model = trained()
    x, t, y = batch()
    base = model(x, t, y)
    for changed in (model(x + 0.1, t, y), model(x, t + 100, y), model(x, t, torch.full_like(y, model.null_label))):
        assert (changed != base).flatten(1).any(dim=1).all()


def test_output_depends_on_token_positions() -> None:
    """Without positions, a rolled image would give a rolled output."""
    model, side = trained(), 4
    x, t, y = batch()
    rolled = model(x.roll(8 // side, dims=3), t, y)
    assert not torch.allclose(rolled, model(x, t, y).roll(8 // side, dims=3), atol=1e-3)


def test_patch_that_does_not_divide_the_latent_is_refused() -> None:
    with pytest.raises(ConfigError, match="which 8 does not divide"):
        DiT(SIZES[2], InputSpec(channels=4, size=12, classes=10))


shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.sampled_from([1, 2, 4]), st.integers(1, 4))


@given(shapes)
def test_patchify_and_unpatchify_are_inverse(shape: tuple[int, int, int, int]) -> None:
    n, channels, patch, side = shape
    x = torch.randn(n, channels, side * patch, side * patch)
    tokens = patchify(x, patch)
    assert tokens.shape == (n, side**2, channels * patch**2)
    channels_last = tokens.view(n, side**2, channels, patch**2).transpose(2, 3).flatten(2)
    assert torch.equal(unpatchify(channels_last, patch), x)


@given(shapes)
def test_patchify_then_linear_equals_the_convolution(shape: tuple[int, int, int, int]) -> None:
    n, channels, patch, side = shape
    x, weight = torch.randn(n, channels, side * patch, side * patch), torch.randn(5, channels, patch, patch)
    expected = nn.functional.conv2d(x, weight, stride=patch).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patchify(x, patch) @ weight.flatten(1).T, expected, rtol=1e-4, atol=1e-4)


@given(st.sampled_from([8, 24, 96, 384]), st.integers(1, 16))
def test_positions_are_distinct_and_separable(hidden: int, side: int) -> None:
    grid = position_table(hidden, side).view(side, side, 2, hidden // 2)
    assert torch.equal(grid[:, :, 0], grid[:1, :, 0].expand(side, -1, -1)), "first half: the column alone"
    assert torch.equal(grid[:, :, 1], grid[:, :1, 1].expand(-1, side, -1)), "second half: the row alone"
    assert torch.equal(grid[:, :, 0], grid[:, :, 1].transpose(0, 1))
    assert len(grid.flatten(2).flatten(0, 1).unique(dim=0)) == side**2


def test_timestep_features_are_distinct_and_accept_fractions() -> None:
    features = timestep_features(torch.arange(1000), 256)
    assert features.dtype == torch.float32
    assert len(features.unique(dim=0)) == 1000
    halfway = timestep_features(torch.tensor([10.0, 10.5, 11.0]), 256)
    assert torch.cdist(halfway[:1], halfway[1:]).diff() > 0


def test_mismatch_names_the_tensor() -> None:
    expected = {"a": torch.zeros(2, 3), "b": torch.zeros(1)}
    assert mismatch(expected, dict(expected)) is None
    assert mismatch(expected, {"a": expected["a"]}) == "it lacks b"
    assert mismatch(expected, {}) == "it lacks a and 1 more"
    assert mismatch(expected, {**expected, "module.c": torch.zeros(1)}) == "it has the unknown tensor module.c"
    transposed = mismatch(expected, {**expected, "a": torch.zeros(3, 2)})
    assert transposed == "a has shape [3, 2], expected is [2, 3]"
