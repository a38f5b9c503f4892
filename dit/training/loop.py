"""The training loop: trains on every batch, logs, writes checkpoints, and stops after a signal."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from dit.checkpoints.read import list_checkpoints
from dit.checkpoints.write import CheckpointWriter
from dit.console import Progress
from dit.errors import DivergedError, StoppedError
from dit.health.steps import NonFinite, first_nonfinite
from dit.health.stragglers import Stragglers
from dit.runtime.device import computed_in
from dit.runtime.distributed import Ranks
from dit.storage.lease import Lease
from dit.study import layout
from dit.study.records import CheckpointMeta
from dit.study.version import code_version
from dit.training.heartbeat import Heartbeat
from dit.training.plan import TrainPlan
from dit.training.preview import Previews
from dit.training.signals import StopRequest
from dit.training.telemetry import Telemetry
from dit.training.trainer import Trainer
from dit.training.watch import TrainingWatch

if TYPE_CHECKING:
    from dit.data.loader import StepBatch

POLL_SECONDS = 0.05


class TrainingLoop:
    """Runs a plan's steps. Every rank has a loop; only rank 0 has a writer and the lease."""

    def __init__(
        self,
        plan: TrainPlan,
        ranks: Ranks,
        trainer: Trainer,
        telemetry: Telemetry,
        writer: CheckpointWriter | None,
        lease: Lease | None,
        watch: TrainingWatch,
    ) -> None:
        self.plan, self.ranks, self.trainer = plan, ranks, trainer
        self.telemetry, self._writer, self._lease, self._watch = telemetry, writer, lease, watch
        self._stragglers = Stragglers(ranks.gather(socket.gethostname()))
        self._previews = Previews(plan, ranks, trainer, telemetry.tracker)

    def run(self, batches: Iterable[StepBatch], stop: StopRequest, bar: Progress, heartbeat: Heartbeat) -> None:
        """Train on every batch.

        Raises LeaseError when another process has taken over the training.
        Raises DivergedError when a loss, gradient or weight is not finite.
        Raises UnhealthyError when a health check says stop.
        Raises StoppedError after a signal, when the checkpoint is written.
        Raises DataError or StoreError when a shard cannot be read or a checkpoint cannot be written.
        """
        for batch in self.trainer.pace.batches(batches):
            heartbeat.does("step")
            self._watch.fed(batch)
            self.trainer.step(batch)
            self._watch.stepped()
            bar.advance(1)
            step = self.trainer.steps_done
            heartbeat.stepped(step)
            if self._lease is not None:
                self._lease.check()
            if step == self.plan.start_step + 1:
                # Ranks that do not exchange gradients differ after one step, and checkpoints can be hours apart.
                self._watch.replicated(step)
            if self._writer is not None and step == self.plan.start_step + 1:
                # AdamW makes its state in the first step; only then are all tensors of a checkpoint there.
                self._writer.reserve(self.trainer.files())
            signal_number = stop.agreed(self.ranks)
            # A kept checkpoint closes a window, whether or not the training stops there: losses do not depend on stops.
            ends = bool(signal_number) or step in (self.plan.stop_step, *self.plan.milestones)
            if ends or step % self.plan.fit.log_every == 0:
                self._log(step, bar, heartbeat)
            if ends or self._is_checkpoint(step):
                heartbeat.does("checkpoint")
                self._checkpoint(step)
            self._previews.draw(step)
            if self._writer is not None:
                self._writer.poll()
            if signal_number:
                self._stop(step, signal_number)
            heartbeat.does("data")
        heartbeat.does("checkpoint")
        self._settle()
        self._watch.end()

    def _is_checkpoint(self, step: int) -> bool:
        return step % self.plan.fit.checkpoint_every == 0 or step in self.plan.milestones

    def _log(self, step: int, bar: Progress, heartbeat: Heartbeat) -> None:
        rows = self.trainer.window.read()
        self._require_finite(first_nonfinite(rows))
        self._watch.logged(step, rows)
        own = self.trainer.pace.read()
        rank_seconds = self.ranks.gather(own)
        heartbeat.measured(own, self.telemetry.log(step, rows, rank_seconds))
        self._watch.paced(step, lambda: self._stragglers.look(step, len(rows), rank_seconds))
        self.trainer.window.clear()
        bar.advance(0, loss=self.telemetry.loss)

    def _checkpoint(self, step: int) -> None:
        """Start to write a checkpoint, after all its values are found finite and the previous one is written."""
        if step in self.plan.ahead:
            # Not written again: samples identify a checkpoint by its hash, and a kill in between would lose it.
            return
        self._require_finite(first_nonfinite(self.trainer.window.read()))
        if not self.trainer.is_finite():
            self._require_finite(NonFinite(step, "a weight"))
        self._watch.replicated(step)
        self._settle()
        if self._writer is not None:
            self._writer.save(self.trainer.files(), self._meta(step))

    def _meta(self, step: int) -> CheckpointMeta:
        plan = self.plan
        return CheckpointMeta(
            study=plan.config.study,
            variant=plan.spec.name,
            step=step,
            config_hash=plan.config.training_hash(plan.run),
            dataset_content=plan.dataset_content,
            precision=computed_in(plan.config.train.precision, self.ranks.device),
            world_size=self.ranks.world_size,
            code_version=code_version(),
            finite=True,
            files=(),
            loss=self.telemetry.loss,
            images_per_second=self.telemetry.images_per_second,
            train_seconds=self.telemetry.train_seconds,
            probe=self._watch.probe(),
        )

    def _require_finite(self, bad: NonFinite | None) -> None:
        """Raise DivergedError when there is a value that is not finite.

        All ranks raise it at the same step, because losses and gradients are summed over ranks.
        """
        if bad is None:
            return
        self._settle()
        plan = self.plan
        good = [step for step in list_checkpoints(plan.store, plan.config, plan.run) if step < bad.step]
        last = f"is {layout.checkpoint(plan.config, plan.run, good[-1])}" if good else "does not exist"
        message = (
            f"{plan.run.name}: step {bad.step}: {bad.term} is not finite; the last good checkpoint {last};"
            " check the data and train.precision, or lower train.learning_rate under another study name"
        )
        self._watch.record(bad.event(message))
        raise DivergedError(message)

    def _stop(self, step: int, signal_number: int) -> None:
        self._settle()
        raise StoppedError(
            f"{self.plan.run.name}: stopped by a signal at step {step}, whose checkpoint is written;"
            " run the same command to resume from it",
            signal_number,
        )

    def _settle(self) -> None:
        """Wait on all ranks for rank 0's writer, in short collectives, so that a long upload meets no timeout."""
        while self.ranks.maximum(int(self._writer is not None and self._writer.poll())):
            time.sleep(POLL_SECONDS)
