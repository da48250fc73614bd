"""The benchmarks: how costs are compared, and that every benchmark runs. No time is judged."""

import json
import sys
import time
from dataclasses import replace

import pytest
import torch

from pose_reloc import backends
from pose_reloc.cli import main
from pose_reloc.errors import SettingsError
from training.benchmarks import inference, run_benchmark
from training.benchmarks.inference import engine_accuracy
from training.benchmarks.losses import homography_by_matrices, random_batch
from training.benchmarks.machine import describe_machine
from training.benchmarks.measure import (
    Case,
    CaseError,
    Measured,
    Role,
    Timed,
    in_fresh_process,
    interleave,
    resident_megabytes,
)
from training.benchmarks.memory import _localizing
from training.benchmarks.published_loop import PublishedLoop
from training.benchmarks.table import Bar, Table
from training.benchmarks.training import as_on
from training.benchmarks.workload import BenchSettings
from training.losses import LossSettings, build_loss


@pytest.fixture(scope='module')
def settings(room, tmp_path_factory):
    return BenchSettings(
        tmp_path_factory.mktemp('bench'),
        ('cpu',),
        path=room,
        rounds=2,
        turn_seconds=0.0,
        batch=4,
        steps=1,
        short_side=32,
        compile=False,
    )


def measured(name, role, *costs):
    return Measured(name, role, '', costs)


def test_cases_take_turns_and_a_failure_stops_only_itself():
    order = []

    def turn(name, cost):
        order.append(name)
        if cost is None:
            raise CaseError('out of order')
        return cost

    cases = [Case(n, lambda n=n, c=c: turn(n, c)) for n, c in zip('abc', (1.0, None, 3.0))]
    a, b, c = interleave(cases, 3, 'test')
    assert ''.join(order) == 'abc' + 'ac' + 'ac'
    assert (a.costs, c.costs) == ((1.0,) * 3, (3.0,) * 3)
    assert b.costs == () and b.failure == 'out of order' and b.median is None
    assert a.ratio_to(b) is None


def test_ratios_are_taken_within_a_round():
    # The second round was ten times slower for both: nothing that concerns their ratio.
    ours, other = measured('a', Role.OURS, 1, 10, 1), measured('b', Role.FLOOR, 2, 20, 4)
    assert ours.ratio_to(other) == pytest.approx(0.5)
    assert other.ratio_to(ours) == pytest.approx(2.0)


def test_a_turn_warms_up_once_and_divides_by_what_was_done():
    calls = []

    def work():
        calls.append(time.perf_counter())
        time.sleep(0.01)

    turn = Timed(work, turn_seconds=0.05, items=4)
    first = turn()
    count = len(calls)
    # Sleeping takes at least its time; each of the counted calls dealt with 4 items.
    assert 3 <= count <= 6 and first >= 0.01 / 4
    turn()
    assert len(calls) <= count + 5  # no second warming up


def test_the_gpu_that_works_is_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda device=None: waited.append(str(device)))
    for device in ('cuda:1', torch.device('cuda', 2), 'cpu', torch.device('cpu')):
        Timed(int, turn_seconds=0.0, device=device)()
    assert waited == ['cuda:1'] * 2 + ['cuda:2'] * 2  # warming up, and a turn


def test_a_dead_process_is_a_case_that_failed():
    with pytest.raises(CaseError, match='killed'):
        in_fresh_process(_die)
    assert in_fresh_process(abs, -3) == 3


def _die():
    import os

    os._exit(1)


def test_a_table_shows_costs_in_its_unit_beside_floor_and_alternative():
    table = Table(
        'speed',
        'images/s',
        [
            measured('loop', Role.ALTERNATIVE, 0.5, 0.5),
            measured('bare', Role.FLOOR, 0.05, 0.05),
            measured('ours', Role.OURS, 0.1, 0.2),
            Measured('gone', Role.OTHER, '', (), 'no compiler'),
        ],
        (Bar('gain', 3.75, 4.0, at_least=True), Bar('floor', 1.2, 1.5), Bar('x', None, 1.0)),
    )
    rows = {row[0]: row[1:] for row in table.rows()}
    assert rows['ours'] == ['ours', '7.5', '5 to 10', '3.75', '3.00']
    assert rows['loop'][3:] == ['', '10.00'] and rows['bare'][3:] == ['10.00', '']
    assert rows['gone'][1:] == ['-', '-', '', '']
    assert [bar.met for bar in table.bars] == [False, True, False]
    for text in (table.text(), table.markdown()):
        assert 'no compiler' in text and text.count('MISSED') == 2 and 'not measured' in text
    columns = {line.count('|') for line in table.markdown().splitlines() if line.startswith('|')}
    assert len(columns) == 1
    json.dumps(table.to_json(), allow_nan=False)


def test_the_matrix_loss_is_the_loss_it_is_compared_with():
    prediction, target = random_batch(16, 'cpu')
    ours = build_loss(LossSettings('local_homography'))(prediction, target)
    assert homography_by_matrices(prediction, target).item() == pytest.approx(ours.item(), rel=1e-4)


def test_an_epoch_on_a_gpu_has_more_steps(settings):
    """Its end would otherwise weigh more than in real runs."""
    assert as_on('cpu', settings) == settings
    assert [as_on('cuda:1', replace(settings, steps=n)).steps for n in (1, 40)] == [16, 40]


def test_the_published_loop_trains_and_logs_every_step(settings, tmp_path):
    torch.manual_seed(0)
    loop = PublishedLoop(settings.cache(8), LossSettings(), 4, 'cpu', tmp_path / 'log.csv')
    before = [p.detach().clone() for p in loop._network.parameters()]
    loop.epoch()
    loop.epoch()
    rows = [line.split(',') for line in (tmp_path / 'log.csv').read_text().splitlines()]
    assert len(rows) == 4 and all(len(row) == 3 for row in rows)
    assert all(float(x) >= 0 for row in rows for x in row)
    assert any(not torch.equal(p, q) for p, q in zip(before, loop._network.parameters()))


def test_samples_start_again_where_there_are_too_few(settings):
    samples = settings.samples()
    again = settings.samples(len(samples) + 2)
    assert again[-1].image_path == samples[1].image_path


# The cases that each table must have, besides any others.
EXPECTED = {
    'training': [{'published-style loop', 'our trainer', 'our trainer, new views'}],
    'losses': [{'ours', '3x3 matrices', 'sum of squares'}],
    'cache': [{'our cache', 'decoding colour and depth alone'}, {'our batches, new views'}],
    'inference': [
        {'eager PyTorch, float32, NCHW', 'auto'},
        {'eager PyTorch, float32, NCHW', 'auto'},
        {'localize, preprocess', 'localize, infer', 'localize, total', 'backend alone'},
    ],
    'scaling': [{'near a pose', 'alike, by descriptor'}],
    'startup': [{'import pose_reloc', 'pose_reloc --help', 'SceneModel.load'}],
}

SLOW = {'cache', 'training'}


@pytest.mark.parametrize(
    'name',
    [
        *(pytest.param(n, marks=pytest.mark.slow) for n in sorted(SLOW)),
        *sorted(EXPECTED.keys() - SLOW),
    ],
)
def test_every_benchmark_fills_its_tables(name, settings, monkeypatch):
    if name in ('training', 'startup'):  # one round: every turn starts a process
        settings = replace(settings, rounds=1)
    elif name == 'cache':
        monkeypatch.setattr('training.benchmarks.cache._FEW', 4)
        monkeypatch.setattr('training.benchmarks.cache._MANY', 8)
    elif name == 'inference':
        monkeypatch.setattr('training.benchmarks.inference._BATCHES', (1, 2))
    elif name == 'scaling':
        monkeypatch.setattr('training.benchmarks.scaling._KEYFRAMES', (10, 20, 50))
    tables = run_benchmark(name, settings)
    for table, expected in zip(tables, EXPECTED[name], strict=True):
        assert expected <= {case.name for case in table.cases}
        assert {case.failure for case in table.cases} == {''}
        groups = {}
        for case in table.cases:
            groups.setdefault(case.group, []).append(case.role)
        for roles in groups.values():
            assert roles.count(Role.FLOOR) == 1 and roles.count(Role.ALTERNATIVE) <= 1
            assert Role.OURS in roles
        rows = table.rows()
        assert len({len(row) for row in rows}) == 1 and '-' not in {row[2] for row in rows}


def test_memory_is_what_the_system_says():
    before = resident_megabytes()
    block = bytearray(200_000_000)
    block[::4096] = b'x' * len(block[::4096])  # a page is resident once it is written
    assert 190 < resident_megabytes() - before < 210


def test_memory_without_landmarks_is_that_of_the_regressor(tiny_scene, tmp_path):
    tiny_scene.save(tmp_path / 'tiny.scene')
    assert _localizing('torch', False, tmp_path / 'tiny.scene', 'cpu') > 50
    with pytest.raises(CaseError, match='--scene'):
        _localizing('torch', True, tmp_path / 'tiny.scene', 'cpu')


def test_engines_are_compared_by_what_they_answer(settings, tiny_scene, tmp_path):
    tiny_scene.save(tmp_path / 'tiny.scene')
    settings = replace(settings, scene=tmp_path / 'tiny.scene')
    table = engine_accuracy(settings, torch.device('cpu'))
    moved = {row[0]: float(row[2].split(' m')[0]) for row in table.rows[1:]}
    assert moved['torch, float32'] == 0 < moved['torch, bfloat16']
    assert all(value < 1e-4 for name, value in moved.items() if 'float32' in name)


@pytest.fixture
def broken_engines(monkeypatch):
    """Two more engines: one that does not open, and one that does not compute."""

    class Closed(backends.TorchBackend):
        name = 'closed'

        def __init__(self, *_):
            raise SettingsError('this engine has no CUDAExecutionProvider')

    class Stalled(backends.TorchBackend):
        name = 'stalled'

        def __call__(self, image):
            raise RuntimeError('CUDNN_STATUS_EXECUTION_FAILED\nand more')

    kinds = {kind.name: kind for kind in (backends.TorchBackend, Closed, Stalled)}
    monkeypatch.setattr(backends, 'BACKENDS', kinds)
    monkeypatch.setattr(inference, 'BACKENDS', kinds)


def test_an_engine_that_fails_is_noted_and_the_others_are_compared(
    settings, tiny_scene, tmp_path, broken_engines
):
    tiny_scene.save(tmp_path / 'tiny.scene')
    table = engine_accuracy(replace(settings, scene=tmp_path / 'tiny.scene'), torch.device('cpu'))
    assert [row[0] for row in table.rows[1:]] == ['torch, float32', 'torch, bfloat16']
    assert table.notes[1:3] == (
        'closed, float32 was not measured: this engine has no CUDAExecutionProvider',
        'stalled, float32 was not measured: CUDNN_STATUS_EXECUTION_FAILED',
    )


@pytest.mark.parametrize(('name', 'says'), [('closed', 'no CUDA'), ('stalled', 'FAILED$')])
def test_an_engine_that_fails_is_a_case_that_failed(tiny_scene, broken_engines, name, says):
    with pytest.raises(CaseError, match=says):
        inference._Opened(tiny_scene, torch.device('cpu'), 'float32', name)()


def test_tables_are_there_before_a_later_one_fails(settings, monkeypatch):
    def fail(*_):
        raise SettingsError('out of memory')

    monkeypatch.setattr(inference, '_latency', lambda *_: 'latency')
    monkeypatch.setattr(inference, '_throughput', fail)
    tables = iter(run_benchmark('inference', settings))
    assert next(tables) == 'latency'
    with pytest.raises(SettingsError, match='out of memory'):
        next(tables)


def test_the_command_writes_what_it_prints(room, tmp_path, capsys):
    out = tmp_path / 'out'
    assert main(['bench', 'losses', '--quick', '--path', str(room), '--out', str(out)]) == 0
    printed, written = capsys.readouterr().out, (out / 'bench.md').read_text()
    report = json.loads((out / 'bench.json').read_text())
    assert report['tables'][0]['title'] in printed and report['tables'][0]['title'] in written
    assert set(report) == {'date', 'command', 'machine', 'versions', 'tables'}
    assert report['versions']['torch'] == torch.__version__.split('+')[0]
    assert report['machine'] == {
        **describe_machine(),
        'load before': report['machine']['load before'],
    }


def test_an_unknown_benchmark_is_named(capsys, tmp_path):
    assert main(['bench', 'nonsense', '--out', str(tmp_path)]) == 2
    assert "'nonsense'" in capsys.readouterr().err


def test_the_device_must_exist(tmp_path):
    from training.commands.bench import _settings

    arguments = type('Arguments', (), {'device': 'cuda:99', 'out': str(tmp_path)})
    with pytest.raises(SettingsError, match='cuda:99'):
        _settings(arguments)


def test_without_ros_the_node_is_left_out_or_asked_for_in_a_sentence(monkeypatch, tmp_path, capsys):
    measured = []
    monkeypatch.setattr('training.commands.bench.find_spec', lambda name: None)
    monkeypatch.setattr(
        'training.benchmarks.run_benchmark', lambda name, _: measured.append(name) or []
    )
    assert main(['bench', '--out', str(tmp_path)]) == 0
    assert 'startup' in measured and 'node' not in measured
    assert 'Without node' in capsys.readouterr().out
    assert 'Without node' in (tmp_path / 'bench.md').read_text()
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, 'pose_reloc.ros.player', None)  # as if rclpy were missing
    assert main(['bench', 'node', '--quick', '--out', str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert 'needs ROS 2' in error and 'Traceback' not in error
