"""What a summary says about answers, silence and errors; evaluation of real samples."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pose_reloc.errors import DatasetError
from pose_reloc.geometry import invert_pose, pose_matrix
from pose_reloc.relocalizer import PoseEstimate, Status
from training.datasets import open_dataset
from training.evaluate import Evaluation, Frame, evaluate
from training.metrics import Reprojection


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


def test_training_images_stand_beside_the_test():
    train = Evaluation([_frame(0, 0.01, 0.5)])
    both = Evaluation([_frame(0, 0.2, 9), _frame(1, 0.4, 12)], train=train)
    assert both.summary()['train'] == train.summary()
    assert 'train' not in train.summary() and both.summary()['frames'] == 2


def test_pixels_are_over_all_points_of_the_answered_frames():
    frames = [
        replace(_frame(0, 0.1, 1), reprojection=Reprojection(10.0, 300)),
        replace(_frame(1, 0.1, 1), reprojection=Reprojection(50.0, 100)),
        _frame(2, 0.1, 1),
        _frame(3, 0, 0, False),
    ]
    values = Evaluation(frames).to_json()
    assert values['reprojection_px'] == pytest.approx(20)
    assert values['per_frame'][1]['reprojection_px'] == 50
    assert values['per_frame'][1]['points'] == 100
    assert Evaluation(frames[2:]).summary()['reprojection_px'] is None


class _Shifted:
    """A relocalizer that answers each image with its true pose moved and turned a little."""

    scene = None  # only the baselines read it

    def __init__(self, samples, error):
        self._answers = iter([sample.world_T_camera @ error for sample in samples])

    def warm_up(self):
        pass

    def localize(self, image_HW3, camera):
        return PoseEstimate(Status.COARSE, next(self._answers), np.eye(6))


def test_reprojection_of_an_evaluation_against_brute_force_opencv(room):
    """Every valid depth pixel of every image, lifted and projected by hand, one mean over all."""
    samples = open_dataset('7scenes', room).test[:3]
    error = pose_matrix(Rotation.from_rotvec([0.01, -0.02, 0.03]).as_matrix(), [0.05, 0.02, -0.1])
    relocalizer = _Shifted(samples, error)
    found = evaluate(relocalizer, samples, with_baselines=False).summary()
    distances = []
    for sample in samples:
        depth = cv2.imread(
            str(sample.image_path).replace('.color.', '.depth.').replace('.jpg', '.png'),
            cv2.IMREAD_UNCHANGED,
        )
        v, u = np.nonzero((depth > 0) & (depth < 65535))
        pixels = np.stack([u, v], axis=1).astype(np.float64)
        K = sample.camera.K
        rays = np.concatenate([pixels, np.ones((len(u), 1))], axis=1) @ np.linalg.inv(K).T
        in_camera = rays * depth[v, u, None] / 1000
        estimate_T_true = invert_pose(error)
        rvec, _ = cv2.Rodrigues(estimate_T_true[:3, :3])
        moved, _ = cv2.projectPoints(in_camera, rvec, estimate_T_true[:3, 3], K, None)
        distances.append(np.minimum(np.linalg.norm(moved[:, 0] - pixels, axis=1), 1000))
    expected = np.concatenate(distances).mean()
    assert 5 < expected < 200
    assert found['reprojection_px'] == pytest.approx(expected, rel=1e-6)
    assert found['median_position_m'] == pytest.approx(np.linalg.norm(error[:3, 3]))


def test_frames_of_files_with_the_same_name_have_names_of_their_own(room):
    samples = open_dataset('7scenes', room).test[:3]
    samples = [replace(s, image_path=s.image_path.with_name('0000.png')) for s in samples]
    samples = [replace(s, image_loader=lambda: np.zeros((480, 640, 3), np.uint8)) for s in samples]
    found = evaluate(_Shifted(samples, np.eye(4)), samples, with_baselines=False)
    folder = samples[0].sequence
    names = [f'{folder}/0000.png', f'{folder}/0000.png#2', f'{folder}/0000.png#3']
    assert [frame.name for frame in found.frames] == names


def test_images_without_points_and_damaged_depth_are_still_evaluated(room, capsys):
    def damaged():
        raise DatasetError('frame-7.depth.png is not a whole image')

    samples = open_dataset('7scenes', room).test[:2]
    for loader, said in ((None, ''), (damaged, 'frame-7.depth.png')):
        changed = [replace(sample, depth_loader=loader) for sample in samples]
        relocalizer = _Shifted(changed, np.eye(4))
        summary = evaluate(relocalizer, changed, with_baselines=False).summary()
        assert summary['answered'] == 2 and summary['reprojection_px'] is None
        assert said in capsys.readouterr().out
