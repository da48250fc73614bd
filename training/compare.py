"""The losses against each other: trained on one dataset with equal budgets, measured alike.

DIR/LOSS.scene and DIR/LOSS.json hold what is finished, DIR/LOSS.run what is not: a comparison that
was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from pose_reloc import gates
from pose_reloc.errors import DatasetError, SettingsError, TrainingError
from pose_reloc.files import write_atomically
from pose_reloc.relocalizer import Relocalizer
from pose_reloc.scene import SceneModel
from training.build import build_scene
from training.datasets import Dataset
from training.evaluate import Errors, evaluate
from training.figures import cumulative_figure
from training.mapping import MappingSettings, build_landmarks
from training.metrics import recall_key
from training.report import METHOD_NAMES, aligned, percent_cell, write_file
from training.seen_points import lacks_depth, with_seen_points
from training.settings import TrainSettings

# Tight and loose recall, metres and degrees, as Boittiaux et al. 2022 report them: for Cambridge
# Landmarks, and for 7-Scenes and everything else.
Thresholds = tuple[tuple[float, float], tuple[float, float]]
CAMBRIDGE_THRESHOLDS: Thresholds = ((2, 2), (3, 5))
ROOM_THRESHOLDS: Thresholds = ((0.25, 10), (0.5, 15))


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Attributes:
        title: dataset and budget, for people.
        thresholds: of the two recalls that are shown.
        results: name of a loss to what DIR/LOSS.json holds.
        failures: name of a loss to the reason why it has no result.
    """

    title: str
    thresholds: Thresholds
    results: dict[str, dict]
    failures: dict[str, str]

    def rows(self) -> list[list[str]]:
        """The table: a header, the losses, the baselines, the losses that could not run."""
        recalls = [f'{metres:g} m/{degrees:g} deg' for metres, degrees in self.thresholds]
        rows = [
            [
                'loss',
                'train px',
                'test px',
                'median m',
                'median deg',
                *recalls,
                'epochs',
                'images/s',
            ]
        ]
        for loss, result in self.results.items():
            rows.append(
                [
                    loss,
                    _number(result['train']['reprojection_px'], 1),
                    _number(result['reprojection_px'], 1),
                    *self._cells(result),
                    f'{result["epochs"]}',
                    _number(result['images_per_second'], 1),
                ]
            )
        for name, metrics in self.baselines().items():
            rows.append([METHOD_NAMES[name], '-', '-', *self._cells(metrics), '-', '-'])
        rows += [[loss, *'-' * (len(rows[0]) - 1)] for loss in self.failures]
        return rows

    def baselines(self) -> dict[str, dict]:
        """Metrics of the baselines, which are the same for every loss."""
        return next(iter(self.results.values()))['baselines']

    def text(self) -> str:
        """For the terminal."""
        lines = [self.title, *(f'  {line}' for line in aligned(self.rows()))]
        return '\n'.join([*lines, *(f'  {reason}' for reason in self._reasons())])

    def markdown(self) -> str:
        """For a document."""
        header, *body = (f'| {" | ".join(row)} |' for row in self.rows())
        rule = '|---' + '|---:' * (header.count('|') - 2) + '|'
        lines = [self.title, '', header, rule, *body]
        return '\n'.join([*lines, *(f'\n{reason}' for reason in self._reasons())]) + '\n'

    def to_json(self) -> dict:
        """Plain JSON types, without the frames."""
        frames = ('per_frame', 'baseline_errors')
        return {
            'title': self.title,
            'thresholds': [recall_key(*bounds) for bounds in self.thresholds],
            'losses': {
                loss: {name: value for name, value in result.items() if name not in frames}
                for loss, result in self.results.items()
            },
            'failures': self.failures,
        }

    def figure(self):
        """Cumulative test errors of all losses and of the baselines."""
        first = next(iter(self.results.values()))
        baselines = {
            METHOD_NAMES[name]: tuple(np.array(errors))
            for name, errors in first['baseline_errors'].items()
        }
        curves = {loss: _errors(result) for loss, result in self.results.items()}
        return cumulative_figure(curves, baselines)

    def write(self, folder: Path) -> None:
        """Writes compare.json, compare.md and compare.png."""
        text = json.dumps(self.to_json(), indent=1) + '\n'
        write_file(folder / 'compare.json', lambda path: path.write_text(text))
        write_file(folder / 'compare.md', lambda path: path.write_text(self.markdown()))
        figure = self.figure()  # last: the numbers stay where drawing fails
        write_file(folder / 'compare.png', lambda path: figure.savefig(path, dpi=150))

    def _cells(self, metrics: dict) -> list[str]:
        recalls = [metrics['recall'][recall_key(*bounds)] for bounds in self.thresholds]
        return [
            _number(metrics['median_position_m'], 3),
            _number(metrics['median_rotation_deg'], 2),
            *(percent_cell(recall) for recall in recalls),
        ]

    def _reasons(self) -> list[str]:
        return [f'{loss} has no result: {reason}' for loss, reason in self.failures.items()]


def compare(
    dataset: Dataset,
    settings: TrainSettings,
    losses: list[str],
    folder: Path,
    thresholds: Thresholds = ROOM_THRESHOLDS,
    command: str = '',
) -> Comparison:
    """Trains each loss, or takes what an earlier call left, and measures the regressor alone.

    A loss that cannot be trained here, for example because the dataset has no points, is reported
    with the reason, and the others go on. For a loss that needs depth ranges, where the dataset has
    neither depth nor points, landmarks are triangulated first, as `train` does.

    Args:
        dataset: both splits are read.
        settings: of every run; only the loss's name is replaced.
        losses: names of `training.losses.LOSSES`.
        folder: of everything that is written.
        thresholds: tight and loose.
        command: how it was started, for the scenes' recipes.

    Raises:
        DatasetError: a split is empty or an image is damaged.
        SettingsError: the folder holds another comparison, or cannot be written.
        TrainingError: no loss could be trained.
    """
    train, test = dataset.split('train'), dataset.split('test')
    _begin(folder, dataset, settings)
    results, failures = {}, {}

    @cache
    def seen() -> Dataset:
        print('no depth: landmarks come first, to know how far away things are', flush=True)
        try:
            landmarks = build_landmarks(train, MappingSettings(device=settings.device))
        except DatasetError as error:
            raise SettingsError(f'no depth, and no landmarks either: {error}') from error
        return replace(dataset, train=with_seen_points(train, landmarks))

    for number, loss in enumerate(losses, start=1):
        path = folder / f'{loss}.json'
        step = f'[{number}/{len(losses)}] {loss}'
        if path.is_file():
            print(f'{step}: finished before')
        else:
            print(f'{step}: training {_budget(settings)}', flush=True)
            try:
                blind = lacks_depth(train, replace(settings.loss, name=loss))
                _train_and_measure(seen() if blind else dataset, settings, loss, folder, command)
            except (SettingsError, TrainingError) as error:
                print(f'{step}: {error}')
                failures[loss] = str(error)
                continue
        results[loss] = json.loads(path.read_text())
    if not results:
        raise TrainingError(f'no loss could be trained: {next(iter(failures.values()))}')
    title = (
        f'{dataset.name}, {len(train)} training and {len(test)} test images, '
        f'{settings.network.backbone}, {_budget(settings)} for each loss, regressor alone'
    )
    return Comparison(title, thresholds, results, failures)


def _begin(folder: Path, dataset: Dataset, settings: TrainSettings) -> None:
    """Makes the folder, or checks that what it holds can be compared with what is asked for."""
    plan = json.loads(json.dumps(settings.to_dict() | {'dataset': _digest(dataset)}))
    # A loss that lacked a depth range may be given one later; the others do not read it.
    for name in ('name', 'depth_range'):
        del plan['loss'][name]
    path = folder / 'settings.json'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            write_atomically(path, (json.dumps(plan, indent=1) + '\n').encode())
        begun = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise SettingsError(f'cannot use the folder {folder}: {reason}') from error
    changed = sorted(name for name in plan | begun if plan.get(name) != begun.get(name))
    if changed:
        name = changed[0]
        raise SettingsError(
            f'{folder} holds a comparison with {name}={begun.get(name)!r}, now it is '
            f'{plan.get(name)!r}; give another --out or delete that folder'
        )


def _digest(dataset: Dataset) -> str:
    """Identifies the images by their names and poses."""
    digest = hashlib.sha256()
    for sample in (*dataset.train, *dataset.test):
        digest.update(f'{sample.sequence}/{sample.image_path.name}'.encode())
        digest.update(np.ascontiguousarray(sample.world_T_camera, dtype=np.float64).tobytes())
    return f'{dataset.name} {digest.hexdigest()[:16]}'


def _train_and_measure(
    dataset: Dataset, settings: TrainSettings, loss: str, folder: Path, command: str
) -> None:
    """Writes LOSS.scene, then LOSS.json."""
    path = folder / f'{loss}.scene'
    if not path.is_file():
        settings = settings.changed(loss=replace(settings.loss, name=loss))
        run = folder / f'{loss}.run'
        build_scene(dataset, settings, loss, command, run, resume=True).scene.save(path)
    scene = SceneModel.load(path)
    relocalizer = Relocalizer(scene, settings.device, 'float32', gates.OPEN, refine=False)
    test = evaluate(relocalizer, dataset.test, 'test images')
    train = evaluate(relocalizer, dataset.train, 'training images', with_baselines=False)
    recipe = scene.header.recipe
    result = {
        'loss': loss,
        **{name: recipe[name] for name in ('epochs', 'images_per_second', 'seconds', 'device')},
        **replace(test, train=train).to_json(),
        'baseline_errors': {
            name: [error.tolist() for error in errors] for name, errors in test.baselines.items()
        },
    }
    text = json.dumps(result, indent=1, allow_nan=False) + '\n'
    write_atomically(folder / f'{loss}.json', text.encode())


def _errors(result: dict) -> Errors:
    """The errors of every test frame, infinite where there was no answer."""
    names = ('position_error_m', 'rotation_error_deg')
    return tuple(
        np.array([frame.get(name, np.inf) for frame in result['per_frame']]) for name in names
    )


def _budget(settings: TrainSettings) -> str:
    if settings.minutes is None:
        return f'{settings.epochs} epochs'
    return f'{settings.minutes:g} minutes'


def _number(value: float | None, digits: int) -> str:
    return '-' if value is None else f'{value:.{digits}f}'
