"""Starts `reloc_node` on one camera; it configures and activates itself.

    ros2 launch pose_reloc reloc.launch.py scene:=kitchen.scene image:=/camera/image_raw

Arguments left empty keep the value of `params_file`. `--show-args` explains all of them.
"""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

# Arguments that set the parameter of the same name, and its type.
_PARAMETERS = {
    'scene': str,
    'image_transport': str,
    'tf_mode': str,
    'map_frame': str,
    'base_frame': str,
    'device': str,
    'autostart': bool,
    'use_sim_time': bool,
}
_BOOL = ['', 'true', 'false']


def generate_launch_description():
    """Declares the arguments and the node."""
    parameters = PathJoinSubstitution([FindPackageShare('pose_reloc'), 'config', 'reloc.yaml'])

    def argument(name, description, default='', choices=None):
        return DeclareLaunchArgument(
            name, default_value=default, description=description, choices=choices
        )

    return LaunchDescription([
        DeclareLaunchArgument(
            'scene', description='Required. The scene file made by `pose_reloc train`.'
        ),
        argument(
            'image',
            'Topic of the camera images, without /compressed, for example /camera/image_raw. '
            'camera_info is taken from the topic beside it. Empty: image.',
        ),
        argument('camera_info', 'Topic of the camera_info, if it is not beside the images.'),
        argument(
            'image_transport',
            'Receive raw images, or compressed ones from <image>/compressed. '
            'Empty: as in params_file (raw).',
            choices=['', 'raw', 'compressed'],
        ),
        argument(
            'namespace', 'Namespace of the node and of its relative topics, for example /robot1.'
        ),
        argument('params_file', 'Parameters of the node: an edited copy of this file.', parameters),
        argument(
            'tf_mode',
            'TF to publish: none; separate (map -> base_link_reloc, a leaf that cannot conflict); '
            'map_to_odom (for Nav2 without AMCL); map_to_base (for robots without odometry). '
            'Empty: as in params_file (separate).',
            choices=['', 'none', 'separate', 'map_to_odom', 'map_to_base'],
        ),
        argument('map_frame', 'Frame of the published poses. Empty: as in params_file (map).'),
        argument(
            'base_frame',
            'Frame whose pose is published. Empty: as in params_file (base_link). To get the pose '
            "of the camera itself, set base_frame: '' in a params_file.",
        ),
        argument(
            'device', 'Where to compute: auto, cpu, cuda, cuda:1. Empty: as in params_file (auto).'
        ),
        argument(
            'autostart',
            'Configure and activate at start; false when a lifecycle manager does it. '
            'Empty: as in params_file (true).',
            choices=_BOOL,
        ),
        argument(
            'use_sim_time',
            'Take the time from /clock: for simulations and bags. Empty: as in params_file '
            '(false).',
            choices=_BOOL,
        ),
        argument(
            'log_level',
            'What the node logs: debug, info, warn, error or fatal.',
            'info',
            ['debug', 'info', 'warn', 'error', 'fatal'],
        ),
        argument(
            'required',
            'End the whole launch when the node ends; false where other nodes must go on.',
            'true',
            ['true', 'false'],
        ),
        OpaqueFunction(function=_node),
    ])  # fmt: skip


def _given(values: dict) -> dict:
    """The parameters given on the command line, with their types."""
    given = {}
    for name, (_, _, kind) in PARAMETERS.items():
        text = values[name]
        if not text:
            continue
        if kind is bool and text.lower() not in ('true', 'false'):
            raise ValueError(f'{name}:={text} is neither true nor false')
        given[name] = text.lower() == 'true' if kind is bool else text
    if given.get('base_frame') == 'none':
        given['base_frame'] = ''
    return given


def _node(context) -> list:
    values = context.launch_configurations
    given = _given(values)
    image = values['image_topic']
    if image.endswith('/compressed'):
        image = image[: -len('/compressed')]
        given.setdefault('image_transport', 'compressed')
    remappings = [('image', image)]
    if values['camera_info_topic']:
        remappings.append(('camera_info', values['camera_info_topic']))
    default_file = Path(get_package_share_directory('pose_reloc')) / 'config' / 'reloc.yaml'
    node = Node(
        package='pose_reloc',
        executable='reloc_node',
        name='pose_reloc',
        namespace=values['namespace'],
        parameters=[values['params_file'] or str(default_file), given],
        remappings=remappings,
        arguments=['--ros-args', '--log-level', f'pose_reloc:={values["log_level"]}'],
        output='screen',
        emulate_tty=True,
    )
    return [node]
