"""The settings of a training run: one frozen dataclass, filled by presets and the command line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import yaml

from pose_reloc.backends import PRECISIONS
from pose_reloc.errors import SettingsError
from pose_reloc.network import NetworkSettings
from training.losses import LossSettings
from training.view_synthesis import ViewSettings


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides the result of a run besides the data.

    The defaults are those of the papers; `config/training/*.yaml` holds the presets.
    """

    network: NetworkSettings = field(default_factory=NetworkSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    views: ViewSettings | None = None  # None: only the images themselves, as published
    backbone_weights: str = 'auto'  # 'imagenet', 'none', a file; 'auto': imagenet if it can be had
    short_side: int = 256  # of the network's input, pixels
    points: int = 512  # 3D points kept per image
    epochs: int = 5000
    minutes: float | None = None  # stop after this time instead; the schedule follows the clock
    batch: int = 64  # the last partial batch is dropped
    learning_rate: float = 1e-4
    schedule: str = 'constant'  # or 'cosine', which ends at zero
    warmup: float = 0.0  # fraction of the run over which the learning rate rises linearly
    ema: float = 0.0  # decay per step of the average of the weights that is kept; 0: no average
    geometric_warmup: float = 0.1  # fraction trained with homoscedastic first ([K]: 500 of 5000)
    normalize_translation: bool = False  # the head works in units of the scene's extent
    validation: float = 0.1  # fraction of the training images held out, in blocks
    validate_every: int = 50  # epochs
    precision: str = 'auto'  # float32, bfloat16, float16; auto takes what the device is fast at
    compile: str = 'auto'  # torch.compile: on, off; auto: for long runs on a GPU
    device: str = 'auto'
    seed: int = 0

    def __post_init__(self):
        for name in (
            'epochs', 'minutes', 'batch', 'learning_rate', 'short_side', 'points', 'validate_every',
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise SettingsError(f'{name} must be positive and finite, got {value}')
        if not 0 <= self.seed < 2**63:  # what torch takes
            raise SettingsError(f'seed must lie in [0, 2^63), got {self.seed}')
        if self.short_side < 32:
            raise SettingsError(f'short_side must be at least 32 pixels, got {self.short_side}')
        if not 0 <= self.validation < 0.9:
            raise SettingsError(f'validation must lie in [0, 0.9), got {self.validation}')
        if not 0 <= self.ema < 1:
            raise SettingsError(f'ema must lie in [0, 1), got {self.ema}')
        if self.compile not in ('auto', 'on', 'off'):
            raise SettingsError(f"compile must be 'auto', 'on' or 'off', got {self.compile!r}")
        if self.schedule not in ('constant', 'cosine'):
            raise SettingsError(f"schedule must be 'constant' or 'cosine', got {self.schedule!r}")
        if not 0 <= self.warmup < 1:
            raise SettingsError(f'warmup must lie in [0, 1), got {self.warmup}')
        if not 0 <= self.geometric_warmup < 1:
            raise SettingsError(
                f'geometric_warmup must lie in [0, 1), got {self.geometric_warmup}; to train with '
                'homoscedastic alone give --loss homoscedastic'
            )
        if self.precision != 'auto' and self.precision not in PRECISIONS:
            raise SettingsError(
                f"precision must be 'auto' or one of {', '.join(PRECISIONS)}, "
                f'got {self.precision!r}'
            )

    def to_dict(self) -> dict:
        """The fields as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> TrainSettings:
        """From nested plain types; missing fields take their defaults.

        Raises:
            SettingsError: an unknown field or a value that cannot work.
        """
        return _fill(cls, values, 'training settings')

    def changed(self, **values) -> TrainSettings:
        """A copy with some top-level fields replaced."""
        return replace(self, **values)

    def with_values(self, values: dict[str, object]) -> TrainSettings:
        """A copy with some fields replaced, nested ones by a dotted name such as 'views.sigma_m'.

        A field of `views` in settings without views brings the other fields at their defaults.

        Raises:
            SettingsError: an unknown field or a value that cannot work.
        """
        tree = self.to_dict()
        for name, value in values.items():
            *outer, last = name.split('.')
            branch = tree
            for key in outer:
                if branch.get(key) is None and key in _NESTED:
                    branch[key] = {}
                branch = branch.get(key)
                if not isinstance(branch, dict):
                    raise SettingsError(
                        f'unknown setting {name!r}; only {", ".join(_NESTED)} have fields'
                    )
            branch[last] = value
        return self.from_dict(tree)


# ValueError: bytes that are no UTF-8, or a date that does not exist.
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)
_NESTED = {'network': NetworkSettings, 'loss': LossSettings, 'views': ViewSettings}


def parse_assignments(texts: Sequence[str]) -> dict[str, object]:
    """Values of 'KEY=VALUE' texts, VALUE in YAML, for `TrainSettings.with_values`.

    Raises:
        SettingsError: no '=', or VALUE is not YAML.
    """
    values = {}
    for text in texts:
        name, separator, value = text.partition('=')
        if not separator or not name.strip():
            raise SettingsError(f'--set {text!r}: expected KEY=VALUE, for example loss.beta=250')
        try:
            values[name.strip()] = yaml.safe_load(value)
        except _NOT_YAML as error:
            raise SettingsError(f'--set {text!r}: the value is not YAML') from error
    return values


def _fill(cls, values, where: str):
    if is_dataclass(values):
        return values
    if not isinstance(values, dict):
        raise SettingsError(f'{where}: expected a mapping, got {values!r}')
    types = get_type_hints(cls)
    unknown = sorted(str(name) for name in set(values) - set(types))
    if unknown:
        raise SettingsError(
            f'{where}: unknown setting {unknown[0]!r}; known are {", ".join(sorted(types))}'
        )
    return cls(
        **{
            name: _fill(_NESTED[name], value, f'{where}.{name}')
            if name in _NESTED and value is not None
            else _typed(value, types[name], f'{where}: {name}')
            for name, value in values.items()
        }
    )


def _typed(value, kind, where: str):
    """The value as its field's type. YAML reads 1e-4 as a text: numbers may be written so."""
    optional = type(None) in get_args(kind)
    if value is None and optional:
        return None
    if optional:
        (kind,) = (k for k in get_args(kind) if k is not type(None))
    if get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(get_args(kind)):
            raise SettingsError(f'{where} must be {len(get_args(kind))} numbers, got {value!r}')
        return tuple(_typed(item, k, where) for item, k in zip(value, get_args(kind), strict=True))
    try:
        if kind is float and not isinstance(value, bool):
            return float(value)
        if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            return value
    except (TypeError, ValueError, OverflowError):
        pass
    raise SettingsError(f'{where} must be {_TYPE_NAMES.get(kind, "a mapping")}, got {value!r}')


_TYPE_NAMES = {bool: 'true or false', int: 'a whole number', float: 'a number', str: 'a text'}


def preset_folder() -> Path:
    """Where the presets lie: in the source tree, or in share/pose_reloc of an installation."""
    source = Path(__file__).resolve().parent.parent / 'config' / 'training'
    if source.is_dir():
        return source
    import sysconfig

    roots = [Path(sysconfig.get_path('data'))]
    # colcon installs into <prefix>/lib/python3.x/site-packages and <prefix>/share.
    roots += Path(str(resources.files('training'))).resolve().parents
    for root in roots:
        folder = root / 'share' / 'pose_reloc' / 'config' / 'training'
        if folder.is_dir():
            return folder
    raise SettingsError('the training presets are not installed; reinstall pose_reloc')


def load_preset(name: str) -> TrainSettings:
    """The preset of this name, or of this YAML file.

    Raises:
        SettingsError: no such preset, or a field that does not exist.
    """
    path = Path(name)
    if path.suffix not in ('.yaml', '.yml'):
        path = preset_folder() / f'{name}.yaml'
    if not path.is_file():
        known = sorted(p.stem for p in preset_folder().glob('*.yaml'))
        raise SettingsError(f'unknown preset {name!r}; choose one of {", ".join(known)} or a file')
    try:
        values = yaml.safe_load(path.read_text(encoding='utf-8')) or {}
    except OSError as error:
        raise SettingsError(f'cannot read {path}: {error.strerror}') from error
    except _NOT_YAML as error:
        raise SettingsError(f'{path} is not YAML: {" ".join(str(error).split())}') from error
    return TrainSettings.from_dict(values)
