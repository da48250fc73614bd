"""The parameters: one source for declaration, validation, reloc.yaml and the documentation."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.spatial.transform import Rotation

from pose_reloc.errors import SettingsError
from pose_reloc.gates import GateSettings
from pose_reloc.geometry import pose_matrix
from pose_reloc.ros import parameters
from pose_reloc.ros.parameters import NodeSettings, transform_from_text, transform_text

ROOT = Path(__file__).resolve().parents[3]
DEFAULTS = {item.name: item.default for item in fields(NodeSettings)}
RANGED = [item for item in fields(NodeSettings) if item.metadata['low'] is not None]
CHOOSING = [item.name for item in fields(NodeSettings) if item.metadata['choices']]


@pytest.mark.parametrize(
    ('path', 'text'),
    [('config/reloc.yaml', parameters.yaml_text), ('docs/parameters.md', parameters.markdown_text)],
)
def test_generated_files_are_up_to_date(path, text):
    assert (ROOT / path).read_text() == text(), 'run `python -m pose_reloc.ros.parameters`'


def test_reloc_yaml_holds_every_parameter_at_its_default():
    loaded = yaml.safe_load((ROOT / 'config' / 'reloc.yaml').read_text())
    assert loaded == {'/**': {'ros__parameters': DEFAULTS}}
    types = {name: type(value) for name, value in loaded['/**']['ros__parameters'].items()}
    assert types == {name: type(value) for name, value in DEFAULTS.items()}


def test_every_parameter_is_described():
    for item in fields(NodeSettings):
        assert item.metadata['description'].endswith('.'), item.name


def test_the_gates_of_the_relocalizer_are_parameters():
    assert NodeSettings().gates == GateSettings()
    changed = NodeSettings(
        min_inliers=30, min_brightness=1.0, min_contrast=2.0, min_sharpness=0.1,
        max_disagreement=0.25, max_distance=4.0, max_sigma=5.0, max_prior_distance=6.0,
    )  # fmt: skip
    assert changed.gates == GateSettings(
        min_inliers=30, min_brightness=1.0, min_contrast=2.0, min_sharpness=0.1,
        max_disagreement_rad=0.25, max_distance_m=4.0, max_sigma_m=5.0, max_prior_distance=6.0,
    )  # fmt: skip


@pytest.mark.parametrize('item', RANGED, ids=lambda item: item.name)
def test_ranges(item):
    low, high = item.metadata['low'], item.metadata['high']
    kind = type(item.default)
    for value in (low, high):
        assert getattr(NodeSettings(**{item.name: kind(value)}), item.name) == value
    bad = [kind(low - 1), kind(high + 1)]
    bad += [float('nan'), float('inf')] if kind is float else []
    for value in bad:
        with pytest.raises(SettingsError, match=f"'{item.name}'.*{low}, {high}"):
            NodeSettings(**{item.name: value})


@pytest.mark.parametrize('name', CHOOSING)
def test_choices(name):
    with pytest.raises(SettingsError, match=f"'{name}' must be one of .*got 'nonsense'"):
        NodeSettings(**{name: 'nonsense'})


@pytest.mark.parametrize(
    ('name', 'value', 'word'),
    [
        ('scene', 7, 'a string'),
        ('rectified', 'true', 'true or false'),
        ('queue_depth', True, 'whole number'),
        ('queue_depth', 5.0, 'whole number'),
        ('tf_rate', 10, 'decimal point'),
    ],
)
def test_types(name, value, word):
    with pytest.raises(SettingsError, match=f"'{name}' must be .*{word}"):
        NodeSettings(**{name: value})


@pytest.mark.parametrize(
    ('values', 'word'),
    [
        ({'map_frame': ''}, 'map_frame'),
        ({'tf_mode': 'map_to_odom', 'base_frame': ''}, 'base_frame'),
        ({'tf_mode': 'map_to_odom', 'odom_frame': ''}, 'odom_frame'),
        ({'tf_mode': 'map_to_odom', 'odom_frame': 'map'}, 'odom_frame'),
        ({'tf_mode': 'map_to_base', 'base_frame': 'map'}, 'base_frame'),
        ({'tf_mode': 'map_to_base', 'base_frame': ''}, 'base_frame'),
        ({'tf_mode': 'separate', 'reloc_frame': 'map'}, 'reloc_frame'),
        ({'tf_mode': 'separate', 'reloc_frame': ''}, 'reloc_frame'),
    ],
)
def test_frames_that_cannot_work_together(values, word):
    with pytest.raises(SettingsError, match=word):
        NodeSettings(**values)


def test_frames_lose_a_leading_slash_as_on_tf():
    names = [item.name for item in fields(NodeSettings) if item.name.endswith('_frame')]
    assert len(names) == 5
    settings = NodeSettings(**{name: f'/{name}' for name in names})
    assert [getattr(settings, name) for name in names] == names
    with pytest.raises(SettingsError, match="publish the transform 'map' -> 'map'"):
        NodeSettings(map_frame='/map', reloc_frame='map')
    # To set what is set already is no change.
    assert parameters.change(settings, {'map_frame': '/map_frame'}, active=True) == settings


def test_map_T_scene_is_a_text_that_goes_there_and_back():
    a_T_b = pose_matrix(Rotation.random(random_state=1).as_matrix(), [1e3, -2.5, 1e-3])
    np.testing.assert_allclose(transform_from_text(transform_text(a_T_b)), a_T_b, atol=2e-9)
    # A quarter turn about z, as static_transform_publisher takes it; commas do no harm.
    found = transform_from_text('1, 2, 3, 0, 0, 0.70710678, 0.70710678')
    np.testing.assert_allclose(
        found, [[0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]], atol=1e-7
    )


@pytest.mark.parametrize(
    'text', ['1 2 3', '1 2 3 0 0 0 0', '1 2 3 0 0 0 one', 'nan 2 3 0 0 0 1', '1 2 3 0 0 0 5', 'x']
)
def test_a_map_T_scene_that_is_no_transform(text):
    with pytest.raises(SettingsError, match="'map_T_scene' must be x y z qx qy qz qw"):
        NodeSettings(map_T_scene=text)


def test_the_camera_itself_may_be_the_base():
    assert NodeSettings(base_frame='', tf_mode='separate').base_frame == ''


def test_the_node_declares_and_guards_them(make_system, make_fake):
    from rclpy.parameter import Parameter

    given = {name: DEFAULTS[name] for name in ('tf_timeout', 'reliability')}
    node = make_system(make_fake([], None), **given).node
    assert {name: node.get_parameter(name).value for name in DEFAULTS} == DEFAULTS
    for item in fields(NodeSettings):
        description = node.describe_parameter(item.name).description
        assert description == item.metadata['description']
    for item in RANGED:
        value = type(item.default)(item.metadata['high'] + 1)
        assert not node.set_parameters([Parameter(item.name, value=value)])[0].successful
    for name, value in (('tf_mode', 'sideways'), ('map_T_scene', '1 2 3'), ('map_frame', '')):
        result = node.set_parameters([Parameter(name, value=value)])[0]
        assert not result.successful and name in result.reason, 'though the node is not active'
    # Rules among several are for configure: they can only be set one after the other.
    assert node.set_parameters([Parameter('map_frame', value='base_link_reloc')])[0].successful
    # What has been acted on when the process starts cannot be taken back.
    assert not node.set_parameters([Parameter('autostart', value=False)])[0].successful


@pytest.mark.parametrize(
    ('name', 'value'), [('tf_rate', 'fast'), ('queue_depth', 0), ('max_image_age', -1.0)]
)
def test_a_bad_value_at_start_names_the_parameter(make_system, make_fake, name, value):
    with pytest.raises(SettingsError, match=f"'{name}'"):
        make_system(make_fake([], None), **{name: value})


def test_a_value_that_cannot_work_is_told_at_configure(make_system, make_fake):
    system = make_system(make_fake([], None), tf_mode='sideways')
    assert not system.node.start()
