"""The `fit:` section of a study file: how the work is fitted onto a machine. Changes no result. Torch-free."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from dit.study.fields import Natural, Positive, Section, Switch


class FitConfig(Section):
    """How the work is fitted onto a machine. Changes speed and memory, and results only by float error."""

    micro_batch: Positive | None = None
    """Samples per forward pass and process; unset, the process's share of the global batch."""
    compile: Switch = "auto"
    """torch.compile; auto uses it on a GPU."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    attention: Literal["auto", "sdpa", "plain"] = "auto"
    """torch's fused attention (sdpa) or separate matrix products (plain); auto chooses by device."""
    prefetch: Natural = 4
    """Steps whose data and noise a background thread prepares ahead; 0 prepares them in line."""
    threads: Positive | None = None
    """CPU threads per process for torch; unset, torch's own choice."""
    parallel_variants: Positive | None = None
    """Runs (a variant with a seed) that `dit study` works on at a time; unset, one per core, or one if there is a GPU.
    Each uses its share of the threads, and the memory of a whole model."""
    checkpoint_every: Positive = 5000
    """Steps between checkpoints that are written only for resuming. Evaluated steps are always written."""
    keep_checkpoints: Positive = 2
    """How many of those are kept; checkpoints of evaluated steps are always kept."""
    log_every: Positive = 100
    """Steps between two logged losses, each the mean over these steps."""
    sample_batch: Positive = 128
    """Images per sampler call and process."""
    decode_batch: Positive = 16
    """Images per call of the autoencoder."""
    feature_batch: Positive = 64
    """Images per call of the feature extractor."""

    @model_validator(mode="before")
    @classmethod
    def _former_name(cls, values: Any) -> Any:
        """Accept `lanes`, the former name of `parallel_variants`."""
        if isinstance(values, dict) and "lanes" in values:
            if "parallel_variants" in values:
                raise ValueError("lanes is the former name of parallel_variants; give only one of them")
            return {("parallel_variants" if key == "lanes" else key): value for key, value in values.items()}
        return values
