"""`reloc_node` as a process: how it ends."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip('rclpy', reason='needs rclpy')

# The real process with a relocalizer that needs no scene.
WITH_FAKE = """
import sys
import numpy as np
from pose_reloc.ros import node

sys.path.insert(0, {folder!r})
from conftest import FakeRelocalizer

fake = FakeRelocalizer([np.eye(4)], np.eye(6))
init = node.RelocNode.__init__
node.RelocNode.__init__ = lambda self: init(self, load=lambda s: fake, check=lambda s: None)
sys.exit(node.main())
"""


@pytest.mark.parametrize(
    ('signals', 'pause'),
    [
        ([signal.SIGINT] * 2, 0.0),
        ([signal.SIGINT] * 2, 0.1),
        ([signal.SIGINT, signal.SIGTERM] * 5, 0.03),
    ],
)
def test_signals_end_it_in_order_however_often_they_come(signals, pause):
    code = WITH_FAKE.format(folder=os.path.dirname(__file__))
    process = subprocess.Popen(
        [sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert 'waiting for images' in process.stdout.readline()
        time.sleep(random.Random(len(signals)).uniform(0.0, 0.3))
        for number in signals:
            process.send_signal(number)
            time.sleep(pause)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, output) == (0, '')


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (['-p', 'scene:=/nowhere/a.scene'], 'no scene file at /nowhere/a.scene'),
        ([], "the parameter 'scene' is empty"),
        (['-p', 'queue_depth:=many'], "parameter 'queue_depth' must be a whole number"),
        (['-p', 'tf_rate:=-1.0'], "parameter 'tf_rate' must lie in"),
    ],
)
def test_what_it_cannot_start_with_is_said_in_a_sentence(arguments, sentence):
    process = subprocess.run(
        [sys.executable, '-m', 'pose_reloc.ros.node', '--ros-args', *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    output = process.stderr + process.stdout
    assert process.returncode == 2
    assert sentence in output
    assert 'Traceback' not in output
