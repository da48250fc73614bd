"""The package as a whole: who may import whom, versions that agree, a text fit for any machine."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Modules whose load() runs what the file says.
_UNPICKLERS = ('pickle', 'cPickle', 'dill', 'joblib', 'marshal', 'shelve')
SOURCES = sorted(
    path
    for folder in ('pose_reloc', 'training', 'launch')
    for path in (ROOT / folder).rglob('*.py')
)
CORE = [path for path in SOURCES if path.parent == ROOT / 'pose_reloc']

# Packages that only a ROS installation provides, by the first part of their name.
ROS_PACKAGES = {
    'ament_index_python',
    'bond',
    'builtin_interfaces',
    'cv_bridge',
    'diagnostic_msgs',
    'diagnostic_updater',
    'geometry_msgs',
    'launch',
    'launch_ros',
    'lifecycle_msgs',
    'message_filters',
    'nav_msgs',
    'rcl_interfaces',
    'rclpy',
    'rosbag2_py',
    'rosgraph_msgs',
    'rosidl_runtime_py',
    'sensor_msgs',
    'sensor_msgs_py',
    'std_msgs',
    'std_srvs',
    'tf2_msgs',
    'tf2_ros',
    'tf_transformations',
}
GUI = {
    'createTrackbar',
    'destroyAllWindows',
    'destroyWindow',
    'imshow',
    'namedWindow',
    'pollKey',
    'resizeWindow',
    'selectROI',
    'setMouseCallback',
    'waitKey',
    'waitKeyEx',
}


def name_of(path):
    """The path from the top of the repository, for test names and messages."""
    return str(path.relative_to(ROOT))


def parse(path):
    """The syntax tree of a source file."""
    return ast.parse(path.read_text(encoding='utf-8'), filename=name_of(path))


def imported(tree):
    """Yield (line, dotted name) of every import, the ones inside functions and strings included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module
        elif isinstance(node, ast.Call) and called(node).endswith(('import_module', '__import__')):
            argument = node.args[0] if node.args else None
            if isinstance(argument, ast.Constant):
                yield node.lineno, str(argument.value)


def called(node):
    """The dotted name of what a call calls, such as `cv2.imshow`; '' where it has no plain name."""
    parts, target = [], node.func
    while isinstance(target, ast.Attribute):
        parts.append(target.attr)
        target = target.value
    parts.append(target.id if isinstance(target, ast.Name) else '')
    return '.'.join(reversed(parts))


def imports_of(paths, packages):
    """Every import of one of the top-level `packages` in the files, as 'file:line name'."""
    return [
        f'{name_of(path)}:{line} {module}'
        for path in paths
        for line, module in imported(parse(path))
        if module.split('.')[0] in packages
    ]


def test_there_is_something_to_check():
    assert len(CORE) > 5
    assert any('ros' in path.parts for path in SOURCES)
    assert any('training' in path.parts for path in SOURCES)


def test_the_robot_never_imports_training():
    robot = [path for path in SOURCES if (ROOT / 'pose_reloc') in path.parents]
    assert imports_of(robot, {'training'}) == []


def test_only_the_ros_folder_and_launch_import_ros():
    elsewhere = [
        path
        for path in SOURCES
        if not {ROOT / 'pose_reloc' / 'ros', ROOT / 'launch'} & set(path.parents)
    ]
    assert imports_of(elsewhere, ROS_PACKAGES) == []


def test_the_core_imports_no_plotting_and_no_ros_at_all():
    assert imports_of(CORE, {'matplotlib', 'tkinter', *ROS_PACKAGES}) == []


@pytest.mark.parametrize('path', SOURCES, ids=name_of)
def test_no_window_is_opened(path):
    calls = [node for node in ast.walk(parse(path)) if isinstance(node, ast.Call)]
    names = [(call.lineno, *called(call).rpartition('.')) for call in calls]
    # pyplot.imshow is fine: it draws into a file. Without a module the name came from an import.
    gui = [(line, name) for line, module, _, name in names if module in ('', 'cv2') and name in GUI]
    assert gui == []


@pytest.mark.parametrize('path', SOURCES, ids=name_of)
def test_data_from_elsewhere_cannot_run_code(path):
    assert unsafe_calls(parse(path)) == []


def unsafe_calls(tree):
    """Every call that can execute what stands in a file or a text, as (line, name)."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in _UNPICKLERS:
            found.append((node.lineno, node.module))
        if not isinstance(node, ast.Call):
            continue
        name = called(node)
        module, _, function = name.rpartition('.')
        keywords = {
            keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg
        }
        loads = function in ('load', 'loads', 'load_all', 'Unpickler')
        unsafe = (
            (module in _UNPICKLERS and (loads or function == 'open'))
            or (name == 'torch.load' and keywords.get('weights_only') != 'True')
            or (module == 'yaml' and function.startswith(('unsafe_load', 'full_load')))
            or (module == 'yaml' and loads and 'SafeLoader' not in ast.unparse(node))
            or (loads and keywords.get('allow_pickle', 'False') != 'False')
            or name in ('eval', 'exec', 'os.system', 'os.popen')
            or keywords.get('shell', 'False') != 'False'
        )
        if unsafe:
            found.append((node.lineno, name))
    return found


@pytest.mark.parametrize(
    ('code', 'safe'),
    [
        ('pickle.load(f)', False),
        ('torch.load(f)', False),
        ('torch.load(f, weights_only=False)', False),
        ('torch.load(f, weights_only=True)', True),
        ('yaml.load(f)', False),
        ('yaml.load(f, Loader=yaml.Loader)', False),
        ('yaml.load(f, Loader=yaml.SafeLoader)', True),
        ('yaml.safe_load(f)', True),
        ('np.load(f, allow_pickle=True)', False),
        ('np.load(f)', True),
        ('np.load(f, allow_pickle=flag)', False),
        ('from pickle import load', False),
        ('shelve.open(f)', False),
        ('eval(text)', False),
        ('model.eval()', True),
        ('exec(text)', False),
        ('os.system(text)', False),
        ('subprocess.run(text, shell=True)', False),
        ('subprocess.run(words)', True),
    ],
)
def test_the_rule_knows_safe_from_unsafe(code, safe):
    assert (unsafe_calls(ast.parse(code)) == []) == safe


ADVISORY = {'id': 'CVE-1', 'fix_versions': ['2'], 'aliases': [], 'description': ''}


@pytest.mark.parametrize(
    ('flaws', 'code', 'said'),
    [
        ([], 0, '1 packages, 0 known'),
        ([ADVISORY], 1, 'thing 1: CVE-1, fixed in 2'),
        ([ADVISORY | {'fix_versions': []}], 0, 'thing 1: CVE-1, fixed in no version yet'),
        (None, 0, 'skipped, pip-audit could not ask for advisories (no network)'),
    ],
)
def test_the_audit_reports_flaws_and_passes_without_a_network(flaws, code, said, tmp_path):
    answer = {'dependencies': [{'name': 'thing', 'version': '1', 'vulns': flaws}]}
    text = (
        f'print({json.dumps(answer)!r})' if flaws is not None else "raise SystemExit('no network')"
    )
    (tmp_path / 'pip_audit.py').write_text(text)
    command = [sys.executable, str(ROOT / 'environment' / 'audit.py')]
    environment = os.environ | {'PYTHONPATH': str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == code and said in done.stdout


@pytest.mark.parametrize('path', SOURCES, ids=name_of)
def test_the_syntax_is_that_of_python_3_10(path):
    ast.parse(path.read_text(encoding='utf-8'), filename=name_of(path), feature_version=(3, 10))


def test_the_manifest_is_a_ros_2_manifest():
    package = ElementTree.parse(ROOT / 'package.xml').getroot()
    assert package.tag == 'package' and package.get('format') == '3'
    assert package.findtext('name') == 'pose_reloc'
    assert package.findtext('license') == 'Apache-2.0'
    assert re.fullmatch(r'\S+@\S+\.\S+', package.find('maintainer').get('email'))
    assert package.findtext('export/build_type') == 'ament_python'
    assert (ROOT / 'resource' / 'pose_reloc').is_file()


def test_the_manifest_names_the_ros_packages_that_the_code_imports_and_no_others():
    package = ElementTree.parse(ROOT / 'package.xml').getroot()
    run = {element.text for element in package.findall('exec_depend')} & ROS_PACKAGES
    used = {
        module.split('.')[0]
        for path in SOURCES
        for _, module in imported(parse(path))
        if module.split('.')[0] in ROS_PACKAGES
    }
    assert used == run, f'package.xml differs from the imports: {sorted(used ^ run)}'


def test_versions_agree():
    # setup.py is asked rather than read: it says what pip and colcon will see.
    asked = subprocess.run(
        [sys.executable, 'setup.py', '--version'], cwd=ROOT, capture_output=True, text=True
    )
    assert asked.returncode == 0, asked.stderr
    versions = {
        'setup.py': asked.stdout.split()[-1],
        'package.xml': ElementTree.parse(ROOT / 'package.xml').getroot().findtext('version'),
        'CHANGELOG.md': re.search(r'^## (\d+\.\d+\.\d+)', text('CHANGELOG.md'), re.M).group(1),
        'pose_reloc/__init__.py': re.search(
            r"^__version__ = '(.+)'$", text('pose_reloc/__init__.py'), re.M
        ).group(1),
    }
    assert len(set(versions.values())) == 1, versions


def text(name):
    """The text of a file of the repository."""
    return (ROOT / name).read_text(encoding='utf-8')


def test_no_path_of_some_machine_is_in_the_repository():
    # Written in parts, so that this file does not contain what it looks for.
    folder = re.compile(
        '(?<![A-Za-z0-9_.~-])/(' + '|'.join(['work', 'farm', 'root', 'home']) + ')/'
    )
    found = [
        f'{name}:{number} {line.strip()[:80]}'
        for name in repository_files()
        for number, line in enumerate(text(name).splitlines(), 1)
        if folder.search(line)
    ]
    assert found == []


def repository_files():
    """The text files that belong to the repository: tracked, or new and not ignored."""
    listing = ['git', 'ls-files', '--cached', '--others', '--exclude-standard', '-z']
    try:
        output = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip('not a git clone, so there is no list of the files that belong to it')
    names = [name for name in output.decode().split('\0') if name and (ROOT / name).is_file()]
    assert names, 'git lists no file'
    return [name for name in names if b'\0' not in (ROOT / name).read_bytes()[:4096]]
