"""The node's parameters: one frozen dataclass declares, validates and documents them.

`config/reloc.yaml` and `docs/parameters.md` are written from it by
`python -m pose_reloc.ros.parameters`; a test checks that they are up to date.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from pose_reloc.errors import SettingsError
from pose_reloc.gates import GateSettings
from pose_reloc.geometry import (
    pose_matrix,
    quaternion_from_rotation,
    rotation_from_quaternion,
    wxyz_from_xyzw,
    xyzw_from_wxyz,
)


def _parameter(
    default, description, *, choices=(), low=None, high=None, dynamic=False, read_only=False
):
    metadata = {
        'description': description,
        'choices': tuple(choices),
        'low': low,
        'high': high,
        'dynamic': dynamic,
        'read_only': read_only,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class NodeSettings:
    """Every parameter of `reloc_node`; metres, seconds and hertz.

    Dynamic parameters take effect at once, read-only ones are given at start; the others take
    effect at the next configure transition. Names of frames lose a leading slash, as in tf2.

    Raises:
        SettingsError: a value of the wrong type, outside its range or not one of its choices.
    """

    scene: str = _parameter('', 'Scene file made by `pose_reloc train`. Required.')
    device: str = _parameter('auto', 'Where to compute: auto, cpu, cuda or cuda:N.')
    precision: str = _parameter(
        'auto', 'Arithmetic of the network: auto (half on a GPU), float32, bfloat16 or float16.'
    )
    backend: str = _parameter(
        'auto',
        'Engine that runs the network: torch, onnxruntime, openvino, cudagraph (CUDA), compile '
        '(opens in a minute), tensorrt (CUDA, opens in minutes the first time), or auto: the '
        'fastest of those that are installed and open in seconds. The log says which.',
    )
    refine: bool = _parameter(
        True,
        'Refine the pose by matching landmarks, where the scene has them. False answers with the '
        'regressed pose alone: faster and coarser.',
    )
    mode: str = _parameter(
        'continuous',
        'Which images are localized: continuous (all, as far as the machine and rate_limit allow) '
        'or on_demand (one for each call of ~/relocalize or message on ~/trigger). ~/enable sets '
        'it.',
        choices=('continuous', 'on_demand'),
        dynamic=True,
    )
    rate_limit: float = _parameter(
        0.0, 'Images localized per second at most, in mode continuous (Hz). 0: no limit.',
        low=0.0, high=1000.0, dynamic=True,
    )  # fmt: skip
    relocalize_timeout: float = _parameter(
        5.0,
        'How long ~/relocalize waits for the answer to an image (s, checked every second).',
        low=0.1,
        high=600.0,
        dynamic=True,
    )
    odometry_prior: bool = _parameter(
        True,
        'Tell the relocalizer where odometry (TF odom_frame -> base_frame) has carried the robot '
        'since the last refined answer. It looks there first, and refuses what contradicts it, '
        'until five images have been refused since: odometry does not notice that a robot is '
        'carried away. A coarse answer that agrees with it and is less certain does not move '
        'map_to_odom or map_to_base.',
        dynamic=True,
    )
    track: bool = _parameter(
        False,
        'Believe no single image: at a start or after a loss three of the last five answers must '
        'agree, COARSE ones included, before one is published. They are carried along by odometry '
        'where odometry_prior is true and base_frame is set, else by a guess of the speed (0.7 m/s '
        'and 0.7 rad/s). From then on the track is the prior, not the last refined answer; what '
        'contradicts it is refused until three others agree that the robot is elsewhere (REFINED '
        'ones, in a scene with landmarks).',
    )
    min_inliers: int = _parameter(
        GateSettings.min_inliers,
        'Landmarks that must agree on a pose to make it REFINED. With fewer than 25, a wrong pose '
        'may be refined now and then.',
        low=6, high=1000, dynamic=True,
    )  # fmt: skip
    min_brightness: float = _parameter(
        GateSettings.min_brightness,
        'Images with a mean grey level below this are refused: too_dark (0 to 255).',
        low=0.0, high=255.0, dynamic=True,
    )  # fmt: skip
    min_contrast: float = _parameter(
        GateSettings.min_contrast,
        'Images whose grey levels have a standard deviation below this are refused: empty.',
        low=0.0, high=255.0, dynamic=True,
    )  # fmt: skip
    min_sharpness: float = _parameter(
        GateSettings.min_sharpness,
        'Images without landmarks that are less sharp are refused: blurred. A Gaussian blur of 1 % '
        'of the width has 0.05, a sharp image several times as much.',
        low=0.0, high=10.0, dynamic=True,
    )  # fmt: skip
    max_disagreement: float = _parameter(
        GateSettings.max_disagreement_rad,
        'Where too few landmarks agree, the pose of the network is refused unless the few look the '
        'same way within this angle: unconfirmed (rad).',
        low=0.0, high=math.pi, dynamic=True,
    )  # fmt: skip
    max_distance: float = _parameter(
        0.0,
        'A pose farther than this from where every training image was taken is refused: '
        'outside_map (m; vague poses may be farther). 0: as far as those images were from what '
        'they show (median of the landmarks), at least 3 m.',
        low=0.0, high=1e6, dynamic=True,
    )  # fmt: skip
    max_sigma: float = _parameter(
        GateSettings.max_sigma_m,
        'A pose whose position has a greater standard deviation, along its worst axis, is refused: '
        'too_vague (m).',
        low=1e-3, high=1e6, dynamic=True,
    )  # fmt: skip
    max_prior_distance: float = _parameter(
        GateSettings.max_prior_distance,
        'A pose this many standard deviations (Mahalanobis distance) from where the robot is '
        'believed to be is refused: contradicts_prior.',
        low=0.1, high=1e6, dynamic=True,
    )  # fmt: skip
    image_transport: str = _parameter(
        'raw',
        'Subscribe to `image` (raw) or to `image/compressed` (compressed).',
        choices=('raw', 'compressed'),
    )
    reliability: str = _parameter(
        'auto',
        'Reliability asked of the publishers of images: auto (reliable if all of them offer it), '
        'best_effort (receives from all, but large images get lost where the buffers of the '
        'middleware are small) or reliable (receives nothing from a best-effort publisher).',
        choices=('auto', 'best_effort', 'reliable'),
    )
    queue_depth: int = _parameter(
        5, 'Images the middleware keeps. Only the newest one is ever localized.', low=1, high=100
    )
    rectified: bool = _parameter(
        False,
        'True when the images are rectified (image_rect): camera_info.p is used, without '
        'distortion, instead of k and d. Diagnostics warn where false contradicts the name of the '
        'topic.',
    )
    map_frame: str = _parameter('map', 'Frame that poses are published in.')
    map_T_scene: str = _parameter(
        '',
        'Pose of the frame of the scene in map_frame, `x y z qx qy qz qw` in metres, as '
        '`pose_reloc align` prints it. Empty: that of the scene file.',
    )
    base_frame: str = _parameter(
        'base_link',
        'Frame whose pose is published on ~/pose. TF must connect it to the camera. Empty: the '
        'camera itself.',
    )
    camera_frame: str = _parameter(
        '', 'Optical frame of the camera. Empty: frame_id of the images.'
    )
    odom_frame: str = _parameter(
        'odom', 'Odometry frame, for odometry_prior and tf_mode map_to_odom.'
    )
    reloc_frame: str = _parameter(
        'base_link_reloc',
        'Child frame that tf_mode separate publishes; nobody else may own it: where several nodes '
        'run, name one for each.',
    )
    tf_mode: str = _parameter(
        'separate',
        'TF to publish: none; separate (map_frame -> reloc_frame, a leaf that cannot conflict); '
        'map_to_odom (for Nav2 without AMCL; odometry must publish odom_frame -> base_frame); '
        'map_to_base (map_frame -> base_frame, for robots without odometry).',
        choices=('none', 'separate', 'map_to_odom', 'map_to_base'),
    )
    tf_force: bool = _parameter(
        False,
        'Publish map_to_odom or map_to_base even while another node publishes the same transform. '
        'Otherwise the node falls back to separate and reports an error.',
    )
    tf_rate: float = _parameter(
        20.0, 'How often map_to_odom is sent again (Hz).', low=0.1, high=1000.0
    )
    tf_tolerance: float = _parameter(
        0.1,
        'How far ahead map_to_odom is stamped so that it never expires between two sendings (s).',
        low=0.0,
        high=10.0,
        dynamic=True,
    )
    tf_timeout: float = _parameter(
        0.1, 'How long to wait for a transform that arrives late (s).', low=0.0, high=5.0,
        dynamic=True,
    )  # fmt: skip
    mounting_timeout: float = _parameter(
        3.0,
        'If nothing at all has been published on TF this long after the first image (s), the '
        'camera itself is taken as the base, with a warning; initial_pose keeps waiting for TF. '
        'Images without a frame_id need camera_frame. What another reloc_node publishes counts as '
        'TF: where several run, publish the mountings or set base_frame to an empty string. '
        '0: never.',
        low=0.0,
        high=600.0,
    )
    max_image_age: float = _parameter(
        1.0,
        'Images older than this when their turn comes are dropped (s), and so are images stamped '
        'more than 0.5 s in the future. 0: no check.',
        low=0.0,
        high=3600.0,
        dynamic=True,
    )
    image_timeout: float = _parameter(
        2.0, 'Diagnostics warn when no image came for this long (s).', low=0.1, high=3600.0,
        dynamic=True,
    )  # fmt: skip
    min_rate: float = _parameter(
        0.0, 'Diagnostics warn when fewer poses per second are published. 0: no check.',
        low=0.0, high=1000.0, dynamic=True,
    )  # fmt: skip
    lost_timeout: float = _parameter(
        10.0, 'Diagnostics report an error when every image was refused for this long (s).',
        low=0.1, high=3600.0, dynamic=True,
    )  # fmt: skip
    autostart: bool = _parameter(
        True,
        'Configure and activate at start. Set to false when a lifecycle manager does it: the node '
        'then also sends heartbeats on `bond`, where the package bond is installed.',
        read_only=True,
    )

    def __post_init__(self):
        for item in fields(self):
            object.__setattr__(self, item.name, _checked(item, getattr(self, item.name)))
        if self.tf_mode == 'map_to_odom' and not self.base_frame:
            raise SettingsError(
                "tf_mode 'map_to_odom' needs a base_frame: set base_frame to the child of "
                f"'{self.odom_frame}', for example base_link"
            )
        children = {
            'none': (),
            'separate': ('reloc_frame',),
            'map_to_odom': ('odom_frame', 'reloc_frame'),
            'map_to_base': ('base_frame', 'reloc_frame'),
        }
        for name in children[self.tf_mode]:
            if getattr(self, name) in ('', self.map_frame):
                raise SettingsError(
                    f"tf_mode '{self.tf_mode}' would publish the transform '{self.map_frame}' -> "
                    f"'{getattr(self, name)}': give {name} a name of its own"
                )

    @property
    def gates(self) -> GateSettings:
        """The thresholds of the relocalizer."""
        return GateSettings(
            self.min_inliers,
            self.min_brightness,
            self.min_contrast,
            self.min_sharpness,
            self.max_disagreement,
            self.max_distance or None,
            self.max_sigma,
            self.max_prior_distance,
        )


def _checked(item, value):
    """`value` as it is used for the dataclass field `item`.

    Raises:
        SettingsError: it does not fit, whatever the others are.
    """
    metadata, kind = item.metadata, type(item.default)
    if type(value) is not kind:
        raise SettingsError(f"parameter '{item.name}' must be {_kind_name(kind)}, got {value!r}")
    if metadata['choices'] and value not in metadata['choices']:
        raise SettingsError(
            f"parameter '{item.name}' must be one of {', '.join(metadata['choices'])}, "
            f'got {value!r}'
        )
    if item.name.endswith('_frame'):
        value = value.lstrip('/')
    if item.name == 'map_frame' and not value:
        raise SettingsError("map_frame is empty: name the frame of the poses, usually 'map'")
    if item.name == 'map_T_scene' and value:
        transform_from_text(value)
    low, high = metadata['low'], metadata['high']
    if low is not None and not (math.isfinite(value) and low <= value <= high):
        raise SettingsError(f"parameter '{item.name}' must lie in [{low}, {high}], got {value!r}")
    return value


def _kind_name(kind: type) -> str:
    return {
        str: 'a string',
        bool: 'true or false',
        int: 'a whole number',
        float: 'a number with a decimal point (10.0, not 10)',
    }[kind]


def transform_from_text(text: str) -> np.ndarray:
    """Pose (4, 4) of the text `x y z qx qy qz qw`, the value of `map_T_scene`.

    Raises:
        SettingsError: it is something else.
    """
    try:
        x, y, z, *q_xyzw = (float(word) for word in text.replace(',', ' ').split())
        if len(q_xyzw) != 4 or not abs(math.hypot(*q_xyzw) - 1) < 0.02:
            raise ValueError('the last four numbers must be a quaternion of length 1')
        a_T_b = pose_matrix(rotation_from_quaternion(wxyz_from_xyzw(q_xyzw)), (x, y, z))
        if not np.isfinite(a_T_b).all():
            raise ValueError('a number is not finite')
    except ValueError as error:
        raise SettingsError(
            f"parameter 'map_T_scene' must be x y z qx qy qz qw, got {text!r}: {error}"
        ) from error
    return a_T_b


def transform_text(a_T_b) -> str:
    """Inverse of `transform_from_text`, to a nanometre."""
    q_xyzw = xyzw_from_wxyz(quaternion_from_rotation(a_T_b[:3, :3]))
    return ' '.join(f'{value + 0.0:.9f}' for value in (*a_T_b[:3, 3], *q_xyzw))


def change(settings: NodeSettings, given: dict, active: bool) -> NodeSettings:
    """`settings` with those of `given` that take effect at once.

    The others are checked by themselves; whether they can work together is seen at configure.

    Raises:
        SettingsError: a value of the wrong type, outside its range or not one of its choices, or
            one that cannot change while the node is active.
    """
    dynamic = {}
    for item in fields(NodeSettings):
        if item.name not in given:
            continue
        value = _checked(item, given[item.name])
        if item.metadata['dynamic']:
            dynamic[item.name] = value
        elif active and value != getattr(settings, item.name):
            raise SettingsError(
                f"'{item.name}' cannot change while active: deactivate and clean up first"
            )
    return replace(settings, **dynamic)


def declare(node) -> None:
    """Declares every parameter on `node` with its type, description and range.

    Raises:
        SettingsError: a value given at start has the wrong type or lies outside its range.
    """
    from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException

    for item in fields(NodeSettings):
        try:
            node.declare_parameter(item.name, item.default, _descriptor(item))
        except InvalidParameterTypeException as error:
            raise SettingsError(
                f"parameter '{item.name}' must be {_kind_name(type(item.default))}: {error}"
            ) from error
        except InvalidParameterValueException as error:
            low, high = item.metadata['low'], item.metadata['high']
            raise SettingsError(
                f"parameter '{item.name}' must lie in [{low}, {high}]: {error}"
            ) from error


def _descriptor(item):
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    metadata = item.metadata
    descriptor = ParameterDescriptor(
        description=metadata['description'],
        additional_constraints=', '.join(metadata['choices']),
        read_only=metadata['read_only'],
    )
    if metadata['low'] is not None and isinstance(item.default, float):
        descriptor.floating_point_range = [
            FloatingPointRange(from_value=metadata['low'], to_value=metadata['high'], step=0.0)
        ]
    elif metadata['low'] is not None:
        descriptor.integer_range = [
            IntegerRange(from_value=metadata['low'], to_value=metadata['high'], step=1)
        ]
    return descriptor


def read(node, changed: dict | None = None) -> NodeSettings:
    """The parameters of `node`, with the values of `changed` in place of the current ones.

    Raises:
        SettingsError: a value cannot work.
    """
    changed = changed or {}
    values = {}
    for item in fields(NodeSettings):
        given = item.name in changed
        values[item.name] = changed[item.name] if given else node.get_parameter(item.name).value
    return NodeSettings(**values)


def yaml_text() -> str:
    """The text of config/reloc.yaml: every parameter at its default, with its description."""
    lines = [
        '# Parameters of reloc_node, at their defaults. Edit a copy and pass it with',
        '# params_file:=FILE.',
        '# Written from pose_reloc/ros/parameters.py by `python -m pose_reloc.ros.parameters`.',
        '/**:',
        '  ros__parameters:',
    ]
    for item in fields(NodeSettings):
        lines += [f'    # {line}' for line in _wrap(item.metadata['description'], 92)]
        lines.append(f'    {item.name}: {_yaml_value(item.default)}')
    return '\n'.join(lines) + '\n'


def _wrap(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width, break_on_hyphens=False)


def _yaml_value(value) -> str:
    if isinstance(value, bool):
        return 'true' if value else 'false'
    return f"'{value}'" if isinstance(value, str) else str(value)


def markdown_text() -> str:
    """The text of docs/parameters.md."""
    lines = [
        '# Parameters of `reloc_node`',
        '',
        'Written from `pose_reloc/ros/parameters.py` by `python -m pose_reloc.ros.parameters`.',
        '',
        'Set them with `ros2 launch pose_reloc reloc.launch.py params_file:=FILE` (a copy of',
        '`config/reloc.yaml`), or one by one with `-p name:=value`. A *dynamic* parameter takes',
        'effect at once with `ros2 param set`, a *fixed* one is given at start; the others are',
        'refused while the node is active and take effect at the next configure. `use_sim_time`',
        'works as in every node.',
        '',
        '| parameter | type | default | range | change | meaning |',
        '|---|---|---|---|---|---|',
    ]
    names = {str: 'string', bool: 'bool', int: 'int', float: 'double'}
    for item in fields(NodeSettings):
        metadata = item.metadata
        allowed = ', '.join(f'`{choice}`' for choice in metadata['choices'])
        if metadata['low'] is not None:
            allowed = f'{metadata["low"]} ... {metadata["high"]}'
        change = 'dynamic' if metadata['dynamic'] else 'fixed' if metadata['read_only'] else ''
        lines.append(
            f'| `{item.name}` | {names[type(item.default)]} | `{_yaml_value(item.default)}` '
            f'| {allowed} | {change} | {metadata["description"]} |'
        )
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Writes config/reloc.yaml and docs/parameters.md of this source tree."""
    root = Path(__file__).resolve().parents[2]
    for path, text in (
        (root / 'config' / 'reloc.yaml', yaml_text()),
        (root / 'docs' / 'parameters.md', markdown_text()),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(f'wrote {path}')


if __name__ == '__main__':
    main()
