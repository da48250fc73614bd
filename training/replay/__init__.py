"""A bag answered image by image, over ROS or without it, and compared with the truth.

`live` plays it to the real node in recorded time; `offline` hands every image to the same code of
the node, in order, without ROS. Both account for every image of the bag.
"""

from training.replay.result_bag import write_result_bag
from training.replay.result_table import write_csv
from training.replay.run import Replay, replay
from training.replay.settings import ReplaySettings

__all__ = ['Replay', 'ReplaySettings', 'replay', 'write_csv', 'write_result_bag']
