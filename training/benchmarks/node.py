"""The node from outside: image published to pose received, beside a bare rclpy subscriber."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import partial

import cv2
import numpy as np

from pose_reloc.camera import Camera
from pose_reloc.errors import SettingsError
from training.benchmarks.measure import Case, CaseError, Measured, Role, Timed, interleave
from training.benchmarks.table import Bar, Table, find
from training.benchmarks.workload import BenchSettings, untrained_scene
from training.settings import preset_folder

_SIZES = ((640, 480), (1920, 1080))
_RATES = (10, 30, 60)
# A small network, regressor alone: so that 30 Hz are possible on two cores.
_SHORT_SIDE = 128
# The most that the node may add to `localize`, milliseconds, at 30 Hz.
_OVERHEAD_BARS_MS = {(640, 480): 5.0, (1920, 1080): 15.0}
_NODE, _FLOOR = 'pose_reloc', 'floor'


def run(settings: BenchSettings) -> list[Table]:
    """Latency by size, transport and rate; and how many poses come at 30 Hz."""
    from pose_reloc.ros.isolation import isolated

    profile = preset_folder().parent / 'fastdds_large_images.xml'
    rates = _RATES if settings.rounds > 3 else (30,)
    latencies, throughput, bars = [], [], []
    old = os.environ.get('ROS_DISTRO') in ('humble', 'jazzy')
    variable = 'FASTRTPS_DEFAULT_PROFILES_FILE' if old else 'FASTDDS_DEFAULT_PROFILES_FILE'
    with isolated(**{variable: str(profile)}):
        for size in _SIZES:
            for compressed in (False, True):
                measured, poses = _measure(settings, size, compressed, rates)
                latencies += measured
                throughput.append(poses)
                if not compressed:
                    group = _group(size, compressed, 30)
                    cost = find(measured, 'node without localize', group).median
                    name = f'node without localize, {group}, ms'
                    bars.append(Bar(name, cost and 1e3 * cost, _OVERHEAD_BARS_MS[size]))
    notes = (
        'floor: a bare rclpy node that answers every image with an empty pose',
        'without localize: what receiving, decoding, covariances, TF and publishing take; '
        'for compressed images decoding JPEG is the largest part',
        'the bare node pays for page faults at 1920x1080: its memory goes back to the system after '
        'every image; a larger process keeps it, so that the whole node can be as fast',
        f'Fast DDS with config/fastdds_large_images.xml; regressor alone, short side {_SHORT_SIDE}',
    )
    sustained = Bar('poses per second at 30 Hz, 640x480 raw', _rate(throughput[0]), 29.0, True)
    return [
        Table('node: image published to pose received', 'ms', latencies, tuple(bars), notes),
        Table('node: poses per second, images at 30 Hz', 'images/s', throughput, (sustained,)),
    ]


def _measure(settings: BenchSettings, size, compressed: bool, rates) -> tuple:
    """The latencies of one size and transport at all rates, and the seconds per pose at 30 Hz."""
    try:
        from pose_reloc.ros.player import NodeProcess
        from pose_reloc.ros.probe import FloorProcess, Probe
    except ImportError as error:
        raise SettingsError(
            f'the benchmark node needs ROS 2, which cannot be imported ({error}): source a ROS 2 '
            'distribution, or name other benchmarks'
        ) from error

    width, height = size
    camera = Camera(width, height, 0.9 * width, 0.9 * width, width / 2, height / 2)
    scene = settings.folder / f'untrained_{width}x{height}.scene'
    untrained_scene(camera, _SHORT_SIDE).save(scene)
    topics = {_NODE: '/node/image', _FLOOR: '/floor/image'}
    if compressed:
        topics = {name: f'{topic}/compressed' for name, topic in topics.items()}
    parameters = {
        'scene': str(scene.resolve()),
        'base_frame': '',
        'use_sim_time': False,
        'reliability': 'reliable',
        'image_transport': 'compressed' if compressed else 'raw',
    }
    with (
        NodeProcess(parameters, {'image': '/node/image'}),
        FloorProcess(topics[_FLOOR], compressed),
        Probe(_picture(size), compressed, topics) as probe,
    ):
        probe.wait_until_ready()
        cases, nodes = [], {}
        for rate in rates:
            group = _group(size, compressed, rate)
            seconds = max(settings.turn_seconds, 1.0)
            floor = _Floor(probe, rate, seconds)
            node = nodes[rate] = _Node(probe, rate, seconds)
            cases += [
                Case('bare rclpy node', floor, Role.FLOOR, group),
                Case('node', node, Role.OURS, group),
                Case('node without localize', node.without_localize, Role.OURS, group),
            ]
        if compressed:
            jpeg = cv2.imencode('.jpg', _picture(size))[1]
            decode = Timed(partial(cv2.imdecode, jpeg, cv2.IMREAD_COLOR), settings.turn_seconds)
            cases.append(Case('decoding JPEG alone', decode, group=group))
        measured = interleave(cases, settings.rounds, 'node')
    name = f'{width}x{height} {_transport(compressed)}'
    return measured, Measured(name, Role.OURS, '', tuple(nodes[30].seconds_per_pose))


@dataclass
class _Floor:
    """A turn of the floor: median latency."""

    probe: object
    rate: float
    seconds: float

    def __call__(self) -> float:
        return _median(self.probe.measure(_FLOOR, self.rate, self.seconds).latency_s)


@dataclass
class _Node:
    """A turn of the node: median latency; `without_localize` is of the same turn."""

    probe: object
    rate: float
    seconds: float
    seconds_per_pose: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        self._round = self.probe.measure(_NODE, self.rate, self.seconds)
        self.seconds_per_pose.append(self._round.seconds / max(len(self._round.latency_s), 1))
        return _median(self._round.latency_s)

    def without_localize(self) -> float:
        return _median(self._round.latency_s - self._round.localize_s)


def _median(seconds) -> float:
    seconds = seconds[np.isfinite(seconds)]
    if not len(seconds):
        raise CaseError('no image was answered')
    return float(np.median(seconds))


def _rate(measured: Measured) -> float | None:
    return None if measured.median is None else 1 / measured.median


def _group(size, compressed: bool, rate: int) -> str:
    return f'{size[0]}x{size[1]} {_transport(compressed)} {rate} Hz'


def _transport(compressed: bool) -> str:
    return 'compressed' if compressed else 'raw'


def _picture(size) -> np.ndarray:
    """An RGB image with texture, which neither a gate refuses nor JPEG shrinks to nothing."""
    width, height = size
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    return cv2.resize(small, size, interpolation=cv2.INTER_CUBIC)
