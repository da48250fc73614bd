"""How the time to choose keyframes grows with a scene, and the memory that they take."""

from __future__ import annotations

from functools import cached_property
from math import log

import numpy as np

from pose_reloc.camera import Camera
from pose_reloc.features import FeatureSettings
from pose_reloc.landmarks import LandmarkMap
from training.benchmarks.machine import available_bytes
from training.benchmarks.measure import Case, CaseError, Measured, Role, Timed, interleave
from training.benchmarks.table import Bar, Table, find
from training.benchmarks.workload import BenchSettings
from training.mapping import MappingSettings

_KEYFRAMES = (100, 1_000, 10_000, 100_000)
_CANDIDATES = 20
_CAMERA = Camera(640, 480, 525.0, 525.0, 319.5, 239.5)
_LANDMARKS = 32  # of a simulated keyframe; more of them cost memory but no search
_SPACING_M, _AISLE_M = 1.0, 100.0  # between keyframes; length of an aisle between shelves
_SHARE_OF_MEMORY = 0.5  # of what is free that a map may take: others use this machine too


def run(settings: BenchSettings) -> list[Table]:
    """One table."""
    cases, searches = [], ('near a pose', 'alike, by descriptor')
    for count in _KEYFRAMES:
        # Only one of the searches reads the global descriptors, which take most of the memory.
        for name, words, kind in zip(searches, (1, MappingSettings().words), (_Near, _Alike)):
            search, group = kind(count, words), f'{name}: {count} keyframes'
            for case, call, role in (
                ('reading its data once', search.read, Role.FLOOR),
                (name, search.search, Role.OURS),
            ):
                cases.append(Case(case, Timed(call, settings.turn_seconds), role, group))
    measured = interleave(cases, settings.rounds, 'scaling')
    notes = (
        'alike is linear: it reads the descriptor of every keyframe (docs/scaling.md)',
        f'memory of a keyframe: {_memory_of_a_keyframe()}',
    )
    return [
        Table(
            'scaling: choosing keyframes', 'ms', measured, (_growth(measured, searches[0]),), notes
        )
    ]


def _growth(measured: list[Measured], name: str) -> Bar:
    """The exponent of the growth from the second map to the largest; 1 is linear."""
    text = f'{name}: time grows with the number of keyframes to the power of'
    groups = {count: f'{name}: {count} keyframes' for count in (_KEYFRAMES[1], _KEYFRAMES[-1])}
    few, many = (find(measured, name, group).median for group in groups.values())
    if not few or not many:
        return Bar(text, None, 1.0)
    return Bar(text, log(many / few) / log(_KEYFRAMES[-1] / _KEYFRAMES[1]), 1.0)


def _memory_of_a_keyframe() -> str:
    mapping = MappingSettings()
    landmarks, descriptor = mapping.landmarks, mapping.words * 128
    parts = {
        f'{landmarks} landmarks': landmarks * (3 * 4 + 128),
        'global descriptor': 2 * descriptor,
        'the same, ready to be compared': 4 * descriptor,
    }
    return ', '.join(f'{name} {size / 1e3:.0f} kB' for name, size in parts.items())


class _Search:
    """A search in a simulated map, which is made when it is first needed."""

    def __init__(self, keyframes: int, words: int):
        self._keyframes, self._words = keyframes, words

    @cached_property
    def _map(self) -> LandmarkMap:
        # Global descriptors in half and in single precision, and the views in double.
        needed = self._keyframes * (self._words * 128 * (2 + 4) + _LANDMARKS * 3 * 8)
        if needed > _SHARE_OF_MEMORY * available_bytes():
            raise CaseError(f'the map takes {needed / 1e9:.1f} GB, more than half of what is free')
        return simulated_map(self._keyframes, self._words)


class _Near(_Search):
    """Keyframes that see what a camera between two of them sees."""

    def read(self) -> None:
        """Reads the points that stand for the views."""
        self._map._sampled_KS3.sum()

    def search(self) -> np.ndarray:
        """Searches."""
        return self._map.near(self._map.poses[self._keyframes // 2], _CAMERA, _CANDIDATES)


class _Alike(_Search):
    """Keyframes with global descriptors like that of one of them."""

    def read(self) -> None:
        """Reads the global descriptors."""
        self._map._vlad_KF.sum()

    def search(self) -> np.ndarray:
        """Searches."""
        vlad = self._map.vlad[self._keyframes // 2].astype(np.float32)
        return self._map.alike(vlad, _CANDIDATES)


def simulated_map(keyframes: int, words: int) -> LandmarkMap:
    """A hall of shelves: keyframes every metre along its aisles, looking along them.

    Landmarks lie up to 10 m ahead and 3 m to the sides; descriptors are random.
    """
    rng = np.random.default_rng(0)
    per_aisle = int(_AISLE_M / _SPACING_M)
    aisle, place = np.divmod(np.arange(keyframes), per_aisle)
    poses = np.tile(np.eye(4), (keyframes, 1, 1))
    poses[:, 0, 3], poses[:, 2, 3] = 2 * 3.0 * aisle, _SPACING_M * place
    ahead = rng.uniform([-3, -1, 1], [3, 1, 10], (keyframes, _LANDMARKS, 3))
    points = (poses[:, None, :3, 3] + ahead).astype(np.float32).reshape(-1, 3)
    # Only the sign of a number is random: fast, and of unit length.
    vlad = rng.integers(0, 2, (keyframes, words * 128), dtype=np.int8).astype(np.float16)
    vlad -= np.float16(0.5)
    vlad *= np.float16(2 / np.sqrt(words * 128))
    return LandmarkMap(
        FeatureSettings(),
        poses,
        np.arange(keyframes),
        np.arange(0, keyframes * _LANDMARKS + 1, _LANDMARKS),
        points,
        np.broadcast_to(np.uint8(0), (len(points), 128)),
        np.full((words, 128), 128**-0.5, dtype=np.float32),
        vlad,
        np.arange(1),
        poses[:1],
    )
