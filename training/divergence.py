"""Why a training step gave NaN or infinity, in words."""

from __future__ import annotations

import numpy as np
import torch

# A camera this many times farther away than half of the others is hardly where it says.
_FAR = 100


def cause_of_divergence(
    losses: torch.Tensor,
    broken: list[str],
    world_T_camera_N44: np.ndarray,
    sequences: list[str],
    learning_rate: float,
) -> str:
    """What went wrong in an epoch, as far as it can be known.

    Args:
        losses: of each step (S,).
        broken: names of the parameters that are not finite after the epoch.
        world_T_camera_N44: of the training images.
        sequences: of each training image.
        learning_rate: at the end of the epoch.
    """
    bad = np.flatnonzero(~losses.isfinite().numpy())
    if len(bad):
        step = bad[0]
        what = f'the loss became {float(losses[step]):g} in step {step + 1} of {len(losses)}'
        if step:
            what += f' (step 1: {float(losses[0]):.3g})'
    else:
        more = f' and {len(broken) - 1} other tensors' if len(broken) > 1 else ''
        what = f'{broken[0]!r}{more} became NaN or infinite'
    centres = world_T_camera_N44[:, :3, 3]
    metres = np.linalg.norm(centres - np.median(centres, axis=0), axis=1)
    worst = int(metres.argmax())
    if metres[worst] > _FAR * max(float(np.median(metres)), 1e-3):
        return (
            f'{what}; training image {worst} (sequence {sequences[worst]!r}) lies '
            f'{metres[worst]:.3g} m from the others: look at the poses with `pose_reloc inspect`'
        )
    return f'{what}: the weights diverged at learning rate {learning_rate:.3g}'
