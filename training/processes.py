"""The processes that train one scene together under `torchrun`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

# A process that waits this long for the others stops: one of them is gone.
_PATIENCE = timedelta(minutes=10)


def leads() -> bool:
    """True in the one process that writes and prints."""
    return int(os.environ.get('RANK', 0)) == 0


def local_device(name: str) -> str:
    """The name of the device of this process: under `torchrun` each has a GPU of its own."""
    on_gpu = name.startswith('cuda') or (name == 'auto' and torch.cuda.is_available())
    return f'cuda:{os.environ["LOCAL_RANK"]}' if on_gpu and 'LOCAL_RANK' in os.environ else name


@dataclass(frozen=True)
class Processes:
    """All processes of a run, seen from one of them.

    Attributes:
        rank: of this process; 0 leads.
        count: of all.
        device: of this process.
    """

    rank: int
    count: int
    device: torch.device

    @classmethod
    def join(cls, device: torch.device) -> Processes:
        """Meets the others that `torchrun` started; alone without it."""
        if device.type == 'cuda':
            torch.cuda.set_device(device)  # what takes the current one must not open another
        count = int(os.environ.get('WORLD_SIZE', 1))
        if count > 1 and not distributed.is_initialized():
            backend = 'nccl' if device.type == 'cuda' else 'gloo'
            distributed.init_process_group(backend, timeout=_PATIENCE)
        return cls(int(os.environ.get('RANK', 0)), count, device)

    def agreed(self, value: float) -> float:
        """The first process's value, in every process."""
        if self.count == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        distributed.broadcast(shared, 0)
        return float(shared)

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean of each process's values, in every process."""
        if self.count > 1:
            values = values / self.count
            distributed.all_reduce(values)
        return values

    def leave(self) -> None:
        """Says goodbye to the others at the end of a run that went well."""
        if self.count > 1:
            distributed.destroy_process_group()
