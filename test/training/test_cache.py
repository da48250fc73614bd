"""The training cache: what it holds, and that it is whole or absent."""

import os
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest

from pose_reloc.errors import DatasetError
from pose_reloc.geometry import invert_pose
from training.cache import CacheSettings, build_cache
from training.datasets import open_dataset
from training.datasets.depth import DepthImage


@pytest.fixture(scope='module')
def samples(room):
    return open_dataset('7scenes', room).train[:6]


def test_images_are_the_resized_files(samples, tmp_path):
    cache = build_cache(samples, CacheSettings(short_side=60), tmp_path)
    assert cache.images.shape == (6, 60, 80, 3)
    for sample, image in zip(samples, cache.images):
        whole = cv2.imread(str(sample.image_path))[..., ::-1]
        small = cv2.resize(whole, (80, 60), interpolation=cv2.INTER_AREA)
        # Each halving rounds to whole grey levels.
        assert np.abs(image.astype(int) - small).max() <= 1
    assert np.array_equal(cache.world_T_camera, [s.world_T_camera for s in samples])


def test_depth_ranges_are_the_percentiles_of_all_points(samples, tmp_path):
    cache = build_cache(samples, CacheSettings(short_side=60), tmp_path)
    everything = []
    for sample, found in zip(samples, cache.depth_range):
        depth = sample.load_depth()
        z = np.sort(depth[depth > 0])
        expected = [z[int(0.025 * (len(z) - 1))], z[int(0.975 * (len(z) - 1))]]
        assert np.allclose(found, expected, rtol=1e-6)
        everything.append(z)
    z = np.sort(np.concatenate(everything))
    expected = [z[int(0.025 * (len(z) - 1))], z[int(0.975 * (len(z) - 1))]]
    assert np.allclose(cache.global_depth_range, expected, rtol=2e-3)


def test_points_lie_on_the_surfaces_that_the_image_sees(samples, tmp_path):
    cache = build_cache(samples, CacheSettings(short_side=60, points=64), tmp_path)
    assert cache.points.shape == (6, 64, 3)
    for sample, points in zip(samples, cache.points):
        c_T_w = invert_pose(sample.world_T_camera)
        in_camera = points @ c_T_w[:3, :3].T + c_T_w[:3, 3]
        u, v = np.rint(sample.camera.project(in_camera)).astype(int).T
        assert np.allclose(sample.load_depth()[v, u], in_camera[:, 2], atol=2e-3)


def test_a_second_call_reads_what_the_first_wrote(samples, tmp_path):
    build_cache(samples, CacheSettings(short_side=60), tmp_path)
    (folder,) = tmp_path.iterdir()
    before = (folder / 'images.npy').stat().st_mtime_ns
    build_cache(samples, CacheSettings(short_side=60), tmp_path)
    assert (folder / 'images.npy').stat().st_mtime_ns == before
    build_cache(samples, CacheSettings(short_side=64), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_other_depth_and_other_points_make_another_cache(samples, tmp_path, monkeypatch):
    file = tmp_path / 'depth.png'
    shutil.copy(samples[0].depth_loader.path, file)
    loader = replace(samples[0].depth_loader, path=file)

    def build(**loaders):
        sample = replace(samples[0], **loaders)
        return build_cache([sample], CacheSettings(48, 8), tmp_path / 'caches')

    first = build(depth_loader=loader)
    with monkeypatch.context() as unread:
        unread.delattr(DepthImage, '__call__')
        assert build(depth_loader=loader).sha256 == first.sha256
    twice = build(depth_loader=replace(loader, unit_m=2 * loader.unit_m))
    np.testing.assert_allclose(twice.depth_range, 2 * first.depth_range, rtol=1e-6)
    cv2.imwrite(str(file), 3 * cv2.imread(str(file), cv2.IMREAD_UNCHANGED))
    thrice = build(depth_loader=loader)
    np.testing.assert_allclose(thrice.depth_range, 3 * first.depth_range, rtol=1e-6)
    for z in (1.0, 2.0):
        point = samples[0].world_T_camera[:3] @ (0, 0, z, 1)
        cache = build(depth_loader=None, points_loader=lambda point=point: point[None])
        np.testing.assert_allclose(cache.depth_range, z)


def test_a_damaged_image_leaves_no_cache(samples, tmp_path, room):
    broken = tmp_path / 'frame.png'
    broken.write_bytes(samples[0].image_path.read_bytes()[:5000])
    root = tmp_path / 'cache'
    with pytest.raises(DatasetError, match='frame.png'):
        build_cache([replace(samples[0], image_path=broken), *samples[1:]], CacheSettings(60), root)
    assert list(root.iterdir()) == []


def test_what_a_killed_builder_left_is_removed(samples, tmp_path):
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    left = tmp_path / f'.cache.pose_reloc-writing-{dead}'
    left.mkdir()
    (left / 'images.npy').write_bytes(b'half')
    build_cache(samples, CacheSettings(short_side=60), tmp_path)
    assert not left.exists()


def test_resident_size_per_frame(samples, tmp_path):
    """At the published resolution a 640x480 frame takes at most 0.35 MB."""
    cache = build_cache(samples, CacheSettings(short_side=256, points=512), tmp_path)
    arrays = (cache.images, cache.depth, cache.points, cache.world_T_camera, cache.depth_range)
    assert sum(a.nbytes for a in arrays) / len(samples) < 0.35e6
