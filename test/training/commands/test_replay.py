"""`pose_reloc replay`: what cannot be replayed ends with 2 and one sentence."""

import pytest

from pose_reloc import cli


@pytest.fixture
def scene_path(tiny_scene, tmp_path):
    tiny_scene.save(tmp_path / 'tiny.scene')
    return tmp_path / 'tiny.scene'


def fails(capsys, bag, scene, *options):
    """Runs the command, which must end with 2; returns its sentence."""
    assert cli.main(['replay', '--bag', str(bag), '--scene', str(scene), *options]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith('pose_reloc replay: ')
    return said


def test_no_such_bag(capsys, tmp_path, scene_path):
    assert 'no bag at' in fails(capsys, tmp_path / 'nowhere', scene_path)


def test_a_folder_that_is_no_bag(capsys, tmp_path, scene_path):
    assert 'no metadata.yaml' in fails(capsys, tmp_path, scene_path)


def test_a_bag_without_images(capsys, tmp_path, scene_path, bag_path, copy_bag):
    blind = copy_bag(bag_path, tmp_path / 'blind', drop=['/camera/image_raw/compressed'])
    assert 'holds no images; its topics are: /camera/camera_info' in fails(
        capsys, blind, scene_path
    )


def test_an_unknown_image_topic(capsys, scene_path, bag_path):
    said = fails(capsys, bag_path, scene_path, '--image-topic', '/rear')
    assert 'no images on /rear' in said and '/camera/image_raw/compressed' in said


def test_an_unknown_truth_topic(capsys, scene_path, bag_path):
    said = fails(capsys, bag_path, scene_path, '--truth-topic', '/odom')
    assert 'no poses on /odom' in said and '/ground_truth/pose' in said


def test_no_such_scene(capsys, tmp_path, bag_path):
    assert 'no scene file at' in fails(capsys, bag_path, tmp_path / 'nowhere.scene')


def test_a_truncated_scene(capsys, scene_path, bag_path):
    scene_path.write_bytes(scene_path.read_bytes()[:-1000])
    assert str(scene_path) in fails(capsys, bag_path, scene_path)


@pytest.mark.parametrize('rate', ['0', '-1', 'nan'])
def test_an_impossible_rate(capsys, scene_path, bag_path, rate):
    assert '--rate must be positive' in fails(capsys, bag_path, scene_path, f'--rate={rate}')


def test_an_impossible_node_name(capsys, scene_path, bag_path):
    pytest.importorskip('rclpy', reason='needs rclpy')
    assert 'no node can be named' in fails(capsys, bag_path, scene_path, '--node', 'my node')


@pytest.mark.parametrize('option', ['--rate=2', '--node=x', '--domain-id=3'])
def test_options_of_the_other_mode(capsys, scene_path, bag_path, option):
    said = fails(capsys, bag_path, scene_path, '--offline', option)
    assert f'{option.split("=")[0]} is for --live' in said


def test_images_without_a_bag_to_put_them_in(capsys, scene_path, bag_path):
    assert 'needs --result-bag' in fails(capsys, bag_path, scene_path, '--result-images')


def test_a_truth_file_that_is_missing_or_no_trajectory(capsys, scene_path, bag_path, tmp_path):
    missing = tmp_path / 'nowhere.txt'
    assert 'nowhere.txt' in fails(capsys, bag_path, scene_path, '--truth-tum', str(missing))
    missing.write_text('1.0 2 3\n')
    assert 'line 1' in fails(capsys, bag_path, scene_path, '--truth-tum', str(missing))
