"""Plays a bag to `reloc_node`, to look at in RViz. Needs rosbag2 (`ros2 bag`).

    ros2 launch pose_reloc replay.launch.py bag:=my_bag scene:=kitchen.scene image:=/camera/image

The bag begins when the node is ready. To compare the poses with a truth in the bag, and without
rosbag2, use `pose_reloc replay` instead.
"""

from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
)
from launch.event_handlers import OnProcessIO
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription

# What the node logs when it is active.
_READY = b'waiting for images'


def generate_launch_description():
    """Declares the arguments that reloc.launch.py does not have, and includes it."""
    reloc = PathJoinSubstitution([FindPackageShare('pose_reloc'), 'launch', 'reloc.launch.py'])

    def argument(name, description, default, choices=None):
        return DeclareLaunchArgument(
            name, default_value=default, description=description, choices=choices
        )

    return LaunchDescription([
        DeclareLaunchArgument('bag', description='Required. The folder or file of the bag.'),
        DeclareLaunchArgument('scene', description='Required. The scene file.'),
        argument('rate', 'How fast to play: 2.0 is twice as fast.', '1.0'),
        argument('start', 'Where in the bag to begin (seconds).', '0.0'),
        argument('loop', 'Play the bag again and again.', 'false', ['true', 'false']),
        argument(
            'stay', 'Keep the node (and RViz) running when the bag has ended.', 'false',
            ['true', 'false'],
        ),
        IncludeLaunchDescription(
            reloc,
            # Time must be the bag's, or every image is too old; and _READY must be logged.
            launch_arguments={
                'scene': LaunchConfiguration('scene'),
                'use_sim_time': 'true',
                'log_level': 'info',
            }.items(),
        ),
        OpaqueFunction(function=_bag),
    ])  # fmt: skip


def _bag(context):
    """Starts `ros2 bag play` once the node is ready."""

    def value(name):
        return LaunchConfiguration(name).perform(context)

    command = ['ros2', 'bag', 'play', value('bag'), '--clock', '100', '--rate', value('rate')]
    command += ['--start-offset', value('start')]
    command += ['--loop'] if value('loop') == 'true' else []
    end = None if value('stay') == 'true' else Shutdown(reason='the bag has ended')
    bag = ExecuteProcess(cmd=command, output='screen', on_exit=end)
    started = []

    def start_when_ready(event):
        if started or _READY not in event.text:
            return None
        started.append(True)
        return bag

    return [
        RegisterEventHandler(OnProcessIO(on_stdout=start_when_ready, on_stderr=start_when_ready))
    ]
