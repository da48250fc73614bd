"""Every parser on damaged and hostile files: our errors only, no hang, no flood, no way out.

`make test` tries a fixed sample; `make fuzz` sets POSE_RELOC_FUZZ_CASES and tries that many cases
of each, drawn anew every time.
"""

import contextlib
import os
import resource
import shutil
import signal
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pose_reloc.camera import Camera
from pose_reloc.errors import PoseRelocError
from pose_reloc.geometry import is_rigid
from pose_reloc.scene import SceneModel
from training.datasets import open_dataset
from training.datasets.bag import IMAGE_TYPES, Bag, Recording, write_bag
from training.datasets.colmap_cameras import convert_camera
from training.datasets.colmap_model import MODELS, ColmapCamera

ROOT = Path(__file__).resolve().parents[1]
CASES = int(os.environ.get('POSE_RELOC_FUZZ_CASES', 0))
PATIENCE_S = 10  # of the processor: a busy machine is no hang
MEMORY = 2 << 30  # bytes that a parser may take beyond what the process has
SIZE = (64, 48)


def cases(fast):
    """Settings of a test: so many fixed cases in `make test`, CASES new ones in `make fuzz`."""
    return settings(
        max_examples=CASES or fast,
        derandomize=not CASES,
        deadline=None,
        database=None,
        phases=(Phase.generate,),  # a failing case is shown as it is: small enough
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


# What an attacker or a broken disk might write in place of a word, and of 1, 4 or 8 bytes.
WORDS = [
    *('', '0', '-1', '1', 'nan', 'inf', '-inf', '1e308', '1e-320', '-0', '0x10', '1_0', '1e999'),
    *('9' * 400, '9' * 5000, '2147483648', '4294967296', '9223372036854775808', '1' + '0' * 19),
    *('../../../etc/passwd', '/etc/passwd', '..\\..\\x', 'C:\\x', '.', '..', '~', 'x' * 300, '\0'),
    *('\N{ARABIC-INDIC DIGIT TWO}', '\N{SUPERSCRIPT TWO}', '\N{RIGHT-TO-LEFT OVERRIDE}', '%n', '#'),
    *('{}', '[]', '*a', '&a', '!!python/object/apply:os.system [true]', '"', ',', '\n', '\ufeff'),
    *('[' * 3000, '{a: ' * 500, '&a [x, x]', '.inf', '.nan', 'null', 'true', '1e400'),
]
NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
PLACE = st.integers(0, 2**20)
EDIT = st.one_of(
    st.tuples(st.just('word'), PLACE, st.sampled_from(WORDS)),
    st.tuples(st.just('word'), PLACE, st.floats().map(repr)),
    st.tuples(st.just('word'), PLACE, st.text(max_size=8)),
    st.tuples(st.just('line'), PLACE, st.sampled_from(['drop', 'double', 'swap', 'join'])),
    st.tuples(st.just('flip'), PLACE, st.integers(0, 7)),
    st.tuples(
        st.just('write'), PLACE, st.tuples(st.sampled_from([1, 4, 8]), st.sampled_from(NUMBERS))
    ),
    st.tuples(st.just('insert'), PLACE, st.binary(min_size=1, max_size=16)),
    st.tuples(st.just('cut'), PLACE, st.integers(1, 64)),
    st.tuples(st.just('end'), PLACE, st.none()),
)
EDITS = st.lists(EDIT, min_size=1, max_size=4)


def edited(data: bytes, edits) -> bytes:
    """The file with these edits, one after another; a place counts modulo what there is."""
    for kind, place, value in edits:
        at = place % (len(data) + 1)
        if kind == 'word':
            words = data.split(b' ')
            words[place % len(words)] = value.encode(errors='surrogatepass')
            data = b' '.join(words)
        elif kind == 'line':
            lines = data.split(b'\n')
            i = place % len(lines)
            if value == 'swap':
                lines[i], lines[i - 1] = lines[i - 1], lines[i]
            else:
                lines[i : i + 1] = {'drop': [], 'double': 2 * lines[i : i + 1]}.get(
                    value, [b' '.join(lines[i : i + 2])]
                )
            data = b'\n'.join(lines)
        elif kind == 'flip' and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << value]) + data[at + 1 :]
        elif kind == 'write':
            size, number = value
            word = (number % 2 ** (8 * size)).to_bytes(size, 'little')
            data = data[:at] + word + data[at + size :]
        elif kind == 'insert':
            data = data[:at] + value + data[at:]
        elif kind == 'cut':
            data = data[:at] + data[at + value :]
        elif kind == 'end':
            data = data[:at]
    return data


# What a case may open: the files of its own folder, and what Python imports.
_opened: list[str] | None = None


def _note_opening(event, arguments):
    if event == 'open' and _opened is not None and isinstance(arguments[0], (str, bytes)):
        _opened.append(os.fsdecode(arguments[0]))


sys.addaudithook(_note_opening)


@contextlib.contextmanager
def watched(root: Path):
    """Fails a case that hangs, takes too much memory, or opens a file outside its folder."""
    global _opened

    def hangs(number, frame):
        raise AssertionError(f'no end after {PATIENCE_S} s')

    pages = int(Path('/proc/self/statm').read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = pages * resource.getpagesize()
    before = signal.signal(signal.SIGPROF, hangs)
    _opened = []
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limits[1]))
    signal.setitimer(signal.ITIMER_PROF, PATIENCE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        opened, _opened = _opened, None
    own = (root, ROOT / 'training', sys.prefix, sys.base_prefix, '/proc/', '/sys/', '/usr/lib/')
    own = tuple(map(str, own))
    outside = [path for path in opened if not os.path.abspath(path).startswith(own)]
    assert outside == []


def rewrite(path: Path, data: bytes) -> None:
    """Writes a new file: overwriting makes ext4 wait for the disk, a hundred times as long."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


@dataclass
class Target:
    """A valid dataset, and which of its files are damaged."""

    kind: str
    files: dict[str, bytes]
    damaged: list[str]
    options: dict = field(default_factory=dict)

    def write(self, root: Path) -> None:
        for name, data in self.files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            rewrite(root / name, data)


def picture(suffix='.png', dtype=np.uint8) -> bytes:
    shape = (*SIZE[::-1], 3) if dtype == np.uint8 else SIZE[::-1]
    image = np.random.default_rng(0).integers(500, 2000, shape).astype(dtype)
    return cv2.imencode(suffix, image)[1].tobytes()


def text(*lines) -> bytes:
    return '\n'.join((*lines, '')).encode()


POSE = '1 0 0 0'
YAML = text(
    'color: {width: 64, height: 48, fx: 60.0, fy: 60.0, cx: 31.5, cy: 23.5}',
    'depth: {width: 64, height: 48, fx: 60.0, fy: 60.0, cx: 31.5, cy: 23.5, unit_m: 0.001}',
    'color_T_depth: [1, 0, 0, 0.1, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]',
)
SEEN = ' '.join(f'{i} {i} {5.5 + i} -3.25' for i in range(3))
POINTS = [f'{x} {x / 2} {6 + x} 9 8 7 3 {SEEN}' for x in range(-2, 3)]
NAMES = [f'seq1/frame0000{i}.png' for i in range(3)]
IMAGES = {name: picture() for name in NAMES}
LIST = text('Visual Landmark Dataset V1', 'ImageFile', '', *(f'{n} 0 0 0.5 {POSE}' for n in NAMES))


def cambridge(damaged) -> Target:
    cameras = [f'{name} 60 {POSE} 0 0 0.5 0.1 0' for name in NAMES]
    nvm = text('NVM_V3', '', '3', *cameras, '', '5', *POINTS, '', '0')
    files = {'dataset_train.txt': LIST, 'dataset_test.txt': LIST, 'reconstruction.nvm': nvm}
    return Target('cambridge', IMAGES | files, damaged, {'min_points': 1})


def bundler() -> Target:
    camera = ('60 -0.1 0.01', '1 0 0', '0 -1 0', '0 0 -1', '0 0 0.5')
    points = [row for x in range(4) for row in (f'{x} 0 6', '9 8 7', f'3 {SEEN}')]
    bundle = text('# Bundle file v0.3', '3 4', *3 * camera, *points)
    files = {
        'list.db.txt': text(*(f'{name} 0 60' for name in NAMES)),
        'list.query.txt': text(*NAMES[:1]),
        'list.orig.txt': text(*NAMES),
        'bundle/bundle.db.out': bundle,
        'bundle/bundle.orig.out': bundle,
    }
    return Target('bundler', IMAGES | files, list(files))


def seven_scenes(damaged) -> Target:
    files = {'TrainSplit.txt': b'sequence1\n', 'TestSplit.txt': b'sequence1\n'}
    files['calibration.yaml'] = YAML
    for i in range(2):
        stem = f'seq-01/frame-00000{i}'
        files[f'{stem}.color.png'] = picture()
        files[f'{stem}.depth.png'] = picture(dtype=np.uint16)
        files[f'{stem}.pose.txt'] = text('1 0 0 1', '0 1 0 2', '0 0 1 3', '0 0 0 1')
    return Target('7scenes', files, damaged)


def tum() -> Target:
    times = [f'{10 + 0.1 * i:.2f}' for i in range(4)]
    files = {
        'rgb.txt': text(*(f'{time} rgb/{time}.png' for time in times)),
        'depth.txt': text(*(f'{time} depth/{time}.png' for time in times)),
        'groundtruth.txt': text(*(f'{time} 0 0 1 0 0 0 1' for time in times)),
        'calibration.yaml': YAML,
    }
    images = {f'rgb/{time}.png': picture() for time in times}
    depths = {f'depth/{time}.png': picture(dtype=np.uint16) for time in times}
    return Target('tum', images | depths | files, list(files))


def table() -> Target:
    rows = [f'lab,train,walk,{name},0,0,1,1,0,0,0' for name in NAMES]
    files = {
        'poses.csv': text('scene,split,seq,img_path,t1,t2,t3,q1,q2,q3,q4', *rows),
        'K.txt': text('60 0 31.5', '0 60 23.5', '0 0 1'),
    }
    return Target('csv', IMAGES | files, list(files))


def colmap_text() -> Target:
    ids = ' '.join(f'5 6 {i}' for i in range(1, 5))
    files = {
        'sparse/cameras.txt': text('1 OPENCV 64 48 60 60 32 24 -0.1 0.01 0 0'),
        'sparse/images.txt': text(
            *(row for i, name in enumerate(NAMES) for row in (f'{i} {POSE} 0 0 1 1 {name}', ids))
        ),
        'sparse/points3D.txt': text(*(f'{i} {i} 0 6 9 8 7 0.5 1 1' for i in range(1, 5))),
        'list_db.txt': text(*NAMES),
        'list_query.txt': text(NAMES[0]),
    }
    return Target('colmap', {f'images/{n}': d for n, d in IMAGES.items()} | files, list(files))


def colmap_binary() -> Target:
    camera = struct.pack('<IiQQ8d', 1, 4, 64, 48, 60, 60, 32, 24, -0.1, 0.01, 0, 0)
    images = struct.pack('<Q', 3)
    for i, name in enumerate(NAMES):
        images += struct.pack('<I7dI', i, 1, 0, 0, 0, 0, 0, 1, 1) + name.encode() + b'\0'
        images += struct.pack('<Q', 4) + b''.join(struct.pack('<ddq', 5, 6, j) for j in range(1, 5))
    points = struct.pack('<Q', 4)
    for j in range(1, 5):
        points += struct.pack('<Q3d3BdQ', j, j, 0, 6, 9, 8, 7, 0.5, 1) + struct.pack('<II', 1, 1)
    files = {
        'sparse/cameras.bin': struct.pack('<Q', 1) + camera,
        'sparse/images.bin': images,
        'sparse/points3D.bin': points,
    }
    return Target('colmap', {f'images/{n}': d for n, d in IMAGES.items()} | files, list(files))


STEM = 'seq-01/frame-000000'
TARGETS = {
    'cambridge': cambridge(['dataset_train.txt', 'dataset_test.txt']),
    'nvm': cambridge(['reconstruction.nvm']),
    'bundler': bundler(),
    '7scenes': seven_scenes(['TrainSplit.txt', f'{STEM}.pose.txt', 'calibration.yaml']),
    'images': seven_scenes([f'{STEM}.color.png', f'{STEM}.depth.png']),
    'tum': tum(),
    'csv': table(),
    'colmap_txt': colmap_text(),
    'colmap_bin': colmap_binary(),
}


@pytest.mark.parametrize('name', TARGETS)
def test_the_files_that_are_damaged_below_are_good_ones(name, tmp_path):
    target = TARGETS[name]
    target.write(tmp_path)
    with watched(tmp_path):
        assert examine(target, tmp_path) > 1


def examine(target: Target, root: Path) -> int:
    """Opens a dataset, reads what its samples offer, and checks that all of it is sound."""
    dataset = open_dataset(target.kind, root, **target.options)
    samples = (*dataset.train[:2], *dataset.test[:2])
    for sample in samples:
        assert os.path.abspath(sample.image_path).startswith(f'{root}/')
        assert is_rigid(sample.world_T_camera) and np.isfinite(sample.timestamp)
    # An image may be in both splits: one look is enough.
    for sample in {sample.image_path: sample for sample in samples}.values():
        with contextlib.suppress(PoseRelocError):
            image = sample.load_image()
            assert image.dtype == np.uint8 and image.ndim == 3
            points = sample.load_points()
            assert points is None or points.shape[1:] == (3,) and np.isfinite(points).all()
    return len(dataset.train)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """The targets, written once: name to folder."""
    found = {}
    for name, target in TARGETS.items():
        found[name] = tmp_path_factory.mktemp(name)
        target.write(found[name])
    return found


@pytest.mark.parametrize('name', TARGETS)
@cases(fast=150)
@given(which=PLACE, edits=EDITS)
def test_damaged_datasets(name, folders, which, edits):
    target, root = TARGETS[name], folders[name]
    file = target.damaged[which % len(target.damaged)]
    rewrite(root / file, edited(target.files[file], edits))
    try:
        with watched(root), contextlib.suppress(PoseRelocError):
            examine(target, root)
    finally:
        rewrite(root / file, target.files[file])


@pytest.fixture(scope='module')
def bag_files(tmp_path_factory):
    """The files of a bag: an index in YAML and an MCAP file."""
    folder = tmp_path_factory.mktemp('recorded') / 'bag'
    image = cv2.imdecode(np.frombuffer(picture(), np.uint8), cv2.IMREAD_COLOR)
    frames = [Recording(10**18 + i * 10**8, image, np.eye(4)) for i in range(3)]
    write_bag(folder, frames, Camera(*SIZE, 60.0, 60.0, 31.5, 23.5), np.eye(4))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def examine_bag(root: Path) -> int:
    """Reads all that a bag holds, and as a dataset; returns the number of whole images."""
    images = 0
    with Bag(root) as bag:
        assert bag.duration_s >= 0
        for message in bag.messages([topic.name for topic in bag.topics]):
            with contextlib.suppress(PoseRelocError):
                bag.decode(message)
                if message.type in IMAGE_TYPES:
                    image = bag.image(message)
                    assert image.dtype == np.uint8 and image.shape[2:] == (3,)
                    images += 1
    dataset = open_dataset('bag', root)
    assert all(is_rigid(sample.world_T_camera) for sample in dataset.train)
    return images


def test_the_bag_that_is_damaged_below_is_a_good_one(bag_files, tmp_path):
    for name, data in bag_files.items():
        (tmp_path / name).write_bytes(data)
    assert examine_bag(tmp_path) == 3


@cases(fast=40)
@given(which=PLACE, edits=EDITS)
def test_damaged_bags(bag_files, tmp_path_factory, which, edits):
    """The files of each case are new: an open bag is kept by its path."""
    root = tmp_path_factory.mktemp('bag')
    damaged = sorted(bag_files)[which % len(bag_files)]
    for name, data in bag_files.items():
        (root / name).write_bytes(edited(data, edits) if name == damaged else data)
    with watched(root), contextlib.suppress(PoseRelocError):
        examine_bag(root)
    shutil.rmtree(root)


SIDES = st.one_of(st.integers(-1, 2000), st.sampled_from([2**16, 2**31, 2**63]))
NUMBER = st.one_of(st.floats(), st.floats(-2, 2), st.floats(1, 1e4))


@cases(fast=25)
@given(model=st.sampled_from([*MODELS.values()]), width=SIDES, height=SIDES, data=st.data())
def test_impossible_cameras(model, width, height, data, tmp_path_factory):
    name, count = model
    params = data.draw(st.lists(NUMBER, min_size=count, max_size=count))
    with watched(tmp_path_factory.getbasetemp()), contextlib.suppress(PoseRelocError):
        converted = convert_camera(ColmapCamera(name, width, height, tuple(params)), 'here')
        assert isinstance(converted.camera, Camera)
        if converted.map_u is not None:
            shape = converted.camera.height, converted.camera.width
            for map_HW in (converted.map_u, converted.map_v):
                assert map_HW.shape == shape and np.isfinite(map_HW).all()


@cases(fast=60)
@given(which=PLACE, edits=EDITS)
def test_damaged_scene_files(scene_bytes, tmp_path_factory, which, edits):
    """No damage is taken for a scene: neither in the header, nor in the tensors."""
    path = tmp_path_factory.getbasetemp() / 'damaged.scene'
    header = 8 + int.from_bytes(scene_bytes[:8], 'little')
    part = [slice(0, 8), slice(8, header), slice(header, None)][which % 3]
    changed = edited(scene_bytes[part], edits)
    data = scene_bytes[: part.start] + changed + (scene_bytes[part.stop :] if part.stop else b'')
    rewrite(path, data)
    with watched(path.parent):
        if data == scene_bytes:
            SceneModel.load(path)
        else:
            with pytest.raises(PoseRelocError):
                SceneModel.load(path)


@pytest.fixture(scope='module')
def scene_bytes(small_scene, tmp_path_factory):
    """A whole scene file; reading it does not build the network."""
    path = tmp_path_factory.mktemp('scene') / 'small.scene'
    small_scene.save(path)
    return path.read_bytes()
