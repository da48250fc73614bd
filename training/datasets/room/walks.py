"""Hand-held walks through the built-in room: two to map it, one that comes back to test.

A walk is a smooth curve on the floor with a smooth direction of view, plus what a hand adds: steps,
sway, small pitch and roll. Camera poses are `world_T_camera` in the room's world frame, metres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline

from pose_reloc.geometry import pose_error, pose_matrix

MIN_DISTANCE_M = 0.15  # a test frame is this far from every training frame ...
MIN_ANGLE_DEG = 8.0  # ... or turned by this much
_DENSE = 1500  # samples that stand for the whole continuous training walk


@dataclass(frozen=True)
class Walk:
    """A walk.

    Attributes:
        keys: rows (x, y, yaw): where the walker passes, in metres, and where the camera looks, in
            degrees from the x axis, counter-clockwise and unwrapped.
        closed: the walk ends where it began (its yaw then differs by full turns).
        seconds: duration.
        height: mean height of the camera above the floor in metres.
        pitch: mean pitch in degrees, negative looks down.
    """

    keys: tuple[tuple[float, float, float], ...]
    closed: bool
    seconds: float
    height: float
    pitch: float


# The first walk looks across the room, the second one turns the other way and looks closer.
TRAIN_WALKS = (
    Walk(
        keys=(
            (4.75, 2.45, 170), (3.60, 2.80, 215), (2.45, 3.05, 290), (1.40, 2.95, 300),
            (1.00, 2.20, 365), (1.15, 1.40, 395), (2.10, 1.22, 430), (3.40, 1.22, 470),
            (4.45, 1.35, 480), (5.00, 1.85, 515), (4.75, 2.45, 530),
        ),
        closed=True, seconds=10.0, height=1.46, pitch=-8.0,
    ),
    Walk(
        keys=(
            (1.35, 1.75, 250), (1.25, 2.75, 180), (2.10, 3.35, 130), (3.00, 3.60, 60),
            (3.30, 2.90, 10), (4.55, 2.55, -10), (4.95, 1.70, -60), (4.05, 1.45, -110),
            (3.60, 2.20, -155), (2.50, 2.50, -185), (1.60, 2.35, -150), (1.35, 1.75, -110),
        ),
        closed=True, seconds=10.0, height=1.38, pitch=-6.0,
    ),
)  # fmt: skip
# The test walk looks at what the second one saw, then at what the first one saw.
TEST_WALK = Walk(
    keys=(
        (1.50, 2.50, 190), (2.20, 3.10, 128), (2.90, 3.30, 72), (3.20, 2.70, 18), (4.25, 2.35, -8),
        (4.65, 1.80, -55), (4.05, 1.72, -105), (3.75, 2.25, -145), (3.25, 2.58, -140),
        (2.45, 2.80, -82), (1.60, 2.70, -55), (1.24, 2.08, -8), (1.36, 1.62, 32), (1.85, 1.38, 62),
    ),
    closed=False, seconds=8.0, height=1.52, pitch=-9.0,
)  # fmt: skip


def walk_poses(walk: Walk, frames: int, rng: np.random.Generator) -> np.ndarray:
    """Camera poses (frames, 4, 4) spread evenly in time over a walk.

    The same generator state gives the same walk whatever the number of frames.
    """
    keys = np.array(walk.keys, np.float64)
    jitter = rng.normal(0, 1, keys.shape) * (0.05, 0.05, 4.0)
    keys = keys + np.clip(jitter, (-0.08, -0.08, -8), (0.08, 0.08, 8))
    waves = rng.uniform(0, 2 * np.pi, 8)
    u = (np.arange(frames) + 0.5) / frames
    # Equal time per metre walked (and per radian turned) between keys: an even pace.
    step = np.hypot(np.linalg.norm(np.diff(keys[:, :2], axis=0), axis=1),
                    0.35 * np.deg2rad(np.diff(keys[:, 2])))  # fmt: skip
    knots = np.concatenate([[0], np.cumsum(step)]) / step.sum()
    if walk.closed:
        turns = keys[-1, 2] - keys[0, 2]
        keys[-1] = keys[0] + (0, 0, 360 * np.round(turns / 360))
        drift = keys[-1, 2] - keys[0, 2]
        keys[:, 2] -= drift * knots  # what remains is periodic
        curve = CubicSpline(knots, keys, bc_type='periodic')(u)
        curve[:, 2] += drift * u
    else:
        curve = CubicSpline(knots, keys, bc_type='natural')(u)
    t = u * walk.seconds

    def wave(number: int, hertz: float) -> np.ndarray:
        return np.sin(2 * np.pi * hertz * t + waves[number])

    yaw = np.deg2rad(curve[:, 2] + 1.2 * wave(0, 0.9))
    side = np.stack([-np.sin(yaw), np.cos(yaw)], 1)
    place = curve[:, :2] + 0.012 * wave(1, 0.95)[:, None] * side  # sway
    height = walk.height + 0.06 * wave(2, 0.17) + 0.016 * wave(3, 1.9)  # arms and steps
    pitch = np.deg2rad(walk.pitch + 6.0 * wave(4, 0.21) + 1.0 * wave(5, 1.1))
    roll = np.deg2rad(1.8 * wave(6, 0.33) + 0.6 * wave(7, 1.2))
    return camera_poses(np.column_stack([place, height]), yaw, pitch, roll)


def camera_poses(centre_N3: np.ndarray, yaw, pitch, roll) -> np.ndarray:
    """`world_T_camera` (N, 4, 4) from camera centres and angles (N,) in radians.

    Yaw turns about world z from the x axis, positive pitch looks up, positive roll turns the camera
    clockwise about its optical axis.
    """
    forward = np.stack(
        [np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)], -1
    )
    level = np.stack([np.sin(yaw), -np.cos(yaw), 0 * yaw], -1)
    below = np.cross(forward, level)
    cosine, sine = np.cos(roll)[:, None], np.sin(roll)[:, None]
    right, down = cosine * level + sine * below, cosine * below - sine * level
    return pose_matrix(np.stack([right, down, forward], -1), centre_N3)


def separation(test_N44: np.ndarray, train_M44: np.ndarray) -> np.ndarray:
    """How far each test frame is from the nearest training frame by the rule of this scene.

    Returns:
        (N,) minimum over training frames of max(distance / 0.15 m, angle / 8 deg); at least 1 when
        the frame obeys the rule "0.15 m or 8 deg from every training frame".
    """
    distance, angle = pose_error(train_M44[None], test_N44[:, None])
    return np.maximum(distance / MIN_DISTANCE_M, np.rad2deg(angle) / MIN_ANGLE_DEG).min(1)


def scene_poses(
    seed: int, train_frames: tuple[int, int], test_frames: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Poses of the training walks, a list of (n, 4, 4), and of the test walk (test_frames, 4, 4).

    Every test frame is at least 0.15 m or 8 deg from the whole training walk, not only from the
    frames taken on it: candidates are drawn until one obeys.

    Raises:
        RuntimeError: no candidate obeys, which the keys of the walks exclude.
    """

    def generator(*purpose: int) -> np.random.Generator:
        return np.random.default_rng((seed, 7, *purpose))

    train = [walk_poses(walk, count, generator(i)) for i, (walk, count) in
             enumerate(zip(TRAIN_WALKS, train_frames, strict=True))]  # fmt: skip
    dense = [walk_poses(walk, _DENSE, generator(i)) for i, walk in enumerate(TRAIN_WALKS)]
    everywhere = np.concatenate(dense + train)
    for attempt in range(300):
        test = walk_poses(TEST_WALK, test_frames, generator(len(TRAIN_WALKS), attempt))
        if separation(test, everywhere).min() >= 1.0:
            return train, test
    raise RuntimeError(f'no test walk keeps its distance from the training walks (seed {seed})')
