"""An exponential moving average of a network's state while it trains."""

from __future__ import annotations

import copy

import torch
from torch import nn


class WeightAverage:
    """Mean of the states after each step, the newest weighing most.

    After t steps the state k steps ago weighs (1 - d) d^k / (1 - d^t): the weights sum to one from
    the first step on, so that the random start does not count. The running statistics of
    BatchNorm are averaged like the parameters, because they belong to them; counters are copied.

    Args:
        network: the one that trains.
        decay: d, in (0, 1).

    Attributes:
        network: a copy whose state is the average, in evaluation mode.
        steps: t.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay, self.steps = decay, 0
        # State dicts share memory with their networks, so these tensors stay the networks' own.
        average, current = self.network.state_dict(), network.state_dict()
        real = [name for name, tensor in average.items() if tensor.is_floating_point()]
        whole = [name for name in average if name not in real]
        self._real = [average[n] for n in real], [current[n] for n in real]
        self._counters = [average[n] for n in whole], [current[n] for n in whole]

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the state of the network after a step."""
        self.steps += 1
        newest = (1 - self.decay) / (1 - self.decay**self.steps)
        torch._foreach_lerp_(*self._real, newest)
        if self._counters[0]:
            torch._foreach_copy_(*self._counters)

    def state_dict(self) -> dict:
        """What a checkpoint keeps."""
        return {'steps': self.steps, 'network': self.network.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Continues from what `state_dict` returned."""
        self.steps = state['steps']
        self.network.load_state_dict(state['network'])
