"""The reference of the benchmarks: a DiT, its loss, training step and sampler in plain code, without any tuning.

Eager, one module per layer, default matrix precision, default AdamW, an EMA loop over parameters, tables indexed at
each use. The product does not use this module.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = 1000


class Block(nn.Module):
    """One adaLN-Zero block (Peebles & Xie 2023, section 3.2)."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.proj = nn.Linear(hidden, hidden)
        self.mlp = nn.Sequential(
            nn.Linear(hidden, 4 * hidden), nn.GELU(approximate="tanh"), nn.Linear(4 * hidden, hidden)
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 6 * hidden))

    def attend(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, dim=1)
        x = x + gate1.unsqueeze(1) * self.attend(self.norm1(x) * (1 + scale1.unsqueeze(1)) + shift1.unsqueeze(1))
        return x + gate2.unsqueeze(1) * self.mlp(self.norm2(x) * (1 + scale2.unsqueeze(1)) + shift2.unsqueeze(1))


class TextbookDiT(nn.Module):
    """The same function and cost as the product's model of the same size."""

    def __init__(self, depth: int, hidden: int, heads: int, patch: int, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.patch, self.channels, self.side = patch, channels, size // patch
        self.embed = nn.Conv2d(channels, hidden, patch, stride=patch)
        self.position = nn.Parameter(torch.randn(1, self.side**2, hidden), requires_grad=False)
        self.time = nn.Sequential(nn.Linear(256, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.label = nn.Embedding(classes + 1, hidden)
        self.blocks = nn.ModuleList(Block(hidden, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden))
        self.head = nn.Linear(hidden, patch * patch * 2 * channels)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        frequencies = torch.exp(-math.log(10_000) * torch.arange(128, dtype=torch.float32, device=x.device) / 128)
        angles = t[:, None].float() * frequencies[None]
        c = self.time(torch.cat([angles.cos(), angles.sin()], dim=-1)) + self.label(y)
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.modulation(c).chunk(2, dim=1)
        x = self.head(self.norm(x) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1))
        n, s, p = x.shape[0], self.side, self.patch
        return torch.einsum("nhwpqc->nchpwq", x.reshape(n, s, s, p, p, -1)).reshape(n, -1, s * p, s * p)


class Diffusion:
    """Linear schedule (Ho et al. 2020) and learned variance (Nichol & Dhariwal 2021); tables are copied at each use."""

    def __init__(self, kept: int = STEPS) -> None:
        betas = torch.linspace(1e-4, 2e-2, STEPS, dtype=torch.float64)
        bars = torch.cumprod(1 - betas, 0)
        self.map = torch.linspace(0, STEPS - 1, kept).round().long()
        self.bar = bars[self.map]
        self.previous = torch.cat([torch.ones(1, dtype=torch.float64), self.bar[:-1]])
        self.beta = 1 - self.bar / self.previous
        self.log_beta = self.beta.log()
        variance = self.beta * (1 - self.previous) / (1 - self.bar)
        self.log_variance = torch.log(torch.cat([variance[1:2], variance[1:]]))

    def at(self, table: Tensor, t: Tensor, x: Tensor) -> Tensor:
        return table.to(x.device)[t].float().view(-1, 1, 1, 1)

    def posterior(self, output: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        epsilon, v = output.chunk(2, dim=1)
        low, high = self.at(self.log_variance, t, x_t), self.at(self.log_beta, t, x_t)
        log_variance = (v + 1) / 2 * high + (1 - (v + 1) / 2) * low
        x0 = (x_t - (1 - self.at(self.bar, t, x_t)).sqrt() * epsilon) / self.at(self.bar, t, x_t).sqrt()
        return self.mean(x0, x_t, t), log_variance

    def mean(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        bar, previous, beta = (self.at(table, t, x_t) for table in (self.bar, self.previous, self.beta))
        return beta * previous.sqrt() / (1 - bar) * x0 + (1 - previous) * (1 - beta).sqrt() / (1 - bar) * x_t

    def loss(self, model: nn.Module, x0: Tensor, t: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        x_t = self.at(self.bar, t, x0).sqrt() * x0 + (1 - self.at(self.bar, t, x0)).sqrt() * noise
        output = model(x_t, t, y).float()
        epsilon, v = output.chunk(2, dim=1)
        mean, log_variance = self.posterior(torch.cat([epsilon.detach(), v], dim=1), x_t, t)
        true_mean, true_log_variance = self.mean(x0, x_t, t), self.at(self.log_variance, t, x0)
        kl = 0.5 * (
            log_variance
            - true_log_variance
            - 1
            + torch.exp(true_log_variance - log_variance)
            + (true_mean - mean) ** 2 * torch.exp(-log_variance)
        )
        bound = torch.where(t.view(-1, 1, 1, 1) == 0, nll(x0, mean, log_variance), kl).mean(dim=(1, 2, 3)) / math.log(2)
        return (((noise - epsilon) ** 2).mean(dim=(1, 2, 3)) + bound).mean()


def nll(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Negative log-likelihood of 8-bit values under a Gaussian (Ho et al. 2020, section 3.3)."""
    centred, inverse = x - mean, torch.exp(-0.5 * log_variance)
    normal = torch.distributions.Normal(torch.zeros((), device=x.device), 1.0)
    upper, lower = normal.cdf(inverse * (centred + 1 / 255)), normal.cdf(inverse * (centred - 1 / 255))
    inner = torch.where(x > 0.999, 1 - lower, upper - lower)
    return -torch.where(x < -0.999, upper, inner).clamp(min=1e-12).log()


class TextbookTrainer:
    """A training step: forward, loss, backward, AdamW, EMA."""

    def __init__(self, model: TextbookDiT, precision: str = "fp32") -> None:
        self.model, self.ema, self.diffusion = model, copy.deepcopy(model), Diffusion()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0)
        self.autocast = precision == "bf16"

    def step(self, x0: Tensor, t: Tensor, y: Tensor, noise: Tensor) -> float:
        with torch.autocast(x0.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            loss = self.diffusion.loss(self.model, x0, t, y, noise)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for average, parameter in zip(self.ema.parameters(), self.model.parameters(), strict=True):
                average.mul_(0.9999).add_(parameter, alpha=1 - 0.9999)
        return loss.item()


@torch.no_grad()
def textbook_sample(model: TextbookDiT, y: Tensor, steps: int, cfg: float, null: int, size: int) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2) with guidance on the first three channels."""
    diffusion = Diffusion(steps)
    x = torch.randn(len(y), model.channels, size, size, device=y.device)
    for i in reversed(range(steps)):
        t = torch.full((2 * len(y),), i, device=y.device)
        both = torch.cat([x, x])
        output = model(both, diffusion.map.to(y.device)[t], torch.cat([y, torch.full_like(y, null)]))
        guided = min(3, model.channels)
        conditional, unconditional = output[:, :guided].chunk(2)
        half = unconditional + cfg * (conditional - unconditional)
        output = torch.cat([torch.cat([half, half]), output[:, guided:]], dim=1)
        mean, log_variance = diffusion.posterior(output, both, t)
        noise = torch.randn_like(x) if i else torch.zeros_like(x)
        x = mean.chunk(2)[0] + torch.exp(0.5 * log_variance.chunk(2)[0]) * noise
    return x
