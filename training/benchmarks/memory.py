"""Resident memory of a process that localizes, beside one that has only imported its libraries."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from pose_reloc.relocalizer import Relocalizer
from training.benchmarks.measure import (
    Case,
    CaseError,
    Role,
    in_fresh_process,
    interleave,
    resident_megabytes,
)
from training.benchmarks.table import Table
from training.benchmarks.workload import BenchSettings, untrained_scene


def run(settings: BenchSettings) -> list[Table]:
    """One table for each device."""
    os.environ.setdefault('POSE_RELOC_CACHE', str(settings.folder / 'cache'))
    scene = settings.scene
    if scene is None:
        scene = settings.folder / 'untrained.scene'
        untrained_scene(settings.samples(1)[0].camera, settings.short_side).save(scene)
    return [_table(scene, device) for device in settings.devices]


def _table(scene: Path, device: str) -> Table:
    Relocalizer.load(scene, device)  # the first start converts the network and compares engines
    ways = (
        ('libraries alone', Role.FLOOR, _libraries),
        ('regressor alone, eager PyTorch', Role.ALTERNATIVE, partial(_localizing, 'torch', False)),
        ('regressor alone', Role.OURS, partial(_localizing, 'auto', False)),
        ('with refinement', Role.OURS, partial(_localizing, 'auto', True)),
    )
    cases = [
        Case(name, partial(in_fresh_process, way, scene, device), role) for name, role, way in ways
    ]
    # Once is enough: other processes slow these down, but take none of their memory.
    measured = interleave(cases, 1, f'memory, {device}')
    notes = (
        f'{scene.stem}, {scene.stat().st_size / 1e6:.0f} MB on disk; MB = 10^6 bytes',
        'a fresh process after it has warmed up; memory of a GPU is not counted',
    )
    return Table(f'memory: {device}, a process that localizes', 'MB', measured, notes=notes)


def _libraries(scene: Path, device: str) -> float:
    import torch

    torch.zeros(1, device=device)
    return resident_megabytes()


def _localizing(backend: str, refine: bool, scene: Path, device: str) -> float:
    relocalizer = Relocalizer.load(scene, device, refine=refine, backend=backend)
    if refine and not relocalizer.scene.landmarks:
        raise CaseError('the scene has no landmarks; give one with --scene')
    relocalizer.warm_up()
    return resident_megabytes()
