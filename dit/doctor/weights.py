"""What a set of weights shows by itself: values, layers that were never trained, positions, precision.

Every check returns None where it has nothing to look at.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dit.health.gate import Reading
from dit.model.embeddings import position_table
from dit.study.variants import InputSpec, ModelSpec

Weights = Mapping[str, Tensor]

HEAD = "final_layer.linear.weight"
POSITIONS = "pos_embed"
# Above the drift of a float32 average over 400,000 steps, and the rounding of a table that is stored in bf16.
_POSITION_ERROR = 1e-2
_LOW = {torch.bfloat16: "bf16", torch.float16: "fp16"}


def starts_at_zero(name: str) -> bool:
    """Whether a parameter of a new DiT is 0 (adaLN-Zero, Peebles & Xie 2023, section 3.2)."""
    return "adaLN_modulation" in name or name.startswith("final_layer") or name.endswith("bias")


def finite(weights: Weights) -> Reading:
    """Check that every value is finite."""
    bad = {name: int((~torch.isfinite(tensor)).sum()) for name, tensor in weights.items()}
    first = next((name for name, count in bad.items() if count), "")
    if not first:
        return Reading(0.0, "0 values that are not finite")
    return Reading(
        float(sum(bad.values())),
        "0 values that are not finite",
        "stop",
        f"the training diverged or the file is damaged: {first} has {bad[first]} values that are not finite",
        advice="give an earlier checkpoint",
    )


def zero_layers(weights: Weights, *, ema_of_trained: bool) -> Reading:
    """Check that head and modulations have left 0. `ema_of_trained`: these are the EMA of weights that have."""
    names = [name for name in weights if name.endswith("adaLN_modulation.1.weight") or name == HEAD]
    zero = [name for name in names if not bool(weights[name].any())]
    bound = f"0 of {len(names)} layers that are still 0"
    if not zero:
        return Reading(0.0, bound)
    if ema_of_trained:
        cause, alike = "the EMA was never updated: it still is the initial weights", ""
        advice = "sample the raw weights, and update the EMA after every optimizer step"
    elif HEAD in zero:
        cause = "the head (final_layer.linear) is still 0, so the model predicts nothing and samples are noise"
        alike = "an EMA that was never updated, a head that is not trained, or weights saved before they were loaded"
        advice = "look at the raw weights and the optimizer of the same training"
    else:
        cause = f"{len(zero)} layers were never trained, the first is {zero[0]}"
        alike, advice = "", "check which parameters the optimizer has"
    return Reading(float(len(zero)), bound, "stop", cause, alike, advice)


def positions(weights: Weights, spec: ModelSpec, inputs: InputSpec) -> Reading:
    """Compare the table of positions with its formula."""
    given = weights[POSITIONS][0].float()
    side = inputs.size // spec.patch
    table = position_table(spec.hidden, side)
    error = float((given - table).abs().max())
    bound = f"at most {_POSITION_ERROR:g} from the formula"
    if error <= _POSITION_ERROR:
        return Reading(error, bound)
    advice = "restore the sine-cosine table, and check what the model was trained with"
    if not bool(given.any()):
        return Reading(error, bound, "stop", "the positions are lost: their table is 0", "", advice)
    # Each row of the table occurs once if it is only in another order.
    nearest = torch.cdist(given, table).min(dim=1)
    if len(set(nearest.indices.tolist())) == len(table) and float(nearest.values.max()) < _POSITION_ERROR * 10:
        swapped = table.view(side, side, -1).transpose(0, 1).reshape(table.shape)
        order = "rows and columns are swapped" if torch.allclose(given, swapped, atol=0.1) else "in another order"
        return Reading(error, bound, "stop", f"the positions are scrambled: {order}", "", advice)
    cause = "the table of positions is not the sine-cosine one"
    return Reading(error, bound, "warn", cause, "positions that were trained", advice)


def low_precision(weights: Weights, *, others: Weights | None) -> Reading:
    """Check that values are not all representable in bf16 or fp16; `others` is the training's other set of weights."""
    bound = "float32 values that bf16 and fp16 do not have"
    kind = _kept_in(weights)
    if kind is None:
        return Reading(None, bound)
    kept = f"every value is one of {kind}"
    if others is not None and _kept_in(others) is None:
        return Reading(
            None,
            bound,
            "stop",
            f"the weights were kept in {kind}, which rounds small updates to nothing: {kept}",
            "",
            "keep the EMA and the weights that the optimizer updates in float32",
        )
    return Reading(
        None,
        bound,
        "warn",
        f"{kept}: stored in {kind} to save space, or kept in it while training, which loses small updates",
        "",
        "judge it with --dataset, or look at the training checkpoint",
    )


def _kept_in(weights: Weights) -> str | None:
    """The low precision in which all trained values are exact; None if there is none."""
    trained = [tensor for name, tensor in weights.items() if name != POSITIONS]
    if not any(bool(tensor.any()) for tensor in trained):
        return None
    for dtype, name in _LOW.items():
        if all(torch.equal(tensor.to(dtype).to(tensor.dtype), tensor) for tensor in trained):
            return name
    return None
