"""Several runs on one page: what is read from their JSON, what the table says."""

import json
import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest

from pose_reloc.cli import main
from pose_reloc.errors import SettingsError
from pose_reloc.geometry import pose_matrix
from training.evaluate import Evaluation, Frame
from training.report import comparison_page, read_run

BODY_T_CAMERA = pose_matrix(np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]]), [0.2, 0, 1.2])


def evaluation(shifts_m, first=0, covariance=0.01):
    """Frames 1 m apart; None is an image without an answer."""
    frames = []
    for i, shift in enumerate(shifts_m, start=first):
        truth = pose_matrix(np.eye(3), [float(i), 0, 0])
        estimate = None if shift is None else pose_matrix(np.eye(3), [float(i), shift, 0])
        status = 'LOST' if shift is None else 'COARSE'
        frames.append(
            Frame(f'f{i}', i / 10, truth, estimate, np.eye(6) * covariance, status, (), 0.03)
        )
    baseline = (np.full(len(frames), 0.5), np.full(len(frames), 20.0))
    return Evaluation(frames, {'retrieval': baseline})


def write(path, run, **values):
    path.write_text(json.dumps(values | run.to_json()))
    return path


def row(page, name):
    """Cells of a row of the table: (text, whether it is the best)."""
    line = re.search(rf'<tr><td>{re.escape(name)}</td>(.*?)</tr>', page).group(1)
    return [(unescape(t), css == 'best') for css, t in re.findall(r'class="(\w*)">(.*?)<', line)]


def test_every_number_of_two_runs_and_which_is_better(tmp_path):
    fine = write(tmp_path / 'fine.json', evaluation([0.01, 0.03, 0.02]), title='fine')
    rough = write(tmp_path / 'rough.json', evaluation([0.2, 0.4, None]), title='rough')
    page = comparison_page([read_run(fine), read_run(rough)])
    assert row(page, 'answered') == [('3', False), ('2', False)]
    assert row(page, 'median position error') == [('2.0 cm', True), ('30 cm', False)]
    assert row(page, 'largest position error') == [('3.0 cm', True), ('40 cm', False)]
    # An image without an answer counts as missed.
    assert row(page, 'within 0.25 m / 10°') == [('100 %', True), ('33 %', False)]
    # (1e-4 + 9e-4 + 4e-4) / 3 / 0.01 and (0.04 + 0.16) / 2 / 0.01: the second is nearer to 6.
    assert row(page, 'NEES, 6 is honest') == [('0.0', False), ('10.0', True)]
    assert page.count('50 cm, 20.0°') == 2


def test_runs_about_other_images_are_pointed_out(tmp_path):
    a = read_run(write(tmp_path / 'a.json', evaluation([0.1] * 4)))
    b = read_run(write(tmp_path / 'b.json', evaluation([0.1] * 4, first=2)))
    assert 'not about the same images (a: 4, b: 4; 2 in all of them)' in comparison_page([a, b])
    assert 'not about the same images' not in comparison_page([a, a])


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL).group(1))


def test_images_of_two_places_with_the_same_names_are_pointed_out(tmp_path):
    here, there = evaluation([0.1] * 4), evaluation([0.1] * 4)
    shift = pose_matrix(np.eye(3), [50.0, 0, 0])
    there = replace(
        there,
        frames=[
            replace(f, truth=shift @ f.truth, estimate=shift @ f.estimate) for f in there.frames[:2]
        ]
        + there.frames[2:],
    )
    runs = [
        read_run(write(tmp_path / f'{name}.json', run))
        for name, run in (('here', here), ('there', there))
    ]
    assert 'do not agree where 2 of 4 images were taken (up to 50.00 m' in comparison_page(runs)
    assert 'do not agree' not in comparison_page([runs[0], runs[0]])


def test_the_truth_is_that_of_the_run_that_knows_it(tmp_path):
    run = evaluation([0.1] * 3)
    blind = replace(run, frames=[replace(f, truth=None) for f in run.frames])
    runs = [
        read_run(write(tmp_path / f'{name}.json', run))
        for name, run in (('sighted', run), ('blind', blind))
    ]
    for order in (runs, runs[::-1]):
        page = comparison_page(order)
        assert data_of(page)['truth'] == [[0, 0, 0], [1, 0, 0], [2, 0, 0]]
        assert 'do not agree' not in page


def test_runs_of_the_same_name_stay_apart(tmp_path):
    run = read_run(write(tmp_path / 'a.json', evaluation([0.1]), title='kitchen'))
    page = comparison_page([run, run, run])
    assert '<th>kitchen</th><th>kitchen (2)</th><th>kitchen (3)</th>' in page


def test_what_differs_between_the_scenes_comes_first(tmp_path):
    runs = [
        read_run(
            write(
                tmp_path / f'{loss}.json', evaluation([0.1]), scene={'network': 'n', 'loss': loss}
            )
        )
        for loss in ('posenet', 'geometric')
    ]
    page = comparison_page(runs)
    assert page.index('<td>posenet</td>') < page.index('<td>n</td>')


def test_of_a_body_the_camera_is_drawn(tmp_path):
    run = evaluation([0.1, 0.2])
    camera_T_body = np.linalg.inv(BODY_T_CAMERA).tolist()
    path = write(tmp_path / 'a.json', run, camera_T_body=camera_T_body)
    frame = read_run(path).frames['f1']
    np.testing.assert_allclose(frame.estimate, run.frames[1].estimate @ BODY_T_CAMERA, atol=1e-12)
    assert frame.error == pytest.approx((0.2, 0))


@pytest.mark.parametrize(
    'text',
    [
        '',
        '[]',
        '{}',
        '{"per_frame": []}',
        '{"per_frame": [{"name": "a"}]}',
        'NaN',
        '\ufeff\x00',
    ],
)
def test_what_is_no_result_is_a_sentence(tmp_path, text):
    path = tmp_path / 'a.json'
    path.write_text(text)
    with pytest.raises(SettingsError, match='a.json is not the result of a run'):
        read_run(path)


@pytest.mark.parametrize(
    ('name', 'value'),
    [('truth', [[1]]), ('position_error_m', 'far'), ('nees', []), ('estimate', [[None] * 4] * 4)],
)
def test_a_damaged_frame_is_a_sentence(tmp_path, name, value):
    values = evaluation([0.1]).to_json()
    values['per_frame'][0][name] = value
    (tmp_path / 'a.json').write_text(json.dumps(values))
    with pytest.raises(SettingsError, match='is not the result of a run'):
        read_run(tmp_path / 'a.json')


def test_command(tmp_path, capsys):
    a = write(tmp_path / 'a.json', evaluation([0.1, 0.2]))
    page = tmp_path / 'compare.html'
    assert main(['report', str(a), str(a), '--html', str(page)]) == 0
    assert f'wrote {page}' in capsys.readouterr().out
    assert '2 runs compared' in page.read_text()
    assert main(['report', str(tmp_path / 'no.json'), '--html', str(page)]) == 2
    assert 'cannot read' in capsys.readouterr().err
