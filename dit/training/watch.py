"""What the health checks see of a training: gathered here, judged by dit/health.

All ranks call every method at the same steps, because what a check reads is summed over ranks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from dit.data.draws import Purpose, normals
from dit.data.loader import StepBatch
from dit.data.measure import load_bounds
from dit.diffusion.schedule import SCHEDULES
from dit.health.bounds import RUNGS, Bounds, Float64, Rung
from dit.health.feed import STEPS as FEED_STEPS
from dit.health.feed_sums import FeedSums
from dit.health.identity import LoadedView, ProbeBatch, group_norms, loss_tolerance
from dit.health.learning import NoiseView, StartView, WindowView
from dit.health.noise_probe import look_at_noise
from dit.health.ranks import RanksView, Replica, checksum
from dit.health.recipe import RecipeView, first_deadline, unit_steps
from dit.health.shadow import Shadow
from dit.health.steps import StepLosses, first_nonfinite
from dit.health.stragglers import Pace
from dit.health.summary import RATIOS
from dit.health.watch import Watch
from dit.model.embeddings import position_table
from dit.model.transformer import DiT
from dit.runtime.device import hardware
from dit.runtime.distributed import Ranks
from dit.sampling.wiener import draw_wiener
from dit.study import layout
from dit.study.learning_rate import rate_share, steps_until
from dit.study.records import HealthEvent, Probe
from dit.tracking import Tracker
from dit.training.plan import TrainPlan
from dit.training.trainer import Trainer

# Adam has moved the head after the first step, modulations after the second, all else after the third.
_ALL_TRAINED = 4
_FIRST_EMA = 5
# A ratio is taken over the last steps that have this many samples: fewer are too noisy, more are too old.
_RATIO_SAMPLES, _RATIO_STEPS = 512, 16
_BUDGET = 0.01


class TrainingWatch:
    """The checks of a variant's training.

    watch.begin(); then for each step watch.fed(batch), the step, watch.stepped(); at a log line watch.logged(rows).
    """

    def __init__(self, plan: TrainPlan, ranks: Ranks, trainer: Trainer, tracker: Tracker) -> None:
        self._plan, self._ranks, self._trainer = plan, ranks, trainer
        self._watch = Watch(plan.config, plan.run, plan.store, ranks, tracker if ranks.is_main else None)
        self._schedule = SCHEDULES[plan.config.train.schedule]()
        self.bounds: Bounds | None = load_bounds(plan.work)
        # [T, 2]: bounds a and b at each step of the chain.
        self._errors = np.stack([self._errors_of(rung) for rung in RUNGS[:2]], axis=1) if self.bounds else None
        self._first_mse, self._first_fed = 0.0, 0.0
        self._timesteps: dict[int, Tensor] = {}
        self._recent: deque[Float64] = deque(maxlen=max(_RATIO_STEPS, -(-_RATIO_SAMPLES // self._batch)))
        self._feed = FeedSums(self.bounds, ranks) if self.bounds else None
        weights = dict(trainer.model.named_parameters())
        self._shadow = Shadow(weights, trainer.ema.tensors, plan.config.train.ema_decay)
        # The live tensors in models without compilation and DDP, which have shapes of their own.
        self._raw = _shared(trainer, {name: parameter.detach() for name, parameter in weights.items()})
        self._ema = _shared(trainer, trainer.ema.tensors)
        self._probe = ProbeBatch.make(self.bounds, self._schedule, ranks.device) if self.bounds else None

    def begin(self) -> None:
        """Check the recipe, the loaded checkpoint and the sampler, before the first step."""
        plan, step = self._plan, self._plan.start_step
        self.replicated(step)
        self._watch.look("plan", step, lambda: RecipeView(plan.config, plan.spec))
        if plan.resume is not None and plan.resume.probe is not None:
            recorded = plan.resume.probe
            tolerance = loss_tolerance(recorded.precision, self._precision)
            self._watch.look("checkpoint", step, lambda: LoadedView.of(recorded, self.probe(), tolerance))
        if self.bounds is not None:
            bounds = self.bounds
            self._watch.look("sampler", step, lambda: draw_wiener(plan.config, bounds, self._ranks.device))

    def fed(self, batch: StepBatch) -> None:
        """See a rank's slice of a step's batch, before the step."""
        if self.bounds is None:
            return
        self._timesteps[batch.step] = batch.t_N
        if self._feed is not None and batch.positions_N is not None:
            self._feed.add(batch.x0_NCHW, batch.t_N, batch.noise_NCHW, batch.y_N, batch.positions_N)

    def stepped(self) -> None:
        """See the trainer after a step."""
        self._shadow.follow()
        done = self._trainer.steps_done
        since = done - self._plan.start_step
        if self._plan.start_step == 0 and since in (1, _ALL_TRAINED):
            self._start(done)
        if self._feed is not None and since == min(FEED_STEPS, self._plan.config.train.steps):
            self._fed_enough(done)
        if since == _FIRST_EMA:
            self._losses(done)
            self._watch.look("ema", done, lambda: self._shadow.view(done))
        if _is_round(done) and done >= 10:
            self._watch.look("noise", done, lambda: self._noise(done))
            if done <= 100:
                self._window(done, self._losses(done))
                self._watch.send()

    def logged(self, step: int, rows: Sequence[StepLosses]) -> None:
        """See a window of steps that is complete and finite."""
        self._watch.look("losses", step, lambda: None, more=True)
        self._recent.extend(self._window(step, rows))
        self._timesteps.clear()
        self._watch.look("ema", step, lambda: self._shadow.view(step))

    def paced(self, step: int, pace: Callable[[], Pace]) -> None:
        """See how fast each rank is in a window; `pace` is called on rank 0 only."""
        self._watch.look("progress", step, pace)

    def replicated(self, step: int) -> None:
        """See the weights and EMA of all ranks, before they are saved."""
        if self._ranks.world_size == 1 or not self._watch.is_on("replicas"):
            return
        files = self._trainer.files()
        checksums = {name: checksum(files[name]) for name in (layout.RAW_WEIGHTS, layout.EMA_WEIGHTS)}
        replicas = self._ranks.gather(Replica(hardware(self._ranks.device), checksums))
        self._watch.look("replicas", step, lambda: RanksView(step, replicas))

    def probe(self) -> Probe | None:
        """Return the numbers that the current weights must give wherever they are loaded; None without bounds."""
        if self._probe is None:
            return None
        self._watch.flush()
        files, ratios = self._trainer.files(), self._ratios(())
        steps = [float(tensor) for name, tensor in files[layout.OPTIMIZER].items() if name.startswith("step.")]
        return Probe(
            precision=self._precision,
            raw_loss=self._probe.loss(self._raw),
            ema_loss=self._probe.loss(self._ema),
            raw_norms=group_norms(files[layout.RAW_WEIGHTS]),
            ema_norms=group_norms(files[layout.EMA_WEIGHTS]),
            optimizer_steps=int(min(steps, default=0)),
            ratio_b=None if ratios is None else ratios[1],
        )

    def record(self, event: HealthEvent) -> None:
        """Keep a reading that was made elsewhere."""
        self._watch.record(event)

    def end(self) -> None:
        """Store the last readings."""
        self._watch.flush()

    @property
    def _batch(self) -> int:
        return self._plan.config.train.global_batch

    @property
    def _precision(self) -> str:
        # Probes run without autocast, and a CPU computes tf32 as fp32.
        exact = self._ranks.device.type == "cpu" or self._plan.config.train.precision == "fp32"
        return "fp32" if exact else "tf32"

    def _errors_of(self, rung: Rung) -> Float64:
        assert self.bounds is not None
        return self.bounds.errors_T(rung, self._schedule.alphas_cumprod)

    def _losses(self, step: int) -> Sequence[StepLosses]:
        """See whether the window so far is finite, before another check takes a value that is not for its own fault."""
        rows = self._trainer.window.read()
        self._watch.look("losses", step, lambda: first_nonfinite(rows))
        return rows

    def _start(self, step: int) -> None:
        if step == 1:
            self._first_mse = self._losses(step)[0].mse
        feed = self._feed
        sums = torch.tensor([feed.x0_power, feed.first_samples] if feed else [0.0, 0.0], dtype=torch.float64)
        power, self._first_fed = (float(value) for value in self._ranks.all_reduce_sum(sums))
        self._watch.look("start", step, lambda: self._started(step, power / self._ranks.world_size))

    def _started(self, step: int, x0_power: float) -> StartView:
        train, inputs, model = self._plan.recipe, self._plan.config.dataset.inputs, self._trainer.model
        shape = (inputs.channels, inputs.size, inputs.size)
        noise = normals(train.seed, Purpose.NOISE, 1, range(train.global_batch), shape)
        table = position_table(model.spec.hidden, inputs.size // model.spec.patch)
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        state, shares = self._trainer.optimizer.state, np.array_split(noise, self._ranks.world_size)
        head, rate = model.final_layer.linear.weight, train.learning_rate * rate_share(train, 1)
        untrained = [
            name
            for name, parameter in model.named_parameters()
            if name != "pos_embed" and not (parameter in state and bool(state[parameter]["exp_avg_sq"].any()))
        ]
        return StartView(
            mse=self._first_mse,
            noise_power=float(np.square(noise, dtype=np.float64).mean()),
            x0_power=x0_power,
            world_size=self._ranks.world_size,
            lost_positions=not torch.equal(model.pos_embed[0].cpu(), table),
            untrained=untrained if step >= _ALL_TRAINED else (),
            leftover_gradient=max((float(gradient.abs().max()) for gradient in gradients), default=0.0),
            share_powers=[float(np.square(share, dtype=np.float64).mean()) for share in shares],
            fed=round(self._first_fed) if self._feed else None,
            global_batch=train.global_batch,
            first_update=float(head.detach().abs().max()) / rate if step == 1 else 0.0,
        )

    def _fed_enough(self, step: int) -> None:
        assert self._feed is not None
        assert self.bounds is not None
        first, last = self._plan.start_step * self._batch, step * self._batch
        epochs = (last - 1) // self.bounds.count - first // self.bounds.count + 1
        drop = self._plan.config.train.label_drop
        view = self._feed.view(label_drop=drop, expected=last - first, epochs=epochs)
        self._feed = None
        self._watch.look("feed", step, lambda: view)

    def _noise(self, step: int) -> NoiseView:
        config, spec = self._plan.config, self._plan.spec
        tau = steps_until(config.train, 3 * unit_steps(config, spec)) / 3
        return look_at_noise(self._raw, spec, config.dataset.inputs, self._ranks.device, step=step, tau=tau)

    def _window(self, step: int, rows: Sequence[StepLosses]) -> list[Float64]:
        """Look at a window's losses; return each step's (squared noise error, bound a, bound b) over all ranks."""
        config, inputs = self._plan.config, self._plan.config.dataset.inputs
        errors: list[Float64] = []
        if self._errors is not None and rows and all(row.step in self._timesteps for row in rows):
            t_steps = torch.stack([self._timesteps[row.step] for row in rows]).numpy()
            local = torch.from_numpy(self._errors[t_steps].sum(axis=1))
            limits = self._ranks.all_reduce_sum(local).numpy() / self._batch
            errors = [np.array([row.mse, *limit]) for row, limit in zip(rows, limits, strict=True)]
        ratios = self._ratios(errors)
        if ratios is not None:
            self._watch.measured(step, dict(zip(RATIOS, ratios, strict=True)))
        deadline = first_deadline(config, self._plan.spec)
        view = WindowView(
            step=step,
            worst_mse=max((row.mse for row in rows if row.step > 1), default=0.0),
            values=self._batch * inputs.channels * inputs.size**2,
            ratio_a=None if ratios is None else ratios[0],
            deadline=deadline,
            stop_from=max(deadline, round(_BUDGET * config.train.steps)),
        )
        self._watch.look("window", step, lambda: view, more=True)
        return errors

    def _ratios(self, errors: Sequence[Float64]) -> tuple[float, float] | None:
        """Return the squared noise error of the last steps, up to these, over the bounds a and b."""
        # Not more than the last half of a training: its first steps have many times the error of those after them.
        longest = min(self._recent.maxlen or 0, max(_RATIO_STEPS, self._trainer.steps_done // 2))
        recent = [*self._recent, *errors][-longest:]
        if not recent:
            return None
        mse, a, b = np.sum(recent, axis=0)
        return (float(mse / a), float(mse / b)) if a and b else None


def _is_round(step: int) -> bool:
    """Whether the step is 1, 2 or 5 times a power of ten."""
    return str(step).rstrip("0") in ("1", "2", "5")


def _shared(trainer: Trainer, tensors: Mapping[str, Tensor]) -> DiT:
    """Return a model whose weights are these tensors, not copies."""
    with torch.device("meta"):
        model = DiT(trainer.model.spec, trainer.model.inputs)
    model.load_state_dict(dict(tensors), assign=True)
    return model.eval().requires_grad_(False)
