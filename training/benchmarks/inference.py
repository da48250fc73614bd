"""The regressor by precision and backend, and `localize` from end to end."""

from __future__ import annotations

import io
import warnings
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch

from pose_reloc.gates import GateSettings
from pose_reloc.network import PoseRegressor
from pose_reloc.preprocess import network_camera, normalize
from pose_reloc.relocalizer import Relocalizer
from training.benchmarks.measure import Case, CaseError, Role, Timed, interleave
from training.benchmarks.table import Bar, Table, find
from training.benchmarks.workload import BenchSettings, untrained_scene

_BATCHES = (1, 4, 16, 32)
# Every image gets an answer, so that every stage is run.
_NO_GATES = GateSettings(min_brightness=0.0, min_contrast=0.0, max_distance_m=float('inf'))


def run(settings: BenchSettings) -> list[Table]:
    """Latency, throughput and the stages of `localize`, on each device."""
    tables = []
    for device in settings.devices:
        sides = (settings.short_side, settings.short_side // 2)
        tables.append(_regressor(settings, device, [(side, 1) for side in sides], 'ms'))
        throughput = [(settings.short_side, batch) for batch in _BATCHES]
        tables.append(_regressor(settings, device, throughput, 'images/s'))
        tables.append(_localize(settings, device))
    return tables


def _regressor(settings: BenchSettings, device: str, sizes, unit: str) -> Table:
    camera, cases = settings.samples(1)[0].camera, []
    for short_side, batch in sizes:
        relocalizer = _relocalizer(camera, short_side, device)
        target = network_camera(camera, short_side)
        shape = (batch, target.height, target.width, 3)
        image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        group = f'{target.width}x{target.height}, batch {batch}'
        for name, role, call in _ways(relocalizer, image, settings.compile and unit == 'ms'):
            turn = Timed(call, settings.turn_seconds, batch, device)
            cases.append(Case(name, turn, role, group))
    measured = interleave(cases, settings.rounds, f'inference, {device}')
    title = f'inference: {device}, the regressor, {"latency" if unit == "ms" else "throughput"}'
    note = (
        'Relocalizer: uint8 images in, poses out; all others: a normalised tensor in, '
        "the head's numbers out"
    )
    return Table(title, unit, measured, notes=(note,))


def _relocalizer(camera, short_side: int, device: str) -> Relocalizer:
    scene = untrained_scene(camera, short_side)
    return Relocalizer(scene, device, gate_settings=_NO_GATES, refine=False)


def _ways(relocalizer: Relocalizer, image_BHW3: np.ndarray, compiled: bool):
    """(name, role, call) of every way to put these images through the network."""
    device, dtype = relocalizer.device, relocalizer.dtype
    image = normalize(torch.from_numpy(image_BHW3).to(device))
    precision = str(dtype).removeprefix('torch.')
    plain = relocalizer.scene.build_network().to(device)
    fast = relocalizer.scene.build_network().to(device, memory_format=torch.channels_last)
    yield 'float32, NCHW', Role.ALTERNATIVE, partial(_forward, plain, image.contiguous())
    yield f'forward pass alone, {precision}', Role.FLOOR, partial(_forward, fast, image, dtype)
    yield f'Relocalizer, {precision}', Role.OURS, partial(relocalizer._regress, image_BHW3)
    for other in (torch.float32, torch.bfloat16):
        if other != dtype:
            name = f'channels_last, {str(other).removeprefix("torch.")}'
            yield name, Role.OTHER, partial(_forward, fast, image, other)
    if compiled:
        yield f'torch.compile, {precision}', Role.OTHER, _Compiled(fast, image, dtype)
    if find_spec('onnxruntime') and find_spec('onnx'):
        yield 'ONNX Runtime, float32', Role.OTHER, _OnnxRuntime(plain, image.contiguous())


def _forward(network, image_B3HW: torch.Tensor, dtype: torch.dtype = torch.float32):
    kind = image_B3HW.device.type
    with torch.inference_mode(), torch.autocast(kind, dtype, enabled=dtype != torch.float32):
        return network(image_B3HW)


class _Compiled:
    """The compiled network; compiled when it is called for the first time."""

    def __init__(self, network: PoseRegressor, image_B3HW: torch.Tensor, dtype: torch.dtype):
        torch._dynamo.reset()  # the limit of recompilations counts the sizes before this one
        self._network = torch.compile(network)
        self._image, self._dtype = image_B3HW, dtype

    def __call__(self):
        try:
            return _forward(self._network, self._image, self._dtype)
        except Exception as error:  # no compiler, or one of the many kinds that it raises
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CaseError(f'torch.compile does not work here: {reason}') from error


class _OnnxRuntime:
    """The exported network; exported when it is called for the first time."""

    def __init__(self, network: PoseRegressor, image_B3HW: torch.Tensor):
        self._network, self._image, self._session = network, image_B3HW, None

    def __call__(self):
        if self._session is None:
            self._session = self._export()
            self._input = {'image': self._image.cpu().numpy()}
        return self._session.run(None, self._input)

    def _export(self):
        import onnxruntime

        exported = io.BytesIO()
        with warnings.catch_warnings():
            # The exporter that needs no further package is called the old one.
            warnings.simplefilter('ignore')
            torch.onnx.export(
                self._network, (self._image,), exported, input_names=['image'], dynamo=False
            )
        kind = 'CUDA' if self._image.device.type == 'cuda' else 'CPU'
        provider = f'{kind}ExecutionProvider'
        if provider not in onnxruntime.get_available_providers():
            raise CaseError(f'this ONNX Runtime has no {provider}')
        return onnxruntime.InferenceSession(exported.getvalue(), providers=[provider])


def _localize(settings: BenchSettings, device: str) -> Table:
    sample = settings.samples(1)[0]
    image, camera = sample.load_image(), sample.camera
    relocalizer = _relocalizer(camera, settings.short_side, device)
    target = relocalizer.scene.header.network_camera
    small = np.zeros((1, target.height, target.width, 3), dtype=np.uint8)
    ((_, role, call),) = (way for way in _ways(relocalizer, small, False) if way[1] is Role.FLOOR)
    cases = [Case('forward pass alone', Timed(call, settings.turn_seconds, 1, device), role)]

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
    total = find(measured, 'localize, total')
    ratio = total.ratio_to(find(measured, 'forward pass alone'))
    bar = Bar('localize without refinement, times the forward pass', ratio, 1.2)
    title = f'inference: {device}, localize, {camera.width}x{camera.height}, by stage'
    return Table(title, 'ms', measured, (bar,))
