"""Checkpoints of other programs: what is read of them, and refusal of other files in one line."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dit.checkpoints.fit import fit_model
from dit.checkpoints.foreign import Foreign, read_foreign
from dit.errors import ConfigError, InputError, MismatchError, MissingError
from dit.model.transformer import DiT
from dit.study.variants import InputSpec, resolve

VARIANT = "mini-S/2"
INPUTS = InputSpec(channels=4, size=16, classes=7)


def weights(inputs: InputSpec = INPUTS) -> dict[str, Tensor]:
    return {name: torch.randn_like(value) for name, value in DiT(resolve(VARIANT), inputs).state_dict().items()}


def saved(path: Path, tree: Any, **options: Any) -> Path:
    torch.save(tree, path, **options)
    return path


def opened(path: Path, variant: str = VARIANT) -> Foreign:
    """What the file holds, after its names and shapes were compared with the variant."""
    found = read_foreign(path)
    fit_model(str(path), found.weights, variant)
    return found


@pytest.mark.parametrize("inputs", [INPUTS, InputSpec(3, 8, 1000)])
@pytest.mark.parametrize("zipped", [True, False])
def test_every_tensor_is_kept_and_loads_strictly(inputs: InputSpec, zipped: bool, tmp_path: Path) -> None:
    given = weights(inputs)
    source = saved(tmp_path / "a.pt", given, _use_new_zipfile_serialization=zipped)
    found = opened(source)
    assert fit_model("a.pt", found.weights) == (resolve(VARIANT), inputs)
    written = found.weights
    assert written.keys() == given.keys()
    assert all(torch.equal(written[name], given[name]) for name in given)
    DiT(resolve(VARIANT), inputs).load_state_dict(dict(written), strict=True)


@pytest.mark.parametrize("fixed_given", [True, False])
def test_a_training_checkpoint_has_both_weights_the_optimizer_by_name_and_the_step(
    fixed_given: bool, tmp_path: Path
) -> None:
    model = DiT(resolve(VARIANT), INPUTS)
    model.pos_embed.requires_grad_(False)
    parameters = [p for p in model.parameters() if fixed_given or p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    output = model(torch.randn(2, 4, 16, 16), torch.tensor([1, 2]), torch.tensor([3, 7]))
    (output - 1).square().sum().backward()
    optimizer.step()
    raw, average = model.state_dict(), weights()
    arguments = argparse.Namespace(model="DiT-S/2", ema_decay=0.99, lr=0.1)
    tree = {"model": raw, "ema": average, "opt": optimizer.state_dict(), "args": arguments}
    found = opened(saved(tmp_path / "0052000.pt", tree), "mini-s-2")
    assert found.raw is not None
    assert all(torch.equal(found.weights[name], average[name]) for name in average)
    assert all(torch.equal(found.raw[name], raw[name]) for name in raw)
    assert (found.step, found.decay, found.learning_rate) == (52_000, 0.99, 0.1)
    head = "final_layer.linear.weight"
    assert torch.equal(found.optimizer[f"exp_avg_sq.{head}"], optimizer.state[model.get_parameter(head)]["exp_avg_sq"])
    assert int(found.optimizer[f"step.{head}"]) == 1


def test_an_optimizer_of_other_parameters_is_not_read(tmp_path: Path) -> None:
    optimizer = torch.optim.AdamW(torch.nn.Linear(2, 2).parameters())
    found = opened(saved(tmp_path / "a.pt", {"model": weights(), "opt": {**optimizer.state_dict(), "state": {0: {}}}}))
    assert not found.optimizer
    assert "does not belong to these parameters" in found.notes[0]


def wrapped(*prefixes: str) -> dict[str, Tensor]:
    return {"".join(prefixes) + name: value for name, value in weights().items()}


@pytest.mark.parametrize(
    ("tree", "key", "said"),
    [
        ({"ema": wrapped("module.")}, "ema", "module."),
        (wrapped("_orig_mod.", "module."), None, "_orig_mod.module."),
        ({"state_dict": wrapped("denoiser.")}, "state_dict", "denoiser."),
        ({"model": weights(), "opt": {}}, "model", ""),
        ({"ema": weights(), "args": argparse.Namespace(results=Path("/x"))}, "ema", ""),
    ],
    ids=["DDP", "compiled DDP", "a module of a larger one", "no EMA", "a path among the arguments"],
)
def test_prefix_is_removed_and_named(tree: dict[str, Any], key: str | None, said: str, tmp_path: Path) -> None:
    found = opened(saved(tmp_path / "a.pt", tree))
    assert said in "".join(found.notes)
    given = list((tree[key] if key else tree).values())
    assert all(torch.equal(found.weights[name], given[number]) for number, name in enumerate(weights()))


def test_parts_inside_names_that_wrappers_add_are_removed(tmp_path: Path) -> None:
    given = weights()
    compiled = {name.replace("blocks.1.", "blocks.1._orig_mod."): value for name, value in given.items()}
    assert opened(saved(tmp_path / "a.pt", compiled)).weights.keys() == given.keys()


def test_safetensors_file_is_read(tmp_path: Path) -> None:
    save_file(given := weights(), tmp_path / "a.safetensors")
    assert all(torch.equal(value, given[name]) for name, value in opened(tmp_path / "a.safetensors").weights.items())


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("transformer_blocks.0.attn1.to_q.weight", "diffusers' layout"),
        ("model.diffusion_model.input_blocks.0.0.weight", "Stable Diffusion"),
        ("encoder.conv_in.weight", "an autoencoder's layout"),
        ("exp_avg.blocks.0.attn.qkv.weight", "an optimizer's state"),
    ],
)
def test_other_layouts_are_named(name: str, layout: str, tmp_path: Path) -> None:
    message = refused(saved(tmp_path / "a.pt", {name: torch.zeros(2, 2)}))
    assert layout in message
    assert "--variant" not in message


def test_two_modules_in_one_state_dict_are_named(tmp_path: Path) -> None:
    message = refused(saved(tmp_path / "a.pt", {**wrapped("online."), **wrapped("target.")}))
    assert "online., target." in message


class Trap:
    """Unpickled, it would create the file it names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def refused(source: Path, variant: str = VARIANT) -> str:
    """Return the one-line error."""
    with pytest.raises(InputError) as caught:
        opened(source, variant)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(source))
    return message


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    message = refused(saved(tmp_path / "a.pt", {"ema": weights(), "args": Trap(touched)}))
    assert "which is not read" in message
    assert not touched.exists()


def test_checkpoint_of_another_model_is_refused_with_the_tensors_name(tmp_path: Path) -> None:
    given, path = weights(), tmp_path / "a.pt"
    assert "it lacks blocks.2." in refused(saved(path, given), "mini-B/2")
    assert f"expected is [{resolve(VARIANT).hidden}, 4, 4, 4]" in refused(saved(path, given), "mini-S/4")
    assert "it has the unknown tensor extra" in refused(saved(path, {**given, "extra": torch.zeros(1)}))
    assert "; give --variant mini-S/2" in refused(saved(path, given), "mini-B/2")
    assert "save its whole state dict" in refused(
        saved(path, {name: given[name] for name in given if name != "pos_embed"})
    )
    scalar = {**given, "pos_embed": torch.zeros(())}
    assert "pos_embed has shape []" in refused(saved(path, scalar))
    with pytest.raises(ConfigError, match="not a known variant"):
        opened(path, "DiT-XXL/2")


@pytest.mark.parametrize("tree", [[1, 2], {"a": 1}, {"ema": [1]}, torch.zeros(3)])
def test_objects_other_than_state_dicts_are_refused(tree: Any, tmp_path: Path) -> None:
    assert "neither a state dict nor" in refused(saved(tmp_path / "a.pt", tree))


@pytest.mark.parametrize("content", [b"", b"hello world", pickle.dumps({"a": 1}, protocol=2)[:-3], b"PK\x03\x04"])
def test_damaged_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    refused(path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", weights())
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(MismatchError, match="fetch it again"):
        opened(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such file"):
        opened(tmp_path / "none.pt")
