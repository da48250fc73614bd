"""Tables of poses: both conventions of the quaternion, scenes, and bad rows."""

import numpy as np
import pytest

from pose_reloc.errors import DatasetError
from training.datasets import open_dataset

HEADER = 'scene,split,seq,img_path,t1,t2,t3,q1,q2,q3,q4'


def write(path, world, camera_to_world=False, seven_scenes_names=False, scene='lab'):
    lines = [HEADER]
    for i, T in enumerate(world.world_T_camera):
        name = f'seq-01/frame-{i:06d}.color.png' if seven_scenes_names else f'walk/{i}.png'
        world.write_image(path / name, i)
        q = world.c_q_w[i] * ((1, -1, -1, -1) if camera_to_world else 1)
        numbers = ','.join(f'{x:.12f}' for x in [*T[:3, 3], *q])
        lines.append(f'{scene},{"test" if i > 6 else "train"},walk,{name},{numbers}')
    (path / 'poses.csv').write_text('\n'.join(lines) + '\n')
    (path / 'K.txt').write_text('60 0 31.5\n0 60 23.5\n0 0 1\n')
    return path / 'poses.csv'


@pytest.mark.parametrize(
    'camera_to_world, names, options',
    [
        (False, False, {}),
        (True, True, {}),  # tables of 7-Scenes in circulation rotate the camera into the world
        (True, False, {'rotation': 'camera_to_world'}),
        (False, True, {'rotation': 'world_to_camera'}),
    ],
)
def test_poses_come_back(tmp_path, world, camera_to_world, names, options):
    file = write(tmp_path, world, camera_to_world, names)
    for path in (file, tmp_path):
        dataset = open_dataset('csv', path, **options)
        assert (dataset.name, len(dataset.train), len(dataset.test)) == ('lab', 7, 3)
        for i, sample in enumerate([*dataset.train, *dataset.test]):
            np.testing.assert_allclose(sample.world_T_camera, world.world_T_camera[i], atol=1e-9)
            assert sample.load_image().shape == (48, 64, 3)
            assert (sample.camera.fx, sample.camera.cx, sample.sequence) == (60, 31.5, 'walk')
        said = [text for text in dataset.warnings if 'option rotation' in text]
        assert len(said) == (0 if options else 1)


def test_images_that_were_converted_are_found(tmp_path, world):
    file = write(tmp_path, world)
    file.write_text(file.read_text().replace('.png', '.jpg'))
    assert open_dataset('csv', tmp_path).train[0].image_path.name == '0.png'


def test_images_below_another_folder_and_several_scenes(tmp_path, world):
    (tmp_path / 'a').mkdir()
    file = write(tmp_path / 'a', world)
    moved = tmp_path / 'tables'
    moved.mkdir()
    text = file.read_text()
    (moved / 'poses.csv').write_text(text + text.split('\n')[1].replace('lab', 'hall') + '\n')
    with pytest.raises(DatasetError, match=r'2 scenes \(hall, lab\)'):
        open_dataset('csv', moved)
    with pytest.raises(DatasetError, match='put K.txt'):
        open_dataset('csv', moved, scene='lab', images='../a')
    options = {'images': '../a', 'intrinsics': '60,60,31.5,23.5'}
    assert len(open_dataset('csv', moved, scene='lab', **options).train) == 7
    assert len(open_dataset('csv', moved, scene='hall', **options).train) == 1
    with pytest.raises(DatasetError, match="no rows of the scene 'attic'"):
        open_dataset('csv', moved, scene='attic', **options)


def test_recordings_need_no_name(tmp_path, world):
    file = write(tmp_path, world)
    file.write_text(file.read_text().replace(',walk,', ',,'))
    assert {sample.sequence for sample in open_dataset('csv', tmp_path).train} == {''}


def test_intrinsics_for_images_of_another_size_are_doubted(tmp_path, world):
    write(tmp_path, world)
    assert not any('principal point' in text for text in open_dataset('csv', tmp_path).warnings)
    (tmp_path / 'K.txt').write_text('600 0 319.5\n0 600 239.5\n0 0 1\n')
    doubt = 'principal point (319.5, 239.5) is far from the centre of the 64x48 images'
    assert any(doubt in text for text in open_dataset('csv', tmp_path).warnings)
    dataset = open_dataset('csv', tmp_path, intrinsics='60,60,31.5,40')
    assert any('(31.5, 40)' in text for text in dataset.warnings)


@pytest.mark.parametrize(
    'new, message',
    [
        ('lab,train,walk,walk/0.png,1,2', r'poses\.csv, line 3: expected 11 columns, got 6'),
        ('lab,val,walk,walk/0.png,1,2,3,1,0,0,0', 'line 3: the split must be train or test'),
        ('lab,train,walk,walk/0.png,nan,2,3,1,0,0,0', 'line 3: a number is NaN'),
        ('lab,train,walk,walk/0.png,inf,2,3,1,0,0,0', 'line 3: a number is NaN or infinite'),
        ('lab,train,walk,walk/0.png,,2,3,1,0,0,0', 'line 3: expected numbers'),
        ('lab,train,walk,walk/0.png,1,2,3,0,0,0,0', 'line 3: the quaternion has length 0'),
        ('lab,train,walk,../0.png,1,2,3,1,0,0,0', 'line 3: .*inside the folder'),
        ('lab,train,walk,/etc/passwd,1,2,3,1,0,0,0', 'line 3: .*inside the folder'),
        ('lab,train,walk,walk/99.png,1,2,3,1,0,0,0', 'line 3: the image .* is missing'),
        ('lab,train,walk,,1,2,3,1,0,0,0', 'line 3: .*inside the folder'),
        ('lab,train,../../x,walk/0.png,1,2,3,1,0,0,0', 'line 3, column seq: .*inside the folder'),
        ('lab,train,/etc,walk/0.png,1,2,3,1,0,0,0', 'line 3, column seq: .*inside the folder'),
    ],
)
def test_bad_rows_are_named(tmp_path, world, new, message):
    file = write(tmp_path, world)
    lines = file.read_text().split('\n')
    lines[2] = new
    file.write_text('\n'.join(lines))
    with pytest.raises(DatasetError, match=message):
        open_dataset('csv', tmp_path)


def test_wrong_tables(tmp_path, world):
    with pytest.raises(DatasetError, match='no .csv file'):
        open_dataset('csv', tmp_path)
    (tmp_path / 'poses.csv').write_text('image,x,y\n')
    with pytest.raises(DatasetError, match='line 1: the header lacks scene'):
        open_dataset('csv', tmp_path)
    (tmp_path / 'poses.csv').write_text(f'{HEADER},t1\n')
    with pytest.raises(DatasetError, match='line 1: the column t1 is there twice'):
        open_dataset('csv', tmp_path)
    (tmp_path / 'poses.csv').write_text('')
    with pytest.raises(DatasetError, match='the header lacks'):
        open_dataset('csv', tmp_path)
    (tmp_path / 'poses.csv').write_text(HEADER + '\n')
    with pytest.raises(DatasetError, match='has no rows'):
        open_dataset('csv', tmp_path)
    with pytest.raises(DatasetError, match='rotation must be one of'):
        open_dataset('csv', tmp_path, rotation='wxyz')
