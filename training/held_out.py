"""Which frames are kept out: of training, to choose the best state, and of a map, to calibrate it.

Single frames between two others would only measure interpolation, so that whole blocks of
consecutive frames are kept out.
"""

from __future__ import annotations

import numpy as np

from pose_reloc.geometry import pose_error


def travel_blocks(world_T_camera_N44, sequences: list[str]) -> np.ndarray:
    """The number of the block that each frame belongs to (N,), from 0 on.

    A block lasts until the camera has moved by 0.5 m or turned by 20 deg, so that its middle lies
    as far from the nearest other frame as another visit's frames do.

    Args:
        world_T_camera_N44: poses of the frames.
        sequences: the sequence of each frame; frames of one follow each other in time.
    """
    block = np.zeros(len(sequences), dtype=int)
    first = 0
    for name in dict.fromkeys(sequences):
        index = np.flatnonzero(np.array(sequences) == name)
        poses = world_T_camera_N44[index]
        metres, radians = pose_error(poses[:-1], poses[1:])
        travelled = np.concatenate([[0.0], np.cumsum(metres / 0.5 + radians / np.deg2rad(20))])
        # Numbers without gaps: one long step may pass several blocks.
        block[index] = first + np.unique(travelled.astype(int), return_inverse=True)[1]
        first = block[index[-1]] + 1
    return block


def held_out_blocks(world_T_camera_N44, sequences: list[str], fraction: float) -> np.ndarray:
    """Mask (N,) of frames kept out of training: evenly spaced blocks, see `travel_blocks`.

    Args:
        world_T_camera_N44, sequences: as for `travel_blocks`.
        fraction: of the blocks to keep out; 0 keeps none. Each sequence loses at least one block
            and at most half of its frames.
    """
    mask = np.zeros(len(sequences), dtype=bool)
    if fraction <= 0:
        return mask
    blocks = travel_blocks(world_T_camera_N44, sequences)
    for name in dict.fromkeys(sequences):
        index = np.flatnonzero(np.array(sequences) == name)
        block = blocks[index] - blocks[index[0]]
        count = block[-1] + 1
        chosen = max(1, round(fraction * count))
        kept_out = ((np.arange(chosen) + 0.5) * count / chosen).astype(int)
        candidates = index[np.isin(block, kept_out)]
        mask[candidates[: len(index) // 2]] = True
    return mask


def evenly_spaced(values: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the values (N,)."""
    return values[np.unique(np.linspace(0, len(values) - 1, min(len(values), most)).astype(int))]
