"""`ReplaySettings`: how a bag is played and read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ReplaySettings:
    """How a bag is played and read."""

    live: bool = True  # through the node over ROS; False: every image, in this process
    rate: float = 1.0  # live: 2.0 plays twice as fast
    node: str | None = None  # live: name of a running node; None starts one
    domain_id: int | None = None  # live: ROS domain of the node started; None: one of its own
    image_topic: str | None = None  # None: the only one there is
    truth_topic: str | None = None  # None: a topic named like truth, else TF map -> base
    truth_tum: Path | None = None  # a TUM file of poses of the base in the map, instead
    align: str | None = None  # 'se3' or 'sim3': move the answers onto the truth before comparing
    map_frame: str = 'map'
    base_frame: str = 'base_link'
    device: str = 'auto'
