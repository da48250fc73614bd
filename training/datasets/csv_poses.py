"""Tables of poses: scene,split,seq,img_path,t1,t2,t3,q1,q2,q3,q4 (one header line).

The format of the multi-scene pose regressors. t is the camera centre in the world, q a unit
quaternion wxyz. The tables in circulation disagree about q: those of Cambridge Landmarks rotate
the world into the camera, those of 7-Scenes the camera into the world (and are poses of the depth
camera). The option `rotation` says it; by default it follows from the names of the images.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

from pose_reloc.camera import Camera
from pose_reloc.errors import DatasetError
from training.datasets import Dataset, Sample
from training.datasets.calibration import CameraSource, camera_source
from training.datasets.files import existing_image, image_size, inside
from training.datasets.text import Line, open_text

_POSE = ('t1', 't2', 't3', 'q1', 'q2', 'q3', 'q4')
_COLUMNS = ('scene', 'split', 'seq', 'img_path', *_POSE)
_SEVEN_SCENES = re.compile(r'seq-\d\d/frame-\d{6}\.color\.(png|jpg)$')
_ROTATIONS = ('auto', 'world_to_camera', 'camera_to_world')


def load(
    path: Path, images: str | None = None, scene: str = '', rotation: str = 'auto', intrinsics=None
) -> Dataset:
    """Reads a table, or all the tables in a folder.

    Args:
        path: a .csv file, or a folder that holds some.
        images: folder below which img_path lies, absolute or relative to the table's; default the
            table's folder.
        scene: only the rows of this scene; needed where the rows are of several scenes.
        rotation: what q rotates: 'world_to_camera', 'camera_to_world', or 'auto': camera_to_world
            for images named as in 7-Scenes, otherwise world_to_camera.
        intrinsics: (fx, fy, cx, cy) in pixels; otherwise calibration.yaml or K.txt beside the
            table.

    Raises:
        DatasetError: no table, a bad row, a missing image, several scenes, or no intrinsics.
    """
    if rotation not in _ROTATIONS:
        raise DatasetError(f'rotation must be one of {", ".join(_ROTATIONS)}, got {rotation!r}')
    files = sorted(path.glob('*.csv')) if path.is_dir() else [path]
    if not files:
        raise DatasetError(f'{path} holds no .csv file')
    folder = files[0].parent
    root = folder / Path(images).expanduser() if images else folder
    rows = [(line, row) for file in files for line, row in _read_table(file)]
    rows = [(line, row) for line, row in rows if scene in ('', row['scene'])]
    _check_scenes({row['scene'] for _, row in rows}, scene, path)
    warnings = [f'{path} holds poses only: no depth and no 3D points']
    if rotation == 'auto':
        named = all(_SEVEN_SCENES.search(row['img_path']) for _, row in rows)
        rotation = 'camera_to_world' if named else 'world_to_camera'
        warnings.append(f'the quaternions are taken as {rotation}; the option rotation changes it')
    source = camera_source(folder, intrinsics, _no_camera(folder))
    splits: dict[str, list[Sample]] = {'train': [], 'test': []}
    for order, (line, row) in enumerate(rows):
        if row['split'] not in splits:
            raise line.error(f'the split must be train or test, not {row["split"]!r}')
        if row['seq']:
            inside(root, row['seq'], f'{line.where}, column seq')
        values = line.numbers([row[name] for name in _POSE])
        pose = line.pose(values[:3], values[3:], rotation == 'camera_to_world')
        image_path = existing_image(root, row['img_path'], line.where)
        camera = source.make(*image_size(image_path))
        splits[row['split']].append(Sample(image_path, camera, pose, row['seq'], float(order)))
    return Dataset(rows[0][1]['scene'], splits['train'], splits['test'], warnings)


def _read_table(file: Path) -> list[tuple[Line, dict[str, str]]]:
    rows = []
    with open_text(file) as stream:
        reader = csv.reader(stream)
        try:
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in _COLUMNS if name not in header]
            if missing:
                raise DatasetError(
                    f'{file}, line 1: the header lacks {", ".join(missing)}; expected '
                    f'{",".join(_COLUMNS)}'
                )
            twice = [name for name in _COLUMNS if header.count(name) > 1]
            if twice:
                raise DatasetError(f'{file}, line 1: the column {twice[0]} is there twice')
            for words in reader:
                line = Line(file, reader.line_num, ','.join(words))
                if not any(word.strip() for word in words):
                    continue
                if len(words) != len(header):
                    raise line.error(f'expected {len(header)} columns, got {len(words)}')
                rows.append((line, dict(zip(header, (word.strip() for word in words)))))
        except csv.Error as error:
            raise DatasetError(f'{file}, line {reader.line_num}: {error}') from error
    return rows


def _check_scenes(scenes: set[str], scene: str, path: Path) -> None:
    if not scenes:
        raise DatasetError(f'{path} has no rows' + (f' of the scene {scene!r}' if scene else ''))
    if len(scenes) > 1:
        raise DatasetError(
            f'{path} holds {len(scenes)} scenes ({", ".join(sorted(scenes)[:8])}); their worlds '
            'differ, so choose one with the option scene'
        )


def _no_camera(folder: Path) -> CameraSource:
    def make(width: int, height: int) -> Camera:
        raise DatasetError(
            f'a table of poses does not say what the camera is: put K.txt or calibration.yaml into '
            f'{folder}, or give the option intrinsics=fx,fy,cx,cy'
        )

    return CameraSource(make)
