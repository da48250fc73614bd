"""Engines that run a scene's network: they agree, and the fastest is chosen by measurement."""

import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from pose_reloc import backends
from pose_reloc.backends import BACKENDS, PRECISIONS, Backend, choose_device, open_backend
from pose_reloc.errors import DeviceError, SceneError, SettingsError
from pose_reloc.export import NetworkSource
from pose_reloc.geometry import network_from_pose, pose_from_network, pose_residual
from pose_reloc.network import NetworkSettings, PoseRegressor
from pose_reloc.relocalizer import Relocalizer

CPU = torch.device('cpu')
GPU = torch.cuda.is_available()
# Compiling takes a minute, building an engine minutes.
QUICK = [name for name, kind in BACKENDS.items() if kind.quick]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache that no other test has filled."""
    folder = tmp_path / 'cache'
    monkeypatch.setenv('POSE_RELOC_CACHE', str(folder))
    return folder


@pytest.fixture(scope='module')
def lively():
    """A network that answers different images differently, as a trained one does."""
    torch.manual_seed(0)
    network = PoseRegressor(NetworkSettings(hidden=64)).train()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0  # takes the statistics of these images
    with torch.no_grad():
        network(2 * torch.randn(16, 3, 60, 80))
        network.head[-1].weight.mul_(5)
    return network.eval()


@pytest.fixture
def scene(lively, tiny_scene):
    """A scene with the lively network."""
    header = replace(tiny_scene.header, network=lively.settings.to_dict())
    weights = {n: t.numpy().copy() for n, t in lively.state_dict().items()}
    return replace(tiny_scene, header=header, weights=weights)


def far_away(scene):
    """The same scene far from the origin, where half precision would lose metres."""
    far = np.array([1000.0, -2000.0, 30.0], dtype=np.float32)
    return replace(scene, weights=scene.weights | {'translation_mean': far})


@pytest.fixture
def image(scene):
    camera = scene.header.network_camera
    shape = (1, camera.height, camera.width, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def published(scene, image_BHW3):
    """The network as its paper runs it: floats in [0, 1], torchvision's constants, NCHW."""
    x = torch.from_numpy(image_BHW3).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    network = scene.build_network()
    with torch.inference_mode():
        features = network.features((x - mean.view(3, 1, 1)) / std.view(3, 1, 1))
        w_t_c, c_q_w = network.pose(features)
    own = features.double().numpy() - scene.feature_mean
    cosines = own @ scene.train_features.T / np.linalg.norm(own)
    best_first = np.argsort(-cosines[0])
    similar = scene.train_world_T_camera[scene.train_frames[best_first]]
    similar = np.concatenate(network_from_pose(similar), axis=1)[None]
    return w_t_c.numpy(), c_q_w.numpy(), 1 - cosines.max(1)[:, None], similar


def open_or_skip(scene, device, precision, name, **options):
    problem = backends.obstacle(name, torch.device(device), precision)
    if problem:
        pytest.skip(f'{name} {problem}')
    return open_backend(scene, device, precision, name, **options)


def difference(found, truth):
    """Metres and degrees between the poses of two answers of a network, at most."""
    poses = [pose_from_network(x[0].astype(float), x[1].astype(float)) for x in (found, truth)]
    residual = np.abs(pose_residual(*poses))
    return residual[:, :3].max(), np.rad2deg(residual[:, 3:].max())


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(
    not GPU, reason='there is no GPU'))])  # fmt: skip
@pytest.mark.parametrize('name', QUICK)
def test_every_backend_answers_what_the_published_network_does(scene, image, name, device):
    backend = open_or_skip(scene, device, 'float32', name)
    truth, other = published(scene, image), published(scene, image[:, ::-1].copy())
    metres, degrees = difference(other, truth)
    assert metres > 0.01 and degrees > 0.1  # the network looks at its image
    for _ in range(2):  # what a call leaves behind must not change the answer to the next
        found = backend(image)
        backend(255 - image)
        assert [x.dtype for x in found] == [np.float32] * 4
        assert [x.shape for x in found] == [(1, 3), (1, 4), (1, 1), (1, 4, 7)]
        metres, degrees = difference(found, truth)
        assert metres < 1e-4 and degrees < 1e-3
        np.testing.assert_allclose(found.distance, truth[2], atol=1e-5)
        np.testing.assert_allclose(found.similar, truth[3], atol=1e-6)


@pytest.mark.parametrize(
    ('name', 'where'), [*((n, 'translation_mean') for n in QUICK), ('torch', 'head.5.bias')]
)
def test_half_precision_leaves_the_units_of_the_scene_exact(scene, image, name, where):
    # Far from the origin: bfloat16 resolves 1000 m to 4 m. Without normalised translations it is
    # the network itself that says how far.
    far = scene.weights[where].copy()
    far[:3] += np.array([1003.0, -2001.0, 30.0], dtype=np.float32)
    scene = replace(scene, weights=scene.weights | {where: far})
    backend = open_or_skip(scene, 'cpu', 'bfloat16', name)
    metres, degrees = difference(backend(image), published(scene, image))
    assert 1e-4 < metres < 0.5 and degrees < 20


def test_half_precision_leaves_statistics_and_the_last_layer_exact(scene):
    network = scene.build_network()
    exact = [x for x in network.modules() if isinstance(x, torch.nn.BatchNorm2d)]
    exact.append(network.head[-1])
    before = [{n: t.clone() for n, t in layer.state_dict().items()} for layer in exact]
    backends._lower(network, torch.bfloat16)
    assert network.head[2].weight.dtype == network.backbone.features[0][0].weight.dtype
    assert network.head[2].weight.dtype == torch.bfloat16
    for layer, state in zip(exact, before, strict=True):
        for name, tensor in layer.state_dict().items():
            assert tensor.dtype == state[name].dtype and torch.equal(tensor, state[name])


def test_batches_are_answered_one_by_one(scene, image):
    images = np.concatenate([image, 255 - image, image[:, ::-1]])
    truth = [np.concatenate(x) for x in zip(*(published(scene, x[None]) for x in images))]
    for name in ('torch', 'onnxruntime', 'openvino'):
        if not backends.obstacle(name, CPU, 'float32'):
            found = open_backend(scene, 'cpu', 'float32', name, batch=3)(images)
            assert difference(found, truth)[0] < 1e-4
            np.testing.assert_allclose(found.distance, truth[2], atol=1e-5)
            np.testing.assert_allclose(found.similar, truth[3], atol=1e-6)
        np.testing.assert_allclose(found.similar, truth[3], atol=1e-6)


def test_the_6d_rotation_and_other_backbones_are_exported_too(image, tiny_scene):
    pytest.importorskip('onnx')
    settings = NetworkSettings('squeezenet1_0', hidden=8, rotation='6d')
    torch.manual_seed(0)
    weights = {n: t.numpy() for n, t in PoseRegressor(settings).state_dict().items()}
    header = replace(tiny_scene.header, network=settings.to_dict())
    names = 'start_features', 'train_features', 'feature_mean'
    narrow = {name: getattr(tiny_scene, name)[..., :512] for name in names}
    scene = replace(tiny_scene, header=header, weights=weights, **narrow)
    for name in ('onnxruntime', 'openvino'):
        found = open_or_skip(scene, 'cpu', 'float32', name)(image)
        metres, degrees = difference(found, published(scene, image))
        assert metres < 1e-4 and degrees < 1e-3


def test_the_compiled_network_is_the_network(scene, image, monkeypatch):
    # Compiling itself takes minutes here; what is handed over and what fails is ours.
    monkeypatch.setattr(torch, 'compile', lambda module, mode: module)
    found = open_backend(scene, 'cpu', 'float32', 'compile')(image)
    assert difference(found, published(scene, image))[0] < 1e-4

    def fail(*_):
        raise RuntimeError('no compiler\nand more')

    monkeypatch.setattr(torch, 'compile', lambda module, mode: fail)
    with pytest.raises(SettingsError, match='torch.compile does not work here: no compiler$'):
        open_backend(scene, 'cpu', 'float32', 'compile')


class Fake(Backend):
    """Takes as many seconds as `speed` says, by a clock of its own."""

    now, opened, speed = 0.0, [], {}

    def __init__(self, source, device, precision):
        super().__init__(source, device, precision)
        Fake.opened.append(self.name)
        if self.speed[self.name] is None:
            raise RuntimeError('broken\nin detail')

    def __call__(self, image_BHW3):
        Fake.now += self.speed[self.name]


@pytest.fixture
def fakes(monkeypatch):
    """fakes(torch=0.02, quick=0.01) are then the only backends; None is one that fails."""

    def install(**speed):
        Fake.now, Fake.opened, Fake.speed = 0.0, [], speed
        kinds = {name: type(name, (Fake,), {'name': name}) for name in speed}
        monkeypatch.setattr(backends, 'BACKENDS', kinds)
        monkeypatch.setattr(backends.time, 'perf_counter', lambda: Fake.now)
        return Fake.opened

    return install


def test_auto_takes_the_fastest_and_says_so(tiny_scene, fakes, cache):
    opened = fakes(torch=0.02, quick=0.01, slow=0.03)
    chosen = open_backend(tiny_scene, 'cpu')
    assert chosen.name == 'quick' and opened == ['torch', 'quick', 'slow']
    assert str(chosen) == (
        'quick, float32 on cpu (fastest of quick 10.0 ms, torch 20.0 ms, slow 30.0 ms)'
    )


def test_auto_measures_once_for_a_scene_and_a_machine(tiny_scene, fakes, cache):
    opened = fakes(torch=0.02, quick=0.01)
    first = open_backend(tiny_scene, 'cpu')
    del opened[:]
    again = open_backend(tiny_scene, 'cpu')
    assert opened == ['quick'] and str(again) == str(first)
    del opened[:]
    tiny_scene.weights['head.5.bias'][0] += 1.0  # another scene
    open_backend(tiny_scene, 'cpu')
    assert opened == ['torch', 'quick']
    del opened[:]
    open_backend(tiny_scene, 'cpu', 'bfloat16')
    assert opened == ['torch', 'quick']


@pytest.mark.parametrize(
    'text', ['', '[]', '{"gone": 0.1}', '{"torch": "fast"}', '{"torch": null}', '\udcff']
)
def test_a_damaged_choice_is_measured_again(tiny_scene, fakes, cache, text):
    opened = fakes(torch=0.02, quick=0.01)
    open_backend(tiny_scene, 'cpu')
    (path,) = cache.glob('choice-*')
    path.write_bytes(text.encode('utf-8', 'surrogateescape'))
    del opened[:]
    assert open_backend(tiny_scene, 'cpu').name == 'quick'
    assert opened == ['torch', 'quick'] and set(json.loads(path.read_text())) == set(opened)


def test_auto_passes_over_what_is_broken(tiny_scene, fakes, cache):
    opened = fakes(torch=0.02, quick=None)
    chosen = open_backend(tiny_scene, 'cpu')
    assert chosen.name == 'torch' and 'quick does not work here: broken)' in str(chosen)
    # Broken since it was chosen.
    fakes(torch=0.02, other=0.01)
    open_backend(tiny_scene, 'cpu')
    opened = fakes(torch=0.02, other=None)
    assert open_backend(tiny_scene, 'cpu').name == 'torch'
    assert opened == ['other', 'torch', 'other']


def test_auto_measures_for_about_a_second(tiny_scene, fakes, cache):
    fakes(torch=0.5, quick=0.4)
    open_backend(tiny_scene, 'cpu')
    assert Fake.now < 3  # a warm-up and two calls of each


def test_without_a_writable_cache_everything_still_works(scene, image, monkeypatch, tmp_path):
    (tmp_path / 'file').write_text('in the way')
    monkeypatch.setenv('POSE_RELOC_CACHE', str(tmp_path / 'file' / 'cache'))
    found = open_backend(scene, 'cpu')(image)
    assert difference(found, published(scene, image))[0] < 1e-4


def test_weights_that_do_not_fit_are_a_scene_error(tiny_scene):
    del tiny_scene.weights['head.5.bias']
    with pytest.raises(SceneError, match='head.5.bias'):
        open_backend(tiny_scene, 'cpu')


@pytest.mark.parametrize(
    ('device', 'precision', 'backend', 'message'),
    [
        ('tpu9', 'auto', 'auto', "'tpu9'.*'auto' or 'cpu'"),
        ('cpu', 'float7', 'auto', "'float7'.*float32, bfloat16, float16"),
        ('cpu', 'auto', 'abacus', "'abacus'.*'auto' or one of torch"),
        ('cpu', 'auto', 'cudagraph', "'cudagraph' computes on cuda, not on cpu"),
        ('cpu', 'bfloat16', 'onnxruntime', "'onnxruntime' (computes in float32|needs)"),
    ],
)
def test_what_does_not_go_together_is_said(tiny_scene, device, precision, backend, message):
    with pytest.raises(SettingsError, match=message):
        open_backend(tiny_scene, device, precision, backend)


@pytest.mark.parametrize('name', ['onnxruntime', 'openvino'])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    tiny_scene, name, monkeypatch
):
    monkeypatch.setattr(backends, 'find_spec', lambda package: None if package == name else 1)
    with pytest.raises(SettingsError, match=rf'needs {name}.*pip install onnx {name}'):
        open_backend(tiny_scene, 'cpu', backend=name)
    assert open_backend(tiny_scene, 'cpu').name != name  # auto does without


def test_float16_that_openvino_would_replace_in_silence_is_refused(tiny_scene):
    pytest.importorskip('openvino')
    core = __import__('openvino').Core()
    if 'FP16' in core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
        pytest.skip('this processor has it')
    with pytest.raises(SettingsError, match='not in float16'):
        open_backend(tiny_scene, 'cpu', 'float16', 'openvino')


def test_the_relocalizer_takes_the_backend_it_is_told(scene):
    relocalizer = Relocalizer(scene, 'cpu', backend='torch')
    assert relocalizer.describe() == 'torch, float32 on cpu'
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    found = relocalizer.localize(image).world_T_camera
    auto = Relocalizer(scene, 'cpu')
    assert auto.describe().startswith(auto.backend.name)
    np.testing.assert_allclose(auto.localize(image).world_T_camera, found, atol=1e-4)


# A GPU in name


class OnGpu:
    """A number on a GPU that can be made, but perhaps not computed with."""

    device = torch.device('cuda', 0)

    def __init__(self, error: str):
        self._error = error

    def __add__(self, other):
        if self._error:
            raise RuntimeError(self._error)
        return self

    def item(self):
        return 2.0


@pytest.fixture
def one_gpu(monkeypatch):
    """one_gpu(error): there is one, and it computes unless it raises this error."""
    ones = torch.ones

    def install(error=''):
        def make(*shape, device=None):
            if torch.device(device or 'cpu').type == 'cpu':
                return ones(*shape)
            if torch.device(device).index:
                raise RuntimeError('CUDA error: invalid device ordinal')
            return OnGpu(error)

        monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
        monkeypatch.setattr(torch, 'ones', make)
        backends._note.cache_clear()

    return install


@pytest.mark.parametrize('name', ['auto', 'cuda', 'cuda:0'])
def test_a_gpu_is_told_by_its_number(one_gpu, name):
    one_gpu()
    assert choose_device(name) == torch.device('cuda', 0)  # torch.device('cuda') is another


@pytest.mark.parametrize('error', ['out of memory', 'no kernel image is available for execution'])
def test_a_gpu_that_fails_is_named_or_passed_over(one_gpu, error, capsys):
    one_gpu(f'CUDA error: {error}\nand more')
    for name in ('cuda', 'cuda:0'):
        with pytest.raises(DeviceError, match=rf"'{name}'.*\(CUDA error: {error}\); use 'cpu'$"):
            choose_device(name)
    assert choose_device('auto') == choose_device('auto') == CPU
    note = f'note: the GPU cannot be used (CUDA error: {error}); the CPU is used instead\n'
    assert capsys.readouterr().err == note


def test_a_gpu_that_does_not_exist_has_not_failed(one_gpu):
    one_gpu()
    with pytest.raises(SettingsError, match="'cuda:1'.*'auto' or 'cpu'") as raised:
        choose_device('cuda:1')
    assert not isinstance(raised.value, DeviceError)


@pytest.fixture
def cuda_in_name(monkeypatch):
    """Tensors and modules that are sent to a GPU stay here; graphs are run when recorded."""
    zeros = torch.zeros

    class Stream:
        def __init__(self, device):
            self.device = device

        def wait_stream(self, other):
            pass

    def stays(kind, copy):
        to = kind.to

        def send(x, *where, **how):
            gpu = any(isinstance(w, torch.device) and w.type == 'cuda' for w in where)
            return copy(x) if gpu else to(x, *where, **how)

        monkeypatch.setattr(kind, 'to', send)

    fakes = {
        'Stream': Stream,
        'current_stream': Stream,
        'CUDAGraph': lambda: type('Graph', (), {'replay': lambda self: None})(),
        'device': lambda device: nullcontext(),
        'stream': lambda stream: nullcontext(),
        'graph': lambda graph, stream=None: nullcontext(setattr(graph, 'stream', stream)),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    stays(torch.nn.Module, lambda module: module)
    stays(torch.Tensor, torch.clone)
    monkeypatch.setattr(torch, 'zeros', lambda *a, pin_memory=False, **k: zeros(*a, **k))


@pytest.mark.parametrize('name', ['torch', 'cudagraph'])
def test_float32_on_a_gpu_is_not_tf32(scene, image, name, cuda_in_name, monkeypatch):
    cudnn, seen, forward = torch.backends.cudnn, set(), torch.nn.Conv2d.forward

    def convolve(layer, x):
        seen.add((x.dtype, cudnn.allow_tf32, cudnn.enabled, cudnn.benchmark))
        return forward(layer, x)

    source = NetworkSource(scene)
    modules = [source.module(), source.module()]  # made by running them
    monkeypatch.setattr(source, 'module', modules.pop)
    monkeypatch.setattr(torch.nn.Conv2d, 'forward', convolve)
    monkeypatch.setattr(cudnn, 'benchmark', True)  # of the user
    assert cudnn.allow_tf32, 'the default of PyTorch'
    BACKENDS[name](source, torch.device('cuda', 0), 'float32')(image)
    assert seen == {(torch.float32, False, True, True)}
    assert cudnn.allow_tf32 and cudnn.benchmark, 'nobody else is concerned'
    seen.clear()
    BACKENDS[name](source, torch.device('cuda', 0), 'bfloat16')(image)
    assert seen == {(torch.bfloat16, True, True, True)}


def test_a_precision_that_the_user_chose_by_layer_stands(scene, image, cuda_in_name):
    cudnn = torch.backends.cudnn
    if not hasattr(cudnn, 'conv'):
        pytest.skip('PyTorch before 2.9')
    before = cudnn.conv.fp32_precision
    try:
        cudnn.conv.fp32_precision = 'ieee'  # allow_tf32 can then not even be read
        backend = BACKENDS['torch'](NetworkSource(scene), torch.device('cuda', 0), 'float32')
        backend(image)
        assert cudnn.conv.fp32_precision == 'ieee'
    finally:
        cudnn.conv.fp32_precision = before


def test_onnx_runtime_computes_float32_in_float32_too():
    backend = object.__new__(BACKENDS['onnxruntime'])
    backend.device = torch.device('cuda', 1)
    assert backend._provider() == ('CUDAExecutionProvider', {'device_id': 1, 'use_tf32': 0})


def test_each_cuda_graph_is_recorded_on_its_own_gpu(scene, cuda_in_name):
    for number in (0, 1):
        backend = BACKENDS['cudagraph'](
            NetworkSource(scene), torch.device('cuda', number), 'float32'
        )
        assert backend._graph.stream.device.index == number


def test_precisions_are_types_of_torch():
    assert all(isinstance(getattr(torch, name), torch.dtype) for name in PRECISIONS)
    assert choose_device('auto').type == ('cuda' if GPU else 'cpu')
