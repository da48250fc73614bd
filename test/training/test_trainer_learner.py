"""What a step does: averages, gradients, compiling, both stages of the geometric loss."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pose_reloc.errors import SettingsError
from pose_reloc.network import NetworkSettings, PoseRegressor
from training import cpu_speed
from training.cpu_speed import speed_up_strided_depthwise
from training.learner import Learner
from training.losses import LossSettings, PoseTarget
from training.processes import Processes
from training.settings import TrainSettings
from training.weight_average import WeightAverage

SETTINGS = TrainSettings(
    network=NetworkSettings('squeezenet1_1', hidden=16),
    loss=LossSettings('homoscedastic'),
    batch=4,
    learning_rate=1e-3,
    precision='float32',
    device='cpu',
)
ALONE = Processes(0, 1, torch.device('cpu'))
NEEDS_FLOAT16 = pytest.mark.skipif(not hasattr(torch.amp, 'GradScaler'), reason='PyTorch < 2.3')
FLOAT16 = pytest.param('float16', marks=NEEDS_FLOAT16)


def make_learner(settings=SETTINGS, steps=10):
    torch.manual_seed(0)
    shape = (settings.batch, 3, 64, 64)
    return Learner(PoseRegressor(settings.network), settings, (1.0, 4.0), ALONE, shape, steps)


def make_batch(seed=0, count=4):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(count, 3, 64, 64, generator=generator)
    q = torch.randn(count, 4, generator=generator)
    centre = torch.randn(count, 3, generator=generator)
    target = PoseTarget(
        centre,
        q / q.norm(dim=1, keepdim=True),
        torch.tensor([[1.0, 4.0]]).repeat(count, 1),
        centre[:, None] + torch.randn(count, 32, 3, generator=generator),
        torch.ones(count, 32, dtype=torch.bool),
    )
    return image, target


def run(learner, steps, warming_up=False, rate=1e-3):
    return [float(learner.step(*make_batch(i), rate, warming_up)) for i in range(steps)]


def test_the_average_weighs_the_states_as_promised():
    """After t updates the state k updates ago weighs (1 - d) d^k / (1 - d^t)."""
    layer, d, t = nn.BatchNorm1d(3), 0.9, 7
    average = WeightAverage(layer, d)
    states = torch.randn(t, 3, generator=torch.Generator().manual_seed(1))
    for number, state in enumerate(states, start=1):
        layer.weight.data.copy_(state)
        layer.running_var.copy_(state.square())
        layer.num_batches_tracked.fill_(number)
        average.update()
    weights = torch.tensor([(1 - d) * d**k / (1 - d**t) for k in range(t)]).flip(0)
    assert float(weights.sum()) == pytest.approx(1)
    mean = average.network
    torch.testing.assert_close(mean.weight.data, weights @ states)
    torch.testing.assert_close(mean.running_var, weights @ states.square())
    assert int(mean.num_batches_tracked) == t
    assert not mean.training and not mean.weight.requires_grad


def test_what_is_kept_is_the_average_of_the_steps():
    d = 0.5
    learner = make_learner(replace(SETTINGS, ema=d))
    states = []
    for i in range(3):
        learner.step(*make_batch(i), 1e-2, False)
        states.append(learner.network.head[2].weight.detach().clone())
    expected = (states[0] * d**2 + states[1] * d + states[2]) / (d**2 + d + 1)
    kept = learner.evaluated.head[2].weight
    torch.testing.assert_close(kept.detach(), expected, rtol=1e-4, atol=1e-7)
    assert not torch.equal(kept, learner.network.head[2].weight)
    image, _ = make_batch()
    torch.testing.assert_close(
        learner.predict(image).w_t_c, learner.evaluated(image).w_t_c, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize('precision', ['float32', 'bfloat16', FLOAT16])
def test_a_restored_learner_goes_on_as_if_it_had_not_stopped(precision):
    settings = replace(SETTINGS, ema=0.9, precision=precision)
    first = make_learner(settings)
    run(first, 2)
    state = copy.deepcopy(first.state_dict())
    second = make_learner(settings)
    second.load_state_dict(state)
    assert run(first, 3) == run(second, 3)
    kept = zip(
        first.evaluated.state_dict().values(), second.evaluated.state_dict().values(), strict=True
    )
    assert all(torch.equal(a, b) for a, b in kept)


@NEEDS_FLOAT16
@pytest.mark.parametrize('precisions', [('float32', 'float16'), ('float16', 'bfloat16')])
def test_a_restored_learner_may_go_on_in_another_precision(precisions):
    first, second = (make_learner(replace(SETTINGS, precision=p)) for p in precisions)
    run(first, 2)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert run(second, 1) == pytest.approx(run(first, 1), rel=0.05)


@pytest.mark.filterwarnings('ignore:.*deprecated')
def test_a_pytorch_before_2_3_trains_too(monkeypatch):
    """Without fused Adam on a CPU, and with functions of other names."""
    adam = torch.optim.Adam

    def old(parameters, fused=False, **options):
        if fused:
            raise RuntimeError('`fused=True` requires all the params to be on a GPU')
        return adam(parameters, **options)

    new = run(make_learner(), 3)
    monkeypatch.setattr('torch.optim.Adam', old)
    monkeypatch.delattr(torch.amp, 'GradScaler', raising=False)
    assert run(make_learner(), 3) == pytest.approx(new, rel=1e-3)
    with pytest.raises(SettingsError, match='float16 on a CPU needs PyTorch 2.3'):
        make_learner(replace(SETTINGS, precision='float16'))
    for on, kind in ((True, torch.bfloat16), (False, None)):
        names = {'is_autocast_cpu_enabled': on, 'get_autocast_cpu_dtype': torch.bfloat16}
        torch_2_1 = SimpleNamespace(**{name: lambda x=x: x for name, x in names.items()})
        monkeypatch.setattr(cpu_speed, 'torch', torch_2_1)
        assert cpu_speed._autocast_dtype() == kind


@pytest.mark.parametrize(
    ('size', 'kernel', 'stride', 'padding'),
    [((16, 22), 3, 2, 1), ((17, 21), 3, 2, 1), ((17, 22), 5, 2, 2), ((16, 21), 4, (2, 3), (0, 1))],
)
def test_fast_depthwise_gradients_are_the_gradients(size, kernel, stride, padding):
    torch.manual_seed(0)
    slow = nn.Sequential(nn.Conv2d(6, 6, kernel, stride, padding, groups=6, bias=False))
    fast = copy.deepcopy(slow)
    speed_up_strided_depthwise(fast)
    # A copy computes with its own weights, not with those it was copied from.
    fast = copy.deepcopy(fast)
    x = torch.randn(2, 6, *size).to(memory_format=torch.channels_last)
    results = []
    for network in (slow.double(), fast.double()):
        image = x.double().requires_grad_()
        out = network(image)
        out.square().sum().backward()
        results.append((out, image.grad, network[0].weight.grad))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
    assert list(fast.state_dict()) == list(slow.state_dict())


def test_fast_depthwise_convolutions_are_in_use_in_mobilenet():
    learner = make_learner(replace(SETTINGS, network=NetworkSettings('mobilenet_v2', hidden=8)))
    strided = [
        layer
        for layer in learner.network.modules()
        if isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.stride == (2, 2)
    ]
    assert len(strided) == 4
    for layer in strided:
        out = layer(torch.randn(1, layer.in_channels, 8, 8))
        assert type(out.grad_fn).__name__ == '_StridedDepthwiseBackward'


def test_geometric_training_begins_with_the_learned_weighting():
    settings = replace(SETTINGS, loss=LossSettings('geometric', s_q=-2.0))
    learner = make_learner(settings)
    state = learner.state_dict()['objective']
    assert (float(state['warm_up.s_x']), float(state['warm_up.s_q'])) == (0, -2)
    homoscedastic = make_learner(replace(settings, loss=LossSettings('homoscedastic', s_q=-2.0)))
    assert run(learner, 3, warming_up=True) == run(homoscedastic, 3)
    learned = {k: v.clone() for k, v in learner.state_dict()['objective'].items()}
    assert learned['warm_up.s_x'] != 0 and learned['warm_up.s_q'] != -2
    run(learner, 2, warming_up=False)
    after = learner.state_dict()['objective']
    # The weighting rests as it was learned; the network goes on.
    assert torch.equal(after['warm_up.s_x'], learned['warm_up.s_x'])
    name = 'network.head.2.weight'
    assert not torch.equal(after[name], learned[name])
    assert not learner.not_finite()


def test_the_geometric_loss_lowers_the_reprojection_error():
    learner = make_learner(replace(SETTINGS, loss=LossSettings('geometric')))
    image, target = make_batch()
    losses = [float(learner.step(image, target, 1e-3, step < 20)) for step in range(60)]
    assert losses[-1] < 0.5 * losses[20]


def test_not_finite_names_the_tensors():
    learner = make_learner()
    assert learner.not_finite() == []
    learner.network.head[2].bias.data[3] = 1e38  # large, but a number
    assert learner.not_finite() == []
    learner.network.head[2].bias.data[3] = torch.nan
    learner.network.head[5].weight.data[0, 0] = torch.inf
    assert learner.not_finite() == ['network.head.2.bias', 'network.head.5.weight']


def test_compiling_changes_no_name_and_is_tried_without_a_trace(monkeypatch):
    plain = make_learner()
    compiled = []

    def fake_compile(module, *args, **options):
        compiled.append(module)
        module._compiled_call_impl = module._call_impl

    monkeypatch.setattr(nn.Module, 'compile', fake_compile)
    settings = replace(SETTINGS, network=NetworkSettings('resnet18', hidden=8))
    eager = make_learner(settings)
    learner = make_learner(replace(settings, compile='on'))
    assert compiled == [learner.network]
    first, second = eager.state_dict()['objective'], learner.state_dict()['objective']
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(p.grad is None for p in learner.network.parameters())
    assert run(plain, 2) == run(make_learner(replace(SETTINGS, compile='off')), 2)


def test_without_a_compiler_training_goes_on(monkeypatch, capsys):
    def no_compiler(*args, **options):
        raise RuntimeError('no C++ compiler was found')

    def fake_compile(module, *args, **options):
        module._compiled_call_impl = no_compiler

    monkeypatch.setattr(nn.Module, 'compile', fake_compile)
    learner = make_learner(replace(SETTINGS, compile='on'))
    error = capsys.readouterr().err
    assert 'without torch.compile' in error and 'no C++ compiler' in error
    assert error.count('\n') == 1
    assert run(learner, 2) == run(make_learner(), 2)
