"""Recorded bags, read and written without ROS: rosbag2 (MCAP, sqlite3) and ROS 1, by `rosbags`.

`Bag` lists topics and decodes messages, `Truth` finds poses over time, `load` makes a dataset of
posed images of one or more bags, `survey` says what a bag lacks for that. Stamps are nanoseconds.
"""

from training.datasets.bag.dataset import BagSettings, load
from training.datasets.bag.poses import Truth
from training.datasets.bag.reading import (
    CAMERA_TYPE,
    IMAGE_TYPES,
    TF_TYPE,
    Bag,
    BagMessage,
    Topic,
    camera_info_topic,
)
from training.datasets.bag.writing import Recording, write_bag

__all__ = [
    'CAMERA_TYPE',
    'IMAGE_TYPES',
    'TF_TYPE',
    'Bag',
    'BagMessage',
    'BagSettings',
    'Recording',
    'Topic',
    'Truth',
    'camera_info_topic',
    'load',
    'write_bag',
]
