"""Which frames are kept out of training: they choose the best state and give the covariance."""

from __future__ import annotations

import numpy as np

from pose_reloc.geometry import pose_error


def held_out_blocks(world_T_camera_N44, sequences: list[str], fraction: float) -> np.ndarray:
    """Mask (N,) of frames kept out of training: evenly spaced blocks of consecutive frames.

    Single frames between two training frames would only measure interpolation. A block lasts until
    the camera has moved by 0.5 m or turned by 20 deg, so that its middle lies as far from the
    nearest training frame as another visit's frames do.

    Args:
        world_T_camera_N44: poses of the frames.
        sequences: the sequence of each frame; frames of one follow each other in time.
        fraction: of the frames to keep out; 0 keeps none. Each sequence loses at least one block
            and at most half of its frames.
    """
    mask = np.zeros(len(sequences), dtype=bool)
    if fraction <= 0:
        return mask
    for name in dict.fromkeys(sequences):
        index = np.flatnonzero(np.array(sequences) == name)
        poses = world_T_camera_N44[index]
        metres, radians = pose_error(poses[:-1], poses[1:])
        travelled = np.concatenate([[0.0], np.cumsum(metres / 0.5 + radians / np.deg2rad(20))])
        block = travelled.astype(int)  # number of the block that each frame belongs to
        count = block[-1] + 1
        chosen = max(1, round(fraction * count))
        kept_out = ((np.arange(chosen) + 0.5) * count / chosen).astype(int)
        candidates = index[np.isin(block, kept_out)]
        mask[candidates[: len(index) // 2]] = True
    return mask
