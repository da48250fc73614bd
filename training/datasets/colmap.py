"""COLMAP reconstructions, and folders laid out like them.

    sparse/0/, sparse/ or the folder itself   cameras, images, points3D as .bin or .txt
    images/                                   the images by the names in the model
    list_db.txt, list_query.txt               optional: names of the train and test images

Without lists every 8th image is a test image. Images that were resized after the reconstruction
(images_2/, images_4/) are recognised by their size. Images whose files are missing are left out,
unless all of them are missing: then there are poses and points without pictures.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from pose_reloc.errors import DatasetError
from training.datasets import Dataset, Sample
from training.datasets.colmap_cameras import ConvertedCamera, convert_camera
from training.datasets.colmap_model import ColmapModel, has_model, read_model
from training.datasets.files import image_file, image_size, inside, missing_images, natural_order
from training.datasets.text import read_lines


def load(path: Path, model: str | None = None, images: str = 'images', every: int = 8) -> Dataset:
    """Reads a model and its lists.

    Args:
        path: the folder.
        model: folder of the model below it, where it is not one of the usual places.
        images: folder of the images below it.
        every: without lists, images 0, n, 2n, ... in order of their names are the test split;
            0 for no test split.

    Raises:
        DatasetError: there is no model or it is damaged, or no listed image is in the model.
    """
    folder, warnings = _find_model(path, model)
    reconstruction = read_model(folder)
    if not reconstruction.images:
        raise DatasetError(f'the model in {folder} has no images')
    warnings.append(
        'distances are in the units of the model, which are metres only if it was aligned '
        '(colmap model_aligner)'
    )
    if not len(reconstruction.points):
        warnings.append(f'the model in {folder} has no 3D points')
    root = inside(path, images, 'the option images')
    samples = _samples(reconstruction, root if root.is_dir() else path, folder)
    samples = _with_files(samples, warnings)
    if (path / 'list_db.txt').is_file():
        train = _listed(path / 'list_db.txt', samples, warnings)
        test = _listed(path / 'list_query.txt', samples, warnings)
        return Dataset(path.resolve().name, train, test, warnings)
    if every < 0 or every == 1:
        raise DatasetError(f'the option every must be 0 or at least 2, got {every!r}')
    ordered = [samples[name] for name in sorted(samples, key=natural_order)]
    test = ordered[::every] if every else []
    train = [s for i, s in enumerate(ordered) if not every or i % every]
    return Dataset(path.resolve().name, train, test, warnings)


def _find_model(path: Path, model: str | None) -> tuple[Path, list[str]]:
    if model is not None:
        candidates = [inside(path, model, 'the option model')]
    else:
        candidates = [path / 'sparse' / '0', path / 'sparse', path]
    for folder in candidates:
        if has_model(folder):
            others = [p for p in folder.parent.glob('*') if p != folder and has_model(p)]
            text = f'{folder.parent} holds {len(others) + 1} models; only {folder.name} is read'
            return folder, [text] if others and folder.parent.name == 'sparse' else []
    raise DatasetError(
        f'{path} holds no COLMAP model: looked for cameras and images (.bin or .txt) in '
        f'{", ".join(str(folder) for folder in candidates)}'
    )


def _samples(model: ColmapModel, root: Path, folder: Path) -> dict[str, Sample]:
    cameras = {
        key: convert_camera(model.cameras[key], f'{folder}, camera {key}')
        for key in {image.camera_id for image in model.images}
    }
    samples = {}
    resized: dict[tuple, ConvertedCamera] = {}
    for order, image in enumerate(sorted(model.images, key=lambda i: natural_order(i.name))):
        path = image_file(root, image.name, f'{folder}, image {image.name!r}')
        converted = cameras[image.camera_id]
        if os.path.isfile(path):
            size = image_size(path)
            if (image.camera_id, size) not in resized:
                resized[image.camera_id, size] = _resized(converted, *size, path)
            converted = resized[image.camera_id, size]
        samples[image.name] = Sample(
            path,
            converted.camera,
            image.world_T_camera,
            image.name.rpartition('/')[0],
            float(order),
            points_loader=partial(model.points_of, image) if len(model.points) else None,
            image_loader=None if converted.map_u is None else partial(converted.load_image, path),
        )
    return samples


def _resized(converted: ConvertedCamera, width: int, height: int, path: Path) -> ConvertedCamera:
    """The camera at the size that the image file has now."""
    full_width, full_height = converted.size
    if (width, height) == converted.size:
        return converted
    # Resized sizes are rounded, so the aspect is only kept to a pixel.
    if abs(width * full_height - height * full_width) > 1.5 * max(converted.size):
        raise DatasetError(
            f'{path} is {width}x{height} but its camera is {full_width}x{full_height}: '
            'give the images of this reconstruction (were they cropped or turned?)'
        )
    return converted.resized(width, height, str(path))


def _with_files(samples: dict[str, Sample], warnings: list[str]) -> dict[str, Sample]:
    """The samples whose images are there, or all of them where none is."""
    there = {name: s for name, s in samples.items() if os.path.isfile(s.image_path)}
    if not there:
        warnings += missing_images([sample.image_path for sample in samples.values()])
        return samples
    if len(there) < len(samples):
        first = next(s.image_path for name, s in samples.items() if name not in there)
        warnings.append(
            f'{len(samples) - len(there)} of {len(samples)} images are missing and left out '
            f'(first: {first})'
        )
    return there


def _listed(file: Path, samples: dict[str, Sample], warnings: list[str]) -> list[Sample]:
    """The samples a list names, in the order of their names: a video's frames follow each other.

    Images that COLMAP could not register have no pose.
    """
    if not file.is_file():
        return []
    lines = list(read_lines(file))
    unknown = [line.text for line in lines if line.text not in samples]
    if lines and len(unknown) == len(lines):
        raise lines[0].error('no image of this list is in the model and has a file')
    if unknown:
        warnings.append(
            f'{len(unknown)} of {len(lines)} images of {file.name} are not in the model, or '
            f'missing, and left out (first: {unknown[0]})'
        )
    named = {line.text for line in lines}
    return [sample for name, sample in samples.items() if name in named]
