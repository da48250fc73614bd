"""What is converted and read back is the same: poses, cameras, pictures, depth and points."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pose_reloc.camera import Camera
from pose_reloc.cli import main
from pose_reloc.errors import DatasetError
from training.convert import write_colmap, write_seven_scenes
from training.datasets import Dataset, Sample, open_dataset

PINHOLE = Camera(64, 48, 60.25, 61.5, 31.75, 24.125)
LENSES = [
    replace(PINHOLE, distortion=(0.1, -0.05, 0.001, 0.002)),
    replace(PINHOLE, distortion=(0.1, -0.05, 0.001, 0.002, 0.02)),
    replace(
        PINHOLE,
        distortion=(0.1, -0.05, 0.001, 0.002, 0.01, 0.02, 0.03, 0.001),
        distortion_model='rational_polynomial',
    ),
    replace(PINHOLE, distortion=(0.1, -0.05, 0.01, 0.002), distortion_model='equidistant'),
]


@pytest.fixture
def samples(tmp_path):
    """Makes samples with a picture on disk; `points` of a cloud, or `depth`."""
    rng = np.random.default_rng(0)
    cloud = rng.uniform((-2, -2, 3), (2, 2, 6), (200, 3))

    def make(count=6, camera=PINHOLE, suffix='.png', sequence='walk', points=False, depth=False):
        made = []
        for i in range(count):
            pose = np.eye(4)
            pose[:3, :3] = Rotation.from_rotvec(rng.normal(0, 0.05, 3)).as_matrix()
            pose[:3, 3] = rng.uniform(-0.3, 0.3, 3)
            path = tmp_path / 'images' / sequence / f'{i:03d}{suffix}'
            path.parent.mkdir(parents=True, exist_ok=True)
            image = rng.integers(0, 255, (camera.height, camera.width, 3), np.uint8)
            cv2.imwrite(str(path), image)
            z = rng.integers(500, 5000, image.shape[:2]).astype(np.float32) / 1000
            z[:5] = 0
            part = cloud[rng.permutation(200)[:50]]
            made.append(
                Sample(
                    path,
                    camera,
                    pose,
                    sequence,
                    i / 10,
                    (lambda z=z: z) if depth else None,
                    (lambda part=part: part) if points else None,
                )
            )
        return made

    return make


def check(found, expected, atol=1e-12):
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a.world_T_camera, b.world_T_camera, atol=atol)
        np.testing.assert_array_equal(a.load_image(), b.load_image())


@pytest.mark.parametrize('suffix', ['.png', '.jpg'])
def test_seven_scenes(samples, tmp_path, suffix):
    train = samples(6, suffix=suffix, sequence='monday', depth=True)
    train += samples(4, suffix=suffix, sequence='tuesday', depth=True)
    test = samples(3, suffix=suffix, sequence='friday', depth=True)
    write_seven_scenes(Dataset('office', train, test), tmp_path / 'out')
    found = open_dataset('7scenes', tmp_path / 'out')
    assert [s.sequence for s in found.train] == ['seq-01'] * 6 + ['seq-02'] * 4
    assert (tmp_path / 'out' / 'sequences.txt').read_text().split() == [
        'seq-01', 'monday', 'seq-02', 'tuesday', 'seq-03', 'friday',
    ]  # fmt: skip
    for a, b in ((found.train, train), (found.test, test)):
        check(a, b)
        for x, y in zip(a, b):
            assert x.camera == y.camera
            np.testing.assert_allclose(x.load_depth(), y.load_depth(), atol=1e-6)
    copied = tmp_path / 'out' / 'seq-01' / f'frame-000000.color{suffix}'
    assert copied.read_bytes() == train[0].image_path.read_bytes()


def test_seven_scenes_without_a_lens(samples, tmp_path):
    """A point lies on the undistorted picture where a pinhole camera sees it, and so does depth."""
    camera = replace(PINHOLE, distortion=(0.8, 0.0, 0.0, 0.0))
    (sample,) = samples(1, camera, depth=True)
    z = np.full((48, 64), 2.0, np.float32)
    image = np.zeros((48, 64, 3), np.uint8)
    u, v = camera.project([[0.6, 0.4, 2.0]])[0]
    cv2.circle(image, (round(u), round(v)), 2, (255, 255, 255), -1)
    sample = replace(sample, image_loader=lambda: image, depth_loader=lambda: z)
    write_seven_scenes(Dataset('office', [sample], []), tmp_path / 'out')
    (found,) = open_dataset('7scenes', tmp_path / 'out').train
    assert found.camera == PINHOLE
    rows, columns = np.nonzero(found.load_image()[..., 0] > 100)
    expected = PINHOLE.project([[0.6, 0.4, 2.0]])[0]
    np.testing.assert_allclose([columns.mean(), rows.mean()], expected, atol=0.6)
    assert np.linalg.norm(expected - (u, v)) > 1.5  # the lens makes a difference
    assert np.median(found.load_depth()) == 2.0


def test_seven_scenes_holds_one_camera(samples, tmp_path):
    mixed = samples(2) + samples(2, Camera(64, 48, 50.0, 50.0, 32.0, 24.0), sequence='other')
    with pytest.raises(DatasetError, match='2 different cameras.*colmap'):
        write_seven_scenes(Dataset('office', mixed, []), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_depth_out_of_range_is_unknown(samples, tmp_path):
    (sample,) = samples(1)
    sample = replace(sample, depth_loader=lambda: np.full((48, 64), 70.0, np.float32))
    write_seven_scenes(Dataset('office', [sample], []), tmp_path / 'out')
    assert not open_dataset('7scenes', tmp_path / 'out').train[0].load_depth().any()


@pytest.mark.parametrize('camera', [PINHOLE, *LENSES])
def test_colmap(samples, tmp_path, camera):
    train = samples(6, camera, sequence='monday', points=True)
    test = samples(3, camera, sequence='to friday', points=True)
    write_colmap(Dataset('office', train, test), tmp_path / 'out')
    found = open_dataset('colmap', tmp_path / 'out')
    assert [s.sequence for s in found.train + found.test] == ['monday'] * 6 + ['to_friday'] * 3
    rays = np.random.default_rng(0).uniform((-0.4, -0.3, 1), (0.4, 0.3, 1), (50, 3))
    for a, b in ((found.train, train), (found.test, test)):
        check(a, b)
        for x, y in zip(a, b):
            np.testing.assert_allclose(x.camera.project(rays), y.camera.project(rays), atol=1e-9)
            np.testing.assert_array_equal(in_order(x.load_points()), in_order(y.load_points()))


def in_order(points):
    return points[np.lexsort(points.T)]


def test_colmap_of_depth_has_points_on_the_surface(samples, tmp_path):
    (sample,) = samples(1)
    sample = replace(sample, depth_loader=lambda: np.full((48, 64), 2.0, np.float32))
    write_colmap(Dataset('office', [sample], []), tmp_path / 'out')
    (found,) = open_dataset('colmap', tmp_path / 'out').train
    points = found.load_points() - sample.world_T_camera[:3, 3]
    np.testing.assert_allclose(points @ sample.world_T_camera[:3, 2], 2.0, atol=1e-9)
    assert len(points) == 500


def test_pycolmap_agrees(samples, tmp_path):
    """COLMAP's own reader: poses, and points that project to where the model says."""
    pycolmap = pytest.importorskip('pycolmap', reason='pycolmap is not installed')
    train = samples(5, LENSES[2], points=True)
    write_colmap(Dataset('office', train, []), tmp_path / 'out')
    model = pycolmap.Reconstruction(tmp_path / 'out' / 'sparse' / '0')
    assert model.num_images() == 5
    by_name = {image.name: image for image in model.images.values()}
    for sample in train:
        image = by_name[f'walk/{sample.image_path.name}']
        world_T_camera = image.cam_from_world().inverse().matrix()
        np.testing.assert_allclose(world_T_camera, sample.world_T_camera[:3], atol=1e-9)
        for point in image.points2D:
            uv = image.project_point(model.points3D[point.point3D_id].xyz)
            np.testing.assert_allclose(uv, point.xy, atol=1e-4)


def test_a_folder_that_exists_is_left_alone(samples, tmp_path):
    (tmp_path / 'out').mkdir()
    for write in (write_seven_scenes, write_colmap):
        with pytest.raises(DatasetError, match='exists'):
            write(Dataset('office', samples(1), []), tmp_path / 'out')
    assert list((tmp_path / 'out').iterdir()) == []


def test_a_failure_leaves_nothing(samples, tmp_path):
    missing = samples(2)
    missing[1].image_path.unlink()
    with pytest.raises(DatasetError, match=r'cannot read .*001\.png: No such file'):
        write_colmap(Dataset('office', missing, []), tmp_path / 'sub' / 'out')
    assert list((tmp_path / 'sub').iterdir()) == []
    (tmp_path / 'a file').touch()
    with pytest.raises(DatasetError, match='cannot write .*a file/out'):
        write_colmap(Dataset('office', samples(1), []), tmp_path / 'a file' / 'out')


def test_the_name_of_a_sequence_leads_nowhere_else(samples, tmp_path):
    (sample,) = samples(1)
    for name in ('../../../escaped', 'a/../../../b', 'tab\x07bell'):
        dataset = Dataset('office', [replace(sample, sequence=name)], [])
        with pytest.raises(DatasetError, match='office, sequence .*inside the folder'):
            write_colmap(dataset, tmp_path / 'sub' / 'out')
    assert not (tmp_path / 'sub').exists() and not (tmp_path / 'escaped').exists()


@pytest.mark.parametrize('layout', ['7scenes', 'colmap'])
def test_a_bag_by_the_command(bag_path, tmp_path, capsys, layout):
    where = ['--dataset', 'bag', '--path', str(bag_path)]
    assert main(['convert', *where, '--out', str(tmp_path / 'out'), '--to', layout]) == 0
    assert '5 training and 0 test images' in capsys.readouterr().out
    options = {} if layout == '7scenes' else {'every': 0}
    found = open_dataset(layout, tmp_path / 'out', **options).train
    expected = open_dataset('bag', bag_path).train
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.world_T_camera, b.world_T_camera, atol=1e-9)
    if layout == 'colmap':
        check(found, expected)
        np.testing.assert_allclose(found[0].camera.K, expected[0].camera.K, atol=1e-9)
