"""A corner of ROS for nodes that are started only to be looked at: no robot may hear them."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator


@contextlib.contextmanager
def isolated(domain_id: int | None = None, **variables: str) -> Iterator[None]:
    """Lets ROS, here and in child processes, see only this machine and one domain of it.

    Args:
        domain_id: of ROS; None takes a random one.
        variables: of the environment, set meanwhile as well.
    """
    if domain_id is None:
        domain_id = random.SystemRandom().randint(1, 100)
    variables = {
        'ROS_DOMAIN_ID': f'{domain_id}',
        'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
        **variables,
    }
    if os.environ.get('ROS_DISTRO') == 'humble':  # which does not know the range yet
        variables['ROS_LOCALHOST_ONLY'] = '1'
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
