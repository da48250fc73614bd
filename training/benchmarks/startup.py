"""How long a user waits for the first sign of life: fresh interpreters, and loading a scene."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

from pose_reloc.relocalizer import Relocalizer
from pose_reloc.scene import SceneModel
from training.benchmarks.measure import Case, Role, Timed, interleave
from training.benchmarks.table import Bar, Table, find
from training.benchmarks.workload import BenchSettings, untrained_scene

_BARS_MS = {
    ('process', 'import pose_reloc'): 300,
    ('process', 'pose_reloc --help'): 300,
    ('process', 'pose_reloc train --help'): 300,
    ('scene', 'SceneModel.load'): 1000,
}
_READY = (
    "import sys; from pose_reloc import Relocalizer; Relocalizer.load(sys.argv[1], 'cpu').warm_up()"
)


def run(settings: BenchSettings) -> list[Table]:
    """One table."""
    # What a first start converts and measures is kept: the others are what a user waits for.
    os.environ.setdefault('POSE_RELOC_CACHE', str(settings.folder / 'cache'))
    scene = settings.folder / 'untrained.scene'
    untrained_scene(settings.samples(1)[0].camera, settings.short_side).save(scene)
    commands = (
        ('import torch', Role.ALTERNATIVE, ['-c', 'import torch']),
        ('python alone', Role.FLOOR, ['-c', 'pass']),
        ('import pose_reloc', Role.OURS, ['-c', 'import pose_reloc']),
        ('pose_reloc --help', Role.OURS, ['-m', 'pose_reloc.cli', '--help']),
        ('pose_reloc train --help', Role.OURS, ['-m', 'pose_reloc.cli', 'train', '--help']),
        ('from nothing to ready', Role.OTHER, ['-c', _READY, str(scene)]),
    )
    calls = [('process', name, role, partial(_python, args)) for name, role, args in commands]
    calls += [
        ('scene', 'reading the file', Role.FLOOR, scene.read_bytes),
        ('scene', 'SceneModel.load', Role.OURS, partial(SceneModel.load, scene)),
        ('scene', 'Relocalizer.load', Role.OURS, partial(Relocalizer.load, scene, 'cpu')),
    ]
    cases = [
        Case(name, Timed(call, settings.turn_seconds), role, group)
        for group, name, role, call in calls
    ]
    measured = interleave(cases, settings.rounds, 'startup')
    bars = tuple(
        Bar(f'{name}, ms', 1e3 * find(measured, name, group).median, limit)
        for (group, name), limit in _BARS_MS.items()
    )
    note = f'the scene file has {scene.stat().st_size / 1e6:.0f} MB, without landmarks'
    return [Table('startup: fresh interpreters, and a scene file', 'ms', measured, bars, (note,))]


def _python(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
