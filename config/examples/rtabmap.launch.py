"""RTAB-Map in localization mode with pose_reloc's poses as global constraints.

    ros2 launch pose_reloc reloc.launch.py scene:=FILE tf_mode:=none
    ros2 launch /path/to/rtabmap.launch.py database:=/path/to/rtabmap.db

RTAB-Map reads the frame_id of `global_pose` as the frame of the *sensor* whose pose it is, not as
the frame that the pose is given in. So the messages pass through topic_tools, which writes
base_link there. Needs the packages rtabmap_slam and topic_tools.
"""

from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchDescription

_POSE = 'geometry_msgs/msg/PoseWithCovarianceStamped'
_RENAMED = (
    'geometry_msgs.msg.PoseWithCovarianceStamped('
    "header=std_msgs.msg.Header(stamp=m.header.stamp, frame_id='base_link'), pose=m.pose)"
)


def generate_launch_description():
    """Starts RTAB-Map and the renaming of frames."""
    return LaunchDescription([
        DeclareLaunchArgument('database', description='Required. The map of RTAB-Map.'),
        Node(
            package='topic_tools',
            executable='transform',
            arguments=[
                '/pose_reloc/pose', '/rtabmap/global_pose', _POSE, _RENAMED,
                '--import', 'geometry_msgs', 'std_msgs',
            ],
        ),
        Node(
            package='rtabmap_slam',
            executable='rtabmap',
            namespace='rtabmap',
            parameters=[
                {
                    'frame_id': 'base_link',
                    'database_path': LaunchConfiguration('database'),
                    'Mem/IncrementalMemory': 'false',  # localization, no mapping
                    'Mem/InitWMWithAllNodes': 'true',
                    # By default the optimizer ignores global poses.
                    'Optimizer/PriorsIgnored': 'false',
                }
            ],
        ),
    ])  # fmt: skip
