"""The diffusion transformer with adaLN-Zero blocks (Peebles & Xie 2023, section 3.2).

Parameter names and shapes equal those of the published checkpoints.

Shapes: N batch, C channels, H and W sides of the latent, T tokens, D hidden size, K heads, E head size,
O output values of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dit.model.activation import gelu_tanh
from dit.model.embeddings import LabelEmbedder, PatchEmbedder, TimestepEmbedder, position_table, unpatchify
from dit.study.variants import MLP_RATIO, InputSpec, ModelSpec

AttentionKernel = Literal["auto", "sdpa", "plain"]

_NORM_EPS = 1e-6
_EMBEDDING_STD = 0.02
_DEFAULT_SEED = 0
# Tokens up to which a CPU computes attention as two plain products. At 256 pixels, patch 2 makes 256 tokens.
_LONGEST_PLAIN = 512


class Attention(nn.Module):
    """Multi-head self-attention over all tokens (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, hidden: int, heads: int, kernel: AttentionKernel) -> None:
        super().__init__()
        self.heads, self.kernel = heads, kernel
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.proj = nn.Linear(hidden, hidden)

    def forward(self, x_NTD: Tensor) -> Tensor:
        """[N, T, D] -> [N, T, D]."""
        qkv_NT3KE = self.qkv(x_NTD).view(*x_NTD.shape[:2], 3, self.heads, -1)
        attend = _sdpa if self._fused(x_NTD) else _plain
        mixed_NTD: Tensor = self.proj(attend(qkv_NT3KE))
        return mixed_NTD

    def _fused(self, x_NTD: Tensor) -> bool:
        if self.kernel != "auto":
            return self.kernel == "sdpa"
        # A CPU's fused kernel multiplies in blocks that are too small for oneDNN. Compared with two plain products it
        # is as fast at the default precision, up to 7 times slower under set_float32_matmul_precision("medium"), and
        # 1.5 to 2 times slower in bf16. Long sequences need it, because it never stores the T x T weights.
        return x_NTD.is_cuda or x_NTD.shape[1] > _LONGEST_PLAIN


class Mlp(nn.Module):
    """Two linear layers with GELU (tanh form) between."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden, MLP_RATIO * hidden)
        self.fc2 = nn.Linear(MLP_RATIO * hidden, hidden)

    def forward(self, x_NTD: Tensor) -> Tensor:
        """[N, T, D] -> [N, T, D]."""
        out_NTD: Tensor = self.fc2(gelu_tanh(self.fc1(x_NTD)))
        return out_NTD


class Block(nn.Module):
    """An adaLN-Zero block: the condition shifts, scales and gates attention and MLP (section 3.2, figure 3)."""

    def __init__(self, hidden: int, heads: int, kernel: AttentionKernel) -> None:
        super().__init__()
        self.attn = Attention(hidden, heads, kernel)
        self.mlp = Mlp(hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 6 * hidden))

    def forward(self, x_NTD: Tensor, c_ND: Tensor) -> Tensor:
        """Tokens [N, T, D], condition [N, D] -> tokens [N, T, D]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = _chunks(self.adaLN_modulation(c_ND), 6)
        # Each residual branch ends in a gate. Gates start at 0, so a new block is the identity.
        x_NTD = torch.addcmul(x_NTD, gate1, self.attn(_modulated_norm(x_NTD, shift1, scale1)))
        return torch.addcmul(x_NTD, gate2, self.mlp(_modulated_norm(x_NTD, shift2, scale2)))


class FinalLayer(nn.Module):
    """The decoder: a modulated norm and a linear map of each token to its patch of noise and variance."""

    def __init__(self, hidden: int, values: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, values)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden))

    def forward(self, x_NTD: Tensor, c_ND: Tensor) -> Tensor:
        """Tokens [N, T, D], condition [N, D] -> output patches [N, T, O]."""
        shift, scale = _chunks(self.adaLN_modulation(c_ND), 2)
        values_NTO: Tensor = self.linear(_modulated_norm(x_NTD, shift, scale))
        return values_NTO


class DiT(nn.Module):
    """Predicts a latent's noise, and the variance of the reverse step, from the noisy latent, its step and its label.

    The constructor calls `initialise(0)`, except on the meta device.
    Raises ConfigError when the patch does not divide the latent.

        model = DiT(resolve("DiT-S/2"), InputSpec(channels=4, size=32, classes=1000))
        output = model(torch.randn(2, 4, 32, 32), torch.tensor([10, 900]), torch.tensor([207, 1000]))  # [2, 8, 32, 32]
    """

    def __init__(
        self,
        spec: ModelSpec,
        inputs: InputSpec,
        *,
        attention: AttentionKernel = "auto",
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.spec, self.inputs = spec, inputs
        self.null_label = inputs.classes
        self.activation_checkpointing = activation_checkpointing
        device = torch.get_default_device()
        # The meta device allocates nothing, so torch's own initial values are never drawn.
        with torch.device("meta"):
            self.x_embedder = PatchEmbedder(inputs.channels, spec.patch, spec.hidden)
            self.t_embedder = TimestepEmbedder(spec.hidden)
            self.y_embedder = LabelEmbedder(inputs.classes, spec.hidden)
            self.pos_embed = nn.Parameter(torch.empty(1, spec.tokens(inputs), spec.hidden), requires_grad=False)
            self.blocks = nn.ModuleList(Block(spec.hidden, spec.heads, attention) for _ in range(spec.depth))
            # Two values per channel: the noise, and the position of the variance in its range.
            self.final_layer = FinalLayer(spec.hidden, spec.patch**2 * 2 * inputs.channels)
        if device.type != "meta":
            self._allocate(device)
            self.initialise(_DEFAULT_SEED)

    def _allocate(self, device: torch.device) -> None:
        """Give every parameter memory on `device`; there are no buffers."""
        # `to_empty` does the same, but for this it loads half a second of torch's symbolic shapes.
        for module in self.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                setattr(module, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))

    def forward(self, x_NCHW: Tensor, t_N: Tensor, y_N: Tensor) -> Tensor:
        """Return [N, 2C, H, W]: the predicted noise, then the variance's position v in its range.

        `x_NCHW` are noisy latents, `t_N` steps of the training chain, `y_N` int64 labels (`null_label` for none).
        """
        c_ND = self.t_embedder(t_N) + self.y_embedder(y_N)
        x_NTD = self.x_embedder(x_NCHW) + self.pos_embed
        for block in self.blocks:
            if self.activation_checkpointing and self.training:
                # Recomputed in the backward pass (Chen et al. 2016). A block draws no random numbers.
                x_NTD = checkpoint(block, x_NTD, c_ND, use_reentrant=False, preserve_rng_state=False)
            else:
                x_NTD = block(x_NTD, c_ND)
        return unpatchify(self.final_layer(x_NTD, c_ND), self.spec.patch)

    def compile_layers(self) -> None:
        """Compile each block and the final layer separately.

        All blocks then share one compilation, and DDP can send a block's gradients during the backward pass.
        """
        for layer in (*self.blocks, self.final_layer):
            layer.compile()

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw the initial weights of the paper, equal on every device; the output is then exactly 0.

        Linear layers and the patch embedding are Xavier-uniform (Glorot & Bengio 2010), the label table and the
        timestep MLP N(0, 0.02). Biases, modulations and the final layer are 0 (adaLN-Zero, section 3.2).
        """
        # Drawn on the CPU: a GPU's generator yields other numbers.
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name == "pos_embed":
                parameter.copy_(position_table(self.spec.hidden, self.inputs.size // self.spec.patch))
            elif name.endswith("bias") or "adaLN_modulation" in name or name.startswith("final_layer"):
                parameter.zero_()
            else:
                drawn = torch.empty(parameter.shape, device="cpu")
                if name.startswith(("y_embedder", "t_embedder")):
                    drawn.normal_(std=_EMBEDDING_STD, generator=generator)
                else:
                    # flatten(1): the fans of the patch embedding are those of a linear map, not of a convolution.
                    nn.init.xavier_uniform_(drawn.flatten(1), generator=generator)
                parameter.copy_(drawn)


def mismatch(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    """Return why a strict load of `given` into `expected` would fail, as a phrase; None when names and shapes agree."""
    for problem, names in (
        ("lacks", expected.keys() - given.keys()),
        ("has the unknown tensor", given.keys() - expected.keys()),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            return f"it {problem} {min(names)}{more}"
    for name, tensor in expected.items():
        if tensor.shape != given[name].shape:
            return f"{name} has shape {list(given[name].shape)}, expected is {list(tensor.shape)}"
    return None


def _chunks(modulation_ND: Tensor, parts: int) -> tuple[Tensor, ...]:
    """[N, parts * D] -> `parts` tensors [N, 1, D]."""
    return modulation_ND.view(len(modulation_ND), parts, 1, -1).unbind(1)


def _modulated_norm(x_NTD: Tensor, shift_N1D: Tensor, scale_N1D: Tensor) -> Tensor:
    """Layer norm without weights of its own; the condition gives scale and shift (adaLN; FiLM, Perez et al. 2018)."""
    return torch.addcmul(shift_N1D, F.layer_norm(x_NTD, x_NTD.shape[-1:], eps=_NORM_EPS), 1 + scale_N1D)


def _sdpa(qkv_NT3KE: Tensor) -> Tensor:
    q, k, v = qkv_NT3KE.transpose(1, 3).unbind(2)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _plain(qkv_NT3KE: Tensor) -> Tensor:
    n, t, _, heads, size = qkv_NT3KE.shape
    # One copy makes the heads of q, k and v contiguous.
    q, k, v = qkv_NT3KE.permute(2, 0, 3, 1, 4).reshape(3, n * heads, t, size).unbind(0)
    # softmax(q k^T / sqrt(E)) v: Vaswani et al. 2017, eq. 1. Scaling q costs T x E products, scaling q k^T T x T.
    weights = torch.bmm(q * size**-0.5, k.transpose(1, 2)).softmax(dim=-1)
    return torch.bmm(weights, v).view(n, heads, t, size).transpose(1, 2).flatten(2)
