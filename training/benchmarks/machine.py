"""What a benchmark ran on."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# Instruction sets that decide how fast a network runs on a CPU.
_FLAGS = ('avx2', 'avx512f', 'avx512_vnni', 'avx512_bf16', 'avx512_fp16', 'amx_bf16', 'amx_int8',
          'asimd', 'bf16', 'i8mm', 'sve')  # fmt: skip
_PACKAGES = ('torch', 'torchvision', 'numpy', 'opencv-python-headless', 'onnxruntime', 'openvino')


def describe_machine() -> dict[str, str]:
    """Processor, memory and GPUs, for people."""
    import torch

    info = _pairs('/proc/cpuinfo')
    flags = (info.get('flags') or info.get('Features') or '').split()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory = _pairs('/proc/meminfo').get('MemTotal', '')
    return {
        'processor': info.get('model name') or platform.processor() or platform.machine(),
        'cores': f'{_cores()}, torch uses {torch.get_num_threads()} threads',
        'instructions': ' '.join(flag for flag in _FLAGS if flag in flags) or 'unknown',
        'memory': f'{int(memory.split()[0]) / 2**20:.0f} GiB' if memory else 'unknown',
        'GPU': ', '.join(gpus) or 'none',
        'load before': ' '.join(f'{x:.1f}' for x in os.getloadavg()) + ' (1, 5, 15 minutes)',
        'system': platform.platform(),
    }


def describe_versions() -> dict[str, str]:
    """Of everything that decides the speed."""
    from pose_reloc import __version__

    versions = {'pose_reloc': __version__, 'python': sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            pass
    return versions


def available_bytes() -> int:
    """Memory that can be had without swapping; 0 where the system does not say."""
    return 1024 * int(_pairs('/proc/meminfo').get('MemAvailable', '0 kB').split()[0])


def _cores() -> int:
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _pairs(file: str) -> dict[str, str]:
    """The first value of each name in a file of 'name : value' lines; empty without the file."""
    pairs: dict[str, str] = {}
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return pairs
    for line in lines:
        name, _, value = line.partition(':')
        pairs.setdefault(name.strip(), value.strip())
    return pairs
