"""What a scene was made from, and the scene as something to look at."""

from __future__ import annotations

import numpy as np

from pose_reloc.scene import SceneModel
from training.floor_view import floor_view, walked

# Landmarks that are drawn: enough to recognise a room, few enough for a phone.
_DRAWN_LANDMARKS = 4000


def recipe_rows(scene: SceneModel) -> dict[str, str]:
    """Name to value, for people; what the recipe does not say is left out."""
    header, recipe = scene.header, scene.header.recipe
    settings = recipe.get('settings', {})
    rows = {
        'scene': header.name,
        'dataset': recipe.get('dataset'),
        'images': _images(recipe, scene),
        'made': recipe.get('created'),
        'command': recipe.get('command') and f'pose_reloc {recipe["command"]}',
        'network': f'{header.network["backbone"]}, {header.network_camera.width}x'
        f'{header.network_camera.height} pixels',
        'backbone weights': recipe.get('backbone_weights'),
        'loss': settings.get('loss', {}).get('name'),
        'training': _training(recipe, settings),
        'view synthesis': 'from posed images' if settings.get('views') else None,
        'landmarks': _landmarks(scene),
        'rehearsal': _rehearsal(recipe.get('rehearsal')),
        'covariance from': recipe.get('covariance'),
        'camera': f'{header.camera.width}x{header.camera.height} pixels, '
        f'fx {header.camera.fx:.1f}, fy {header.camera.fy:.1f}',
        'versions': ', '.join(f'{k} {v}' for k, v in recipe.get('versions', {}).items()),
    }
    return {name: str(value) for name, value in rows.items() if value}


def _images(recipe: dict, scene: SceneModel) -> str:
    text = f'{recipe.get("images", len(scene.train_world_T_camera))} trained on'
    held_out = recipe.get('images_held_out')
    return f'{text}, {held_out} held out' if held_out else text


def _training(recipe: dict, settings: dict) -> str | None:
    if 'seconds' not in recipe:
        return None
    parts = [
        f'{recipe["seconds"] / 60:.1f} minutes',
        f'{recipe.get("epochs")} epochs',
        f'on {recipe.get("device")} in {recipe.get("precision")}',
    ]
    if 'batch' in settings:
        parts.append(f'batches of {settings["batch"]}, learning rate {settings["learning_rate"]:g}')
    return ', '.join(parts)


def _landmarks(scene: SceneModel) -> str:
    if not scene.landmarks:
        return 'none: answers are regressed poses'
    return f'{len(scene.landmarks.points)} in {len(scene.landmarks)} keyframes'


def _rehearsal(rehearsal: dict | None) -> str | None:
    if not rehearsal:
        return None
    text = f'{rehearsal["refined"]} of {rehearsal["frames"]} training images refined'
    median = rehearsal.get('median_position_m')
    return text if median is None else f'{text}, median {100 * median:.1f} cm'


def scene_drawing(scene: SceneModel) -> dict:
    """What the 3D view shows of a scene, in the map, as plain JSON types.

    Returns:
        `view`, the frame to look from; `train`, positions and the steps that were walked;
        `landmarks`, some points; `extent`, the size of the trajectory in metres.
    """
    poses = scene.map_T_scene @ scene.train_world_T_camera
    view = floor_view(poses)
    positions = poses[:, :3, 3]
    right, forward = view.axes.T
    return {
        'view': {
            'origin': rounded(view.origin),
            'axes': [rounded(axis, 9) for axis in (right, forward, view.up)],
        },
        'train': {'positions': rounded(positions), 'steps': walked(positions).tolist()},
        'landmarks': rounded(_drawn_landmarks(scene, positions)),
        'extent': round(float(np.linalg.norm(np.ptp(positions, axis=0))) + 0.2, 3),
    }


def _drawn_landmarks(scene: SceneModel, positions_N3: np.ndarray) -> np.ndarray:
    """Landmarks (M, 3) in the map, evenly picked, without those far from the cameras."""
    if not scene.landmarks:
        return np.zeros((0, 3))
    points = scene.landmarks.points
    points = points[:: max(1, len(points) // _DRAWN_LANDMARKS)].astype(np.float64)
    points = points @ scene.map_T_scene[:3, :3].T + scene.map_T_scene[:3, 3]
    # A few triangulated points may lie at the horizon: they would shrink everything else.
    distance = np.linalg.norm(points - positions_N3.mean(axis=0), axis=1)
    return points[distance <= 2 * np.quantile(distance, 0.9)]


def rounded(values, digits: int = 3) -> list:
    """Nested lists of numbers with as many digits as can be seen."""
    return np.round(np.asarray(values, dtype=np.float64), digits).tolist()
