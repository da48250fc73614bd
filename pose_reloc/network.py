"""PoseRegressor: a torchvision backbone and the pose head of PoseNet.

The head is the one of Boittiaux et al. 2022: ReLU, Linear(features, hidden), ReLU,
Linear(hidden, 3 + rotation). It predicts the camera centre in the world `w_t_c` and the
world-to-camera rotation `c_q_w`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from pose_reloc.errors import SettingsError, WeightsError
from pose_reloc.geometry import quaternion_from_rotation_torch, rotation_from_6d_torch
from pose_reloc.preprocess import normalize
from pose_reloc.uncertainty import GREATEST_DISTANCE, MOST_SIMILAR

ROTATIONS = {'quaternion': 4, '6d': 6}


@dataclass(frozen=True)
class NetworkSettings:
    """What must be known to rebuild a PoseRegressor."""

    backbone: str = 'mobilenet_v2'  # any torchvision classification network
    hidden: int = 2048  # width of the head's hidden layer
    dropout: float = 0.0  # before each linear layer of the head
    rotation: str = 'quaternion'  # 'quaternion' as published, or the continuous '6d'

    def __post_init__(self):
        if self.rotation not in ROTATIONS:
            raise SettingsError(
                f'unknown rotation output {self.rotation!r}; choose one of {", ".join(ROTATIONS)}'
            )
        if not 1 <= self.hidden <= 65536:
            raise SettingsError(f'hidden must lie in [1, 65536], got {self.hidden}')
        if not 0 <= self.dropout < 1:
            raise SettingsError(f'dropout must lie in [0, 1), got {self.dropout}')

    def to_dict(self) -> dict:
        """The fields as plain JSON types."""
        return asdict(self)


class PosePrediction(NamedTuple):
    """What the network says of a batch of images.

    Attributes:
        w_t_c: camera centres in the world (B, 3), metres.
        c_q_w: world-to-camera quaternions (B, 4), wxyz, as the head gives them: not normalised.
    """

    w_t_c: torch.Tensor
    c_q_w: torch.Tensor


class PoseRegressor(nn.Module):
    """Images (B, 3, H, W), normalised like ImageNet's, to poses.

    The head works in units of the scene: its first three outputs are multiplied by
    `translation_scale` and shifted by `translation_mean`, two buffers that are saved with the
    weights. With mean 0 and scale 1 it is the published network.

    Raises:
        SettingsError: the backbone is not a torchvision classification network, or one that only
            takes images of one fixed size.
    """

    def __init__(self, settings: NetworkSettings = NetworkSettings()):
        super().__init__()
        self.settings = settings
        self.backbone, features = _backbone(settings.backbone)
        self.head = nn.Sequential(
            nn.ReLU(),
            nn.Dropout(settings.dropout),
            nn.Linear(features, settings.hidden),
            nn.ReLU(),
            nn.Dropout(settings.dropout),
            nn.Linear(settings.hidden, 3 + ROTATIONS[settings.rotation]),
        )
        self.register_buffer('translation_mean', torch.zeros(3))
        self.register_buffer('translation_scale', torch.ones(()))

    def features(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        """Pooled features (B, F) of the backbone, the input of the head."""
        return self.backbone(image_B3HW)

    def pose(self, features_BF: torch.Tensor) -> PosePrediction:
        """The head alone: features (B, F) to poses, in float32 whatever autocast does."""
        out = self.head(features_BF).float()
        w_t_c = out[:, :3] * self.translation_scale + self.translation_mean
        if self.settings.rotation == '6d':
            return PosePrediction(
                w_t_c, quaternion_from_rotation_torch(rotation_from_6d_torch(out[:, 3:]))
            )
        return PosePrediction(w_t_c, out[:, 3:])

    def forward(self, image_B3HW: torch.Tensor) -> PosePrediction:
        return self.pose(self.features(image_B3HW))


class ImageRegressor(nn.Module):
    """All that is learned of a scene: bytes of an image in, pose and what it is worth out.

    Every backend runs this graph, so that none can prepare images in its own way.

    Args:
        network: in evaluation mode.
        train_features_NF, feature_mean_F: of `scene.SceneModel`.
        train_poses_N7: where those images were taken: `w_t_c` and `c_q_w`.

    Raises:
        SettingsError: the features are not of this network.
    """

    def __init__(
        self,
        network: PoseRegressor,
        train_features_NF: torch.Tensor,
        feature_mean_F: torch.Tensor,
        train_poses_N7: torch.Tensor,
    ):
        super().__init__()
        self.network = network
        expected, found = network.head[2].in_features, train_features_NF.shape[1]
        if found != expected:
            raise SettingsError(f'the network has {expected} features, the training images {found}')
        self.register_buffer('train_features', train_features_NF.float())
        self.register_buffer('feature_mean', feature_mean_F.float())
        self.register_buffer('train_poses', train_poses_N7.float())

    def forward(self, image_BHW3: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """uint8 RGB images (B, H, W, 3) to what `backends.Regression` holds."""
        image_B3HW = normalize(image_BHW3).to(self.network.head[2].weight.dtype)
        features_BF = self.network.features(image_B3HW)
        w_t_c, c_q_w = self.network.pose(features_BF)
        distance_B, index_BK = most_similar(
            features_BF.float() - self.feature_mean, self.train_features
        )
        return w_t_c, c_q_w, distance_B[:, None], self.train_poses[index_BK]


def most_similar(
    features_BF: torch.Tensor, train_features_NF: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which training images are the most similar ones, and how little the first of them is.

    Args:
        features_BF: what the trained backbone says of the images less its mean over training
            images, which all have in common; of any length.
        train_features_NF: the same of the images it was trained on, rows of unit length.

    Returns:
        1 - cosine (B,), in [0, 2], a half where the features are all zero, of the most similar
        image; and the indices (B, K) of the `MOST_SIMILAR`, that one first. Where the features are
        not finite both are any, by engine, and the distance may be NaN: the pose is NaN then.
    """
    unit_BF = nn.functional.normalize(features_BF, dim=1)
    count = min(MOST_SIMILAR, len(train_features_NF))
    index_BK = (unit_BF @ train_features_NF.T).topk(count, dim=1).indices
    # From the difference: 1 - cosine in half precision would be nothing but rounding.
    apart_BF = unit_BF - train_features_NF[index_BK[:, 0]]
    return ((apart_BF * apart_BF).sum(dim=1) / 2).clamp(max=GREATEST_DISTANCE), index_BK


def _backbone(name: str) -> tuple[nn.Module, int]:
    """A torchvision classifier without its last layers, and the number of its features."""
    import torchvision

    available = torchvision.models.list_models(module=torchvision.models)
    if name not in available:
        raise SettingsError(
            f'unknown backbone {name!r}; torchvision has: {", ".join(sorted(available))}'
        )
    options = {}
    if name in ('googlenet', 'inception_v3'):
        # Ours are regression losses: the auxiliary classifiers have nothing to classify.
        options = {'aux_logits': False, 'transform_input': False, 'init_weights': True}
    model = torchvision.models.get_model(name, weights=None, **options)
    attribute = next((a for a in ('classifier', 'fc', 'heads', 'head') if hasattr(model, a)), None)
    if attribute is None:
        raise SettingsError(f'backbone {name!r} has no classifier that could be replaced')
    setattr(model, attribute, _before_first_linear(getattr(model, attribute)))
    training = model.training
    try:
        with torch.inference_mode():
            features = model.eval()(torch.zeros(1, 3, 128, 160))
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(
            f'backbone {name!r} does not take images of any size ({error}); '
            'choose a convolutional one, for example mobilenet_v2 or resnet18'
        ) from error
    return model.train(training), features.shape[1]


def _before_first_linear(classifier: nn.Module) -> nn.Module:
    """The layers of a classifier that still belong to the features (norm, pooling, flatten)."""
    layers = list(classifier) if isinstance(classifier, nn.Sequential) else [classifier]
    keep = []
    for layer in layers:
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            break
        if not isinstance(layer, nn.Dropout):
            keep.append(layer)
    if isinstance(layers[-1], nn.Linear):
        return nn.Sequential(*keep)
    # A fully convolutional classifier (SqueezeNet): pool what its last convolution would have seen.
    return nn.Sequential(*keep, nn.AdaptiveAvgPool2d(1), nn.Flatten(1))


def load_backbone_weights(network: PoseRegressor, source: str) -> str:
    """Loads ImageNet weights into the network's backbone.

    Args:
        network: its backbone is changed in place.
        source: 'imagenet' (torchvision's, downloaded once), 'none' (keep the random start), or a
            file with a state dict in torchvision's key names (.pth, .pt or .safetensors).

    Returns:
        A short text for the scene's recipe: what was loaded.

    Raises:
        WeightsError: no such file, not a state dict, other shapes, or the download failed.
    """
    name = network.settings.backbone
    if source == 'none':
        return 'none (random start)'
    if source == 'imagenet':
        return _load_torchvision_weights(network.backbone, name)
    path = Path(source).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"no backbone weights at {path}; give a file, 'imagenet' or 'none' "
            'with --backbone-weights'
        )
    try:
        if path.suffix == '.safetensors':
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location='cpu', weights_only=True)
        if not isinstance(state, dict):
            raise ValueError('the file does not hold a state dict')
    except Exception as error:  # torch and safetensors raise a dozen kinds for a bad file
        raise WeightsError(f'{path} cannot be read as a state dict: {error}') from error
    _load_state(network.backbone, state, f'{path}', name)
    return path.name


def _load_torchvision_weights(backbone: nn.Module, name: str) -> str:
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT
    if name == 'mobilenet_v2':
        weights = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1  # the published start
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # URLError, HTTPError, OSError, RuntimeError of a bad hash
        raise WeightsError(
            f'the ImageNet weights of {name} could not be downloaded ({error}). Choose: '
            '--backbone-weights FILE (a state dict you downloaded elsewhere), '
            '--backbone-weights none (train from a random start, less accurate), '
            'or try again with a network connection'
        ) from error
    _load_state(backbone, state, str(weights), name)
    return str(weights)


def _load_state(backbone: nn.Module, state: dict, source: str, name: str) -> None:
    own = backbone.state_dict()
    # The classifier is not part of the backbone; BatchNorm's counters are missing in old files.
    missing = [k for k in own if k not in state and not k.endswith('num_batches_tracked')]
    if missing:
        raise WeightsError(
            f'{source} does not fit backbone {name}: {len(missing)} of {len(own)} tensors are '
            f'missing, the first is {missing[0]!r}'
        )
    strange = [k for k in own if k in state and not isinstance(state[k], torch.Tensor)]
    if strange:
        raise WeightsError(f'{source} does not hold a state dict: {strange[0]!r} is no tensor')
    wrong = [k for k in own if k in state and state[k].shape != own[k].shape]
    if wrong:
        raise WeightsError(
            f'{source} does not fit backbone {name}: {wrong[0]!r} has shape '
            f'{tuple(state[wrong[0]].shape)}, expected {tuple(own[wrong[0]].shape)}'
        )
    backbone.load_state_dict({k: state.get(k, own[k]) for k in own})
