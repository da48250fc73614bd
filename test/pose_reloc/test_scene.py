"""The scene file: what is saved comes back, and what is not a scene says so."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from pose_reloc.errors import SceneError
from pose_reloc.scene import FORMAT_VERSION, SceneModel, read_header


def test_round_trip_is_exact(tiny_scene, tmp_path):
    path = tmp_path / 'tiny.scene'
    tiny_scene.save(path)
    loaded = SceneModel.load(path)
    assert loaded.header == tiny_scene.header == read_header(path)
    for name in ('train_world_T_camera', 'start_features', 'train_features', 'feature_mean',
                 'train_frames', 'map_T_scene'):  # fmt: skip
        saved, read = getattr(tiny_scene, name), getattr(loaded, name)
        assert saved.dtype == read.dtype and np.array_equal(saved, read)
    for name in ('weights', 'start_backbone'):
        saved, read = getattr(tiny_scene, name), getattr(loaded, name)
        assert saved.keys() == read.keys()
        assert all(np.array_equal(saved[k], read[k]) for k in saved)


def test_every_truncation_is_refused(tiny_scene, tmp_path):
    path = tmp_path / 'tiny.scene'
    tiny_scene.save(path)
    whole = path.read_bytes()
    header = 8 + struct.unpack('<Q', whole[:8])[0]
    for length in (0, 4, 8, 100, header - 1, header, header + 10, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(SceneError, match='truncated|not a scene'):
            SceneModel.load(path)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'hello, this is a text file', 'not a scene file'),
        (struct.pack('<Q', 2**62) + b'{}' * 50, 'claims'),
    ],
)
def test_foreign_files_are_refused(content, message, tmp_path):
    path = tmp_path / 'foreign.scene'
    path.write_bytes(content)
    with pytest.raises(SceneError, match=message):
        SceneModel.load(path)


def test_a_safetensors_file_of_somebody_else_is_refused(tmp_path):
    path = tmp_path / 'other.scene'
    save_file({'a': np.zeros(3)}, path)
    with pytest.raises(SceneError, match='not a scene'):
        SceneModel.load(path)


def test_another_version_is_named(tiny_scene, tmp_path):
    path = tmp_path / 'newer.scene'
    header = {'format_version': FORMAT_VERSION + 1}
    save_file({'a': np.zeros(3)}, path, {'pose_reloc': json.dumps(header)})
    with pytest.raises(SceneError, match=f'format version {FORMAT_VERSION + 1}'):
        SceneModel.load(path)


def test_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(SceneError, match='pose_reloc train'):
        SceneModel.load(tmp_path / 'nowhere.scene')


@pytest.mark.parametrize('where', ['weights', 'train_world_T_camera', 'train_features'])
def test_nan_is_refused(tiny_scene, where):
    if where == 'weights':
        name, weight = next((n, w) for n, w in tiny_scene.weights.items() if w.ndim == 4)
        damaged = weight.copy()
        damaged.flat[7] = np.nan
        changes = {'weights': tiny_scene.weights | {name: damaged}}
    else:
        damaged = getattr(tiny_scene, where).copy()
        damaged.flat[0] = np.nan
        changes = {where: damaged}
    with pytest.raises(SceneError, match='NaN'):
        replace(tiny_scene, **changes)


def _with_rotation(R):
    pose = np.eye(4)
    pose[:3, :3] = R
    return pose


@pytest.mark.parametrize(
    ('pose', 'rigid'),
    [
        (_with_rotation([[0, -1, 0], [1, 0, 0], [0, 0, 1]]), True),
        (_with_rotation(1.0003 * np.eye(3)), True),  # files with few digits
        (_with_rotation(1.002 * np.eye(3)), False),
        (_with_rotation(np.diag([1, 1, -1])), False),  # a reflection
        (_with_rotation([[1, 0.01, 0], [0, 1, 0], [0, 0, 1]]), False),
        (np.eye(4) + np.eye(4)[3] * [[0], [0], [0], [0.1]], False),
        (np.zeros((4, 4)), False),
    ],
)
def test_poses_must_be_rigid(tiny_scene, pose, rigid):
    poses = tiny_scene.train_world_T_camera.copy()
    poses[2] = pose
    for changes in ({'map_T_scene': pose}, {'train_world_T_camera': poses}):
        if rigid:
            replace(tiny_scene, **changes)
        else:
            with pytest.raises(SceneError, match=next(iter(changes))):
                replace(tiny_scene, **changes)


def test_a_scene_without_trained_images_is_refused(tiny_scene):
    features, frames = tiny_scene.train_features[:0], tiny_scene.train_frames[:0]
    with pytest.raises(SceneError, match='training image'):
        replace(tiny_scene, train_features=features, train_frames=frames)


@pytest.mark.parametrize('frames', [[0, 1, 2, 5], [-1, 0, 1, 2], [0.0, 1.0, 2.0, 3.0], [0, 1, 2]])
def test_features_are_of_training_images(tiny_scene, frames):
    with pytest.raises(SceneError, match='train_f'):
        replace(tiny_scene, train_frames=np.array(frames))


def test_weights_of_another_network_are_refused(tiny_scene):
    weights = dict(tiny_scene.weights)
    weights.pop('head.2.weight')
    with pytest.raises(SceneError, match='do not fit'):
        replace(tiny_scene, weights=weights).build_network()


def test_a_failed_save_keeps_the_old_file(tiny_scene, tmp_path, monkeypatch):
    path = tmp_path / 'tiny.scene'
    tiny_scene.save(path)
    before = path.read_bytes()

    def full_disk(descriptor):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('os.fsync', full_disk)
    with pytest.raises(SceneError, match='No space left'):
        tiny_scene.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ['tiny.scene']
