"""COLMAP models: written by pycolmap, an independent implementation, and read by ours."""

import struct
import sys

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pose_reloc.errors import DatasetError
from pose_reloc.geometry import invert_pose
from training.datasets import open_dataset
from training.datasets.colmap_cameras import convert_camera
from training.datasets.colmap_model import MODELS, ColmapCamera

pycolmap = pytest.importorskip('pycolmap', reason='pycolmap writes the models of these tests')

# Parameters of a 640x480 camera of each model that COLMAP has.
PARAMETERS = {
    'SIMPLE_PINHOLE': (500, 321, 239),
    'PINHOLE': (500, 510, 321, 239),
    'SIMPLE_RADIAL': (500, 321, 239, -0.1),
    'RADIAL': (500, 321, 239, -0.1, 0.02),
    'OPENCV': (500, 510, 321, 239, -0.1, 0.02, 0.001, -0.002),
    'OPENCV_FISHEYE': (400, 410, 321, 239, -0.01, 0.002, 0.001, -0.002),
    'FULL_OPENCV': (500, 510, 321, 239, -0.1, 0.02, 0.001, -0.002, 0.01, 0.02, 0.01, 0.003),
    'FOV': (500, 510, 321, 239, 0.9),
    'SIMPLE_RADIAL_FISHEYE': (400, 321, 239, -0.02),
    'RADIAL_FISHEYE': (400, 321, 239, -0.02, 0.003),
    'THIN_PRISM_FISHEYE': (
        *(400, 410, 321, 239, -0.01, 0.002),
        *(0.001, -0.002, 0.001, 0.0005, 0.001, 0.0008),
    ),
    'RAD_TAN_THIN_PRISM_FISHEYE': (
        *(300, 300, 321, 239, -0.01, 0.002, 0.001, -0.0002),
        *(0.0001, 0.00005, 0.0005, 0.0004, 0.0003, 0.0002, 0.0001, 0.0002),
    ),
    'SIMPLE_DIVISION': (500, 321, 239, -0.2),
    'DIVISION': (500, 510, 321, 239, -0.1),
    'SIMPLE_FISHEYE': (400, 321, 239),
    'FISHEYE': (400, 410, 321, 239),
    'EUCM': (400, 410, 321, 239, 0.6, 1.1),
}
EXACT = [m for m in PARAMETERS if m.endswith(('PINHOLE', 'RADIAL', 'OPENCV', 'FISHEYE'))]
EXACT = [m for m in EXACT if 'THIN' not in m]
UNDISTORTED = ['THIN_PRISM_FISHEYE', 'RAD_TAN_THIN_PRISM_FISHEYE']


def build(world, camera_model='OPENCV', params=(60, 62, 32, 24, -0.1, 0.02, 0.001, 0.002)):
    """A pycolmap reconstruction of the world, and its measurements by image and point."""
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera(
        model=camera_model, width=world.width, height=world.height, params=params, camera_id=1
    )
    model.add_camera_with_trivial_rig(camera)
    tracks = {j: pycolmap.Track() for j in range(len(world.points))}
    for i, T in enumerate(world.world_T_camera):
        c_T_w = invert_pose(T)
        uv = camera.img_from_cam(world.in_camera(i), check_cheirality=False)
        points = [pycolmap.Point2D(uv[j]) for j in world.seen(i)]
        points.append(pycolmap.Point2D(np.array([1.0, 2.0])))  # a feature without a 3D point
        image = pycolmap.Image(name=f'seq{i % 2}/im {i}.png', camera_id=1, image_id=i + 1)
        image.points2D = pycolmap.Point2DList(points)
        rotation = pycolmap.Rotation3d(Rotation.from_matrix(c_T_w[:3, :3]).as_quat())
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(rotation, c_T_w[:3, 3]))
        for k, j in enumerate(world.seen(i)):
            tracks[j].add_element(i + 1, k)
    for j, track in tracks.items():
        if track.length():
            model.add_point3D(world.points[j], track, np.array([1, 2, 3], np.uint8))
    return model, camera


def write(path, world, model, text=False, folder='sparse/0'):
    (path / folder).mkdir(parents=True, exist_ok=True)
    (model.write_text if text else model.write_binary)(str(path / folder))
    for i in range(len(world.world_T_camera)):
        world.write_image(path / 'images' / f'seq{i % 2}' / f'im {i}.png', i)


def index_of(sample) -> int:
    return int(sample.image_path.stem.split()[1])


@pytest.mark.parametrize('text', [False, True])
@pytest.mark.parametrize('folder', ['sparse/0', 'sparse', '.'])
def test_poses_points_and_reprojections_come_back(tmp_path, world, text, folder):
    model, camera = build(world)
    write(tmp_path, world, model, text, folder)
    dataset = open_dataset('colmap', tmp_path)
    assert len(dataset.train) == 8 and len(dataset.test) == 2
    for sample in [*dataset.train, *dataset.test]:
        i = index_of(sample)
        T = sample.world_T_camera
        np.testing.assert_allclose(T, world.world_T_camera[i], atol=1e-9)
        points = sample.load_points()
        order = np.lexsort(points.T), np.lexsort(world.points[world.seen(i)].T)
        np.testing.assert_allclose(
            points[order[0]], world.points[world.seen(i)][order[1]], atol=1e-9
        )
        in_camera = (points - T[:3, 3]) @ T[:3, :3]
        expected = camera.img_from_cam(in_camera) - 0.5  # COLMAP counts pixels from the corner
        np.testing.assert_allclose(sample.camera.project(in_camera), expected, atol=1e-9)
        assert sample.load_image().shape == (48, 64, 3)
        assert sample.sequence == f'seq{i % 2}'


def test_lists_give_the_splits(tmp_path, world):
    write(tmp_path, world, build(world)[0])
    (tmp_path / 'list_db.txt').write_text('seq1/im 3.png\nseq0/im 8.png\nseq0/im 0.png\n')
    (tmp_path / 'list_query.txt').write_text('seq1/im 1.png\nseq1/unregistered.png\n')
    dataset = open_dataset('colmap', tmp_path)
    assert [index_of(s) for s in dataset.train] == [0, 8, 3]  # frames follow each other in time
    assert [index_of(s) for s in dataset.test] == [1]
    assert any('1 of 2 images of list_query.txt' in text for text in dataset.warnings)
    (tmp_path / 'list_query.txt').write_text('none.png\n')
    with pytest.raises(DatasetError, match='list_query.txt, line 1: no image'):
        open_dataset('colmap', tmp_path)


def test_every_nth_image_is_a_test_image(tmp_path, world):
    write(tmp_path, world, build(world)[0])
    assert len(open_dataset('colmap', tmp_path, every=2).test) == 5
    assert len(open_dataset('colmap', tmp_path, every=0).train) == 10
    with pytest.raises(DatasetError, match='every'):
        open_dataset('colmap', tmp_path, every=1)


def test_resized_images_scale_the_camera(tmp_path, world):
    write(tmp_path, world, build(world)[0])
    for file in tmp_path.glob('images/*/*.png'):
        small = tmp_path / 'images_2' / file.relative_to(tmp_path / 'images')
        small.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(small), np.zeros((24, 32, 3), np.uint8))
    sample = open_dataset('colmap', tmp_path, images='images_2').train[0]
    assert (sample.camera.width, sample.camera.height, sample.camera.fx) == (32, 24, 30)
    # 32 from the left edge of 64 pixels is 16 from the left edge of 32.
    assert sample.camera.cx + 0.5 == pytest.approx(16)
    assert sample.load_image().shape == (24, 32, 3)
    cv2.imwrite(str(sample.image_path), np.zeros((32, 24, 3), np.uint8))
    with pytest.raises(DatasetError, match='24x32 but its camera is 64x48'):
        open_dataset('colmap', tmp_path, images='images_2')


def test_missing_images_are_counted_and_named(tmp_path, world):
    write(tmp_path, world, build(world)[0])
    (tmp_path / 'images' / 'seq1' / 'im 1.png').unlink()
    dataset = open_dataset('colmap', tmp_path)
    assert any('1 of 10 images are missing and left out' in text for text in dataset.warnings)
    assert 1 not in {index_of(s) for s in [*dataset.train, *dataset.test]}
    (tmp_path / 'list_db.txt').write_text('seq1/im 1.png\nseq1/im 3.png\n')
    dataset = open_dataset('colmap', tmp_path)
    assert [index_of(s) for s in dataset.train] == [3]
    assert any('1 of 2 images of list_db.txt' in text for text in dataset.warnings)


def test_poses_and_points_can_be_read_without_any_image(tmp_path, world):
    write(tmp_path, world, build(world)[0])
    for file in tmp_path.glob('images/*/*.png'):
        file.unlink()
    dataset = open_dataset('colmap', tmp_path)
    assert any('10 of 10 images are missing' in text for text in dataset.warnings)
    sample = dataset.train[0]
    assert len(sample.load_points()) > 10
    with pytest.raises(DatasetError, match=sample.image_path.name):
        sample.load_image()


def test_every_model_is_covered():
    assert set(PARAMETERS) | {'EQUIRECTANGULAR'} == {name for name, _ in MODELS.values()}
    for key, (name, count) in MODELS.items():
        camera = pycolmap.Camera.create_from_model_name(1, name, 500.0, 640, 480)
        assert (int(camera.model), len(camera.params)) == (key, count)


@pytest.mark.parametrize('model', PARAMETERS)
def test_cameras_project_as_colmap_does(model):
    ours = convert_camera(ColmapCamera(model, 640, 480, PARAMETERS[model]), 'here')
    theirs = pycolmap.Camera(model=model, width=640, height=480, params=PARAMETERS[model])
    pixels = np.random.default_rng(0).uniform(1, (639, 479), (500, 2))
    rays = theirs.cam_ray_from_img(pixels)
    assert (ours.map_u is not None) == (model in UNDISTORTED)
    uv = ours.camera.project(rays)
    if model in UNDISTORTED:
        # The undistorted pixel of a ray must point back to the pixel of the original image.
        inside = (uv > 0).all(1) & (uv < (ours.camera.width - 1, ours.camera.height - 1)).all(1)
        assert inside.mean() > 0.5
        at = uv[inside].astype(np.float32).reshape(-1, 1, 2)
        maps = [cv2.remap(m, at, None, cv2.INTER_LINEAR).ravel() for m in (ours.map_u, ours.map_v)]
        error = np.stack(maps, axis=1) + 0.5 - pixels[inside]
    else:
        error = uv + 0.5 - pixels
    assert np.abs(error).max() < (1e-6 if model in EXACT else 0.1)


def test_undistorted_images_have_the_size_of_their_camera(tmp_path, world):
    params = (40, 42, 32, 24, -0.05, 0.01, 0.05, -0.05, 0.01, 0.005, 0.05, 0.04)
    write(tmp_path, world, build(world, 'THIN_PRISM_FISHEYE', params)[0])
    sample = open_dataset('colmap', tmp_path).train[0]
    assert sample.camera.is_pinhole
    assert sample.load_image().shape == (sample.camera.height, sample.camera.width, 3)


def test_resized_images_are_undistorted_as_the_originals(tmp_path, world):
    params = (40, 42, 32, 24, -0.05, 0.01, 0.05, -0.05, 0.01, 0.005, 0.05, 0.04)
    write(tmp_path, world, build(world, 'THIN_PRISM_FISHEYE', params)[0])
    v, u = np.mgrid[:48, :64]
    ramp = np.stack([4 * u, 5 * v, 2 * (u + v)], axis=2).astype(np.uint8)  # BGR
    for file in tmp_path.glob('images/*/*.png'):
        small = tmp_path / 'images_2' / file.relative_to(tmp_path / 'images')
        small.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), ramp)
        cv2.imwrite(str(small), cv2.resize(ramp, (32, 24), interpolation=cv2.INTER_AREA))
    full = open_dataset('colmap', tmp_path).train[0]
    half = open_dataset('colmap', tmp_path, images='images_2').train[0]
    assert half.camera == full.camera.scaled(half.camera.width, half.camera.height)
    assert half.camera.width == pytest.approx(full.camera.width / 2, abs=0.5)
    expected = cv2.resize(full.load_image(), (half.camera.width, half.camera.height))
    image = half.load_image()
    inside = (expected[2:-2, 2:-2] > 8).all(axis=2)  # beside the borders of the original
    assert inside.mean() > 0.5
    error = np.abs(image[2:-2, 2:-2].astype(int) - expected[2:-2, 2:-2])[inside]
    assert np.percentile(error, 95) <= 4  # a grey level or two is less than half a pixel
    cv2.imwrite(str(half.image_path), np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(DatasetError, match='is 64x48 but its camera is 32x24'):
        half.load_image()
    cv2.imwrite(str(half.image_path), np.zeros((32, 24, 3), np.uint8))
    with pytest.raises(DatasetError, match='24x32 but its camera is 64x48'):
        open_dataset('colmap', tmp_path, images='images_2')


def test_images_too_large_to_undistort_are_refused_before_memory_is_taken():
    params = (8192, 8192, 8192, 8192, -0.05, 0.01, 0.05, -0.05, 0.01, 0.005, 0.05, 0.04)
    with pytest.raises(DatasetError, match='pixels are too many .*colmap image_undistorter'):
        convert_camera(ColmapCamera('THIN_PRISM_FISHEYE', 16384, 16384, params), 'here')


def test_panoramas_are_refused():
    with pytest.raises(DatasetError, match='EQUIRECTANGULAR'):
        convert_camera(ColmapCamera('EQUIRECTANGULAR', 640, 320, (640, 320)), 'here')


@pytest.mark.parametrize('name', ['cameras.bin', 'images.bin', 'points3D.bin'])
def test_truncated_files_are_refused_wherever_they_end(tmp_path, world, name):
    write(tmp_path, world, build(world)[0])
    file = tmp_path / 'sparse' / '0' / name
    whole = file.read_bytes()
    for size in np.unique(np.linspace(0, len(whole) - 1, 40).astype(int)):
        file.write_bytes(whole[:size])
        with pytest.raises(DatasetError, match=f'{name}.*truncated|no images|points that'):
            open_dataset('colmap', tmp_path)
    file.write_bytes(whole + b'\0')
    with pytest.raises(DatasetError, match='more bytes'):
        open_dataset('colmap', tmp_path)


@pytest.mark.parametrize('name', ['cameras.bin', 'images.bin', 'points3D.bin'])
def test_absurd_counts_are_refused_before_memory_is_taken(tmp_path, world, name):
    write(tmp_path, world, build(world)[0])
    file = tmp_path / 'sparse' / '0' / name
    file.write_bytes(struct.pack('<Q', 2**60) + file.read_bytes()[8:])
    with pytest.raises(DatasetError, match=f'{name} is truncated'):
        open_dataset('colmap', tmp_path)


@pytest.mark.parametrize(
    'file, number, new, message',
    [
        ('cameras', -1, '1 OPENCV 64 48 1 2 3', 'OPENCV has 8 parameters'),
        ('cameras', -1, '1 NONE 64 48 1 2 3', 'unknown camera model NONE'),
        ('cameras', -1, '1 SIMPLE_PINHOLE 64 48 -5 2 3', 'impossible focal length'),
        ('cameras', -1, '1 SIMPLE_PINHOLE 64 48 nan 2 3', 'NaN'),
        ('cameras', -1, '7 SIMPLE_PINHOLE 64 48 50 2 3', 'has no camera 1'),
        ('images', 4, '1 1 0 0 0 nan 0 0 1 a.png', r'images\.txt, line 5: a number is NaN'),
        ('images', 4, '1 0 0 0 0 0 0 0 1 a.png', 'line 5: the quaternion has length 0'),
        ('images', 4, '1 1 0 0 0 0 0 0 1 ../../a.png', 'inside the folder'),
        ('images', 4, '1 1 0 0 0 0 0 0 1 /a.png', 'inside the folder'),
        ('images', 4, '1 1 0 0', 'line 5: expected `IMAGE_ID'),
        ('images', 5, '1 2', 'line 6: expected `X Y POINT3D_ID`'),
        ('images', 5, '1 2 999999', 'points that points3D does not hold'),
        ('points3D', 3, '1 2 x 3', r'points3D\.txt, line 4: expected numbers'),
    ],
)
def test_bad_lines_are_named(tmp_path, world, file, number, new, message):
    write(tmp_path, world, build(world)[0], text=True)
    path = tmp_path / 'sparse' / '0' / f'{file}.txt'
    lines = path.read_text().rstrip('\n').split('\n')
    lines[number] = new
    path.write_text('\n'.join(lines) + '\n')
    with pytest.raises(DatasetError, match=message):
        open_dataset('colmap', tmp_path)


def test_folder_without_a_model(tmp_path):
    with pytest.raises(DatasetError, match='holds no COLMAP model.*sparse'):
        open_dataset('colmap', tmp_path)
    with pytest.raises(DatasetError, match='the option model'):
        open_dataset('colmap', tmp_path, model='../elsewhere')


def test_common_cameras_need_no_pycolmap_and_others_say_so(tmp_path, world, monkeypatch):
    write(tmp_path, world, build(world)[0])
    monkeypatch.setitem(sys.modules, 'pycolmap', None)
    assert len(open_dataset('colmap', tmp_path).train) == 8
    with pytest.raises(DatasetError, match='pip install pycolmap'):
        convert_camera(ColmapCamera('FOV', 640, 480, PARAMETERS['FOV']), 'here')
