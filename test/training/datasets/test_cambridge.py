"""Cambridge Landmarks: poses, cameras and points come back as they were written."""

import itertools

import cv2
import numpy as np
import pytest
from scipy.optimize import brentq

from pose_reloc.errors import DatasetError
from pose_reloc.geometry import invert_pose
from training.datasets import open_dataset
from training.datasets.nvm import opencv_radial

RADIAL = 0.12  # x_u = x_d (1 + r x_d^2): barrel distortion


def write_lists(path, world, train, header=True, suffix='.png'):
    for name, members in (('train', train), ('test', set(range(10)) - set(train))):
        lines = ['Visual Landmark Dataset V1', 'ImageFile, Camera Position [X Y Z W P Q R]', '']
        lines = lines if header else []
        for i in sorted(members):
            numbers = [*world.world_T_camera[i, :3, 3], *world.c_q_w[i]]
            world.write_image(path / f'seq{i % 2}/frame{i:05d}.png', i)
            name_i = f'seq{i % 2}/frame{i:05d}{suffix}'
            lines.append(' '.join([name_i, *(f'{x:.12f}' for x in numbers)]))
        (path / f'dataset_{name}.txt').write_text('\n'.join(lines) + '\n')


def measurements(world, i):
    """Distorted measurements (N, 2) from the image centre, by VisualSFM's own equation."""
    xy = (world.project(i) - world.centre) / world.f
    for j in world.seen(i):
        u = np.linalg.norm(xy[j])
        xy[j] *= brentq(lambda d, u=u: d * (1 + RADIAL * d * d) - u, 0, u) / u
    return xy * world.f


def write_nvm(path, world, extra_points=()):
    views = {i: measurements(world, i) for i in range(10)}
    lines = ['NVM_V3', '', '10']
    for i in range(10):
        numbers = [world.f, *world.c_q_w[i], *world.world_T_camera[i, :3, 3], RADIAL]
        lines.append(
            f'seq{i % 2}/frame{i:05d}.jpg\t' + ' '.join(f'{x:.12f}' for x in numbers) + ' 0'
        )
    lines += ['', str(len(world.points) + len(extra_points))]
    for j, point in enumerate(world.points):
        seen = [i for i in range(10) if j in world.seen(i)]
        words = [f'{x:.12f}' for x in point] + ['9', '8', '7', str(len(seen))]
        for i in seen:
            words += [str(i), str(j), *(f'{x:.6f}' for x in views[i][j])]
        lines.append(' '.join(words))
    lines += [f'{x} {y} {z} 0 0 0 1 0 0 1.0 1.0' for x, y, z in extra_points]
    (path / 'reconstruction.nvm').write_text('\n'.join(lines) + '\n\n0\n')
    return views


def test_poses_and_images(tmp_path, world):
    write_lists(tmp_path, world, train=range(0, 7))
    (tmp_path / 'K.txt').write_text('60 0 31.5\n0 61 23.5\n0 0 1\n')
    dataset = open_dataset('cambridge', tmp_path)
    order = [0, 2, 4, 6, 1, 3, 5]  # by sequence, then by frame
    assert [s.image_path.name for s in dataset.train] == [f'frame{i:05d}.png' for i in order]
    assert len(dataset.test) == 3
    for i, sample in zip(order, dataset.train):
        np.testing.assert_allclose(sample.world_T_camera, world.world_T_camera[i], atol=1e-9)
        np.testing.assert_array_equal(sample.load_image(), world.write_image(tmp_path / 'x.png', i))
        assert sample.load_points() is None
    np.testing.assert_array_equal(
        dataset.train[0].camera.K, [[60, 0, 31.5], [0, 61, 23.5], [0, 0, 1]]
    )
    assert {s.sequence for s in dataset.train} == {'seq0', 'seq1'}
    assert any('no 3D points' in text for text in dataset.warnings)


def test_list_without_header_loses_no_image(tmp_path, world):
    write_lists(tmp_path, world, train=range(0, 7), header=False)
    assert len(open_dataset('cambridge', tmp_path).train) == 7


def test_default_camera_is_that_of_the_original_images_and_announced(tmp_path, world):
    write_lists(tmp_path, world, train=range(10))
    dataset = open_dataset('cambridge', tmp_path)
    camera = dataset.train[0].camera
    assert camera.fx == pytest.approx(1670 * 64 / 1920)
    assert (camera.cx, camera.cy) == (31.5, 23.5)
    assert any('1670' in text for text in dataset.warnings)
    dataset = open_dataset('cambridge', tmp_path, intrinsics='70,71,30,20')
    np.testing.assert_array_equal(dataset.train[0].camera.K, [[70, 0, 30], [0, 71, 20], [0, 0, 1]])


def test_reconstruction_reprojects_onto_its_measurements(tmp_path, world):
    write_lists(tmp_path, world, train=range(0, 7))
    views = write_nvm(tmp_path, world)
    dataset = open_dataset('cambridge', tmp_path)
    assert len(dataset.train) == 7 and len(dataset.test) == 3
    for sample in dataset.train:
        i = int(sample.image_path.stem[-5:])
        points = sample.load_points()
        indices = [int(np.argmin(np.linalg.norm(world.points - p, axis=1))) for p in points]
        np.testing.assert_allclose(points, world.points[indices], atol=1e-9)
        assert indices == list(world.seen(i))
        c_T_w = invert_pose(sample.world_T_camera)
        uv = sample.camera.project(points @ c_T_w[:3, :3].T + c_T_w[:3, 3])
        np.testing.assert_allclose(uv, views[i][indices] + world.centre, atol=0.002)


def test_published_rules_drop_points_and_images(tmp_path, world):
    write_lists(tmp_path, world, train=range(0, 7))
    # Seen by image 0, but behind it, beyond 1000 m, closer than 0.2 m.
    T = world.world_T_camera[0]
    bad = [T[:3, :3] @ p + T[:3, 3] for p in ((0, 0, -3), (0, 0, 2000), (0, 0, 0.1))]
    write_nvm(tmp_path, world, extra_points=bad)
    dataset = open_dataset('cambridge', tmp_path)
    first = next(s for s in dataset.train if s.image_path.stem.endswith('00000'))
    distances = np.linalg.norm(first.load_points()[:, None] - np.array(bad), axis=-1)
    assert distances.min() > 0.05
    fewest = min(len(s.load_points()) for s in dataset.train)
    stricter = open_dataset('cambridge', tmp_path, min_points=fewest + 1)
    assert len(stricter.train) < len(dataset.train)
    assert any('left out' in text for text in stricter.warnings)


def test_resized_images_are_noticed(tmp_path, world):
    write_lists(tmp_path, world, train=range(10))
    write_nvm(tmp_path, world)
    for file in tmp_path.rglob('*.png'):
        cv2.imwrite(str(file), np.zeros((24, 32, 3), np.uint8))
    with pytest.raises(DatasetError, match='resized'):
        open_dataset('cambridge', tmp_path)
    half = open_dataset('cambridge', tmp_path, intrinsics=(30, 30, 15.5, 11.5))
    assert len(half.train) == 10


@pytest.mark.parametrize('r', [-0.2, -0.05, 0.05, 0.2])
def test_radial_fit_inverts_visualsfm_distortion_to_a_tenth_of_a_pixel(r):
    f, radius = 1670.0, np.hypot(960, 540) / 1670.0
    k1, k2, k3 = opencv_radial(r, radius)
    x_d = np.linspace(0, radius, 500)
    x_u = x_d * (1 + r * x_d**2)
    again = x_u * (1 + k1 * x_u**2 + k2 * x_u**4 + k3 * x_u**6)
    assert np.abs(again - x_d).max() * f < 0.1
    assert k1 == pytest.approx(-r, rel=0.05)


def replace(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    'new, message',
    [
        ('seq0/frame00000.png 1.0', r'dataset_train\.txt, line 4: .*expected `file X Y Z'),
        ('/etc/passwd 0 0 0 1 0 0 0', r'line 4: .*inside the folder'),
        ('../x.png 0 0 0 1 0 0 0', r'line 4: .*inside the folder'),
        ('C:\\x.png 0 0 0 1 0 0 0', r'line 4: .*inside the folder'),
        ('seq0/frame00000.png nan 0 0 1 0 0 0', 'line 4: a number is NaN'),
        ('seq0/frame00000.png a 0 0 1 0 0 0', 'line 4: expected numbers'),
        ('seq0/frame00000.png 0 0 0 0 0 0 0', 'line 4: the quaternion has length 0'),
        ('seq0/frame00000.png 0 0 0 5 0 0 0', 'line 4: the quaternion has length 5'),
        ('seq0/gone.png 0 0 0 1 0 0 0', 'line 4: the image .* is missing'),
    ],
)
def test_bad_lines_are_named(tmp_path, world, new, message):
    write_lists(tmp_path, world, train=range(10))
    file = tmp_path / 'dataset_train.txt'
    lines = file.read_text().split('\n')
    file.write_text('\n'.join([*lines[:3], new, *lines[4:]]))
    with pytest.raises(DatasetError, match=message):
        open_dataset('cambridge', tmp_path)


def test_bad_reconstructions_are_named(tmp_path, world):
    write_lists(tmp_path, world, train=range(10))
    write_nvm(tmp_path, world)
    file = tmp_path / 'reconstruction.nvm'
    whole = file.read_text()
    for cut, message in (
        (len(whole) // 2, 'line|ends where'),
        (300, 'line|ends where'),
        (7, 'ends'),
    ):
        file.write_text(whole[:cut])
        with pytest.raises(DatasetError, match=message):
            open_dataset('cambridge', tmp_path)
    file.write_text(whole.replace('\n10\n', '\n2000000000\n', 1))
    with pytest.raises(DatasetError, match='line 1'):
        open_dataset('cambridge', tmp_path)
    file.write_text(whole.replace('NVM_V3', 'PLY', 1))
    with pytest.raises(DatasetError, match='not a VisualSFM'):
        open_dataset('cambridge', tmp_path)


def test_wrong_folder_and_unknown_option(tmp_path, world):
    with pytest.raises(DatasetError, match='no dataset_train.txt'):
        open_dataset('cambridge', tmp_path)
    with pytest.raises(DatasetError, match="no option 'colour'.*intrinsics, min_points"):
        open_dataset('cambridge', tmp_path, colour=1)
    (tmp_path / 'K.txt').write_text('1 2\n')
    write_lists(tmp_path, world, train=range(10))
    with pytest.raises(DatasetError, match='3x3'):
        open_dataset('cambridge', tmp_path)


def test_castle_epipolar_geometry_holds(data):
    """Matches between real neighbours lie on the epipolar lines that the poses and K predict."""
    castle = open_dataset('cambridge', data / 'castle')
    assert (len(castle.train), len(castle.test)) == (30, 9)
    distances = []
    samples = castle.train
    pairs = [
        (a, b)
        for a, b in itertools.combinations(samples, 2)
        if 0.3 < np.linalg.norm(a.world_T_camera[:3, 3] - b.world_T_camera[:3, 3]) < 4
        and a.world_T_camera[:3, 2] @ b.world_T_camera[:3, 2] > 0.9
    ]
    assert len(pairs) >= 4
    for a, b in pairs[:4]:
        distances.append(np.median(epipolar_distances(a, b)))
        # The test must be able to fail: the other quaternion convention misses by far.
        wrong = a.world_T_camera.copy()
        wrong[:3, :3] = wrong[:3, :3].T
        swapped = b.world_T_camera.copy()
        swapped[:3, :3] = swapped[:3, :3].T
        assert np.median(epipolar_distances(a, b, wrong, swapped)) > 10 * distances[-1]
    assert np.median(distances) < 0.3


def epipolar_distances(a, b, T_a=None, T_b=None):
    """Distances in px of RootSIFT matches in b from their epipolar lines."""
    T_a = a.world_T_camera if T_a is None else T_a
    T_b = b.world_T_camera if T_b is None else T_b
    b_T_a = invert_pose(T_b) @ T_a
    t = b_T_a[:3, 3]
    skew = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]])
    K_inv = np.linalg.inv(a.camera.K)
    F = K_inv.T @ skew @ b_T_a[:3, :3] @ K_inv
    uv_a, uv_b = match(a.load_image(), b.load_image())
    lines = np.c_[uv_a, np.ones(len(uv_a))] @ F.T
    products = (np.c_[uv_b, np.ones(len(uv_b))] * lines).sum(1)
    return np.abs(products) / np.linalg.norm(lines[:, :2], axis=1)


def match(image_a, image_b):
    """Mutual RootSIFT matches that pass the ratio test: pixels (N, 2) in both images."""
    sift = cv2.SIFT_create(1500)
    found = [
        sift.detectAndCompute(cv2.cvtColor(i, cv2.COLOR_RGB2GRAY), None) for i in (image_a, image_b)
    ]
    (keys_a, d_a), (keys_b, d_b) = found
    d_a, d_b = (np.sqrt(d / d.sum(1, keepdims=True)) for d in (d_a, d_b))
    both = cv2.BFMatcher().knnMatch(d_a, d_b, 2)
    back = [m.trainIdx for m in cv2.BFMatcher().match(d_b, d_a)]
    good = [m for m, n in both if m.distance < 0.75 * n.distance and back[m.trainIdx] == m.queryIdx]
    assert len(good) > 30
    return (
        np.array([keys_a[m.queryIdx].pt for m in good]),
        np.array([keys_b[m.trainIdx].pt for m in good]),
    )
