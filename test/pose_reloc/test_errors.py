"""What the sentences for users have in common."""

import numpy as np
import pytest

from pose_reloc.errors import install_hint


@pytest.mark.parametrize(
    ('numpy', 'command'),
    [
        ('2.4.6', "pip install onnx 'kornia>=0.7'"),
        ('1.26.4', "pip install onnx 'kornia>=0.7' numpy==1.26.4"),  # Ubuntu 24.04
        ('1.21.5', "pip install onnx 'kornia>=0.7' numpy==1.21.5"),  # Ubuntu 22.04
    ],
)
def test_what_is_to_be_installed_leaves_the_numpy_of_a_distribution(numpy, command, monkeypatch):
    monkeypatch.setattr(np, '__version__', numpy)
    assert install_hint('onnx', 'kornia>=0.7') == command
