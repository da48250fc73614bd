"""Refusal: what becomes of images of other places, and of this place under bad conditions."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pose_reloc.relocalizer import Relocalizer, Status
from pose_reloc.scene import SceneModel
from training.benchmarks.table import Bar, PlainTable
from training.benchmarks.workload import BenchSettings
from training.datasets import Sample, open_dataset
from training.datasets.synthetic import SyntheticSettings, is_built_in, write_scene
from training.wrong_places import (
    CHANGES,
    FAR_M,
    HEAVY_BLUR,
    UNCHANGED,
    Tally,
    ask,
    empty_questions,
    foreign_questions,
)

_MOST = 60  # images of each row
_BUILT_IN_ROOM = SyntheticSettings(train_frames=(24, 24), test_frames=12)


def run(settings: BenchSettings) -> list[PlainTable]:
    """Two tables: foreign images and changed images."""
    tables = []
    for device in settings.devices:
        title = f'wrong places: {device}'
        if settings.scene is None:
            note = 'not measured without --scene: an untrained scene cannot tell places apart'
            tables.append(PlainTable(title, [['images']], notes=(note,)))
            continue
        relocalizer = Relocalizer(SceneModel.load(settings.scene), device)
        title += f', {relocalizer.scene.header.name}'
        test = _spread(settings.split('test'))
        as_they_are = ask(relocalizer, UNCHANGED.questions(test), UNCHANGED.name)
        tables.append(_foreign(relocalizer, settings, test, as_they_are, title))
        tables.append(_changed(relocalizer, test, as_they_are, title))
    return tables


def _foreign(
    relocalizer: Relocalizer,
    settings: BenchSettings,
    test: list[Sample],
    as_they_are: Tally,
    title: str,
) -> PlainTable:
    places = list(settings.foreign)
    # With another seed the built-in room is the same place with other pictures on its walls.
    if settings.path and not is_built_in(settings.path):
        places.append(('7scenes', settings.folder / 'built_in_room'))
        write_scene(places[-1][1], _BUILT_IN_ROOM)
    questions = []
    for kind, path in places:
        dataset = open_dataset(kind, Path(path))
        samples = _spread(dataset.train + dataset.test)
        questions.append((dataset.name, foreign_questions(samples)))
    questions.append(('noise, black, white, patterns', empty_questions(test[0].camera)))
    questions.append((f'this place, {HEAVY_BLUR.name}', HEAVY_BLUR.questions(test)))
    tallies = [(name, ask(relocalizer, asked, name)) for name, asked in questions]
    header = ['images', 'number', 'REFINED', 'COARSE', 'refused']
    rows = [header, *([name, *_cells(tally)] for name, tally in tallies)]
    total = sum(len(tally) for _, tally in tallies)
    refined, coarse = (
        100 * sum(tally.count(status) for _, tally in tallies) / total
        for status in (Status.REFINED, Status.COARSE)
    )
    bars = (
        Bar('foreign images REFINED, %', refined, 1.0),
        Bar('foreign images COARSE, %', coarse, 5.0),
        Bar('test images answered, %', 100 * as_they_are.answered / len(test), 95, at_least=True),
    )
    return PlainTable(f'{title}, foreign images', rows, bars)


def _changed(
    relocalizer: Relocalizer, test: list[Sample], as_they_are: Tally, title: str
) -> PlainTable:
    far = f'over {FAR_M} m'
    rows = [['test images', 'number', 'REFINED', 'COARSE', 'refused', 'median m', far, 'and sure']]
    tallies = {UNCHANGED.name: as_they_are}
    for change in CHANGES:
        tallies[change.name] = ask(relocalizer, change.questions(test), change.name)
    for name, tally in tallies.items():
        median = f'{np.nanmedian(tally.metres):.3f}' if tally.answered else '-'
        rows.append([name, *_cells(tally), median, str(tally.far), str(tally.far_and_sure)])
    answered = sum(tally.answered for tally in tallies.values())
    sure = sum(tally.far_and_sure for tally in tallies.values())
    bar = Bar(f'answers {far} and sure, %', 100 * sure / max(answered, 1), 0.1)
    note = f'sure: the truth is outside its 99.9 % ellipsoid; {answered} answers'
    return PlainTable(f'{title}, changed images', rows, (bar,), (note,))


def _cells(tally: Tally) -> list[str]:
    statuses = (Status.REFINED, Status.COARSE, Status.LOST)
    return [str(len(tally)), *(str(tally.count(status)) for status in statuses)]


def _spread(samples: list[Sample]) -> list[Sample]:
    count = min(len(samples), _MOST)
    return [samples[i] for i in np.linspace(0, len(samples) - 1, count).round().astype(int)]
