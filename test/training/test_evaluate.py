"""What a summary says about answers, silence and errors; the report page."""

import json
import re

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pose_reloc.geometry import pose_matrix
from training.evaluate import Evaluation, Frame
from training.report import html_page, table


def _frame(index, shift_m, degrees, answered=True):
    truth = pose_matrix(np.eye(3), [index, 0.0, 0.0])
    R = Rotation.from_euler('y', degrees, degrees=True).as_matrix()
    estimate = pose_matrix(R, [index, shift_m, 0.0]) if answered else None
    status = 'COARSE' if answered else 'LOST'
    reasons = () if answered else ('too_dark',)
    covariance = np.eye(6) * 0.01 if answered else None
    latency = 0.01 * (index + 1) if answered else None
    return Frame(f'f{index}', index / 10, truth, estimate, covariance, status, reasons, latency)


@pytest.fixture
def evaluation():
    frames = [_frame(0, 0.04, 1), _frame(1, 0.2, 9), _frame(2, 0.4, 12), _frame(3, 0, 0, False)]
    return Evaluation(frames)


def test_medians_are_of_answers_and_recall_is_of_all_frames(evaluation):
    summary = evaluation.summary()
    assert (summary['frames'], summary['answered']) == (4, 3)
    assert summary['median_position_m'] == pytest.approx(0.2)
    assert summary['median_rotation_deg'] == pytest.approx(9)
    assert summary['recall']['0.05m_5deg'] == 0.25
    assert summary['recall']['0.25m_10deg'] == 0.5
    assert summary['recall']['0.5m_15deg'] == 0.75
    assert summary['latency_p50_ms'] == pytest.approx(20)
    assert summary['not_answered'] == {'LOST': 1} and summary['reasons'] == {'too_dark': 1}


def test_nees_by_hand(evaluation):
    rad = np.deg2rad([1, 9, 12])
    expected = (np.array([0.04, 0.2, 0.4]) ** 2 + rad**2) / 0.01
    assert evaluation.summary()['nees_mean'] == pytest.approx(expected.mean())


def test_json_is_strict_and_holds_every_frame(evaluation):
    values = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert len(values['per_frame']) == 4
    assert values['per_frame'][1]['position_error_m'] == pytest.approx(0.2)
    assert values['per_frame'][3]['estimate'] is None


def test_nothing_answered_is_still_a_result():
    summary = Evaluation([_frame(0, 0, 0, False)]).summary()
    assert summary['answered'] == 0 and summary['median_position_m'] is None
    assert 'LOST' in table('t', summary)


def test_page_is_self_contained_and_escapes_names(evaluation, tiny_scene):
    image = np.zeros((48, 64, 3), np.uint8)
    page = html_page('a <b> scene', evaluation, tiny_scene, {'f1': lambda: image})
    assert 'a &lt;b&gt; scene' in page
    assert page.count('<svg') == 2 and 'data:image/jpeg;base64' in page
    # XML namespaces are names; what a browser would fetch stands in src, href and url().
    fetched = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?(?!data:|#)([^"\')>]+)', page)
    assert fetched == []
    assert '<script' not in page and '<link' not in page
