"""The converted network: kept under names that cannot lie, and complete for other programs."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from pose_reloc import export
from pose_reloc.backends import open_backend
from pose_reloc.cli import main
from pose_reloc.errors import SettingsError
from pose_reloc.export import NetworkSource, cache_folder, write_openvino

pytest.importorskip('onnx')


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache that no other test has filled."""
    folder = tmp_path / 'cache'
    monkeypatch.setenv('POSE_RELOC_CACHE', str(folder))
    return folder


@pytest.fixture
def conversions(monkeypatch):
    """A list with an entry for every conversion."""
    done, convert = [], NetworkSource._convert

    def counted(source):
        done.append(source.key)
        return convert(source)

    monkeypatch.setattr(NetworkSource, '_convert', counted)
    return done


def test_a_network_is_converted_once(tiny_scene, cache, conversions):
    first = NetworkSource(tiny_scene).onnx()
    assert NetworkSource(tiny_scene).onnx() == first and len(conversions) == 1
    (path,) = cache.iterdir()
    assert path.read_bytes() == first


def test_another_network_or_size_is_another_file(tiny_scene, cache, conversions):
    NetworkSource(tiny_scene).onnx()
    NetworkSource(tiny_scene, batch=2).onnx()
    tiny_scene.weights['head.5.bias'][0] += 1e-6
    NetworkSource(tiny_scene).onnx()
    tiny_scene.train_features[0, 0] += 0.1
    NetworkSource(tiny_scene).onnx()
    tiny_scene.feature_mean[0] += 0.1
    NetworkSource(tiny_scene).onnx()
    assert len(set(conversions)) == 5 and len(list(cache.iterdir())) == 5


@pytest.mark.parametrize('damage', ['cut', 'flipped', 'empty', 'foreign'])
def test_a_damaged_file_is_converted_again(tiny_scene, cache, conversions, damage):
    first = NetworkSource(tiny_scene).onnx()
    (path,) = cache.iterdir()
    middle = len(first) // 2
    path.write_bytes(
        {
            'cut': first[:middle],
            'flipped': first[:middle] + bytes([first[middle] ^ 1]) + first[middle + 1 :],
            'empty': b'',
            'foreign': b'another network',
        }[damage]
    )
    assert NetworkSource(tiny_scene).onnx() == first and len(conversions) == 2
    assert [p.read_bytes() for p in cache.iterdir()] == [first]


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv('POSE_RELOC_CACHE', str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv('POSE_RELOC_CACHE', '')
    monkeypatch.setenv('HOME', str(tmp_path / 'someone'))
    assert cache_folder() == tmp_path / 'someone' / '.cache' / 'pose_reloc'


@pytest.mark.parametrize('owner', ['me', 'nobody yet', 'another', 'a link of another'])
def test_without_a_home_the_cache_is_a_temporary_folder_of_the_user(
    tiny_scene, monkeypatch, tmp_path, owner
):
    monkeypatch.delenv('POSE_RELOC_CACHE')
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))

    def homeless(path):
        raise RuntimeError('Could not determine home directory.')

    monkeypatch.setattr(Path, 'expanduser', homeless)
    folder = tmp_path / f'pose_reloc-{os.getuid()}'
    if owner == 'a link of another':
        folder.symlink_to(tmp_path)
    elif owner != 'nobody yet':
        folder.mkdir()
    if 'another' in owner:
        monkeypatch.setattr(os, 'getuid', lambda real=os.getuid(): real + 1)
        folder.rename(folder.with_name(f'pose_reloc-{os.getuid()}'))
        assert NetworkSource(tiny_scene).onnx()  # converted, and not kept
        assert not cache_folder().exists() and len(list(tmp_path.rglob('*'))) == 1
    else:
        assert cache_folder() == folder
        if owner == 'nobody yet':
            assert folder.stat().st_mode & 0o777 == 0o700


def test_without_the_packages_they_are_named(tiny_scene, tmp_path, monkeypatch):
    monkeypatch.setattr(export, 'find_spec', lambda _: None)
    with pytest.raises(SettingsError, match='onnx must be installed first: pip install onnx'):
        NetworkSource(tiny_scene).onnx()
    with pytest.raises(SettingsError, match='openvino and onnx .*pip install openvino onnx'):
        write_openvino(tiny_scene, tmp_path / 'network.xml')


def test_the_onnx_file_is_all_another_program_needs(tiny_scene, tmp_path, capsys):
    onnxruntime = pytest.importorskip('onnxruntime')
    tiny_scene.save(tmp_path / 'tiny.scene')
    out = tmp_path / 'tiny.onnx'
    assert main(['export', '--scene', str(tmp_path / 'tiny.scene'), '--out', str(out)]) == 0
    session = onnxruntime.InferenceSession(str(out), providers=['CPUExecutionProvider'])
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape) == ('image', 'tensor(uint8)', [1, 60, 80, 3])
    image = np.random.default_rng(0).integers(0, 256, given.shape, dtype=np.uint8)
    truth = open_backend(tiny_scene, 'cpu', 'float32', 'torch')(image)
    for name, expected in truth._asdict().items():
        (found,) = session.run([name], {'image': image})
        np.testing.assert_allclose(found, expected, atol=1e-4)
    notes = session.get_modelmeta().custom_metadata_map
    assert set(notes) == {'scene', 'image', *truth._fields, 'covariance'}
    assert notes['scene'] == 'tiny' and 'fx 65,' in notes['image']
    printed = capsys.readouterr().out
    assert all(text in printed for text in notes.values())


def test_the_openvino_file_answers_alike(tiny_scene, tmp_path):
    openvino = pytest.importorskip('openvino')
    tiny_scene.save(tmp_path / 'tiny.scene')
    export_it = ['export', '--scene', str(tmp_path / 'tiny.scene'), '--format', 'openvino', '--out']
    assert main([*export_it, str(tmp_path / 'tiny.xml')]) == 0
    compiled = openvino.Core().compile_model(
        tmp_path / 'tiny.xml', 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'}
    )
    image = np.random.default_rng(0).integers(0, 256, (1, 60, 80, 3), dtype=np.uint8)
    truth = open_backend(tiny_scene, 'cpu', 'float32', 'torch')(image)
    np.testing.assert_allclose(compiled({'image': image})['w_t_c'], truth.w_t_c, atol=1e-4)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--out', '{}/none/tiny.onnx'], 'cannot write'),
        (['--out', '{}/tiny.onnx', '--batch', '0'], 'at least one image'),
        (['--out', '{}/tiny.bin', '--format', 'openvino'], 'ends in .xml'),
        (['--out', '{}/none/tiny.xml', '--format', 'openvino'], 'no such folder'),
    ],
)
def test_what_cannot_be_written_is_one_sentence(tiny_scene, tmp_path, capsys, options, message):
    if 'openvino' in options:
        pytest.importorskip('openvino')
    tiny_scene.save(tmp_path / 'tiny.scene')
    options = [option.format(tmp_path) for option in options]
    assert main(['export', '--scene', str(tmp_path / 'tiny.scene'), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1
