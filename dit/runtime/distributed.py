"""Rank, world size and device from the environment, and the collectives that stages use.

    with session() as ranks:
        total = ranks.all_reduce_sum(torch.tensor([1.0], device=ranks.device))

Only WORLD_SIZE decides whether this process is one of several: a PyTorchJob sets it without LOCAL_RANK, torchrun sets
both. torch is imported when a session begins, so a stage that is already complete never loads it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, TypeVar, cast

from dit.errors import ConfigError, PeerError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed.distributed_c10d import ProcessGroup, Store

T = TypeVar("T")

COLLECTIVE_TIMEOUT = "DIT_COLLECTIVE_TIMEOUT"
DEFAULT_TIMEOUT_SECONDS = 600
_BARRIER_TIMEOUT = timedelta(days=1)
_session_numbers = count()


def environment_world_size() -> int:
    """Return WORLD_SIZE, the number of processes; 1 without a launcher.

    Raises ConfigError when the value is not a positive whole number.
    """
    return _environment("WORLD_SIZE", 1, minimum=1)


def environment_rank() -> int:
    """Return RANK, this process's number; 0 without a launcher."""
    return _environment("RANK", 0) if environment_world_size() > 1 else 0


def collective_timeout() -> int:
    """Return the seconds after which a rank that does not answer fails the others.

    Raises ConfigError when the variable is not a positive whole number.
    """
    return _environment(COLLECTIVE_TIMEOUT, DEFAULT_TIMEOUT_SECONDS, minimum=1)


@dataclass(frozen=True)
class Ranks:
    """This process's rank among the processes of a stage, and their collectives.

    At world size 1 every collective returns at once. When a rank is lost, `session` raises PeerError.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    patient: ProcessGroup | None = None
    """Group of all ranks with the timeout of a barrier; None at world size 1."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes records, logs and draws progress bars."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait up to a day for all ranks; call it before the first collective after ranks worked separately.

        Equal shares of work can take hours and differ by more than the timeout of other collectives. A rank that ends
        closes its connections, which fails the others; a rank that hangs fails them after a day.
        """
        if self.world_size > 1:
            import torch
            import torch.distributed as dist

            dist.all_reduce(torch.zeros(1), group=self.patient)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by its sum over ranks, in place and on its device; return it."""
        if self.world_size > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)
        return tensor

    def maximum(self, value: int) -> int:
        """Return the largest `value` of all ranks. Runs between hosts and does not wait for a GPU."""
        if self.world_size == 1:
            return value
        import torch
        import torch.distributed as dist

        largest = torch.tensor(value, dtype=torch.int64)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)

    def broadcast(self, obj: T) -> T:
        """Return rank 0's object on every rank."""
        if self.world_size == 1:
            return obj
        import torch.distributed as dist

        box = [obj]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, obj: T) -> list[T]:
        """Return every rank's object on every rank, in the order of ranks."""
        if self.world_size == 1:
            return [obj]
        import torch.distributed as dist

        objects: list[T | None] = [None] * self.world_size
        dist.all_gather_object(objects, obj)
        return cast(list[T], objects)


@contextmanager
def session(device: str = "auto") -> Iterator[Ranks]:
    """Join the other processes, if there are any, and leave them at the end. A process may open several in sequence.

    `device` is auto (CUDA if there is a GPU), cpu or cuda. Host tensors use gloo, GPU tensors NCCL. A rank that does
    not answer for DIT_COLLECTIVE_TIMEOUT seconds (default 600) fails the others, except at a barrier.

    Raises ConfigError when a variable is not valid, or when there are fewer GPUs than processes on this machine.
    Raises PeerError when another rank is lost.
    """
    world_size, rank = environment_world_size(), environment_rank()
    local_rank = _environment("LOCAL_RANK", 0)
    timeout = timedelta(seconds=collective_timeout())
    if rank >= world_size:
        raise ConfigError(f"RANK={rank} is not below WORLD_SIZE={world_size}; start all ranks with the same launcher")
    ranks = Ranks(rank, world_size, local_rank, _device(device, local_rank))
    if world_size == 1:
        yield ranks
        return

    import torch.distributed as dist

    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if ranks.device.type == "cuda" else "gloo",
            store=_fresh_store(timeout),
            rank=rank,
            world_size=world_size,
            timeout=timeout,
        )
        yield replace(ranks, patient=dist.new_group(backend="gloo", timeout=_BARRIER_TIMEOUT))
    except RuntimeError as error:
        if not _lost_contact(error):
            raise
        raise PeerError(
            f"lost contact with the other ranks ({str(error).splitlines()[0][:200]}); see the log of the first"
            " rank that failed, then run the same command to resume"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _environment(name: str, default: int, minimum: int = 0) -> int:
    text = os.environ.get(name, "").strip() or str(default)
    if not text.isdecimal() or int(text) < minimum:
        raise ConfigError(f"{name}={text}: must be a whole number of at least {minimum}; correct or unset it")
    return int(text)


def _device(kind: str, local_rank: int) -> torch.device:
    import torch

    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    available = torch.cuda.device_count()
    if local_rank >= available:
        raise ConfigError(
            f"LOCAL_RANK={local_rank}, but this machine has {available} CUDA devices;"
            " start at most one process per device"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _fresh_store(timeout: timedelta) -> Store:
    """Return a store with separate keys for each session: the addresses of an earlier group are no longer valid."""
    from torch.distributed.distributed_c10d import PrefixStore

    return PrefixStore(f"dit-session-{next(_session_numbers)}", _rendezvous(timeout))


@lru_cache(maxsize=1)
def _rendezvous(timeout: timedelta) -> Store:
    from torch.distributed.rendezvous import rendezvous

    store: Store = next(rendezvous("env://", timeout=timeout))[0]
    return store


def _lost_contact(error: RuntimeError) -> bool:
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error).lower()
