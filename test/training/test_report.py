"""Tables, pages, pictures and trajectories of an evaluation."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scipy.stats import chi2

from pose_reloc.errors import DatasetError, SettingsError
from pose_reloc.geometry import pose_matrix
from training.evaluate import Evaluation, Frame
from training.figures import cumulative_figure
from training.metrics import Reprojection
from training.report import html_page, table, write_results
from training.report.run_data import ellipsoid_95, run_data


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


HOSTILE = '</script><script>hacked=1</script><img src=x onerror=hacked=1>'


def data_of(page):
    """What a page hands to its scripts."""
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL).group(1))


def test_page_fetches_nothing_and_runs_only_its_own_script(evaluation, tiny_scene):
    image = np.zeros((48, 64, 3), np.uint8)
    page = html_page('a title', evaluation, tiny_scene, {'f1': lambda: image})
    assert '<td>0.200 /  9.00</td>' in page and 'data:image/jpeg;base64' in page
    markup = page[: page.index('<script')]
    assert not re.search(r'(?:src|href)="(?!data:)', markup) and 'url(' not in markup
    code = re.search(r'<script>(.*?)</script>', page, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in page and "default-src 'none'" in page


def test_names_from_files_are_only_text(evaluation, tiny_scene):
    """No name can end the element it stands in, in the markup or in the data."""
    frames = [replace(f, name=f'{HOSTILE} {i}') for i, f in enumerate(evaluation.frames)]
    header = replace(tiny_scene.header, name=HOSTILE, recipe={'dataset': HOSTILE})
    page = html_page(
        HOSTILE, replace(evaluation, frames=frames), replace(tiny_scene, header=header), {}
    )
    assert HOSTILE not in page and '<img' not in page
    assert page.count('<script') == page.count('</script>') == 2
    assert data_of(page)['frames'][2]['name'] == f'{HOSTILE} 2'


def test_an_installed_copy_has_the_files_of_its_pages(tmp_path):
    root = Path(__file__).resolve().parents[2]
    build = ['setup.py', '-q', 'build_py', '--build-lib', str(tmp_path)]
    subprocess.run([sys.executable, *build], cwd=root, check=True, capture_output=True)
    for folder in ('training/report/assets', 'training/serve/assets'):
        names = {path.name for path in (root / folder).iterdir()}
        assert names == {path.name for path in (tmp_path / folder).iterdir()} and names


def test_a_page_without_any_answer(tiny_scene):
    page = html_page('t', Evaluation([_frame(0, status='LOST')]), tiny_scene, {})
    assert '1 LOST' in page and 'id="position"' not in page and 'id="silent"' in page


def test_what_a_page_draws_of_a_frame(evaluation, tiny_scene):
    covariance = np.diag([0.04, 0.01, 0.01, 0.02, 0.03, 0.01])
    frames = [
        replace(f, covariance_66=covariance, latency_s=0.02, reasons=('too_few_inliers',))
        for f in evaluation.frames[:3]
    ]
    frames.append(replace(evaluation.frames[3], reasons=('too_dark', 'a_new_gate')))
    data = run_data(replace(evaluation, frames=frames), tiny_scene, {}, None)
    second = data['frames'][1]
    assert second['error'] == pytest.approx([0.2, 9], abs=1e-4)
    assert second['sigma'] == pytest.approx([0.2, np.rad2deg(np.sqrt(0.03))], abs=1e-4)
    # The error is 0.2 m along y and 9 deg about y.
    squared = 0.2**2 / 0.01 + np.deg2rad(9) ** 2 / 0.03
    assert second['level'] == pytest.approx(100 * chi2.cdf(squared, 6), abs=1e-2)
    assert second['latency'] == 20 and second['reasons'] == ['too few landmarks agree']
    lost = data['frames'][3]
    assert lost['estimate'] is None and lost['error'] is None and lost['level'] is None
    assert lost['reasons'] == ['the image is too dark', 'a new gate']
    # Frames 1 m and 0.1 s apart.
    assert [f['along'] for f in data['frames']] == [0, 1, 2, 3]
    assert [f['time'] for f in data['frames']] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert data['truth'] == [[0, 1], [1, 2], [2, 3]]
    assert data['worst'] == [2, 1, 0] and data['silent'] == [3]
    names = [curve['name'] for curve in data['curves']]
    assert names == ['pose_reloc', 'mean pose baseline', 'retrieval baseline']
    assert data['curves'][0]['errors'][0] == pytest.approx([0.04, 0.2, 0.4, None])


def test_the_drawn_ellipsoid_holds_95_percent():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(6, 6))
    covariance = A @ A.T
    axes = np.reshape(ellipsoid_95(covariance), (3, 3))
    samples = rng.multivariate_normal(np.zeros(6), covariance, 40_000)[:, :3]
    inside = np.linalg.norm(np.linalg.solve(axes, samples.T), axis=0) <= 1
    assert inside.mean() == pytest.approx(0.95, abs=0.004)


def test_of_a_body_the_camera_is_drawn(evaluation, tiny_scene):
    """Errors stay those of the body; its camera is 0.3 m in front and turned."""
    R = Rotation.from_euler('xyz', [90, 0, 90], degrees=True).as_matrix()
    body_T_camera = pose_matrix(R, [0.3, 0.0, 0.0])
    camera_T_body = np.linalg.inv(body_T_camera)
    data = run_data(evaluation, tiny_scene, {}, camera_T_body)
    expected = (evaluation.frames[1].estimate @ body_T_camera)[:3]
    assert data['frames'][1]['estimate'] == pytest.approx(expected.ravel(), abs=1e-4)
    assert data['frames'][1]['error'] == pytest.approx([0.2, 9], abs=1e-4)


def test_a_long_run_keeps_some_pictures_and_those_of_the_worst_frames(tiny_scene):
    rng = np.random.default_rng(0)
    frames = [_frame(i, shift) for i, shift in enumerate(rng.uniform(0, 1, 400))]
    image = np.zeros((6, 8, 3), np.uint8)

    def damaged():
        raise DatasetError('truncated')

    images = {f.name: lambda: image for f in frames} | {'f0': damaged}
    data = run_data(Evaluation(frames), tiny_scene, images, None)
    kept = [i for i, f in enumerate(data['frames']) if f['image']]
    assert 200 < len(kept) <= 240 and 0 not in kept and set(data['worst']) <= set(kept)
    worst = np.argsort([-f.error()[0] for f in frames])[:10]
    assert data['worst'] == worst.tolist()


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
    assert values['title'] == 'title' and values['scene']['scene'] == 'tiny'
    assert values['per_frame'][0]['nees'] is None
    picture = cv2.imread(str(tmp_path / 'a.png'))
    assert picture.shape[1] == 1500 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 10


@pytest.mark.parametrize('name', [{'json': 'no/a.json'}, {'picture': 'a.xyz'}, {'tum': 'no/a.txt'}])
def test_what_cannot_be_written_is_a_sentence(evaluation, tiny_scene, tmp_path, name):
    with pytest.raises(SettingsError, match='cannot write'):
        write_results(files(tmp_path, **name), 'title', evaluation, tiny_scene, {})


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
