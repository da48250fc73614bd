"""Images that must be refused or must not be believed: what they are, and how answers count."""

import numpy as np
import pytest

from pose_reloc.camera import Camera
from pose_reloc.cli import main
from pose_reloc.geometry import perturb_pose
from pose_reloc.relocalizer import PoseEstimate, Status
from training.benchmarks import run_benchmark
from training.benchmarks.workload import BenchSettings
from training.datasets import Sample
from training.datasets.synthetic import is_built_in
from training.wrong_places import (
    CHANGES,
    HEAVY_BLUR,
    UNCHANGED,
    Question,
    ask,
    empty_questions,
    foreign_questions,
)

CAMERA = Camera(160, 120, 130.0, 130.0, 80.0, 60.0)


class Answering:
    """A relocalizer that gives prepared answers."""

    def __init__(self, answers):
        self._answers = iter(answers)

    def localize(self, image_HW3, camera):
        return next(self._answers)


def picture():
    v, u = np.mgrid[0:120, 0:160]
    checks = 90 + 70 * ((u // 10 + v // 10) % 2)
    return np.dstack([checks, checks + 20, checks - 20]).astype(np.uint8)


def sample():
    return Sample('a.png', CAMERA, np.eye(4), image_loader=picture)


def test_a_wrong_pose_counts_by_how_far_off_and_how_sure_it_is():
    metres = [0.01, 0.6, 0.6, 0.49, 0.6]
    sigma = [0.1, 0.1, 0.3, 0.01, 0.1]  # the third is vague, the fourth wrong but near
    statuses = [Status.REFINED, Status.COARSE, Status.COARSE, Status.REFINED, Status.LOST]
    answers = [
        PoseEstimate(status, perturb_pose(np.eye(4), [m, 0, 0, 0, 0, 0]), s**2 * np.eye(6))
        for status, m, s in zip(statuses, metres, sigma)
    ]
    tally = ask(Answering(answers), [Question(picture(), CAMERA, np.eye(4))] * 5, 'test')
    assert len(tally) == 5 and tally.answered == 4
    assert [tally.count(s) for s in (Status.REFINED, Status.COARSE, Status.LOST)] == [2, 2, 1]
    assert tally.far == 2 and tally.far_and_sure == 1
    assert tally.metres[:4] == pytest.approx(metres[:4]) and np.isnan(tally.metres[4])


def test_an_answer_to_a_foreign_image_has_no_error():
    answer = PoseEstimate(Status.COARSE, np.eye(4), np.eye(6))
    tally = ask(Answering([answer]), foreign_questions([sample()]), 'test')
    assert tally.answered == 1 and tally.far == 0 and np.isnan(tally.metres[0])


@pytest.mark.parametrize('change', (UNCHANGED, *CHANGES), ids=lambda change: change.name)
def test_a_change_is_always_the_same_and_changes_what_it_says(change):
    (first,), (again,) = (list(change.questions([sample()])) for _ in range(2))
    assert first.image.shape == (120, 160, 3) and first.image.dtype == np.uint8
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.truth, np.eye(4))
    same = np.array_equal(first.image, picture())
    assert same == (change is UNCHANGED or change.camera(CAMERA) != CAMERA)
    assert (first.camera == CAMERA) or same


def changed(name):
    (change,) = (change for change in CHANGES if change.name.startswith(name))
    (question,) = change.questions([sample()])
    return question.image.astype(float), question.camera


def test_light_is_what_it_says():
    before = picture().astype(float)
    night, _ = changed('night')
    assert night.mean() < before.mean() / 2
    assert (
        night[..., 2].mean() / night[..., 0].mean() > before[..., 2].mean() / before[..., 0].mean()
    )
    # Two stops are a quarter of the light: (1/4)^(1/2.2) of the grey value.
    darker, _ = changed('underexposed')
    assert darker.mean() / before.mean() == pytest.approx(0.25 ** (1 / 2.2), rel=0.05)
    brighter, _ = changed('overexposed')
    assert brighter.max() == 255 and brighter.mean() > before.mean()


def test_a_third_is_hidden():
    hidden, _ = changed('30 %')
    assert np.any(hidden != picture(), axis=2).mean() == pytest.approx(0.3, abs=0.02)


def test_blur_takes_the_detail_and_leaves_the_light():
    detail = np.abs(np.diff(picture().astype(float), axis=1)).mean()
    for name, least, most in (('motion blur, 1.5', 0.3, 1.0), ('heavily', 0.0, 0.6)):
        image, _ = changed(name)
        assert least < np.abs(np.diff(image, axis=1)).mean() / detail < most
        assert image.mean() == pytest.approx(picture().mean(), rel=0.02)


def test_a_knocked_calibration_is_off_by_what_it_says():
    _, camera = changed('wrong calibration')
    assert camera.fx == pytest.approx(1.03 * CAMERA.fx) and camera.fy == CAMERA.fy
    assert camera.cx - CAMERA.cx == pytest.approx(10 * 160 / 640)


def test_empty_images_fit_their_camera():
    images = [question.image for question in empty_questions(CAMERA)]
    assert len(images) > 20 and {image.shape for image in images} == {(120, 160, 3)}
    assert {int(image.min()) for image in images if image.std() == 0} >= {0, 255}


def test_without_a_scene_the_benchmark_says_so(tmp_path):
    (table,) = run_benchmark('wrong_places', BenchSettings(tmp_path, ('cpu',)))
    assert '--scene' in table.text() and table.bars == ()
    assert HEAVY_BLUR in CHANGES


def test_a_foreign_dataset_needs_its_kind(tmp_path, capsys):
    assert main(['bench', 'wrong_places', '--foreign', 'office', '--out', str(tmp_path)]) == 2
    assert 'KIND=DIR' in capsys.readouterr().err


def test_the_benchmark_fills_its_tables(room, tiny_scene, tmp_path, monkeypatch):
    monkeypatch.setattr('training.benchmarks.wrong_places._MOST', 2)
    monkeypatch.setattr('training.benchmarks.wrong_places.CHANGES', CHANGES[:1])
    tiny_scene.save(tmp_path / 'tiny.scene')
    settings = BenchSettings(
        tmp_path, ('cpu',), path=room, scene=tmp_path / 'tiny.scene', foreign=(('7scenes', room),)
    )
    foreign, changed = run_benchmark('wrong_places', settings)
    # The built-in room is no foreign place to itself, whatever its seed.
    assert is_built_in(room) and not is_built_in(tmp_path)
    assert not (tmp_path / 'built_in_room').exists() and len(foreign.rows) == 4
    assert len(foreign.bars) == 3 and len(changed.bars) == 1
    for table in (foreign, changed):
        assert len({len(row) for row in table.rows}) == 1
        for row in table.rows[1:]:
            assert int(row[1]) == sum(int(cell) for cell in row[2:5])
    assert [row[0] for row in changed.rows[1:]] == [UNCHANGED.name, CHANGES[0].name]
