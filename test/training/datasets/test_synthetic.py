"""The built-in room: exact geometry, files in the native layout, honest split."""

import json

import cv2
import numpy as np
import pytest
import yaml

from pose_reloc.camera import Camera
from pose_reloc.errors import CameraError, DatasetError, SettingsError
from training.datasets import open_dataset, synthetic
from training.datasets.room.walks import TRAIN_WALKS, scene_poses, walk_poses
from training.datasets.synthetic import LIGHTS, Room, SyntheticSettings, camera_of, write_scene

SMALL = SyntheticSettings(seed=3, train_frames=(4, 3), test_frames=3)


@pytest.fixture(scope='module')
def room():
    return Room(SMALL.seed)


@pytest.fixture(scope='module')
def scene(tmp_path_factory):
    """A small scene, written with a room of its own."""
    folder = tmp_path_factory.mktemp('scenes') / 'room'
    write_scene(folder, SMALL)
    return folder


@pytest.fixture()
def quick(monkeypatch, room):
    """`write_scene` takes the room that is already built."""
    monkeypatch.setattr(synthetic, 'Room', lambda seed: room)


def poses(seed=0, train=(150, 150), test=120):
    train, test = scene_poses(seed, train, test)
    return np.concatenate(train), test


def first_hits(room, world_T_camera, camera, pixels_N2):
    """Depth (N,) by intersecting each pixel's ray with every surface; 0 for the view outside."""
    plane = (pixels_N2 - (camera.cx, camera.cy)) / (camera.fx, camera.fy)
    ways = np.c_[plane, np.ones(len(plane))] @ world_T_camera[:3, :3].T
    centre = world_T_camera[:3, 3]
    best, measurable = np.full(len(ways), np.inf), np.zeros(len(ways), bool)
    for quad in room.quads:
        normal = np.cross(quad.down, quad.right)
        towards = ways @ normal
        with np.errstate(divide='ignore', invalid='ignore'):
            z = ((quad.origin - centre) @ normal) / towards
            points = centre + z[:, None] * ways - quad.origin
        s, t = (points @ np.linalg.pinv(np.stack([quad.right, quad.down], 1)).T).T
        hit = (z > 0) & (s >= 0) & (s <= 1) & (t >= 0) & (t <= 1)
        hit &= (towards < 0) | quad.two_sided
        if quad.hole:
            s0, t0, s1, t1 = quad.hole
            hit &= ~((s > s0) & (s < s1) & (t > t0) & (t < t1))
        if quad.texture.shape[2] == 4:
            h, w = quad.texture.shape[:2]
            row = np.clip(np.nan_to_num(t) * h, 0, h - 1).astype(int)
            column = np.clip(np.nan_to_num(s) * w, 0, w - 1).astype(int)
            hit &= quad.texture[row, column, 3] > 127
        nearer = hit & (z < best)
        best[nearer], measurable[nearer] = z[nearer], quad.measurable
    return np.where(measurable, best, 0.0)


def interpolate(image, uv_N2):
    """Bilinear samples of an image at pixels (N, 2)."""
    u, v = np.float32(uv_N2).T
    return cv2.remap(np.float32(image), u[:, None], v[:, None], cv2.INTER_LINEAR)[:, 0]


def test_depth_is_the_distance_of_the_first_surface_on_each_ray(room):
    camera, rng = camera_of(SMALL), np.random.default_rng(0)
    train, test = poses()
    for pose in (train[20], train[190], test[30]):
        _, depth = room.render(pose, camera)
        pixels = rng.integers(0, (camera.width, camera.height), (1500, 2))
        expected = first_hits(room, pose, camera, pixels)
        actual = depth[pixels[:, 1], pixels[:, 0]]
        wrong = np.abs(actual - expected) > 1e-4 * expected
        # A ray that meets an edge within rounding may fall on either side of it.
        assert wrong.mean() < 0.004, (pixels[wrong], actual[wrong], expected[wrong])


def test_depth_of_a_wall_seen_straight_on_is_its_distance(room):
    pose = np.eye(4)  # at the door's height, looking along -x at the brick wall above the door
    pose[:3, :3] = np.stack([(0, 1, 0), (0, 0, -1), (-1, 0, 0)], 1)
    pose[:3, 3] = (2.0, 0.8, 2.45)
    _, depth = room.render(pose, Camera(33, 25, 525.0, 525.0, 16.0, 12.0))
    np.testing.assert_allclose(depth, 2.0, rtol=1e-5)


def test_points_reproject_with_the_same_depth_and_colour(room):
    camera = camera_of(SMALL)
    train, _ = poses()
    compared = 0
    for i, j in ((10, 16), (100, 104), (200, 205)):
        first, second = train[i], train[j]
        rgb, depth = room.render(first, camera)
        other_rgb, other_depth = room.render(second, camera)
        v, u = (axis.ravel() for axis in np.mgrid[4:476:5, 4:636:5])
        seen = depth[v, u] > 0
        u, v = u[seen], v[seen]
        points = camera.unproject(np.c_[u, v], depth[v, u])
        points = points @ first[:3, :3].T + first[:3, 3]
        local = (points - second[:3, 3]) @ second[:3, :3]
        uv = camera.project(local)
        inside = (uv > 1).all(1) & (uv < (camera.width - 2, camera.height - 2)).all(1)
        uv, z, colour = uv[inside], local[inside, 2], rgb[v, u][inside]
        # 1/z is linear in the pixel on a plane, so interpolation is exact where the window is not.
        inverse = 1 / np.where(other_depth > 0, other_depth, np.nan)
        other_z = 1 / interpolate(inverse, uv)
        agree = np.abs(other_z - z) < 1e-3 * z
        through = other_z > 1.01 * z  # the second frame would see through a surface
        assert agree.mean() > 0.8
        assert through.mean() < 0.01
        difference = np.abs(interpolate(other_rgb, uv[agree]) - colour[agree]).mean(1)
        assert np.median(difference) < 5
        for shift in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            shifted = np.abs(interpolate(other_rgb, uv[agree] + shift) - colour[agree]).mean(1)
            assert difference.mean() < 0.9 * shifted.mean()
        compared += agree.sum()
    assert compared > 10_000


def test_integer_pixels_are_pixel_centres(room):
    """Rolling the camera by 180 degrees maps pixel (u, v) to (2 cx - u, 2 cy - v)."""
    camera = Camera(161, 121, 131.0, 131.0, 80.0, 60.0)
    pose = poses()[0][40]
    rolled = pose @ np.diag([-1.0, -1.0, 1.0, 1.0])
    rgb, depth = room.render(pose, camera)
    other_rgb, other_depth = room.render(rolled, camera)
    edge = np.abs(other_depth[::-1, ::-1] - depth) > 1e-4 * depth
    assert edge.mean() < 0.002
    difference = np.abs(np.int32(other_rgb[::-1, ::-1]) - rgb)
    assert difference.mean() < 0.5


def test_the_view_outside_has_no_depth(room):
    train, _ = poses()
    looking_out = train[150 + 40]
    _, depth = room.render(looking_out, camera_of(SMALL))
    assert 0.05 < (depth == 0).mean() < 0.9
    assert depth[depth > 0].min() > 0.2
    assert depth.max() < np.linalg.norm(room.size)


def test_light_changes_between_sequences_but_the_place_stays(room):
    pose = poses()[0][5]
    camera = Camera(320, 240, 262.0, 262.0, 160.0, 120.0)
    images = [np.float32(room.render(pose, camera, light)[0]) for light in LIGHTS]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(images[i] - images[j]).mean() > 3
        assert np.corrcoef(images[i].ravel(), images[j].ravel())[0, 1] > 0.8


def test_lens_distortion_is_refused(room):
    camera = Camera(640, 480, 525.0, 525.0, 320.0, 240.0, (0.1, 0.0, 0.0, 0.0))
    with pytest.raises(CameraError, match='pinhole'):
        room.render(np.eye(4), camera)


@pytest.mark.parametrize('seed', [0, 5, 11, 13, 47, 63])  # most need several candidates
def test_test_frames_keep_their_distance_but_see_the_same_place(seed):
    train, test = poses(seed)
    assert len(train) == 300 and len(test) == 120
    distance = np.linalg.norm(train[None, :, :3, 3] - test[:, None, :3, 3], axis=-1)
    cosine = (np.einsum('mij,nij->nm', train[:, :3, :3], test[:, :3, :3]) - 1) / 2
    angle = np.rad2deg(np.arccos(np.clip(cosine, -1, 1)))
    assert ((distance >= 0.15) | (angle >= 8.0)).all()
    nearest = np.maximum(distance / 0.15, angle / 8).argmin(1)
    rows = np.arange(len(test))
    assert 0.2 < np.median(distance[rows, nearest]) < 0.5
    assert np.median(angle[rows, nearest]) < 15


@pytest.mark.parametrize('seed', range(3))
def test_walks_are_smooth_and_pass_beside_the_furniture(room, seed):
    train, test = scene_poses(seed, (150, 150), 120)
    for walk in (*train, test):
        R, centre = walk[:, :3, :3], walk[:, :3, 3]
        np.testing.assert_allclose(R @ R.transpose(0, 2, 1), np.broadcast_to(np.eye(3), R.shape),
                                   atol=1e-12)  # fmt: skip
        np.testing.assert_allclose(np.linalg.det(R), 1, atol=1e-12)
        assert room.clearance(centre).min() > 0.3
        assert (centre[:, 2] > 1.2).all() and (centre[:, 2] < 1.7).all()
        assert np.linalg.norm(np.diff(centre, axis=0), axis=1).max() < 0.13
        turns = np.einsum('nij,nij->n', R[1:], R[:-1])
        assert np.rad2deg(np.arccos((turns - 1) / 2)).max() < 10
        assert np.abs(np.rad2deg(np.arcsin(R[:, 2, 0]))).max() < 5  # roll: the x axis stays level


def test_every_test_frame_overlaps_a_training_frame(room):
    camera = Camera(160, 120, 131.25, 131.25, 79.625, 59.625)
    train, test = poses()
    for pose in test[::12]:
        _, depth = room.render(pose, camera)
        v, u = (axis[::29] for axis in np.nonzero(depth))
        points = camera.unproject(np.c_[u, v], depth[v, u]) @ pose[:3, :3].T + pose[:3, 3]
        shares = []
        for other in train:
            uv = camera.project((points - other[:3, 3]) @ other[:3, :3])
            shares.append(((uv >= 0) & (uv < (camera.width, camera.height))).all(1).mean())
        assert max(shares) > 0.6


def test_fewer_frames_follow_the_same_walk():
    walk = TRAIN_WALKS[0]
    dense, sparse = (walk_poses(walk, n, np.random.default_rng(5)) for n in (150, 50))
    np.testing.assert_allclose(dense[1::3], sparse, atol=1e-12)


def test_layout_is_that_of_7_scenes(scene):
    assert (scene / 'TrainSplit.txt').read_text() == 'sequence1\nsequence2\n'
    assert (scene / 'TestSplit.txt').read_text() == 'sequence3\n'
    for number, frames in (('01', 4), ('02', 3), ('03', 3)):
        names = {p.name for p in (scene / f'seq-{number}').iterdir()}
        kinds = ('color.png', 'depth.png', 'pose.txt')
        assert names == {f'frame-{i:06d}.{kind}' for i in range(frames) for kind in kinds}
    color = cv2.imread(str(scene / 'seq-01/frame-000000.color.png'), cv2.IMREAD_UNCHANGED)
    depth = cv2.imread(str(scene / 'seq-01/frame-000000.depth.png'), cv2.IMREAD_UNCHANGED)
    assert color.shape == (480, 640, 3) and color.dtype == np.uint8
    assert depth.shape == (480, 640) and depth.dtype == np.uint16
    assert 300 < np.median(depth) < 7000
    calibration = yaml.safe_load((scene / 'calibration.yaml').read_text())
    assert calibration['color_T_depth'] == np.eye(4).tolist()
    for name in ('fx', 'fy', 'cx', 'cy', 'width', 'height'):
        assert calibration['color'][name] == calibration['depth'][name]


def test_the_7_scenes_loader_reads_what_was_rendered(scene, room):
    dataset = open_dataset('7scenes', scene)
    train, test = scene_poses(SMALL.seed, SMALL.train_frames, SMALL.test_frames)
    assert [len(dataset.train), len(dataset.test)] == [7, 3]
    sample = dataset.test[1]
    assert sample.camera == camera_of(SMALL)
    np.testing.assert_allclose(sample.world_T_camera, test[1], atol=1e-9)
    np.testing.assert_allclose(dataset.train[5].world_T_camera, train[1][1], atol=1e-9)
    rgb, depth = room.render(test[1], sample.camera, LIGHTS[2])
    np.testing.assert_allclose(sample.load_depth(), depth, atol=0.0006)
    image = sample.load_image()
    assert image.shape == rgb.shape
    # Exposure, vignette and noise change the picture, but it is this picture, red first.
    for channel in range(3):
        assert np.corrcoef(image[..., channel].ravel(), rgb[..., channel].ravel())[0, 1] > 0.98


def test_frames_are_rich_in_features(scene):
    sift = cv2.SIFT_create()
    files = sorted(scene.glob('seq-*/*.color.png'))
    counts = [len(sift.detect(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE))) for file in files]
    assert len(counts) == 10
    assert np.median(counts) > 300


def test_the_same_seed_gives_the_same_images(scene, tmp_path, quick):
    """`room` and the room of `scene` were built independently."""
    write_scene(tmp_path / 'again', SMALL)
    files = sorted(scene.rglob('*.*'))
    assert len(files) == 4 + 3 * 10
    for file in files:
        again = tmp_path / 'again' / file.relative_to(scene)
        if file.suffix == '.png':
            first, second = (cv2.imread(str(f), cv2.IMREAD_UNCHANGED) for f in (file, again))
            np.testing.assert_array_equal(first, second)
        else:
            assert file.read_bytes() == again.read_bytes()


def test_a_finished_scene_is_kept_and_other_settings_replace_it(tmp_path, quick):
    folder = tmp_path / 'room'
    tiny = SyntheticSettings(width=64, height=48, train_frames=(1, 1), test_frames=1)
    write_scene(folder, tiny)
    written = (folder / 'scene.json').stat().st_mtime_ns
    write_scene(folder, tiny)
    assert (folder / 'scene.json').stat().st_mtime_ns == written
    write_scene(folder, SyntheticSettings(width=64, height=48, train_frames=(2, 1), test_frames=1))
    assert (folder / 'seq-01/frame-000001.pose.txt').is_file()
    assert json.loads((folder / 'scene.json').read_text())['settings']['train_frames'] == [2, 1]
    assert [p.name for p in tmp_path.iterdir()] == ['room']


def test_a_folder_of_someone_else_is_left_alone(tmp_path):
    (tmp_path / 'thesis.txt').write_text('chapter 1')
    with pytest.raises(DatasetError, match='left alone'):
        write_scene(tmp_path, SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ['thesis.txt']
    with pytest.raises(DatasetError, match='is a file'):
        write_scene(tmp_path / 'thesis.txt', SMALL)


def test_an_interrupted_run_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(seed):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, 'Room', interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_scene(tmp_path / 'room', SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_frame_that_cannot_be_written_stops_the_run(tmp_path, monkeypatch, quick):
    def full_disk(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(synthetic, '_write_frame', full_disk)
    with pytest.raises(DatasetError, match='No space left'):
        write_scene(tmp_path / 'room', SyntheticSettings(train_frames=(500, 1)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    'wrong', [{'width': 100}, {'train_frames': (3,)}, {'test_frames': 0}, {'seed': -1}]
)
def test_impossible_settings_are_explained(wrong):
    with pytest.raises(SettingsError):
        SyntheticSettings(**wrong)
