"""Runs the checks of a moment, keeps what they find, and stops the work that a check says to stop."""

from __future__ import annotations

from collections.abc import Callable

from dit.console import say
from dit.errors import UnhealthyError
from dit.health.gate import Moment, event
from dit.health.gates import gates_at
from dit.health.log import HealthLog, last_events, read_events
from dit.health.summary import headline
from dit.runtime.distributed import Ranks
from dit.storage import Store
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import HealthEvent
from dit.study.runs import Run
from dit.tracking import Tracker


class Watch:
    """The checks of a variant, or with `run` None of the dataset.

    All ranks call `look`; rank 0 reads the checks, and every rank learns the worst action.
    """

    def __init__(
        self,
        config: StudyConfig,
        run: Run | None,
        store: Store,
        ranks: Ranks | None = None,
        tracker: Tracker | None = None,
    ) -> None:
        self._config, self._ranks, self._tracker = config, ranks, tracker
        self._where = run.name if run else config.dataset.name
        self._is_main = ranks is None or ranks.is_main
        key = layout.health(config, run)
        self._log = HealthLog(store, key)
        self._last = last_events(read_events(store, key)) if tracker is not None else {}

    def look(self, moment: Moment, step: int, view: Callable[[], object]) -> None:
        """Run the moment's checks on what `view` returns; it is called on rank 0 only, and not if all are off.

        Raises UnhealthyError on all ranks when a check says stop.
        """
        problem = self._judge(moment, step, view) if self._is_main else ""
        if self._ranks is not None and self._ranks.maximum(int(bool(problem))):
            problem = self._ranks.broadcast(problem)
        if problem:
            raise UnhealthyError(problem)

    def flush(self) -> None:
        """Store what is pending."""
        if self._is_main:
            self._log.flush()

    def is_on(self, moment: Moment) -> bool:
        """Return whether a check of this moment is made."""
        return any(self._config.health.get(gate.name) != "off" for gate in gates_at(moment))

    def _judge(self, moment: Moment, step: int, view: Callable[[], object]) -> str:
        """Return the first message that stops the work; empty if none does."""
        on = [gate for gate in gates_at(moment) if self._config.health.get(gate.name) != "off"]
        seen = view() if on else None
        stopping = ""
        for gate in on:
            reading = gate.read(seen)
            if reading is None:
                continue
            found = event(gate, reading, step, self._where, self._config.health.get(gate.name))
            self._keep(found)
            if found.action == "stop":
                stopping = stopping or found.message
        return stopping

    def record(self, found: HealthEvent) -> None:
        """Keep a reading that was made elsewhere; only rank 0 does."""
        if self._is_main:
            self._keep(found)

    def _keep(self, found: HealthEvent) -> None:
        begins = self._log.add(found)
        self._last[found.check] = found
        if self._tracker is not None:
            if found.value is not None:
                self._tracker.metrics(found.step, {f"health/{found.check}": found.value})
            self._tracker.tags({"health": headline([(self._where, event) for event in self._last.values()])})
        # A warning is shown when it begins, not at every reading.
        if begins and found.action == "warn":
            say(f"warning: {found.message}")
