"""The network: every listed backbone builds, its weights travel through files, errors are clear."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from pose_reloc.errors import SettingsError, WeightsError
from pose_reloc.geometry import rotation_from_quaternion
from pose_reloc.network import (
    ImageRegressor,
    NetworkSettings,
    PoseRegressor,
    load_backbone_weights,
    most_similar,
)

# Width of the pooled features: the input of each network's own ImageNet classifier.
FEATURES = {
    'mobilenet_v2': 1280,
    'googlenet': 1024,
    'resnet18': 512,
    'mobilenet_v3_large': 960,
    'efficientnet_b0': 1280,
    'convnext_tiny': 768,
    'squeezenet1_0': 512,
}
SMALL = NetworkSettings('squeezenet1_0', hidden=16)


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    """Worker threads that wait for a busy core would take longer than these small networks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope='module')
def image():
    return torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return PoseRegressor(SMALL).eval()


@pytest.mark.parametrize('backbone', FEATURES)
def test_backbones_build_and_predict_poses(backbone, image):
    torch.manual_seed(0)
    network = PoseRegressor(NetworkSettings(backbone, hidden=32))
    # Building must not leave BatchNorm or dropout switched off.
    assert all(module.training for module in network.modules())
    network.eval()
    with torch.inference_mode():
        features = network.features(image)
        prediction = network(image)
        other = network(torch.randn(1, 3, 128, 96, generator=torch.Generator().manual_seed(1)))
    assert features.shape == (2, FEATURES[backbone])
    assert prediction.w_t_c.shape == (2, 3) and prediction.c_q_w.shape == (2, 4)
    assert other.w_t_c.shape == (1, 3)  # an upright image goes through the same network
    assert all(torch.isfinite(x).all() for x in prediction)
    # 1000 ImageNet classes are gone: the classifier's weights are not carried to the robot.
    assert not any(1000 in parameter.shape for parameter in network.parameters())


def test_features_are_those_of_the_imagenet_network(image):
    """What torchvision's own classifier would have been given, for a network with weights."""
    torch.manual_seed(0)
    reference = torchvision.models.mobilenet_v2(weights=None).eval()
    network = PoseRegressor(NetworkSettings(hidden=8)).eval()
    network.backbone.load_state_dict(reference.state_dict(), strict=False)
    seen = []
    reference.classifier[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        reference(image)
        torch.testing.assert_close(network.features(image), seen[0])


def test_the_default_head_is_the_published_one():
    network = PoseRegressor()
    layers = [layer for layer in network.head if not isinstance(layer, torch.nn.Dropout)]
    kinds = [type(layer).__name__ for layer in layers]
    assert kinds == ['ReLU', 'Linear', 'ReLU', 'Linear']
    assert [tuple(layer.weight.shape) for layer in layers[1::2]] == [(2048, 1280), (7, 2048)]


def test_dropout_acts_in_training_only(image):
    torch.manual_seed(0)
    network = PoseRegressor(NetworkSettings('squeezenet1_0', hidden=64, dropout=0.5))
    features = torch.rand(4, 512)
    one, two = network.pose(features), network.pose(features)
    assert not torch.equal(one.w_t_c, two.w_t_c)
    network.eval()
    assert torch.equal(network.pose(features).w_t_c, network.pose(features).w_t_c)


def test_6d_rotation_gives_unit_quaternions(image):
    torch.manual_seed(0)
    network = PoseRegressor(NetworkSettings('squeezenet1_0', hidden=16, rotation='6d'))
    prediction = network(image)
    assert network.head[-1].out_features == 9
    np.testing.assert_allclose(prediction.c_q_w.norm(dim=1).detach().numpy(), 1, rtol=1e-6)
    prediction.c_q_w[:, 1].sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
    R = rotation_from_quaternion(prediction.c_q_w.detach().numpy())
    raw = network.head(network.features(image)).detach().numpy()[:, 3:6]
    first = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(R[:, 0], first, atol=1e-5)  # the first row is the first 3-vector


def test_translation_is_in_units_of_the_scene(network, image):
    with torch.inference_mode():
        plain = network(image)
        network.translation_mean.copy_(torch.tensor([10.0, -20.0, 3.0]))
        network.translation_scale.fill_(4.0)
        scene = network(image)
    torch.testing.assert_close(scene.w_t_c, 4 * plain.w_t_c + torch.tensor([10.0, -20.0, 3.0]))
    torch.testing.assert_close(scene.c_q_w, plain.c_q_w)
    again = PoseRegressor(SMALL).eval()
    again.load_state_dict(network.state_dict())  # the units travel with the weights
    with torch.inference_mode():
        torch.testing.assert_close(again(image).w_t_c, scene.w_t_c)
    assert 'translation_scale' not in dict(network.named_parameters())


def test_poses_are_float32_under_autocast(network, image):
    with torch.inference_mode(), torch.autocast('cpu', dtype=torch.bfloat16):
        prediction = network(image)
    assert prediction.w_t_c.dtype == prediction.c_q_w.dtype == torch.float32


def test_an_unknown_backbone_is_answered_with_the_known_ones():
    with pytest.raises(SettingsError, match='resnet_18.*resnet18'):
        PoseRegressor(NetworkSettings('resnet_18'))


def test_a_backbone_of_one_image_size_is_refused():
    with pytest.raises(SettingsError, match='vit_b_16'):
        PoseRegressor(NetworkSettings('vit_b_16'))


@pytest.mark.parametrize(
    'settings',
    [{'rotation': 'euler'}, {'hidden': 0}, {'dropout': 1.0}, {'dropout': -0.1}],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(SettingsError):
        NetworkSettings(**settings)


def test_settings_round_trip():
    settings = NetworkSettings('resnet18', 512, 0.2, '6d')
    assert NetworkSettings(**settings.to_dict()) == settings


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_weights_file_round_trip(network, image, tmp_path, suffix):
    path = tmp_path / f'squeeze{suffix}'
    state = {key: value.contiguous() for key, value in network.backbone.state_dict().items()}
    # A file of torchvision also holds the classifier, which we have no use for.
    state['classifier.1.weight'] = torch.zeros(1000, 512, 1, 1)
    save_file(state, path) if suffix == '.safetensors' else torch.save(state, path)
    torch.manual_seed(1)
    other = PoseRegressor(SMALL).eval()
    with torch.inference_mode():
        assert not torch.allclose(other.features(image), network.features(image))
        assert load_backbone_weights(other, str(path)) == path.name
        torch.testing.assert_close(other.features(image), network.features(image))


def test_no_weights_leave_the_random_start(network):
    before = [p.clone() for p in network.backbone.parameters()]
    assert 'random' in load_backbone_weights(network, 'none')
    assert all(torch.equal(a, b) for a, b in zip(before, network.backbone.parameters()))


def test_old_files_without_batchnorm_counters_are_taken(tmp_path):
    network = PoseRegressor(NetworkSettings(hidden=8))
    state = network.backbone.state_dict()
    old = {key: value for key, value in state.items() if not key.endswith('num_batches_tracked')}
    torch.save(old, tmp_path / 'old.pth')
    load_backbone_weights(network, str(tmp_path / 'old.pth'))


def write_wrong_files(folder, network):
    state = network.backbone.state_dict()
    key = next(iter(state))
    (folder / 'text.pth').write_text('these are no weights')
    (folder / 'empty.pth').write_bytes(b'')
    (folder / 'text.safetensors').write_text('these are no weights')
    torch.save([1, 2, 3], folder / 'list.pth')
    torch.save({'state_dict': state}, folder / 'nested.pth')
    torch.save({**state, key: torch.zeros(1)}, folder / 'shape.pth')
    torch.save({**state, key: 'words'}, folder / 'strings.pth')
    torch.save({k: v for k, v in state.items() if k != key}, folder / 'missing.pth')
    torch.save(state, folder / 'cut.pth')
    with open(folder / 'cut.pth', 'r+b') as file:
        file.truncate(1000)


WRONG = ('text.pth', 'empty.pth', 'text.safetensors', 'list.pth', 'nested.pth', 'shape.pth',
         'strings.pth', 'missing.pth', 'cut.pth', 'absent.pth')  # fmt: skip


@pytest.mark.parametrize('name', WRONG)
def test_wrong_weight_files_are_named(network, tmp_path, name):
    write_wrong_files(tmp_path, network)
    before = [p.clone() for p in network.backbone.parameters()]
    with pytest.raises(WeightsError, match=name.replace('.', r'\.')):
        load_backbone_weights(network, str(tmp_path / name))
    assert all(torch.equal(a, b) for a, b in zip(before, network.backbone.parameters()))


def test_weights_of_another_backbone_are_refused(network, tmp_path):
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), tmp_path / 'other.pth')
    with pytest.raises(WeightsError, match='does not fit backbone squeezenet1_0'):
        load_backbone_weights(network, str(tmp_path / 'other.pth'))


def test_a_failed_download_names_the_choices(network, monkeypatch):
    def fail(*_, **__):
        raise OSError('no route to host')

    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', fail)
    monkeypatch.setattr('torchvision.models._api.load_state_dict_from_url', fail)
    with pytest.raises(WeightsError, match='no route to host.*FILE.*none'):
        load_backbone_weights(network, 'imagenet')


def test_the_most_similar_image_by_hand():
    train = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    images = torch.tensor([[5.0, 0, 0], [1, 1, 0], [0, 0, 2], [-1, -1, 0], [-1, -1, -9], [0, 0, 0]])
    side = np.sqrt(0.5)
    expected = [0, 1 - side, 1, 1 + side, 1 + 1 / np.sqrt(83), 0.5]
    distance, index = most_similar(images, train)
    np.testing.assert_allclose(distance, expected, atol=1e-6)
    assert index[0].tolist() == [0, 1]
    assert most_similar(torch.tensor([[0.1, 2, 0]]), train)[1].tolist() == [[1, 0]]


def test_the_ten_most_similar_images_in_order():
    angle = torch.tensor([7.0, 3, 5, 1, 0, 9, 2, 8, 4, 6, 11, 10]) / 10
    train = torch.stack([angle.cos(), angle.sin()], dim=1)
    distance, index = most_similar(torch.tensor([[3.0, 0.0]]), train)
    assert distance == 0
    assert index.tolist() == [[4, 3, 6, 1, 8, 2, 9, 0, 7, 5]]


def test_small_distances_survive_half_precision():
    """1 - cosine is 0.002, and numbers beside 1 are 0.004 apart in bfloat16."""
    rng = np.random.default_rng(0)
    train = rng.normal(size=(1, 1000)) / np.sqrt(1000)
    image = train + 0.0632 * rng.normal(size=(1, 1000)) / np.sqrt(1000)
    train /= np.linalg.norm(train)
    expected = 1 - (image @ train.T).item() / np.linalg.norm(image)
    assert 0.0018 < expected < 0.0022
    half = [torch.from_numpy(x).bfloat16() for x in (image, train)]
    assert most_similar(*half)[0].item() == pytest.approx(expected, rel=0.1)


def test_features_of_another_network_are_refused(network):
    with pytest.raises(SettingsError, match='512 features, the training images 6'):
        ImageRegressor(network, torch.zeros(2, 6), torch.zeros(6), torch.zeros(2, 7))


def test_real_imagenet_weights_tell_images_apart():
    """With the real file, features of neighbouring photographs differ less than of distant ones."""
    root = os.environ.get('POSE_RELOC_DATA')
    if not root:
        pytest.skip('POSE_RELOC_DATA is not set: no ImageNet weights and no real images here')
    cv2 = pytest.importorskip('cv2')
    network = PoseRegressor(NetworkSettings(hidden=8)).eval()
    weights = Path(root) / 'weights' / 'mobilenet_v2_imagenet_backbone.pth'
    load_backbone_weights(network, str(weights))
    folder = Path(root) / 'redkitchen' / 'seq-01'
    paths = sorted(folder.glob('*.color.jpg'))
    from pose_reloc.preprocess import normalize

    images = np.stack(
        [cv2.resize(cv2.imread(str(paths[i]))[..., ::-1], (171, 128)) for i in (0, 1, 60)]
    )
    with torch.inference_mode():
        features = torch.nn.functional.normalize(network.features(normalize(torch.tensor(images))))
    near, far = (features[0] @ features[1]).item(), (features[0] @ features[2]).item()
    assert near > 0.8 and near > far + 0.05
