"""A run as the numbers that its page draws, plain JSON types."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping

import cv2
import numpy as np
from scipy.stats import chi2

from pose_reloc.errors import PoseRelocError
from pose_reloc.geometry import invert_pose
from pose_reloc.scene import SceneModel
from pose_reloc.uncertainty import propagate_lever_arm
from training.evaluate import Errors, Evaluation, Frame
from training.floor_view import walked
from training.report.reasons import sentences
from training.report.scene_facts import rounded, scene_drawing
from training.report.tables import METHOD_NAMES

Images = Mapping[str, Callable[[], np.ndarray]]

_PICTURES = 240  # kept in a page: about 4 MB
_PICTURE_WIDTH = 400
_SHOWN = 10  # of the worst answers, and of the frames without an answer
_SPHERE_95 = float(np.sqrt(chi2.ppf(0.95, df=3)))  # of a 3D Gaussian


def run_data(
    evaluation: Evaluation, scene: SceneModel, images: Images, camera_T_body: np.ndarray | None
) -> dict:
    """Everything that the scripts of a page draw.

    Args:
        evaluation: the result.
        scene: that answered.
        images: frame name to a function that gives its uint8 RGB image.
        camera_T_body: (4, 4) when the frames' poses are those of a body that carries the camera;
            the camera is drawn all the same, as it is what the training poses are.
    """
    frames = evaluation.frames
    body_T_camera = np.eye(4) if camera_T_body is None else invert_pose(camera_T_body)
    known = [i for i, f in enumerate(frames) if f.truth is not None]
    truth = np.array([frames[i].truth @ body_T_camera for i in known]).reshape(-1, 4, 4)
    steps = walked(truth[:, :3, 3])
    along = dict(zip(known, _along(truth[:, :3, 3], steps)))
    times = one_clock([f.time_s for f in frames])
    worst = _worst(frames)
    silent = _evenly([i for i, f in enumerate(frames) if f.estimate is None], _SHOWN)
    pictures = _pictures(frames, images, [*worst, *silent])
    return scene_drawing(scene) | {
        'frames': [
            _frame(f, body_T_camera)
            | {
                'time': round(times[i] - times[0], 3),
                'along': round(float(along.get(i, 0.0)), 3),
                'image': pictures.get(i),
            }
            for i, f in enumerate(frames)
        ],
        'truth': [[known[i], known[i + 1]] for i in steps],
        'curves': _curves(evaluation),
        'worst': worst,
        'silent': silent,
    }


def _frame(frame: Frame, body_T_camera: np.ndarray) -> dict:
    error = level = sigma = ellipsoid = None
    if frame.truth is not None and frame.estimate is not None:
        error = rounded(frame.error(), 5)
    if frame.estimate is not None and frame.covariance_66 is not None:
        covariance = propagate_lever_arm(frame.covariance_66, frame.estimate, body_T_camera)
        ellipsoid = ellipsoid_95(covariance)
        sigma = claimed_sigma(frame.covariance_66)
    if (squared := frame.nees()) is not None:
        level = round(100 * float(chi2.cdf(squared, df=6)), 3)
    return {
        'name': frame.name,
        'status': frame.status,
        'reasons': sentences(frame.reasons),
        'truth': None if frame.truth is None else pose_rows(frame.truth @ body_T_camera),
        'estimate': None if frame.estimate is None else pose_rows(frame.estimate @ body_T_camera),
        'error': error,
        'sigma': sigma,
        'level': level,
        'ellipsoid': ellipsoid,
        'latency': None if frame.latency_s is None else round(1e3 * frame.latency_s, 1),
    }


def claimed_sigma(covariance_66: np.ndarray) -> list[float]:
    """Standard deviations along the worst axis: metres, degrees."""
    parts = (covariance_66[:3, :3], covariance_66[3:, 3:])
    position, rotation = (np.sqrt(max(np.linalg.eigvalsh(part)[-1], 0)) for part in parts)
    return rounded((position, np.rad2deg(rotation)), 5)


def ellipsoid_95(covariance_66: np.ndarray) -> list[float]:
    """Half axes of the ellipsoid that holds 95 % of the positions: columns of 3x3, row by row."""
    size, axes = np.linalg.eigh(covariance_66[:3, :3])
    return rounded((axes * (_SPHERE_95 * np.sqrt(size.clip(min=0)))).ravel(), 5)


def pose_rows(map_T_camera: np.ndarray) -> list[float]:
    """The upper three rows, row by row."""
    return rounded(map_T_camera[:3].ravel(), 5)


def _along(positions_N3: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Metres walked until each position (N,); a jump adds nothing."""
    length = np.zeros(len(positions_N3))
    length[steps + 1] = np.linalg.norm(positions_N3[steps + 1] - positions_N3[steps], axis=1)
    return np.cumsum(length)


def one_clock(times_s: list[float]) -> list[float]:
    """Stamps that increase: those of different recordings share no clock, and may be missing.

    A stamp that does not lie after the one before starts a recording one second later.
    """
    result, shift = [], 0.0
    for time in times_s:
        if result and time + shift <= result[-1]:
            shift = result[-1] + 1.0 - time
        result.append(time + shift)
    return result


def methods(evaluation: Evaluation) -> tuple[dict[str, Errors], dict[str, Errors]]:
    """Name to errors, of what was measured and of the baselines."""
    measured = {'pose_reloc': evaluation.errors()}
    if evaluation.train:
        measured['on training images'] = evaluation.train.errors()
    return measured, {METHOD_NAMES[name]: e for name, e in evaluation.baselines.items()}


def _curves(evaluation: Evaluation) -> list[dict]:
    """Errors by method; `css` is the colour in the style sheet."""
    colours = ((0, 1), ('soft', 'soft2'))
    return [
        {'name': name, 'errors': error_lists(errors), 'css': css, 'dash': isinstance(css, str)}
        for curves, shades in zip(methods(evaluation), colours)
        for (name, errors), css in zip(curves.items(), shades)
    ]


def error_lists(errors: Errors) -> list[list[float | None]]:
    """Position and rotation errors as JSON: None instead of infinity."""
    return [[round(float(x), 5) if np.isfinite(x) else None for x in error] for error in errors]


def _worst(frames: list[Frame]) -> list[int]:
    """The answers with the largest position errors, worst first."""
    scored = [i for i, f in enumerate(frames) if f.truth is not None and f.estimate is not None]
    return sorted(scored, key=lambda i: -frames[i].error()[0])[:_SHOWN]


def _pictures(frames: list[Frame], images: Images, shown: list[int]) -> dict[int, str]:
    """Index of a frame to its picture as a data URI.

    A long run keeps those that are shown, and as many others as there is room for.
    """
    having = [i for i, frame in enumerate(frames) if frame.name in images]
    wanted = [*(i for i in shown if frames[i].name in images), *_evenly(having, _PICTURES)]
    pictures = {}
    for i in list(dict.fromkeys(wanted))[:_PICTURES]:
        try:
            pictures[i] = jpeg_uri(images[frames[i].name]())
        except PoseRelocError:  # the run has counted it as unreadable
            continue
    return pictures


def _evenly(items: list[int], count: int) -> list[int]:
    """At most `count` of the items, evenly spaced."""
    chosen = np.linspace(0, len(items) - 1, min(len(items), count)).astype(int)
    return [items[k] for k in chosen]


def jpeg_uri(image_HW3: np.ndarray) -> str:
    """A small picture of a uint8 RGB image, as a data URI."""
    width = min(_PICTURE_WIDTH, image_HW3.shape[1])
    height = max(round(image_HW3.shape[0] * width / image_HW3.shape[1]), 1)
    small = cv2.resize(image_HW3, (width, height), interpolation=cv2.INTER_AREA)
    data = cv2.imencode('.jpg', small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 75])[1]
    return 'data:image/jpeg;base64,' + base64.b64encode(data.tobytes()).decode()
