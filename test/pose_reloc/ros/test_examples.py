"""Launch files, RViz and examples name topics and parameters that exist."""

import re
from dataclasses import fields
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from pose_reloc.ros.parameters import NodeSettings

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ROOT / 'config'
SETTINGS = {item.name for item in fields(NodeSettings)}
SHOWN = [
    path
    for folder in ('config', 'docs', 'launch')
    for path in sorted((ROOT / folder).rglob('*'))
    if path.is_file() and path.suffix in ('.md', '.py', '.yaml', '.rviz')
]


@pytest.fixture
def topics(make_system, make_fake):
    """The names below /pose_reloc/ of a running node."""
    node = make_system(make_fake([], None)).node
    names = [name for name, _ in node.get_topic_names_and_types()]
    names += [name for name, _ in node.get_service_names_and_types()]
    return {name.removeprefix('/pose_reloc/') for name in names if name.startswith('/pose_reloc/')}


def test_every_topic_that_is_named_exists(topics):
    named = {
        (path.name, name)
        for path in SHOWN
        for name in re.findall(r'(?:(?<![\w/])/pose_reloc/|~/)(\w+)', path.read_text())
    }
    assert ('reloc.rviz', 'debug_image') in named and ('reloc.rviz', 'trigger') in named
    unknown = {(file, name) for file, name in named if name not in topics}
    assert not unknown


def test_the_rights_for_sros_2_are_those_the_node_uses(make_system, make_fake):
    """Every name that the graph knows of an active node stands in docs/integration.md."""
    system = make_system(make_fake([], None), tf_mode='map_to_odom')
    assert system.node.start()
    client, name = system.client, system.node.get_name()

    def names(kind):
        found = getattr(client, f'get_{kind}_names_and_types_by_node')(name, '/')
        return {name for name, _ in found}

    text = (ROOT / 'docs' / 'integration.md').read_text().split('SROS 2')[1].split('\n## ')[0]
    rows = dict(re.findall(r'^\| (publish|subscribe|reply to) \| (.*) \|$', text, re.MULTILINE))
    for kind, row in (
        ('publisher', 'publish'),
        ('subscriber', 'subscribe'),
        ('service', 'reply to'),
    ):
        used = {used.removeprefix('/pose_reloc/') for used in names(kind)}
        # Said in words: the parameter services, and topics that are remapped as a rule.
        used -= {n for n in used if 'parameter' in n and kind == 'service'}
        used -= {'/image', '/camera_info', 'get_type_description'}
        unsaid = {n for n in used if f'{n}`' not in rows[row]}
        assert not unsaid, (row, unsaid)


def test_the_settings_of_nav2_are_settings_of_the_node():
    example = yaml.safe_load((CONFIG / 'examples' / 'nav2.yaml').read_text())
    given = example['pose_reloc']['ros__parameters']
    NodeSettings(**given)
    assert (
        'pose_reloc' in example['lifecycle_manager_localization']['ros__parameters']['node_names']
    )
    assert not given['autostart'], 'or two would manage it'


def test_the_filter_fuses_the_pose_absolutely():
    example = yaml.safe_load((CONFIG / 'examples' / 'robot_localization_ekf.yaml').read_text())
    ekf = example['ekf_map']['ros__parameters']
    assert (ekf['pose0'], ekf['world_frame']) == ('/pose_reloc/pose', NodeSettings().map_frame)
    assert (ekf['pose0_differential'], ekf['pose0_relative']) == (False, False)
    assert len(ekf['pose0_config']) == len(ekf['odom0_config']) == 15
    # The history must reach back to the oldest image that is answered.
    assert ekf['history_length'] > NodeSettings().max_image_age


def test_launch_arguments_that_set_parameters_are_parameters():
    """And those whose empty value keeps the default state that default."""
    text = (ROOT / 'launch' / 'reloc.launch.py').read_text()
    names = re.search(r'_TEXTS = \((.*?)\).*?_SWITCHES = \((.*?)\)', text, re.DOTALL)
    given = set(re.findall(r"'(\w+)'", ' '.join(names.groups()))) - {'use_sim_time'}
    assert len(given) > 5 and given <= SETTINGS
    for name, default in re.findall(r"'(\w+)',\s+'[^)]*?Empty: as in params_file \((\w+)\)", text):
        if name in SETTINGS:
            value = getattr(NodeSettings(), name)
            assert default == (str(value).lower() if isinstance(value, bool) else value), name


def test_launch_topics_are_names_of_the_node(make_system, make_fake):
    """Each, remapped to a topic of another name or of its own, is where the node listens."""
    from pose_reloc.ros.subscription import image_topics

    text = (ROOT / 'launch' / 'reloc.launch.py').read_text()
    names = dict(re.findall(r"'(\w+)': '(.+)'", re.search(r'_TOPICS = {(.*?)}', text, re.S)[1]))
    assert set(names) == {'image', 'camera_info', 'initial_pose', 'trigger'}
    for topic in ('/calibration', '/camera_info'):
        rules = (f'{names["image"]}:=/front/image_raw', f'{names["camera_info"]}:={topic}')
        arguments = [word for rule in rules for word in ('-r', rule)]
        node = make_system(make_fake([], None), arguments=arguments).node
        assert image_topics(node, 'raw') == ('/front/image_raw', topic)


def test_rviz_and_fast_dds_files_can_be_read():
    rviz = yaml.safe_load((CONFIG / 'reloc.rviz').read_text())
    assert (
        rviz['Visualization Manager']['Global Options']['Fixed Frame'] == NodeSettings().map_frame
    )
    tree = ElementTree.parse(CONFIG / 'fastdds_large_images.xml')
    (size,) = [int(node.text) for node in tree.iter() if node.tag.endswith('segment_size')]
    assert size == 32 * 2**20
