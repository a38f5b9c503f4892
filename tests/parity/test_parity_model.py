"""The model against the official model: embeddings, names, outputs, guidance and initial weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from official import INPUTS, LABELS, RELATIVE, TIMESTEPS, assert_official_output, latents, sine_model, vectors
from torch import Tensor

from dit.diffusion.sampler import guide
from dit.model.embeddings import position_table, timestep_features
from dit.model.transformer import DiT
from dit.study.variants import resolve

# Of further sizes, with the same weights and inputs: standard deviation and first values of the output.
FURTHER = {
    "DiT-S/8": (0.475554, [-0.405591, 0.604550, 0.502854]),
    "DiT-B/2": (2.047296, [-2.724200, 2.875159, -2.759061]),
}


@pytest.fixture(scope="module", autouse=True)
def _exact_products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@torch.inference_mode()
def guided(model: DiT, scale: float) -> Tensor:
    """The first latent at step 500, with and without its label, guided on the first three channels."""
    both = model(latents()[:1].repeat(2, 1, 1, 1), torch.tensor([500, 500]), LABELS)
    return guide(both, scale, channels=3)


def test_timestep_embedding() -> None:
    expected = vectors()["timestep_embedding"]
    features = timestep_features(torch.tensor([500, 999]), 256)
    assert features[0, :3].tolist() == pytest.approx(expected["t=500 first3"], abs=1e-6)
    assert features[0, 128:131].tolist() == pytest.approx(expected["t=500 [128:131]"], abs=1e-6)
    assert features[1].double().sum().item() == pytest.approx(expected["t=999 sum"], abs=1e-4)


def test_position_embedding() -> None:
    expected, table = vectors()["pos_embed_1152_16"], position_table(1152, 16)
    assert list(table.shape) == expected["shape"]
    for key in ("row1[:3]", "row16[:3]", "row1[576:579]", "row16[576:579]"):
        row, columns = key.removeprefix("row").removesuffix("]").split("[")
        begin, end = (int(bound or 0) for bound in columns.split(":"))
        assert table[int(row), begin:end].tolist() == pytest.approx(expected[key], abs=1e-7)
    assert table.double().sum().item() == pytest.approx(expected["sum"], rel=1e-7)


@pytest.mark.parametrize("variant", ["DiT-S/2", pytest.param("DiT-XL/4", marks=pytest.mark.slow)])
def test_forward_and_guidance(variant: str) -> None:
    expected, model = vectors()[f"fwd_{variant}"], sine_model(variant)
    names = sorted(name for name, _ in model.named_parameters())
    assert len(names) == expected["param_names"]
    assert names[:3] == vectors()["first_names"]

    with torch.inference_mode():
        assert_official_output(variant, model(latents(), TIMESTEPS, LABELS))

    output = guided(model, 4.0)
    # Guidance of 4 multiplies the rounding of the two halves by 7.
    near = {"abs": 7 * RELATIVE * expected["std"]}
    assert output[0, 0, 0, :2].tolist() == pytest.approx(expected["cfg4 ch0 [0,0,0,:2]"], **near)
    assert output[0, 3, 0, :2].tolist() == pytest.approx(expected["cfg4 ch3 [0,3,0,:2]"], **near)


@pytest.mark.parametrize("variant", list(FURTHER))
def test_forward_of_further_sizes(variant: str) -> None:
    std, first = FURTHER[variant]
    with torch.inference_mode():
        output = sine_model(variant)(latents(), TIMESTEPS, LABELS)
    assert output.std().item() == pytest.approx(std, rel=RELATIVE)
    assert output[0, 0, 0, :3].tolist() == pytest.approx(first, abs=RELATIVE * std)


def test_initial_weights() -> None:
    expected, model = vectors()["init_B2_seed0"], DiT(resolve("DiT-B/2"), INPUTS)
    with torch.inference_mode():
        assert not model(latents(), TIMESTEPS, LABELS).any()
    labels = model.y_embedder.embedding_table.weight
    assert len(labels) == expected["y_emb rows"]
    drawn = {
        "x_embedder.proj.weight std": model.x_embedder.proj.weight,
        "y_emb std": labels,
        "qkv std": model.get_parameter("blocks.0.attn.qkv.weight"),
        "t_mlp0 std": model.get_parameter("t_embedder.mlp.0.weight"),
    }
    for key, weight in drawn.items():
        # Another generator draws other weights: the spread agrees to the scatter of its estimate.
        scatter = 4 / (2 * weight.numel()) ** 0.5
        assert weight.std().item() == pytest.approx(expected[key], rel=scatter), key
