"""Bundler files in the layout of Dubrovnik6K: the known geometry comes back."""

import numpy as np
import pytest

from pose_reloc.errors import DatasetError
from pose_reloc.geometry import invert_pose
from training.datasets import open_dataset

K1, K2 = -0.08, 0.01
FLIP = np.diag([1, -1, -1])


def measure(world, i):
    """Measurements (N, 2) from the image centre, y up, by Bundler's own equations."""
    c_T_w = invert_pose(world.world_T_camera[i])
    R, t = FLIP @ c_T_w[:3, :3], FLIP @ c_T_w[:3, 3]
    P = world.points @ R.T + t
    p = -P[:, :2] / P[:, 2:]
    r2 = (p**2).sum(1, keepdims=True)
    return world.f * (1 + K1 * r2 + K2 * r2**2) * p


def bundle_text(world, members, unregistered=()):
    lines = ['# Bundle file v0.3', f'{len(members)} {len(world.points)}']
    for i in members:
        c_T_w = invert_pose(world.world_T_camera[i])
        focal = 0 if i in unregistered else world.f
        rows = [(focal, K1, K2), *(FLIP @ c_T_w[:3, :3]), FLIP @ c_T_w[:3, 3]]
        lines += [' '.join(f'{x:.12f}' for x in row) for row in rows]
    measured = {i: measure(world, i) for i in members}
    for j, point in enumerate(world.points):
        seen = [i for i in members if i not in unregistered and j in world.seen(i)]
        views = [
            f'{members.index(i)} {j} {x:.6f} {y:.6f}' for i in seen for x, y in [measured[i][j]]
        ]
        lines += [' '.join(f'{x:.12f}' for x in point), '1 2 3', ' '.join([str(len(seen)), *views])]
    return '\n'.join(lines) + '\n'


def write(path, world, unregistered=(), orig=True):
    """Images 0..6 are the database, 7..9 the queries."""
    db, query = list(range(7)), [7, 8, 9]
    (path / 'bundle').mkdir()
    (path / 'list.db.txt').write_text(''.join(f'db/{i}@N00.jpg 0 60.0\n' for i in db))
    (path / 'list.query.txt').write_text(''.join(f'query/{i}@N00.jpg\n' for i in query))
    (path / 'bundle' / 'bundle.db.out').write_text(bundle_text(world, db, unregistered))
    if orig:
        mixed = [9, 0, 1, 7, 2, 3, 4, 5, 6, 8]
        names = [f'{"query" if i in query else "db"}/{i}@N00.jpg\n' for i in mixed]
        (path / 'bundle' / 'list.orig.txt').write_text(''.join(names))
        (path / 'bundle' / 'bundle.orig.out').write_text(bundle_text(world, mixed, unregistered))


def index_of(sample) -> int:
    return int(sample.image_path.stem.split('@')[0])


def test_poses_points_and_reprojections_come_back(tmp_path, world):
    write(tmp_path, world)
    dataset = open_dataset('bundler', tmp_path)
    assert [index_of(s) for s in dataset.train] == list(range(7))
    assert sorted(index_of(s) for s in dataset.test) == [7, 8, 9]
    for sample in [*dataset.train, *dataset.test]:
        i = index_of(sample)
        T = sample.world_T_camera
        np.testing.assert_allclose(T, world.world_T_camera[i], atol=1e-9)
        points = sample.load_points()
        np.testing.assert_allclose(points, world.points[world.seen(i)], atol=1e-9)
        uv = sample.camera.project((points - T[:3, 3]) @ T[:3, :3])
        centre = np.array([sample.camera.cx, sample.camera.cy])
        x_right_y_up = measure(world, i)[world.seen(i)]
        np.testing.assert_allclose(uv - centre, x_right_y_up * (1, -1), atol=1e-5)


def test_without_images_geometry_opens_and_decoding_names_the_file(tmp_path, world):
    write(tmp_path, world)
    dataset = open_dataset('bundler', tmp_path)
    assert any('10 of 10 images are missing' in text for text in dataset.warnings)
    sample = dataset.train[3]
    with pytest.raises(DatasetError, match='3@N00.jpg'):
        sample.load_image()
    # The size comes from the measurements: they fit into it, and nearly fill it.
    reach = np.abs(measure(world, 3)[world.seen(3)]).max(axis=0)
    size = np.array([sample.camera.width, sample.camera.height])
    assert np.all(size >= 2 * reach) and np.all(size <= 2 * reach + 3)


def test_images_give_the_size_where_they_exist(tmp_path, world):
    write(tmp_path, world)
    image = world.write_image(tmp_path / 'db' / '3@N00.png', 3)
    sample = open_dataset('bundler', tmp_path).train[3]
    assert (sample.camera.width, sample.camera.cx, sample.camera.cy) == (64, 31.5, 23.5)
    np.testing.assert_array_equal(sample.load_image(), image)


def test_unregistered_cameras_and_unknown_queries_are_left_out_and_counted(tmp_path, world):
    write(tmp_path, world, unregistered=(2, 8))
    dataset = open_dataset('bundler', tmp_path)
    assert len(dataset.train) == 6 and len(dataset.test) == 2
    assert sum('not registered' in text for text in dataset.warnings) == 2
    (tmp_path / 'bundle' / 'bundle.orig.out').unlink()
    dataset = open_dataset('bundler', tmp_path)
    assert dataset.test == []
    assert any('poses are unknown' in text for text in dataset.warnings)


@pytest.mark.parametrize(
    'number, new, message',
    [
        (1, '8 400', 'line 2: the model has 8 cameras but its list 7 images'),
        (1, '7 -3', 'line 2: a number is not in the range'),
        (2, '60 nan 0', 'line 3: a number is NaN'),
        (2, '-60 0 0', 'line 3: the focal length is negative'),
        (3, '0 0 0', 'far from a rotation'),
        (37, '1 2', 'line 38: expected `x y z`'),
        (39, '3 0 0 1.0 1.0', 'line 40: expected 3 measurements'),
        (39, '1 7 0 1.0 1.0', 'line 40: a number is not in the range 0 to 6'),
    ],
)
def test_bad_lines_are_named(tmp_path, world, number, new, message):
    write(tmp_path, world)
    file = tmp_path / 'bundle' / 'bundle.db.out'
    lines = file.read_text().split('\n')
    lines[number] = new
    file.write_text('\n'.join(lines))
    with pytest.raises(DatasetError, match=message):
        open_dataset('bundler', tmp_path)


def test_truncated_missing_and_escaping(tmp_path, world):
    with pytest.raises(DatasetError, match='list.db.txt'):
        open_dataset('bundler', tmp_path)
    write(tmp_path, world)
    file = tmp_path / 'bundle' / 'bundle.db.out'
    whole = file.read_text()
    file.write_text(whole[: whole.rindex('\n1 2 3\n')])
    with pytest.raises(DatasetError, match='bundle.db.out ends where the colour of point 400'):
        open_dataset('bundler', tmp_path)
    file.unlink()
    with pytest.raises(DatasetError, match='cannot read .*bundle.db.out'):
        open_dataset('bundler', tmp_path)
    file.write_text(whole)
    names = (tmp_path / 'list.db.txt').read_text()
    (tmp_path / 'list.db.txt').write_text(names.replace('db/0@N00', '../0@N00'))
    with pytest.raises(DatasetError, match='list.db.txt, line 1: .*inside the folder'):
        open_dataset('bundler', tmp_path)
