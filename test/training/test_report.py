"""Tables, pages, pictures and trajectories of an evaluation."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pose_reloc.errors import SettingsError
from pose_reloc.geometry import pose_matrix
from training.evaluate import Evaluation, Frame
from training.figures import cumulative_figure
from training.metrics import Reprojection
from training.report import html_page, table, write_results


def _frame(index, shift_m=0.0, degrees=0.0, time_s=None, status='COARSE'):
    truth = pose_matrix(np.eye(3), [index, 0.0, 0.0])
    R = Rotation.from_euler('y', degrees, degrees=True).as_matrix()
    estimate = pose_matrix(R, [index, shift_m, 0.0]) if status != 'LOST' else None
    return Frame(
        f'f{index}', index / 10 if time_s is None else time_s, truth, estimate, status=status
    )  # fmt: skip


@pytest.fixture
def evaluation():
    frames = [
        _frame(0, 0.04, 1),
        _frame(1, 0.2, 9),
        _frame(2, 0.4, 12),
        _frame(3, 0, 0, None, 'LOST'),
    ]
    baselines = {
        'mean_pose': (np.full(4, 1.5), np.full(4, 80.0)),
        'retrieval': (np.array([0.1, 0.2, 0.6, 3.0]), np.array([4, 5, 20, 90.0])),
    }
    return Evaluation(frames, baselines)


def files(folder, **names):
    """What --json, --html, --picture and --tum name; only the page needs a scene."""
    paths = {'json': None, 'html': None, 'picture': None, 'tum': None}
    return SimpleNamespace(**(paths | {k: str(folder / v) for k, v in names.items()}))


def cells(text, row, column):
    """The cell of a table under a header, both given by how they begin."""
    lines = [re.split(r' {3,}', line.strip()) for line in text.splitlines()]
    header = next(line for line in lines if column in line)
    values = next(line for line in lines[lines.index(header) :] if line[0] == row)
    return values[header.index(column)]


def test_every_number_of_the_table_by_hand(evaluation):
    frames = [replace(f, reprojection=Reprojection(20.0, 5)) for f in evaluation.frames[:3]]
    train = Evaluation([_frame(0, 0.011, 0.5)])
    whole = replace(evaluation, frames=[*frames, evaluation.frames[3]], train=train)
    text = table('title', whole.summary())
    assert cells(text, 'pose_reloc', 'median') == '0.200 /  9.00'
    assert cells(text, 'pose_reloc', 'mean') == '0.213 /  7.33'
    assert cells(text, 'pose_reloc', '99 %') == '0.396 / 11.94'
    assert cells(text, 'pose_reloc', 'max') == '0.400 / 12.00'
    assert cells(text, 'pose_reloc', 'reprojection') == '20.0 px'
    assert cells(text, 'on training images', 'median') == '0.011 /  0.50'
    assert cells(text, 'retrieval baseline', 'max') == '3.000 / 90.00'
    recalls = {'0.05/5': '25 %', '0.25/10': '50 %', '0.5/15': '75 %', '2/2': '25 %', '3/5': '25 %'}
    for column, share in recalls.items():
        assert cells(text, 'pose_reloc', column) == share
    assert cells(text, 'retrieval baseline', '0.1/5') == '25 %'
    assert cells(text, 'mean pose baseline', '2/5') == '0 %'
    assert '4 frames, 3 answered (1 LOST)' in text


def test_a_missing_number_is_a_dash_with_its_reason(evaluation):
    text = table('title', evaluation.summary())
    assert cells(text, 'pose_reloc', 'reprojection') == '-'
    assert 'neither depth nor 3D points' in text
    silent = table('title', Evaluation([_frame(0, status='LOST')]).summary())
    assert cells(silent, 'pose_reloc', 'median') == '-' and '1 LOST' in silent


def test_refined_answers_are_counted():
    frames = [_frame(0, status='REFINED'), _frame(1)]
    assert '2 answered, 1 of them refined' in table('title', Evaluation(frames).summary())


def test_page_is_self_contained_and_escapes_names(evaluation, tiny_scene):
    image = np.zeros((48, 64, 3), np.uint8)
    page = html_page('a <b> scene', evaluation, tiny_scene, {'f1': lambda: image})
    assert 'a &lt;b&gt; scene' in page
    assert page.count('<svg') == 3 and 'data:image/jpeg;base64' in page
    assert '<td>0.200 /  9.00</td>' in page
    # XML namespaces are names; what a browser would fetch stands in src, href and url().
    fetched = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?(?!data:|#)([^"\')>]+)', page)
    assert fetched == []
    assert '<script' not in page and '<link' not in page


def test_a_page_without_any_answer(tiny_scene):
    page = html_page('t', Evaluation([_frame(0, status='LOST')]), tiny_scene, {})
    assert '<svg' not in page and '1 LOST' in page


def test_cumulative_curve_passes_through_every_frame(evaluation):
    """After the k-th smallest error the curve stands at k frames of all, silent ones included."""
    figure = cumulative_figure({'pose_reloc': evaluation.errors()}, evaluation.baselines)
    position, rotation = figure.axes
    for axis, errors in ((position, [0.04, 0.2, 0.4]), (rotation, [1, 9, 12])):
        x, y = axis.lines[0].get_data()
        for k, error in enumerate(errors, start=1):
            assert y[np.flatnonzero(np.isclose(x, error))].max() == pytest.approx(25 * k)
        assert y.max() == pytest.approx(75)
    assert [line.get_label() for line in position.lines] == ['pose_reloc', *evaluation.baselines]
    assert max(position.lines[1].get_ydata()) == 100


def test_a_curve_of_zeros_and_one_of_silence():
    figure = cumulative_figure(
        {'exact': (np.zeros(2), np.zeros(2)), 'silent': (np.full(2, np.inf), np.full(2, np.inf))},
        {},
    )
    zero, none = figure.axes[0].lines
    assert zero.get_ydata()[-1] == 100 and none.get_ydata()[-1] == 0


def test_files_are_written_and_named(evaluation, tiny_scene, tmp_path, capsys):
    args = files(tmp_path, json='a.json', html='a.html', picture='a.png')
    write_results(args, 'title', evaluation, tiny_scene, {})
    out = capsys.readouterr().out
    assert [out.count(f'wrote {tmp_path}/a.{kind}') for kind in ('json', 'html', 'png')] == [
        1,
        1,
        1,
    ]
    values = json.loads((tmp_path / 'a.json').read_text())
    assert values['baselines']['retrieval']['max_position_m'] == 3.0
    picture = cv2.imread(str(tmp_path / 'a.png'))
    assert picture.shape[1] == 1500 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 10


@pytest.mark.parametrize('name', [{'json': 'no/a.json'}, {'picture': 'a.xyz'}, {'tum': 'no/a.txt'}])
def test_what_cannot_be_written_is_a_sentence(evaluation, tmp_path, name):
    with pytest.raises(SettingsError, match='cannot write'):
        write_results(files(tmp_path, **name), 'title', evaluation, None, {})


def test_trajectories_hold_matching_stamps(evaluation, tmp_path, capsys):
    write_results(files(tmp_path, tum='run.txt'), 'title', evaluation, None, {})
    estimate, truth = (np.loadtxt(tmp_path / name) for name in ('run.txt', 'run.truth.txt'))
    assert f'evo_ape tum {tmp_path}/run.truth.txt {tmp_path}/run.txt' in capsys.readouterr().out
    np.testing.assert_allclose(truth[:, 0], [0, 0.1, 0.2, 0.3])
    np.testing.assert_allclose(truth[:, 1], [0, 1, 2, 3])
    np.testing.assert_allclose(estimate[:, 0], [0, 0.1, 0.2])  # the fourth was lost
    np.testing.assert_allclose(estimate[:, 2], [0.04, 0.2, 0.4])
    half = np.deg2rad(9) / 2
    np.testing.assert_allclose(estimate[1, 4:], [0, np.sin(half), 0, np.cos(half)], atol=1e-9)


def test_recordings_follow_each_other_in_a_trajectory(tmp_path):
    """Two sequences that both begin at 0 s, and images without stamps: no stamp occurs twice."""
    times = [0.0, 0.5, 0.0, 0.5, 0.0, 0.0]
    frames = [_frame(i, 0.1, 0, time_s) for i, time_s in enumerate(times)]
    write_results(files(tmp_path, tum='run.txt'), 't', Evaluation(frames), None, {})
    rows = np.loadtxt(tmp_path / 'run.txt')
    np.testing.assert_allclose(rows[:, 0], [0, 0.5, 1.5, 2.0, 3.0, 4.0])
    np.testing.assert_allclose(rows[:, 1], np.arange(6))


def test_without_a_known_truth_only_the_estimates_are_written(tmp_path):
    frames = [replace(_frame(i), truth=None) for i in range(3)]
    write_results(
        files(tmp_path, tum='run.txt', picture='a.png'), 't', Evaluation(frames), None, {}
    )
    assert len(np.loadtxt(tmp_path / 'run.txt')) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.png', 'run.txt']
