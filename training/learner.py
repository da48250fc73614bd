"""What learns: the network with its loss, optimiser, arithmetic and weight average."""

from __future__ import annotations

import contextlib
import math
import sys

import torch
from torch import nn

from pose_reloc.errors import SettingsError
from pose_reloc.network import PosePrediction, PoseRegressor
from training import cpu_speed
from training.losses import HomoscedasticLoss, PoseTarget, build_loss
from training.processes import Processes
from training.settings import TrainSettings
from training.weight_average import WeightAverage

# torch.compile takes about a minute: for runs that are longer than that by far.
_LONG_MINUTES, _LONG_STEPS = 5, 3000


class _Objective(nn.Module):
    """Network and losses as one module, so that one wrapper averages all their gradients."""

    def __init__(self, network: PoseRegressor, loss: nn.Module, warm_up: nn.Module | None):
        super().__init__()
        self.network, self.loss, self.warm_up = network, loss, warm_up

    def forward(self, image_B3HW, target, warming_up: bool, autocast):
        with autocast():
            prediction = self.network(image_B3HW)
        return (self.warm_up if warming_up else self.loss)(prediction, target)


class Learner:
    """Takes batches, one Adam step each. Every process of a run has one, with the same weights.

    Args:
        network: starts from these weights; moved to the device of `processes`.
        settings: see TrainSettings.
        depth_range: of the whole training set in metres, or None.
        processes: that train together.
        batch_shape: (B, 3, H, W) of the images of a step in this process.
        steps: of the whole run, where known: whether compiling pays.
    """

    def __init__(
        self,
        network: PoseRegressor,
        settings: TrainSettings,
        depth_range: tuple[float, float] | None,
        processes: Processes,
        batch_shape: tuple[int, ...],
        steps: int,
    ):
        self.device = processes.device
        self.dtype = training_dtype(settings.precision, self.device)
        if self.device.type == 'cpu':
            cpu_speed.keep_freed_memory()
            cpu_speed.speed_up_strided_depthwise(network)
        self.network = network.to(self.device, memory_format=torch.channels_last)
        loss = build_loss(settings.loss, depth_range)
        warm_up = HomoscedasticLoss(settings.loss) if loss.name == 'geometric' else None
        self._objective = _Objective(self.network, loss, warm_up).to(self.device)
        if processes.count > 1 and self.device.type == 'cuda':
            self._objective = nn.SyncBatchNorm.convert_sync_batchnorm(self._objective)
            self.network = self._objective.network
        self._average = WeightAverage(self.network, settings.ema) if settings.ema else None
        if _pays(settings, self.device, steps):
            self._compile(batch_shape, processes)
        self._run = self._objective
        if processes.count > 1:
            self._run = nn.parallel.DistributedDataParallel(
                self._objective, find_unused_parameters=warm_up is not None
            )
        self._optimizer = _adam(
            list(self._objective.parameters()), settings.learning_rate, loss.adam_eps
        )
        # Gradients of the homography loss near its minimum are smaller than float16 can hold.
        self._scaler = _grad_scaler(self.device.type, self.dtype == torch.float16)

    @property
    def evaluated(self) -> PoseRegressor:
        """The network that is validated and kept: the average where there is one."""
        return self._average.network if self._average else self.network

    def check(self, target: PoseTarget) -> None:
        """Looks whether a target has what the loss needs, now or after its warm-up.

        Raises:
            SettingsError: it has not.
        """
        self._objective.loss.check(target)

    def step(
        self, image_B3HW: torch.Tensor, target: PoseTarget, learning_rate: float, warming_up: bool
    ) -> torch.Tensor:
        """One step on normalised images; returns their mean loss, a scalar on the device.

        Args:
            warming_up: take the homoscedastic loss instead (geometric loss only).
        """
        for group in self._optimizer.param_groups:
            group['lr'] = learning_rate
        self._objective.train()
        loss = self._run(image_B3HW, target, warming_up, self._autocast)
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._average:
            self._average.update()
        return loss.detach()

    def predict(self, image_B3HW: torch.Tensor) -> PosePrediction:
        """Poses of normalised images by the network that is kept, in evaluation mode."""
        network = self.evaluated.eval()
        with torch.inference_mode(), self._autocast():
            # `forward`, not a call: a compiled network would be compiled again for each new size.
            return network.forward(image_B3HW)

    def not_finite(self) -> list[str]:
        """Names of the parameters and statistics that hold NaN or infinity."""
        state = {n: t for n, t in self._objective.state_dict().items() if t.is_floating_point()}
        norms = torch.stack(torch._foreach_norm(list(state.values()), ord=math.inf))
        finite = norms.isfinite().tolist()
        return [name for name, ok in zip(state, finite, strict=True) if not ok]

    def state_dict(self) -> dict:
        """Everything that a resumed run needs to continue as if it had not stopped."""
        return {
            'objective': self._objective.state_dict(),
            'optimizer': self._optimizer.state_dict(),
            'scaler': self._scaler.state_dict(),
            'average': self._average.state_dict() if self._average else None,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continues from what `state_dict` returned."""
        self._objective.load_state_dict(state['objective'])
        self._optimizer.load_state_dict(state['optimizer'])
        if state['scaler']:  # empty of a run in another precision than float16
            self._scaler.load_state_dict(state['scaler'])
        if self._average:
            self._average.load_state_dict(state['average'])

    def _autocast(self):
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def _compile(self, batch_shape, processes: Processes) -> None:
        """Compiles the network and tries it on an empty batch; without success it stays as it was.

        `Module.compile` leaves the names of the state dict alone.
        """
        buffers = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        self.network.compile()
        try:
            image = torch.zeros(batch_shape, device=self.device)
            with self._autocast():
                prediction = self.network(image.to(memory_format=torch.channels_last))
            sum(x.float().sum() for x in prediction).backward()
        except Exception as error:  # no compiler, or one of the many kinds that it raises
            self.network._compiled_call_impl = None
            if processes.rank == 0:
                reason = str(error).strip().splitlines()[0]
                print(f'note: training without torch.compile: {reason}', file=sys.stderr)
        self.network.zero_grad(set_to_none=True)
        for name, buffer in self.network.named_buffers():
            buffer.copy_(buffers[name])


def _adam(parameters: list, learning_rate: float, eps: float) -> torch.optim.Adam:
    try:
        return torch.optim.Adam(parameters, lr=learning_rate, eps=eps, fused=True)
    except RuntimeError:  # PyTorch before 2.4 fuses on a GPU only
        return torch.optim.Adam(parameters, lr=learning_rate, eps=eps)


def _grad_scaler(device: str, enabled: bool):
    if hasattr(torch.amp, 'GradScaler'):
        return torch.amp.GradScaler(device, enabled=enabled)
    return torch.cuda.amp.GradScaler(enabled=enabled)  # PyTorch before 2.3


def _pays(settings: TrainSettings, device: torch.device, steps: int) -> bool:
    if settings.compile != 'auto':
        return settings.compile == 'on'
    # On a CPU compiled networks were never faster than eager ones (docs/training.md).
    if settings.minutes is not None:
        return device.type == 'cuda' and settings.minutes >= _LONG_MINUTES
    return device.type == 'cuda' and steps >= _LONG_STEPS


def training_dtype(name: str, device: torch.device) -> torch.dtype:
    """The arithmetic of a precision setting; 'auto' is bf16 where the hardware has it.

    Raises:
        SettingsError: this PyTorch cannot compute so on this device.
    """
    if name == 'float16' and device.type == 'cpu' and not hasattr(torch.amp, 'GradScaler'):
        raise SettingsError('float16 on a CPU needs PyTorch 2.3; choose bfloat16 or float32')
    if name != 'auto':
        return getattr(torch, name)
    if device.type == 'cuda':
        fast = torch.cuda.get_device_capability(device)[0] >= 8  # Ampere
    else:
        fast = cpu_speed.has_bf16_instructions()
    return torch.bfloat16 if fast else torch.float32
