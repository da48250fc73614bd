"""New views: against OpenCV's homography, and against frames that were really taken."""

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from pose_reloc.camera import Camera
from training.cache import CacheSettings, build_cache
from training.datasets import open_dataset
from training.view_synthesis import (
    ViewSettings,
    change_light,
    render_views,
    sample_light,
    sample_motion,
)


def _smooth_image(height=96, width=128):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(height, width, 3)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 4)
    return (128 + 400 * blurred).clip(0, 255).astype(np.uint8)


def test_rotation_is_the_homography_K_R_Kinv():
    camera = Camera(128, 96, 100.0, 100.0, 63.5, 47.5)
    image = _smooth_image()
    R = Rotation.from_rotvec([0.05, -0.12, 0.2]).as_matrix()  # old_R_new
    motion = np.eye(4)
    motion[:3, :3] = R
    motion[:3, 3] = [3.0, 2.0, 1.0]  # must be ignored: nothing is known of the depth
    eye = torch.eye(4)[None]
    out, seen = render_views(
        torch.from_numpy(image)[None, None],
        None,
        eye[None],
        torch.from_numpy(motion)[None].float(),
        camera,
    )
    old_H_new = camera.K @ R @ np.linalg.inv(camera.K)
    expected = cv2.warpPerspective(
        image, old_H_new, (128, 96), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    )
    valid = cv2.erode(
        cv2.warpPerspective(
            np.full((96, 128), 255, np.uint8), old_H_new, (128, 96), flags=cv2.WARP_INVERSE_MAP
        ),
        np.ones((5, 5)),
        borderType=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    valid = valid == 255
    assert valid.mean() > 0.4
    difference = np.abs(out[0].permute(1, 2, 0).numpy() - expected)[valid]
    assert difference.max() < 3 and difference.mean() < 0.5
    assert seen[0].numpy()[valid].all()


def test_no_motion_gives_the_image_back():
    camera = Camera(128, 96, 100.0, 100.0, 63.5, 47.5)
    image = torch.from_numpy(_smooth_image())[None, None]
    eye = torch.eye(4)[None]
    depth = torch.full((1, 1, 48, 64), 2.0)
    out, seen = render_views(image, depth, eye[None], eye, camera)
    assert seen.float().mean() > 0.95
    difference = (out - image[:, 0].permute(0, 3, 1, 2)).abs()
    assert difference.mean() < 0.1


def test_a_view_from_elsewhere_matches_the_frame_taken_there(room, tmp_path):
    samples = open_dataset('7scenes', room).train[:24]
    cache = build_cache(samples, CacheSettings(short_side=120), tmp_path)
    poses = torch.from_numpy(cache.world_T_camera).float()
    images = torch.from_numpy(np.array(cache.images))
    depth = torch.from_numpy(np.array(cache.depth))
    sources = torch.tensor([[i, i + 2] for i in range(0, 20, 4)])
    taken = sources[:, 0] + 1
    out, seen = render_views(
        images[sources], depth[sources], poses[sources], poses[taken], cache.camera
    )
    truth = images[taken].permute(0, 3, 1, 2).float()
    unwarped = images[sources[:, 0]].permute(0, 3, 1, 2).float()
    assert seen.float().mean() > 0.8
    rendered = (out - truth).abs().mean(1)[seen]
    still = (unwarped - truth).abs().mean(1)[seen]
    assert rendered.median() < 0.3 * still.median()


def test_motion_has_the_spread_that_was_asked_for():
    generator = torch.Generator().manual_seed(0)
    settings = ViewSettings(sigma_m=0.3, sigma_rad=0.1)
    motion = sample_motion(4000, settings, True, generator)
    assert motion[:, :3, 3].std(0).numpy() == pytest.approx([0.3] * 3, rel=0.06)
    w = Rotation.from_matrix(motion[:, :3, :3].numpy()).as_rotvec()
    assert w.std(0) == pytest.approx([0.1] * 3, rel=0.06)
    assert not sample_motion(4, settings, False, generator)[:, :3, 3].any()


def test_light_changes_but_stays_an_image_and_is_repeatable():
    image = torch.from_numpy(_smooth_image()).permute(2, 0, 1)[None].float().repeat(8, 1, 1, 1)
    settings = ViewSettings()
    light = sample_light(8, settings, torch.Generator().manual_seed(3))
    first = change_light(image, light)
    again = change_light(image, sample_light(8, settings, torch.Generator().manual_seed(3)))
    assert torch.equal(first, again)
    assert first.min() >= 0 and first.max() <= 255
    assert first.mean((1, 2, 3)).std() > 5
    assert torch.equal(first[3:5], change_light(image[3:5], light[3:5]))
