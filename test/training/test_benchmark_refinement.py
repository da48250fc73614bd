"""The benchmark of refinement: what its tables hold, with and without a scene."""

import json

import numpy as np
import pytest

from pose_reloc.errors import SettingsError
from pose_reloc.features import DESCRIPTOR_TYPES
from pose_reloc.geometry import pose_error
from training.benchmarks import refinement
from training.benchmarks.measure import Role
from training.benchmarks.workload import BenchSettings, untrained_scene
from training.datasets import open_dataset


@pytest.fixture(scope='module')
def dataset(room):
    return open_dataset('7scenes', room)


@pytest.fixture(scope='module')
def scene(dataset, room, tmp_path_factory):
    """Landmarks of a part of the room, and a network that was not trained."""
    settings = BenchSettings(tmp_path_factory.mktemp('bench'), ('cpu',), path=room, short_side=32)
    return refinement._scene(settings, dataset.train[:24:2])


@pytest.fixture
def settings(dataset, room, tmp_path, monkeypatch):
    """A part of the room, quickly, RootSIFT only: ALIKED takes its time."""
    splits = {'train': dataset.train[:24:2], 'test': dataset.train[1:24:7]}
    monkeypatch.setattr(BenchSettings, 'split', lambda self, name: splits[name])
    monkeypatch.setattr(refinement, '_MAPPED', 6)
    monkeypatch.setattr(refinement, 'DESCRIPTOR_TYPES', {'rootsift': DESCRIPTOR_TYPES['rootsift']})
    return {
        'folder': tmp_path, 'devices': ('cpu',), 'path': room, 'rounds': 1, 'turn_seconds': 0.0
    }  # fmt: skip


def test_with_a_scene_every_way_is_measured(scene, settings, tmp_path):
    scene.save(tmp_path / 'room.scene')
    cues, kinds, stages = refinement.run(
        BenchSettings(**settings, scene=tmp_path / 'room.scene', short_side=32)
    )
    rows = {row[0]: row[1:] for row in cues.rows[1:]}
    assert len(rows) == 2 + len(refinement.WAYS)
    assert rows['both cues'][1:3] == ['100%', '100%']  # queries lie between the keyframes
    assert rows['both cues and a prior'][1:3] == ['100%', '100%']
    assert rows['none: regressor alone'][1] == '0%'  # it was not trained
    assert [row[0] for row in kinds.rows[1:]] == ['rootsift']
    assert '6 training images' in kinds.notes[-1]
    names = {case.name: case for case in stages.cases}
    assert {'cv2 SIFT alone', 'plain OpenCV script', 'localize, total'} <= set(names)
    assert {'localize, refine.features', 'localize, refine.match', 'localize, refine.pnp'} <= set(
        names
    )
    roles = [case.role for case in stages.cases]
    assert [roles.count(r) for r in (Role.OURS, Role.FLOOR, Role.ALTERNATIVE)] == [1, 1, 1]
    assert all(case.costs and case.costs[0] > 0 for case in stages.cases)
    for table in (cues, kinds, stages):
        json.dumps(table.to_json(), allow_nan=False)
        columns = {line.count('|') for line in table.markdown().splitlines() if '|' in line}
        assert len(columns) == 1 and table.text().startswith('refinement: cpu')


def test_without_a_scene_what_needs_it_is_named(settings):
    bench = refinement._Bench(BenchSettings(**settings, short_side=32), 'cpu')
    cues = bench.cues()
    assert [row[0] for row in cues.rows[1:]] == ['retrieval', cues.rows[-1][0]]
    assert sum('not measured without --scene' in note for note in cues.notes) == 3
    assert cues.rows[1][2:4] == ['100%', '100%']


def test_the_plain_script_finds_the_pose(scene, dataset):
    script = refinement.PlainScript(scene)
    sample = dataset.train[1]
    pose = script(sample.load_image(), sample.camera)
    metres, radians = pose_error(sample.world_T_camera, pose)
    assert metres < 0.03 and np.degrees(radians) < 1
    assert script(np.full((480, 640, 3), 90, np.uint8), sample.camera) is None


def test_silence_is_no_small_error():
    answers = refinement.Answers(
        np.array([0.01, np.nan, 0.2, 0.02]), np.array([0.1, np.nan, 1.0, 6.0]), np.ones(4), [{}] * 4
    )
    assert answers.cells() == ['2.0 cm, 1.00 deg', '25%', '75%', '1000']
    assert answers.stage('match') == '-'


def test_a_scene_without_landmarks_is_refused(settings, dataset, tmp_path):
    untrained_scene(dataset.train[0].camera, 32).save(tmp_path / 'bare.scene')
    with pytest.raises(SettingsError, match='pose_reloc map'):
        refinement._Bench(BenchSettings(**settings, scene=tmp_path / 'bare.scene'), 'cpu')
