"""Scene files that were cut, flipped or made up, and disks that refuse to take them."""

import contextlib
import hashlib
import json
import os
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pose_reloc.errors import SceneError
from pose_reloc.files import write_atomically
from pose_reloc.scene import FORMAT_VERSION, SceneModel, read_header

COARSE = dict.fromkeys(
    ('position_m', 'rotation_rad', 'usual_distance', 'usual_offset_m', 'usual_offset_rad'), 1.0
)


@pytest.fixture
def path(small_scene, tmp_path):
    """A whole scene file."""
    small_scene.save(tmp_path / 'small.scene')
    return tmp_path / 'small.scene'


def header_of(path) -> dict:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + struct.unpack('<Q', data[:8])[0]])


def rewrite(path, change_header=None, change_tensors=None, checksum=True):
    """Writes the file anew as somebody would who knows the format: with a checksum that fits."""
    tensors = load_file(path)
    header = json.loads(header_of(path)['__metadata__']['pose_reloc'])
    if change_header:
        change_header(header)
    if change_tensors:
        change_tensors(tensors)
    text = json.dumps(header)
    digest = hashlib.sha256(text.encode())
    for name, array in sorted(tensors.items()):
        digest.update(f'\n{name} {array.dtype} {array.shape}\n'.encode() + array.tobytes())
    metadata = {'pose_reloc': text} | ({'sha256': digest.hexdigest()} if checksum else {})
    save_file(tensors, path, metadata)


def test_what_is_rewritten_below_is_a_scene(path):
    rewrite(path)
    SceneModel.load(path)


def test_cut_at_every_border_and_beside_it(path):
    whole = path.read_bytes()
    header = 8 + struct.unpack('<Q', whole[:8])[0]
    tensors = [v for k, v in header_of(path).items() if k != '__metadata__']
    ends = [header + end for tensor in tensors for end in tensor['data_offsets']]
    assert max(ends) == len(whole)
    borders = {0, 1, 7, 8, 9, header // 2, header, *ends}
    lengths = {n + d for n in borders for d in (-1, 0, 1)} & set(range(len(whole)))
    assert len(lengths) > 50
    for length in lengths:
        path.write_bytes(whole[:length])
        with pytest.raises(SceneError, match='truncated'):
            SceneModel.load(path)
    path.write_bytes(whole + b'\0')
    with pytest.raises(SceneError):
        SceneModel.load(path)


def test_a_flipped_bit_in_any_byte_is_refused(path):
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.unlink()  # writing over a file waits for the disk
        path.write_bytes(whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :])
        with pytest.raises(SceneError):
            SceneModel.load(path)


def test_a_file_without_a_checksum_is_refused(path):
    rewrite(path, checksum=False)
    with pytest.raises(SceneError, match='checksum'):
        SceneModel.load(path)


@pytest.mark.parametrize('version', [FORMAT_VERSION + 1, 3, 0, -1, 1e400, 'three', None, [3]])
def test_another_version_is_refused(version, path):
    rewrite(path, lambda header: header.update(format_version=version))
    for read in (SceneModel.load, read_header):
        with pytest.raises(SceneError, match='format version'):
            read(path)


HUGE = {'width': 65536, 'height': 4096, 'fx': 1.0, 'fy': 1.0, 'cx': 0.0, 'cy': 0.0}


@pytest.mark.parametrize(
    'change',
    [
        {'network_camera': HUGE},
        {'camera': HUGE | {'height': 65536}},
        {'camera': HUGE | {'width': float('inf')}},
        {'camera': HUGE | {'fx': '9' * 5000}},
        {'camera': []},
        {'calibration': {'refined_scale': -1.0}},
        {'calibration': {'refined_scale': float('nan')}},
        {'calibration': {'refined_scale': 10**400}},
        {'coarse': {}},
        {'coarse': COARSE | {'rotation_rad': 0.0}},
        {'coarse': COARSE | {'position_m': 10**400}},
        {'network': None},
        {'recipe': 7},
        {'features': {'kind': 'rootsift', 'max_features': 10**9}},
        {'features': None},
    ],
)
def test_absurd_headers_are_refused(change, path):
    rewrite(path, lambda header: header.update(change))
    with pytest.raises(SceneError, match='damaged'):
        SceneModel.load(path)


def test_a_header_nested_without_end_is_refused(path):
    save_file({'a': np.zeros(3)}, path, {'pose_reloc': '[' * 100_000})
    with pytest.raises(SceneError, match='damaged header'):
        SceneModel.load(path)


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('network.head.weight', np.float32(np.nan)),
        ('network.head.weight', np.float32(np.inf)),
        ('train_world_T_camera', np.nan),
        ('map_T_scene', 3.0),
        ('landmarks.points', np.float32(np.nan)),
        ('landmarks.starts', 99),
        ('train_features', np.float16(np.nan)),
        ('feature_mean', np.float32(np.inf)),
        ('train_frames', 5),
    ],
)
def test_tensors_that_no_scene_has_are_refused(name, value, path):
    def change(tensors):
        tensors[name].flat[1] = value

    rewrite(path, change_tensors=change)
    with pytest.raises(SceneError, match='damaged'):
        SceneModel.load(path)


def test_missing_and_additional_tensors_are_refused(path):
    names = [n for n in load_file(path) if n not in ('network.batches', 'start.stem.weight')]
    # A scene that is not registered is its own map.
    names = [n for n in names if n not in ('map_T_scene', 'network.head.weight')]
    whole = path.read_bytes()
    for name in names:
        path.write_bytes(whole)
        rewrite(path, change_tensors=lambda tensors, name=name: tensors.pop(name))
        if name == 'landmarks.points':  # without them the others are unknown names
            continue
        with pytest.raises(SceneError, match='damaged'):
            SceneModel.load(path)
    path.write_bytes(whole)
    rewrite(path, change_tensors=lambda tensors: tensors.update(surprise=np.zeros(3)))
    with pytest.raises(SceneError, match='surprise'):
        SceneModel.load(path)


@pytest.mark.parametrize('content', [b'', b'\0' * 9, b'\x89PNG\r\n\x1a\n' * 9, b'PK\3\4' * 99])
def test_files_of_others_are_refused(content, tmp_path):
    path = tmp_path / 'other.scene'
    path.write_bytes(content)
    with pytest.raises(SceneError, match='not a scene'):
        SceneModel.load(path)


def test_a_folder_and_a_pipe_are_no_scene_files(tmp_path):
    os.mkfifo(tmp_path / 'pipe.scene')
    for path in (tmp_path, tmp_path / 'pipe.scene'):
        with pytest.raises(SceneError, match='no scene file'):
            SceneModel.load(path)


@contextlib.contextmanager
def disk_space(size):
    """Limits the size of files that this process may write, also of the log that pytest may write:
    only as long as it lasts.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_after_any_number_of_bytes_keeps_the_old_file(small_scene, path):
    before = path.read_bytes()
    changed = small_scene.with_map_T_scene(np.diag([-1.0, -1, 1, 1]))
    for size in (0, 1, 8, 4096, len(before) // 2, len(before) - 1):
        with (
            disk_space(size),
            pytest.raises(SceneError, match='cannot write .*small.scene: File too large'),
        ):
            changed.save(path)
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == ['small.scene']
    with disk_space(len(before)):
        changed.save(path)
    assert SceneModel.load(path).map_T_scene[0, 0] == -1


@pytest.mark.parametrize('call', ['fsync', 'chmod', 'replace', 'rename'])
def test_an_error_at_any_step_of_saving_keeps_the_old_file(call, small_scene, path, monkeypatch):
    before = path.read_bytes()
    done = []

    def fails(*arguments, **options):
        done.append(call)
        raise OSError(28, 'No space left on device')

    # Not of os: Python 3.10's Path remembers those of its start.
    monkeypatch.setattr(os if call == 'fsync' else Path, call, fails)
    if call == 'rename':  # not used: replace() is what is atomic
        small_scene.save(path)
        assert not done
        return
    with pytest.raises(SceneError, match='No space left'):
        small_scene.save(path)
    assert done and path.read_bytes() == before and os.listdir(path.parent) == ['small.scene']


def test_folders_that_cannot_be_written_are_named(small_scene, tmp_path):
    for path in ('/proc/x.scene', tmp_path / 'nowhere' / 'x.scene'):
        with pytest.raises(SceneError, match=f'cannot write {path}'):
            small_scene.save(path)


def test_what_a_killed_writer_left_is_removed_and_what_a_live_one_writes_is_not(tmp_path):
    left, alive = (tmp_path / f'.a.scene.pose_reloc-writing-{x}' for x in ('x1y2', 'z3'))
    left.write_bytes(b'half')
    import fcntl

    with open(alive, 'wb') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write_atomically(tmp_path / 'a.scene', b'whole')
        assert sorted(os.listdir(tmp_path)) == [alive.name, 'a.scene']
    write_atomically(tmp_path / 'a.scene', b'new')
    assert os.listdir(tmp_path) == ['a.scene'] and (tmp_path / 'a.scene').read_bytes() == b'new'


def test_files_of_others_beside_the_target_are_left_alone(tmp_path):
    (tmp_path / '.kitchen.d').mkdir()
    others = [tmp_path / name for name in ('.kitchen.env', '.kitchen.scene.swp', '.kitchen.d/x')]
    for path in others:
        path.write_text('precious')
    write_atomically(tmp_path / 'kitchen', b'scene')
    write_atomically(tmp_path / 'kitchen.scene', b'scene')
    assert all(path.read_text() == 'precious' for path in others)
