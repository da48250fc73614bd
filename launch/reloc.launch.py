"""Starts `reloc_node` on one camera; it configures and activates itself.

    ros2 launch pose_reloc reloc.launch.py scene:=kitchen.scene image:=/camera/image_raw

Arguments left empty keep the value of `params_file`. `--show-args` explains all of them.
"""

from pathlib import Path

from launch.actions import DeclareLaunchArgument, OpaqueFunction, Shutdown
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription

# Arguments that set the parameter of the same name.
_TEXTS = (
    'scene', 'image_transport', 'tf_mode', 'mode', 'map_frame', 'base_frame', 'reloc_frame',
    'map_T_scene', 'device',
)  # fmt: skip
_SWITCHES = ('rectified', 'track', 'autostart', 'use_sim_time')
_SWITCH = ['', 'true', 'false']
# Arguments that name the topic of a name of the node. camera_info by its other name: a rule from
# camera_info to /camera_info cannot be told from none.
_TOPICS = {
    'image': 'image',
    'camera_info': 'image/camera_info',
    'initial_pose': 'initial_pose',
    'trigger': '~/trigger',
}


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
            'Topic of the camera images, such as /camera/image_raw; camera_info is taken from the '
            'topic beside it. With /compressed at its end, compressed images are received.',
            'image',
        ),
        argument('camera_info', 'Topic of the camera_info, if it is not beside the images.'),
        argument(
            'image_transport',
            'Receive raw images, or compressed ones from <image>/compressed. '
            'Empty: as in params_file (raw).',
            choices=['', 'raw', 'compressed'],
        ),
        argument(
            'rectified',
            'The images are rectified (image_rect). Empty: as in params_file (false).',
            choices=_SWITCH,
        ),
        argument(
            'namespace', 'Namespace of the node and of its relative topics, for example /robot1.'
        ),
        argument('params_file', 'Parameters of the node. Edit a copy of this file.', parameters),
        argument(
            'tf_mode',
            'TF to publish: none; separate (map -> base_link_reloc, a leaf that cannot conflict); '
            'map_to_odom (for Nav2 without AMCL); map_to_base (for robots without odometry). '
            'Empty: as in params_file (separate).',
            choices=['', 'none', 'separate', 'map_to_odom', 'map_to_base'],
        ),
        argument(
            'mode',
            'Localize all images (continuous), or one for each call of ~/relocalize and message on '
            '~/trigger (on_demand). Empty: as in params_file (continuous).',
            choices=['', 'continuous', 'on_demand'],
        ),
        argument(
            'initial_pose',
            'Topic to tell the first pose on, once: /initialpose starts AMCL and slam_toolbox. '
            'Empty: initial_pose, where nobody listens.',
        ),
        argument(
            'trigger',
            'Topic of poses that say where to look, and ask for an answer: '
            '/visual_slam/trigger_hint of cuVSLAM. Empty: /pose_reloc/trigger.',
        ),
        argument('map_frame', 'Frame of the published poses. Empty: as in params_file (map).'),
        argument(
            'base_frame',
            'Frame whose pose is published. Empty: as in params_file (base_link). To get the pose '
            "of the camera itself, set base_frame: '' in a params_file.",
        ),
        argument(
            'reloc_frame',
            'Frame that tf_mode separate publishes; another one for each of several nodes. '
            'Empty: as in params_file (base_link_reloc).',
        ),
        argument(
            'map_T_scene',
            'Pose of the frame of the scene in the map, "x y z qx qy qz qw", as `pose_reloc align` '
            'prints it. Empty: as in params_file (that of the scene file).',
        ),
        argument(
            'track',
            'Publish a pose only if three of the last five answers agree, and refuse what '
            'contradicts the track. Empty: as in params_file (false).',
            choices=_SWITCH,
        ),
        argument(
            'device', 'Where to compute: auto, cpu, cuda, cuda:1. Empty: as in params_file (auto).'
        ),
        argument(
            'autostart',
            'Configure and activate at start; false when a lifecycle manager does it (Nav2: see '
            'docs/integration.md). '
            'Empty: as in params_file (true).',
            choices=_SWITCH,
        ),
        argument(
            'use_sim_time',
            'Take the time from /clock: for simulations and bags. Empty: as in params_file '
            '(false).',
            choices=_SWITCH,
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
        argument(
            'rviz',
            'Open RViz with poses, frames and ~/debug_image; its "2D Pose Estimate" says where to '
            'look.',
            'false',
            ['true', 'false'],
        ),
        OpaqueFunction(function=_nodes),
    ])  # fmt: skip


def _nodes(context):
    """The node, and RViz, with the arguments that were given."""

    def value(name):
        return LaunchConfiguration(name).perform(context)

    # With the type, or launch would read a scene called 007 as the number 7.
    given = {name: ParameterValue(value(name), value_type=str) for name in _TEXTS if value(name)}
    given |= {name: value(name) == 'true' for name in _SWITCHES if value(name)}
    topics = {name: value(argument) for argument, name in _TOPICS.items() if value(argument)}
    if topics.get('image', '').endswith('/compressed'):
        topics['image'] = topics['image'][: -len('/compressed')]
        given.setdefault('image_transport', 'compressed')
    node = Node(
        package='pose_reloc',
        executable='reloc_node',
        name='pose_reloc',
        namespace=value('namespace'),
        parameters=[str(Path(value('params_file')).expanduser()), given],
        remappings=list(topics.items()),
        arguments=['--ros-args', '--log-level', value('log_level')],
        output='screen',
        emulate_tty=True,
        on_exit=_end if value('required') == 'true' else None,
    )
    return [node, _rviz(value)] if value('rviz') == 'true' else [node]


def _rviz(value):
    """RViz, told where this node is; `value` gives a launch argument."""
    place = '/'.join(['', *filter(None, value('namespace').split('/')), 'pose_reloc'])
    # The topics of config/reloc.rviz, where the node is called /pose_reloc.
    shown = [(f'/pose_reloc/{name}', f'{place}/{name}') for name in ('pose', 'debug_image')]
    shown.append(('/pose_reloc/trigger', value('trigger') or f'{place}/trigger'))
    config = Path(FindPackageShare('pose_reloc').find('pose_reloc'), 'config', 'reloc.rviz')
    return Node(
        package='rviz2',
        executable='rviz2',
        arguments=['-d', str(config)],
        parameters=[{'use_sim_time': value('use_sim_time') == 'true'}],
        remappings=shown,
        output='screen',
    )


def _end(event, context):
    """Ends the launch with the node; an exception is what makes `ros2 launch` exit with 1."""
    if event.returncode and not context.is_shutdown:
        raise RuntimeError(f'reloc_node ended with exit code {event.returncode}')
    return [Shutdown(reason='reloc_node ended')]
