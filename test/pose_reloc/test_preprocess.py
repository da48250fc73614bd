"""The network's input against analytic renderings of a wall seen by several cameras."""

import cv2
import numpy as np
import pytest
import torch

from pose_reloc.camera import Camera
from pose_reloc.errors import CameraError
from pose_reloc.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    network_camera,
    normalize,
    to_network_image,
)

PINHOLE = Camera(640, 480, 525, 525, 319.5, 239.5)
LENS = Camera(640, 480, 480, 480, 322, 238, (-0.28, 0.09, 0.001, -0.0008, -0.01))
FISHEYE = Camera(640, 480, 300, 300, 318, 243, (0.02, -0.01, 0.004, -0.001), 'equidistant')


def wall(xy):
    """Smooth colours (..., 3) in [0, 255] of the wall Z = 1 at positions (..., 2)."""
    x, y = xy[..., 0], xy[..., 1]
    waves = [np.sin(11 * x + 2 * y), np.cos(9 * y - 3 * x), np.sin(7 * x) * np.cos(8 * y)]
    return 127.5 + 100 * np.stack(waves, axis=-1)


def photograph(camera):
    """What `camera` sees of the wall: each pixel's own ray, through its own lens."""
    grid = np.stack(np.meshgrid(np.arange(camera.width), np.arange(camera.height)), -1)
    rays = camera.unproject(grid.reshape(-1, 2), np.ones(camera.width * camera.height))
    return np.rint(wall(rays[:, :2])).astype(np.uint8).reshape(camera.height, camera.width, 3)


def difference(found, expected, border=3):
    inner = (slice(border, -border), slice(border, -border))
    return np.abs(found[inner].astype(float) - expected[inner].astype(float))


@pytest.mark.parametrize(
    'size, short_side, expected',
    [
        ((640, 480), 256, (341, 256)),
        ((1920, 1080), 256, (455, 256)),
        ((480, 640), 256, (256, 341)),
        ((640, 480), 128, (171, 128)),
    ],
)
def test_network_camera_keeps_the_aspect_ratio_and_the_view(size, short_side, expected):
    camera = Camera(*size, 500, 510, size[0] / 2 - 3, size[1] / 2 + 4, (0.1, 0, 0, 0, 0))
    small = network_camera(camera, short_side)
    assert (small.width, small.height) == expected and small.is_pinhole
    corners = np.array([[-0.5, -0.5], [size[0] - 0.5, size[1] - 0.5]])
    rays = camera.undistorted().unproject(corners, np.ones(2))
    edges = [[-0.5, -0.5], [expected[0] - 0.5, expected[1] - 0.5]]
    np.testing.assert_allclose(small.project(rays), edges, atol=1e-9)


@pytest.mark.parametrize('factor', [2, 4, 8])
def test_shrinking_by_a_power_of_two_takes_means(factor):
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    target = network_camera(PINHOLE, 480 // factor)
    found = to_network_image(image, PINHOLE, target)
    blocks = image.reshape(480 // factor, factor, 640 // factor, factor, 3)
    # Rounded to whole grey levels at each halving.
    assert np.abs(found - blocks.mean(axis=(1, 3))).max() <= 0.5 * np.log2(factor)
    assert found.flags.c_contiguous and found.dtype == np.uint8


@pytest.mark.parametrize('short_side', [256, 128, 100, 61])
def test_shrinking_by_any_factor_keeps_the_view(short_side):
    target = network_camera(PINHOLE, short_side)
    error = difference(to_network_image(photograph(PINHOLE), PINHOLE, target), photograph(target))
    # A pixel that is many times larger is the mean over its area, not the colour of its centre.
    assert error.mean() < 3 and np.quantile(error, 0.999) < 12


def test_an_image_of_odd_size_keeps_its_edges():
    odd = Camera(641, 481, 525, 525, 320, 240)
    target = network_camera(odd, 120)
    error = difference(to_network_image(photograph(odd), odd, target), photograph(target))
    assert error.mean() < 1.5


def test_an_image_of_the_right_size_stays_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    same = to_network_image(image[:, ::-1], PINHOLE, PINHOLE)
    np.testing.assert_array_equal(same, image[:, ::-1])
    assert same.flags.c_contiguous


def test_noise_is_averaged_as_the_image_shrinks():
    """Of a sampled pixel it would keep its full spread, whatever the size of the target."""
    noise = np.random.default_rng(0).normal(128, 30, (480, 640, 3)).clip(0, 255).astype(np.uint8)
    for short_side in (256, 200, 128, 64):
        found = to_network_image(noise, PINHOLE, network_camera(PINHOLE, short_side))
        assert found.std() < 1.35 * noise.std() * short_side / 480


@pytest.mark.parametrize('camera', [PINHOLE, LENS, FISHEYE], ids=['pinhole', 'lens', 'fisheye'])
@pytest.mark.parametrize('short_side', [240, 480])
def test_lens_is_removed(camera, short_side):
    target = network_camera(camera, short_side)
    found = to_network_image(photograph(camera), camera, target)
    assert found.shape == (target.height, target.width, 3) and found.dtype == np.uint8
    seen = to_network_image(np.full((480, 640, 3), 255, np.uint8), camera, target)
    error = difference(found, photograph(target))[difference(seen, seen * 0) == 255]
    assert error.mean() < 1.5 and np.quantile(error, 0.999) < 8
    if not camera.is_pinhole:  # else the picture could not tell a lens from none
        plain = cv2.resize(photograph(camera), (target.width, target.height))
        assert difference(plain, photograph(target)).mean() > 10


@pytest.mark.parametrize(
    'other',
    [
        Camera(1280, 720, 900, 905, 640, 350),
        Camera(640, 480, 480, 480, 300, 250),
        Camera(320, 240, 262, 262, 159.5, 119.5),
        LENS,
    ],
    ids=['hd', 'offset', 'small', 'lens'],
)
def test_another_camera_gives_the_same_view(other):
    """A robot's camera may differ from the one that mapped: each pixel keeps its ray."""
    target = network_camera(PINHOLE, 240)
    found = to_network_image(photograph(other), other, target)
    white = np.full((other.height, other.width, 3), 255, np.uint8)
    mask = to_network_image(white, other, target)
    seen = difference(mask, mask * 0) == 255
    assert seen.mean() > 0.5
    error = difference(found, photograph(target))[seen]
    assert error.mean() < 2 and np.quantile(error, 0.999) < 10


def test_shrinking_through_a_lens_does_not_alias():
    """A pattern finer than the small pixels comes out as its mean grey, not as moire."""
    fine = (np.indices((480, 640)).sum(0) % 2 * 255).astype(np.uint8)
    image = np.repeat(fine[..., None], 3, axis=2)
    found = to_network_image(image, LENS, network_camera(LENS, 120))
    assert np.abs(found[3:-3, 3:-3].astype(float) - 127.5).max() < 12


def test_rays_outside_the_image_are_black():
    narrow = Camera(640, 480, 900, 900, 319.5, 239.5)
    white = np.full((480, 640, 3), 255, np.uint8)
    found = to_network_image(white, narrow, network_camera(PINHOLE, 240))
    assert np.all(found[0] == 0) and np.all(found[:, 0] == 0)
    assert np.all(found[110:130, 150:170] == 255)


@pytest.mark.parametrize(
    'image',
    [
        np.zeros((480, 640, 3), np.float32),
        np.zeros((480, 640), np.uint8),
        np.zeros((480, 640, 4), np.uint8),
        np.zeros((640, 480, 3), np.uint8),
        np.zeros((240, 320, 3), np.uint8),
    ],
    ids=['float', 'grey', 'rgba', 'turned', 'half'],
)
def test_images_of_another_kind_or_size_are_refused(image):
    with pytest.raises(CameraError):
        to_network_image(image, PINHOLE, network_camera(PINHOLE, 256))


def test_normalisation_is_imagenets():
    image = np.random.default_rng(1).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    found = normalize(torch.from_numpy(image))
    assert found.shape == (2, 3, 5, 7) and found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    expected = (image / 255 - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(found.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-5)
    assert (IMAGENET_MEAN, IMAGENET_STD) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
