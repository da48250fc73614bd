"""Images per second of a training run: the real trainer, its parts, and the published loop.

Each turn is a fresh process, because our trainer changes how its process handles memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from training.benchmarks.measure import Case, CaseError, Role, Timed, in_fresh_process, interleave
from training.benchmarks.published_loop import PublishedLoop
from training.benchmarks.table import Bar, Table, find
from training.benchmarks.workload import BenchSettings
from training.cpu_speed import has_bf16_instructions
from training.losses import LossSettings
from training.settings import TrainSettings
from training.trainer import Trainer
from training.view_synthesis import ViewSettings

_PUBLISHED, _OURS = 'published-style loop', 'our trainer'
_FLOOR = 'forward and backward alone'
_MOST_ROUNDS = 3
_LEAST_GPU_STEPS = 16


def run(settings: BenchSettings) -> list[Table]:
    """One table for each device."""
    return [_table(as_on(device, settings), device) for device in settings.devices]


def as_on(device: str, settings: BenchSettings) -> BenchSettings:
    """The settings; on a GPU with epochs as long as real ones, whose ends weigh little."""
    if device == 'cpu':
        return settings
    return replace(settings, steps=max(settings.steps, _LEAST_GPU_STEPS))


def _table(settings: BenchSettings, device: str) -> Table:
    settings.cache(settings.batch * settings.steps)  # built once, before any turn
    ways: list[tuple[str, Role, Callable]] = [
        (_PUBLISHED, Role.ALTERNATIVE, _published),
        (_FLOOR, Role.FLOOR, partial(_bare, compiled=False)),
        (_OURS, Role.OURS, partial(_epochs, views=False, compiled=False)),
        (f'{_OURS}, new views', Role.OURS, partial(_epochs, views=True, compiled=False)),
        ('making batches alone', Role.OTHER, partial(_batches, views=False)),
        ('making batches alone, new views', Role.OTHER, partial(_batches, views=True)),
    ]
    if settings.compile:
        ways += [
            (f'{_FLOOR}, compiled', Role.OTHER, partial(_bare, compiled=True)),
            (f'{_OURS}, compiled', Role.OURS, partial(_epochs, views=False, compiled=True)),
        ]
    cases = [
        Case(name, partial(in_fresh_process, way, settings, device), role)
        for name, role, way in ways
    ]
    # A turn of all of them takes minutes.
    measured = interleave(cases, min(settings.rounds, _MOST_ROUNDS), f'training, {device}')
    ours = find(measured, _OURS)
    bars = [
        Bar(
            f'{_OURS}, times the speed of the {_PUBLISHED}',
            find(measured, _PUBLISHED).ratio_to(ours),
            _least_gain(device),
            at_least=True,
        )
    ]
    if device != 'cpu':
        bars.append(Bar(f'{_OURS}, times the {_FLOOR}', ours.ratio_to(find(measured, _FLOOR)), 1.5))
    camera = settings.cache(settings.batch * settings.steps).camera
    title = f'training: {device}, {camera.width}x{camera.height}, batch {settings.batch}'
    notes = ('both loops: MobileNetV2 from a random start, local homography loss, no validation',)
    return Table(title, 'images/s', measured, tuple(bars), notes)


def _least_gain(device: str) -> float:
    if device != 'cpu':
        return 10.0
    return 4.0 if has_bf16_instructions() else 1.8


def _trainer(settings: BenchSettings, device: str, views: bool, compiled: bool) -> Trainer:
    count = settings.batch * settings.steps
    trainer = Trainer(
        settings.cache(count),
        [sample.sequence for sample in settings.samples(count)],
        TrainSettings(
            loss=_loss(settings),
            views=ViewSettings() if views else None,
            backbone_weights='none',
            short_side=settings.short_side,
            batch=settings.batch,
            validation=0.0,
            compile='on' if compiled else 'off',
            device=device,
        ),
    )
    # The trainer goes on without a compiler; a row that says "compiled" must not.
    if compiled and trainer.learner.network._compiled_call_impl is None:
        raise CaseError('torch.compile does not work here')
    return trainer


def _loss(settings: BenchSettings) -> LossSettings:
    """The local homography loss, or where depths are unknown the one that needs none."""
    known = settings.cache(settings.batch * settings.steps).depth_range is not None
    return LossSettings('local_homography' if known else 'homoscedastic')


def _epochs(settings: BenchSettings, device: str, views: bool, compiled: bool) -> float:
    trainer = _trainer(settings, device, views, compiled)
    with tqdm(disable=True) as bar:
        return _per_image(settings, device, lambda: trainer._one_epoch(0.5, bar), settings.steps)


def _batches(settings: BenchSettings, device: str, views: bool) -> float:
    trainer = _trainer(settings, device, views, compiled=False)
    index, generator = trainer.train_index[: settings.batch], torch.Generator()
    return _per_image(settings, device, lambda: trainer.batches.batch(index, 0.5, generator))


def _bare(settings: BenchSettings, device: str, compiled: bool) -> float:
    trainer = _trainer(settings, device, views=False, compiled=compiled)
    learner = trainer.learner
    image, _ = trainer.batches.batch(trainer.train_index[: settings.batch], 0.5, torch.Generator())
    autocast = partial(
        torch.autocast,
        learner.device.type,
        dtype=learner.dtype,
        enabled=learner.dtype != torch.float32,
    )
    learner.network.train()

    def step():
        learner.network.zero_grad(set_to_none=True)
        with autocast():
            prediction = learner.network(image)
        sum(x.sum() for x in prediction).backward()

    return _per_image(settings, device, step)


def _published(settings: BenchSettings, device: str) -> float:
    cache = settings.cache(settings.batch * settings.steps)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / 'metrics.csv'
        loop = PublishedLoop(cache, _loss(settings), settings.batch, device, log)
        return _per_image(settings, device, loop.epoch, settings.steps)


def _per_image(settings: BenchSettings, device: str, call, steps: int = 1) -> float:
    return Timed(call, settings.turn_seconds, settings.batch * steps, device)()
