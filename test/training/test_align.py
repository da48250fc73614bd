"""`pose_reloc align`: known transforms, outliers, noise, and what is refused."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pose_reloc.cli import main
from pose_reloc.geometry import invert_pose, perturb_pose, pose_error, pose_matrix, pose_residual
from pose_reloc.ros.parameters import transform_from_text
from pose_reloc.scene import SceneModel
from training.align import AlignError, AlignSettings, align, moved, read_trajectory
from training.metrics import write_tum

MAP_T_SCENE = pose_matrix(Rotation.from_euler('zyx', [140, 8, -3], degrees=True).as_matrix(),
                          [12.0, -30.0, 1.5])  # fmt: skip


def drive(count=60):
    """Poses of a robot (N, 4, 4) on a curve through 8 m x 5 m, in the scene."""
    s = np.linspace(0, 1, count)
    x, y, yaw = 8 * s, 2.5 * np.sin(4 * s), 1.5 * np.cos(4 * s)
    R = Rotation.from_euler('z', yaw[:, None]).as_matrix()
    return pose_matrix(R, np.stack([x, y, 0.02 * np.cos(9 * s)], axis=1))


def scaled(poses, factor):
    poses = poses.copy()
    poses[:, :3, 3] *= factor
    return poses


def noisy(poses, metres, degrees, seed):
    rng = np.random.default_rng(seed)
    sigma = np.repeat([metres, np.deg2rad(degrees)], 3)
    return perturb_pose(poses, rng.normal(size=(len(poses), 6)) * sigma)


def test_exact_pairs_give_the_exact_transform():
    scene = drive()
    found = align(scene, MAP_T_SCENE @ scene)
    np.testing.assert_allclose(found.map_T_scene, MAP_T_SCENE, atol=1e-9)
    assert found.inliers.all() and found.scale == pytest.approx(1.0)
    assert np.linalg.eigvalsh(found.covariance_66)[0] > 0


@pytest.mark.parametrize('share', [0.2, 0.5])
def test_outliers_have_no_say(share):
    rng = np.random.default_rng(3)
    scene = drive()
    map_ = noisy(MAP_T_SCENE @ scene, 0.02, 0.5, 1)
    wrong = rng.random(len(scene)) < share
    map_[wrong] = MAP_T_SCENE @ perturb_pose(scene[wrong], 2 * rng.normal(size=(wrong.sum(), 6)))
    found = align(scene, map_)
    metres, radians = pose_error(MAP_T_SCENE @ scene[30], found.map_T_scene @ scene[30])
    assert metres < 0.02 and np.rad2deg(radians) < 0.3
    np.testing.assert_array_equal(found.inliers, ~wrong)


@pytest.mark.parametrize('correlated', [False, True])
def test_the_covariance_is_honest(correlated):
    """NEES over many draws; its mean would be 6 were everything Gaussian and its size known."""
    scene, nees = drive(40), []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        draws = rng.normal(size=(40, 6)) * np.repeat([0.05, 0.01], 3)
        if correlated:  # errors of a map: each is 0.8 of the one before, and news
            for i in range(1, 40):
                draws[i] = 0.8 * draws[i - 1] + 0.6 * draws[i]
        found = align(scene, perturb_pose(MAP_T_SCENE @ scene, draws))
        residual = pose_residual(MAP_T_SCENE, found.map_T_scene)
        nees.append(residual @ np.linalg.solve(found.covariance_66, residual))
    print('NEES', np.mean(nees))
    assert 3.0 < np.mean(nees) < 12.0


def test_a_straight_corridor_is_held_by_the_orientations():
    """Positions on a line leave the roll about it open; the orientations do not."""
    scene = drive()
    scene[:, 1:3, 3] = 0.0
    found = align(scene, noisy(MAP_T_SCENE @ scene, 0.02, 0.5, 4))
    metres, radians = pose_error(MAP_T_SCENE, found.map_T_scene)
    assert np.rad2deg(radians) < 0.5 and metres < 0.05


def test_scale_is_told_and_applied_only_when_asked():
    scene = drive()
    found = align(scene, MAP_T_SCENE @ scaled(scene, 1.02))
    assert found.scale == pytest.approx(1.02, abs=1e-6)
    assert np.linalg.norm(found.residual_N6[:, :3], axis=1).max() > 0.05
    map_ = MAP_T_SCENE @ scaled(scene, 5.1)
    with pytest.raises(AlignError, match='--sim3'):
        align(scene, map_)
    found = align(scene, map_, AlignSettings(with_scale=True))
    assert found.scale == pytest.approx(5.1)
    np.testing.assert_allclose(moved(found, scene), map_, atol=1e-8)


@pytest.mark.parametrize(
    ('scene', 'map_', 'message'),
    [
        (drive(2), drive(2), 'too few'),
        (np.tile(np.eye(4), (9, 1, 1)), np.tile(np.eye(4), (9, 1, 1)), 'span only 0.00 m'),
        (drive(), np.random.default_rng(0).permutation(drive()), 'agree'),
        (scaled(drive(), 1000), drive(), 'only 0 of 60 pairs agree .* --sim3'),
    ],
    ids=['two', 'one place', 'unrelated', 'millimetres'],
)
def test_what_says_nothing_is_refused(scene, map_, message):
    with pytest.raises(AlignError, match=message):
        align(scene, map_)


def write_pair(tmp_path, offset_s=0.0):
    """A drive in scene and map as TUM files; the map's stamps lie between those of the scene."""
    times = 1_700_000_000 + 0.1 * np.arange(60)
    scene, fine = drive(60), drive(119)
    write_tum(tmp_path / 'scene.txt', times, scene)
    fine_times = times[0] + offset_s + 0.05 * np.arange(119)
    write_tum(tmp_path / 'map.txt', fine_times[1::2], (MAP_T_SCENE @ fine)[1::2])
    return ['align', '--scene-poses', f'{tmp_path / "scene.txt"}',
            '--map-poses', f'{tmp_path / "map.txt"}']  # fmt: skip


def printed(out):
    """The transform in the line for the node."""
    line = next(line for line in out.splitlines() if line.startswith('map_T_scene:='))
    return transform_from_text(line.partition(':=')[2].strip('"'))


def test_files_are_associated_by_time_and_the_scene_is_written(tmp_path, capsys, tiny_scene):
    file = tmp_path / 'a.scene'
    tiny_scene.save(file)
    command = write_pair(tmp_path)
    assert main([*command, '--scene', str(file), '--write']) == 0
    out = capsys.readouterr().out
    # Half way between two stamps the curve lies a little beside its chord.
    metres, radians = pose_error(MAP_T_SCENE, printed(out))
    assert metres < 0.01 and np.rad2deg(radians) < 0.1
    assert '60 poses in the scene, 58 of them at times known' in out
    written = SceneModel.load(file)
    np.testing.assert_allclose(written.map_T_scene, printed(out), atol=1e-8)
    np.testing.assert_array_equal(written.start_features, tiny_scene.start_features)


def test_a_bag_whose_transforms_begin_one_after_the_other(tmp_path, capsys, builder):
    """map -> odom begins later, ends earlier and pauses; odom -> base_link is written all along."""
    times = 1_700_000_000 + 0.1 * np.arange(60)
    write_tum(tmp_path / 'map.txt', times, MAP_T_SCENE @ drive(60))
    odom_T_map = pose_matrix(np.eye(3), [-0.3, 0.2, 0.0])
    for i, (time, pose) in enumerate(zip(times, drive(60))):
        stamp = round(time * 1e9)
        builder.transform('odom', 'base_link', stamp, odom_T_map @ pose)
        if 3 <= i < 57 and not 20 <= i < 30:
            builder.transform('map', 'odom', stamp + 10_000_000, invert_pose(odom_T_map))
    bag = builder.write(tmp_path / 'slam')
    assert main(['align', '--scene-poses', str(bag), '--map-poses', f'{tmp_path / "map.txt"}']) == 0
    out = capsys.readouterr().out
    metres, radians = pose_error(MAP_T_SCENE, printed(out))
    assert metres < 0.01 and np.rad2deg(radians) < 0.1


def test_a_csv_file_with_a_header_is_read(tmp_path):
    file = tmp_path / 'poses.csv'
    file.write_text('time,x,y,z,qx,qy,qz,qw\n10.5,1,2,3,0,0,0.6,0.8\n11.5,3,2,3,0,0,0.6,0.8\n')
    truth = read_trajectory(file)
    np.testing.assert_allclose(truth.at(10_500_000_000)[:3, 3], [1, 2, 3])
    assert truth.at(9_000_000_000) is None


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (['--write'], '--write needs --scene'),
        (['--write', '--scene', 'a.scene', '--sim3'], 'exclude each other'),
        (['--inlier-m', '0'], '--inlier-m must be positive'),
    ],
)
def test_bad_options(tmp_path, capsys, more, message):
    assert main([*write_pair(tmp_path), *more]) == 2
    assert message in capsys.readouterr().err


def test_bad_sources(tmp_path, capsys):
    assert main(['align', '--map-poses', 'no such bag']) == 2
    assert 'give --scene' in capsys.readouterr().err
    assert main(write_pair(tmp_path, offset_s=100.0)) == 2
    assert 'no pose of the scene has a time' in capsys.readouterr().err
    command = write_pair(tmp_path)
    (tmp_path / 'map.txt').write_text('1 2 3\n')
    assert main(command) == 2
    assert 'line 1: expected `time x y z qx qy qz qw`' in capsys.readouterr().err


def test_a_scene_finds_the_images_of_a_bag(tmp_path, capsys, tiny_scene, monkeypatch):
    """Two bags, and a scene with a bag: the relocalizer answers with known poses."""
    import pose_reloc.relocalizer as relocalizer
    from training.datasets.bag import Recording, write_bag

    base_T_camera = pose_matrix(Rotation.from_euler('xyz', [-90, 0, -90], degrees=True).as_matrix(),
                                [0.2, 0.0, 0.8])  # fmt: skip
    scene_T_base, camera = drive(12), tiny_scene.header.camera
    frames = [
        Recording(
            1_700_000_000_000_000_000 + 200_000_000 * i,
            np.full((camera.height, camera.width, 3), i, np.uint8),
            MAP_T_SCENE @ pose,
        )
        for i, pose in enumerate(scene_T_base)
    ]
    write_bag(tmp_path / 'robot', frames, camera, base_T_camera)
    file = tmp_path / 'a.scene'
    tiny_scene.save(file)

    def localize(self, image, camera=None, prior=None):
        index = round(float(image.mean()))
        status = relocalizer.Status.LOST if index == 4 else relocalizer.Status.REFINED
        pose = scene_T_base[(index + 6) % 12 if index == 7 else index] @ base_T_camera
        return relocalizer.PoseEstimate(status, pose, np.eye(6))

    monkeypatch.setattr(relocalizer.Relocalizer, 'localize', localize)
    command = ['align', '--scene', str(file), '--map-poses', str(tmp_path / 'robot')]
    assert main([*command, '--write']) == 0
    out = capsys.readouterr().out
    np.testing.assert_allclose(printed(out), MAP_T_SCENE, atol=1e-6)
    assert 'agreeing pairs   10 of 11' in out
    np.testing.assert_allclose(SceneModel.load(file).map_T_scene, MAP_T_SCENE, atol=1e-8)

    frames = [Recording(f.stamp, f.image, invert_pose(MAP_T_SCENE) @ f.map_T_base) for f in frames]
    write_bag(tmp_path / 'slam', frames, camera, base_T_camera)
    assert main(['align', '--scene-poses', str(tmp_path / 'slam'), *command[3:]]) == 0
    np.testing.assert_allclose(printed(capsys.readouterr().out), MAP_T_SCENE, atol=1e-6)
