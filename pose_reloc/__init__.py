"""pose_reloc: one camera image gives the pose of a robot that woke up somewhere it has been before.

The public API is `Relocalizer`, `PoseEstimate`, `Status` and `Camera`. Heavy imports (torch) happen
on first use, so that `import pose_reloc` and `pose_reloc --help` stay fast.
"""

import os
from importlib import import_module

# OpenMP threads that spin while they wait starve everything else on a busy robot, and themselves:
# with another process on the same cores a step was measured 10 times slower. Read at torch's start.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

__version__ = '0.1.0'

_PUBLIC = {
    'Camera': 'pose_reloc.camera',
    'PoseEstimate': 'pose_reloc.relocalizer',
    'PoseRelocError': 'pose_reloc.errors',
    'Relocalizer': 'pose_reloc.relocalizer',
    'SceneModel': 'pose_reloc.scene',
    'Status': 'pose_reloc.relocalizer',
}
__all__ = ['__version__', *_PUBLIC]


def __getattr__(name):
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
