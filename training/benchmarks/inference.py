"""The regressor by engine and precision, and `localize` from end to end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from pose_reloc import gates
from pose_reloc.backends import BACKENDS, choose_device, first_line, obstacle, open_backend
from pose_reloc.geometry import pose_from_network, pose_residual
from pose_reloc.preprocess import normalize, to_network_image
from pose_reloc.relocalizer import Relocalizer
from pose_reloc.scene import SceneModel
from training.benchmarks.measure import Case, CaseError, Measured, Role, Timed, interleave
from training.benchmarks.table import Bar, PlainTable, Table, find
from training.benchmarks.workload import BenchSettings, untrained_scene
from training.cpu_speed import has_bf16_instructions

_BATCHES = (1, 4, 16, 32)
_PRECISIONS = {'cpu': ('float32', 'bfloat16'), 'cuda': ('float32', 'bfloat16', 'float16')}
_EAGER = 'eager PyTorch, float32, NCHW'


def run(settings: BenchSettings) -> Iterator[Table | PlainTable]:
    """Latency, throughput and the stages of `localize` on each device; accuracy of a --scene.

    Table by table: those that were measured are kept where a later one fails.
    """
    # The converted networks of untrained scenes are of no use afterwards.
    os.environ.setdefault('POSE_RELOC_CACHE', str(settings.folder / 'cache'))
    for name in settings.devices:
        device = choose_device(name)
        yield _latency(settings, device)
        yield _throughput(settings, device)
        yield _localize(settings, device)
        if settings.scene:
            yield engine_accuracy(settings, device)


def _latency(settings: BenchSettings, device: torch.device) -> Table:
    camera, cases = settings.samples(1)[0].camera, []
    notes = ['all take bytes and give poses, but eager PyTorch, which takes normalised floats']
    for short_side in (settings.short_side, settings.short_side // 2):
        scene = untrained_scene(camera, short_side)
        auto = open_backend(scene, device)
        group = _group(scene)
        notes.append(f'{group}: auto is {auto}')
        cases += _common_cases(settings, scene, auto, group)
        for precision in _PRECISIONS[device.type]:
            for name in BACKENDS:
                known = obstacle(name, device, precision) or (name, precision) == (
                    auto.name,
                    auto.precision,
                )
                if not known and (name != 'compile' or settings.compile):
                    call = _Opened(scene, device, precision, name)
                    turn = Timed(call, settings.turn_seconds, 1, device)
                    cases.append(Case(f'{name}, {precision}', turn, group=group))
    measured = interleave(cases, settings.rounds, f'inference, {device}')
    bars = _bars(measured, _group(untrained_scene(camera, settings.short_side)), device)
    return Table(f'inference: {device}, the regressor, latency', 'ms', measured, bars, tuple(notes))


def _throughput(settings: BenchSettings, device: torch.device) -> Table:
    scene, cases = untrained_scene(settings.samples(1)[0].camera, settings.short_side), []
    for batch in _BATCHES:
        auto = open_backend(scene, device, batch=batch)
        cases += _common_cases(settings, scene, auto, _group(scene, batch), batch)
    measured = interleave(cases, settings.rounds, f'inference, {device}')
    return Table(f'inference: {device}, the regressor, throughput', 'images/s', measured)


def _common_cases(settings, scene: SceneModel, auto, group: str, batch: int = 1) -> list[Case]:
    """What a user would run, what no engine can do without, and what we run."""
    camera = scene.header.network_camera
    shape = (batch, camera.height, camera.width, 3)
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    network = scene.build_network().to(auto.device)
    image_B3HW = normalize(torch.from_numpy(image).to(auto.device)).contiguous()
    product = _MatrixProduct(network, image_B3HW, getattr(torch, auto.precision))
    calls = (
        (_EAGER, partial(_eager, network, image_B3HW), Role.ALTERNATIVE),
        (f'as many sums in one matrix product, {auto.precision}', product, Role.FLOOR),
        ('auto', partial(auto, image), Role.OURS),
    )
    return [
        Case(name, Timed(call, settings.turn_seconds, batch, auto.device), role, group)
        for name, call, role in calls
    ]


def _bars(measured: list[Measured], group: str, device: torch.device) -> tuple[Bar, ...]:
    auto = find(measured, 'auto', group)
    if device.type == 'cuda':
        return (Bar(f'auto, {group}, ms', 1e3 * auto.median, 0.6),)
    eager = find(measured, _EAGER, group)
    bars = [Bar(f'auto, times faster than {_EAGER}', eager.ratio_to(auto), 4.5, at_least=True)]
    half = [c for c in measured if c.group == group and 'bfloat16' in c.name and c.costs]
    if has_bf16_instructions() and half:
        fastest = min(half, key=lambda case: case.median)
        text = f'{fastest.name}, times faster than {_EAGER}'
        bars.append(Bar(text, eager.ratio_to(fastest), 8.0, at_least=True))
    return tuple(bars)


def _group(scene: SceneModel, batch: int = 1) -> str:
    camera = scene.header.network_camera
    return f'{camera.width}x{camera.height}, batch {batch}'


def _eager(network, image_B3HW: torch.Tensor):
    with torch.inference_mode():
        return network(image_B3HW)


class _MatrixProduct:
    """The multiplications and additions of a network, where a processor does them fastest."""

    def __init__(self, network, image_B3HW: torch.Tensor, dtype: torch.dtype):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            network(image_B3HW)
        side = 512
        rows = max(1, round(counter.get_total_flops() / (2 * side**2)))
        self._a = torch.rand(rows, side, device=image_B3HW.device).to(dtype)
        self._b = torch.rand(side, side, device=image_B3HW.device).to(dtype)

    def __call__(self):
        with torch.inference_mode():
            return self._a @ self._b


class _Opened:
    """A backend; opened when it is called for the first time."""

    def __init__(self, scene: SceneModel, device: torch.device, precision: str, name: str):
        self._open = partial(open_backend, scene, device, precision, name)
        camera = scene.header.network_camera
        self._image = np.zeros((1, camera.height, camera.width, 3), dtype=np.uint8)
        self._backend = None

    def __call__(self):
        try:
            if self._backend is None:
                self._backend = self._open()
            return self._backend(self._image)
        except Exception as error:  # every engine has kinds of its own
            raise CaseError(first_line(error)) from error


def _localize(settings: BenchSettings, device: torch.device) -> Table:
    sample = settings.samples(1)[0]
    image, camera = sample.load_image(), sample.camera
    scene = untrained_scene(camera, settings.short_side)
    relocalizer = Relocalizer(scene, device, gate_settings=gates.OPEN, refine=False)
    target = scene.header.network_camera
    small = np.zeros((1, target.height, target.width, 3), dtype=np.uint8)
    alone = Timed(partial(relocalizer.backend, small), settings.turn_seconds, 1, device)
    cases = [Case('backend alone', alone, Role.FLOOR)]

    def turn(stage: str) -> float:
        seconds = []

        def once():
            seconds.append(relocalizer.localize(image, camera).timings[stage])

        Timed(once, settings.turn_seconds)()
        return float(np.mean(seconds[1:]))  # the first warmed up

    stages = relocalizer.localize(image, camera).timings
    for stage in stages:
        role = Role.OURS if stage == 'total' else Role.OTHER
        cases.append(Case(f'localize, {stage}', partial(turn, stage), role))
    measured = interleave(cases, settings.rounds, f'localize, {device}')
    ratio = find(measured, 'localize, total').ratio_to(find(measured, 'backend alone'))
    bar = Bar('localize without refinement, times the backend alone', ratio, 1.2)
    title = f'inference: {device}, localize, {camera.width}x{camera.height}, by stage'
    return Table(title, 'ms', measured, (bar,), (f'the network: {relocalizer.describe()}',))


def engine_accuracy(settings: BenchSettings, device: torch.device) -> PlainTable:
    """What an engine and a precision change about the regressed poses of the test split."""
    scene, samples = SceneModel.load(settings.scene), settings.split('test')
    target = scene.header.network_camera
    images = [to_network_image(s.load_image(), s.camera, target)[None] for s in samples]
    truth = np.array([sample.world_T_camera for sample in samples])
    eager = _poses(open_backend(scene, device, 'float32', 'torch'), images)
    rows = [['engine', 'moved by, median', 'moved by, at most', 'error, median']]
    notes = [f'{len(images)} test images; moved: from the pose of torch, float32']
    for precision in _PRECISIONS[device.type]:
        for name, kind in BACKENDS.items():
            if not kind.quick or obstacle(name, device, precision):
                continue
            try:
                poses = _poses(open_backend(scene, device, precision, name), images)
            except Exception as error:  # every engine has kinds of its own
                notes.append(f'{name}, {precision} was not measured: {first_line(error)}')
                continue
            moved, error = _distances(eager, poses), _distances(truth, poses)
            figures = (np.median(moved, 1), np.max(moved, 1), np.median(error, 1))
            cells = [f'{metres:.2g} m, {degrees:.2g} deg' for metres, degrees in figures]
            rows.append([f'{name}, {precision}', *cells])
    title = f'inference: {device}, regressed poses of {scene.header.name}'
    return PlainTable(title, rows, notes=tuple(notes))


def _poses(backend, images) -> np.ndarray:
    answers = [backend(image) for image in images]
    w_t_c = np.concatenate([answer.w_t_c for answer in answers]).astype(float)
    return pose_from_network(w_t_c, np.concatenate([a.c_q_w for a in answers]).astype(float))


def _distances(a_N44, b_N44) -> np.ndarray:
    """Metres and degrees (2, N) between poses."""
    residual = pose_residual(a_N44, b_N44)
    position, rotation = (np.linalg.norm(residual[:, i : i + 3], axis=1) for i in (0, 3))
    return np.array([position, np.rad2deg(rotation)])
