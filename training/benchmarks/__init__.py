"""Speed and memory, each figure beside its floor and beside what a user would take instead.

One module per benchmark, each with `run(settings) -> Iterable[Table]`. A new one is a file and a
row.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from training.benchmarks.table import Table
from training.benchmarks.workload import BenchSettings

# name -> (module, what it measures)
BENCHMARKS = {
    'training': ('training.benchmarks.training', 'images/s of a training run'),
    'losses': ('training.benchmarks.losses', 'each loss, forward and backward'),
    'cache': ('training.benchmarks.cache', 'building the training cache, and memory per frame'),
    'inference': ('training.benchmarks.inference', 'the regressor by precision, and localize'),
    'refinement': ('training.benchmarks.refinement', 'accuracy by cue and features; stages'),
    'wrong_places': ('training.benchmarks.wrong_places', 'what is refused, what is wrong'),
    'node': ('training.benchmarks.node', 'image published to pose received over ROS 2'),
    'scaling': ('training.benchmarks.scaling', 'choosing among 100 to 100000 keyframes'),
    'memory': ('training.benchmarks.memory', 'of a process that localizes'),
    'startup': ('training.benchmarks.startup', 'import, --help, loading a scene'),
}


def run_benchmark(name: str, settings: BenchSettings) -> Iterable[Table]:
    """Runs the benchmark of this name."""
    return import_module(BENCHMARKS[name][0]).run(settings)
