"""What makes a training step faster on a CPU without changing what it computes."""

from __future__ import annotations

import ctypes

import torch
from torch import nn
from torch.nn import functional as F

_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1  # of mallopt(3)


def has_bf16_instructions() -> bool:
    """True where the processor computes in bf16; emulated bf16 is slower than float32."""
    try:
        with open('/proc/cpuinfo') as file:
            flags = next((line.split() for line in file if line.startswith('flags')), [])
    except OSError:
        return False
    return bool({'avx512_bf16', 'amx_bf16'} & set(flags))


def keep_freed_memory() -> None:
    """Lets this process keep the memory it frees, for the next allocation.

    Each step allocates the same large activations. Given back to the kernel after each, they cost
    a page fault per 4 KiB: a fifth of the time of a step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def speed_up_strided_depthwise(network: nn.Module) -> None:
    """Gives the strided depthwise convolutions of a network a faster gradient, in place.

    oneDNN has no fast kernel for the gradient of their input (a third of a MobileNetV2 step).
    Weights, their names and results stay what they are.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and _is_strided_depthwise(layer):
            layer.forward = _Forward(layer)


def _is_strided_depthwise(layer: nn.Conv2d) -> bool:
    return (
        layer.groups == layer.in_channels == layer.out_channels > 1
        and max(layer.stride) > 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == 'zeros'
        and layer.bias is None
        # The gradient is then a convolution with a padding that is not negative.
        and all(p < k for p, k in zip(layer.padding, layer.kernel_size, strict=True))
    )


class _Forward:
    """The forward of one layer; a class, so that a copied network calls its own layer."""

    def __init__(self, layer: nn.Conv2d):
        self.layer = layer

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        weight, dtype = self.layer.weight, _autocast_dtype()
        if dtype:
            x, weight = x.to(dtype), weight.to(dtype)
        return _StridedDepthwise.apply(x, weight, self.layer.stride, self.layer.padding)


def _autocast_dtype() -> torch.dtype | None:
    """That of autocast on the CPU; None where it is off."""
    if hasattr(torch, 'get_autocast_dtype'):
        return torch.get_autocast_dtype('cpu') if torch.is_autocast_enabled('cpu') else None
    # PyTorch before 2.4.
    return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None


class _StridedDepthwise(torch.autograd.Function):
    """conv2d with one filter per channel and a stride."""

    @staticmethod
    def forward(ctx, x, weight, stride, padding):
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        (sy, sx), (py, px), (ky, kx) = ctx.stride, ctx.padding, weight.shape[2:]
        dx = dw = None
        if ctx.needs_input_grad[0]:
            # The gradient between zeros, at the resolution of x, under the mirrored filter: the
            # same sums as those of the definition, by the kernel for stride 1, which is fast.
            H, W = (
                n + 2 * p - k + 1
                for n, p, k in zip(x.shape[2:], ctx.padding, (ky, kx), strict=True)
            )
            spread = gradient.new_zeros((*x.shape[:2], H, W)).contiguous(
                memory_format=torch.channels_last
            )
            spread[:, :, ::sy, ::sx] = gradient
            padding = (ky - 1 - py, kx - 1 - px)
            dx = F.conv2d(spread, weight.flip(2, 3), None, 1, padding, groups=len(weight))
        if ctx.needs_input_grad[1]:
            dw = torch.nn.grad.conv2d_weight(
                x, weight.shape, gradient, ctx.stride, ctx.padding, groups=len(weight)
            )
        return dx, dw, None, None
