"""Local features: how they are stored, multiplied and matched."""

import cv2
import numpy as np
import pytest
import torch

from pose_reloc.features import (
    Features,
    FeatureSettings,
    RootSift,
    _bytes_pay,
    _products,
    _signed,
    mutual_matches,
    nearest_matches,
    quantised,
    root_sift,
    unit_descriptors,
)


def test_root_sift_is_the_square_root_of_the_l1_normalised_descriptor():
    raw = np.random.default_rng(0).integers(0, 200, (5, 128)).astype(np.float32)
    expected = np.sqrt(raw / raw.sum(1, keepdims=True))
    assert np.abs(unit_descriptors(root_sift(raw)).numpy() - expected).max() <= 0.5 / 512 + 1e-6


@pytest.mark.parametrize('kind', [np.uint8, np.int8])
def test_stored_descriptors_keep_their_products(kind):
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(200, 128))
    unit = np.abs(unit) if kind is np.uint8 else unit
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    stored = quantised(unit, kind)
    assert stored.dtype == kind
    back = unit_descriptors(stored).numpy()
    assert np.abs(back @ back.T - unit @ unit.T).max() < 0.02
    assert unit_descriptors(quantised(np.array([[3.0, -3.0]]), np.int8)).abs().max() == 0.5


def test_matches_are_those_of_a_loop():
    rng = np.random.default_rng(1)
    raw = rng.gamma(0.5, size=(70, 128)).astype(np.float32)
    a, b = root_sift(raw[:40]), root_sift(raw[40:])
    b[:15] = a[10:25]
    unit_a, unit_b = (unit_descriptors(x).double().numpy() for x in (a, b))
    expected = []
    for i, x in enumerate(unit_a):
        products = unit_b @ x
        j = int(products.argmax())
        second = np.partition(products, -2)[-2]
        near, far = (np.sqrt(max(1 - p, 0)) for p in (products[j], second))
        if (unit_a @ unit_b[j]).argmax() == i and near < 0.9 * far:
            expected.append((i, j))
    assert len(expected) >= 15
    uv = np.zeros((40, 2), np.float32)
    none = Features(uv[:0], b[:0])
    found = nearest_matches(Features(uv, a), [Features(uv[:30], b), none], 0.9)
    assert list(zip(*(x.tolist() for x in found[0]), strict=True)) == expected
    assert [len(x) for x in found[1]] == [0, 0]


@pytest.mark.parametrize('as_bytes', [True, False])
def test_products_are_exact_on_every_processor(as_bytes, monkeypatch):
    if as_bytes and not _bytes_pay():
        pytest.skip('this processor does not multiply bytes')
    monkeypatch.setattr('pose_reloc.features._bytes_pay', lambda: as_bytes)
    rng = np.random.default_rng(17)
    a, b = (rng.integers(-128, 128, (n, 128), np.int8) for n in (70, 33))
    a[0], a[1], b[0], b[1] = -128, 127, 127, -128
    product = _products(a, b, torch.device('cpu'))
    assert (product.dtype == np.int32) == as_bytes
    assert np.array_equal(product, a.astype(np.int64) @ b.astype(np.int64).T)


def test_signed_descriptors_are_half_as_long():
    stored = np.arange(256, dtype=np.uint8)
    assert np.array_equal(_signed(stored), np.minimum((stored + 1.0) // 2, 127))
    assert _signed(stored.view(np.int8)).dtype == np.int8


@pytest.mark.parametrize(
    'broken',
    [
        lambda a, b: torch.zeros(len(a), b.shape[1], dtype=torch.int32),
        lambda a, b: (a.float() @ b.float()).clamp(max=2**15).int(),  # sums that overflow
        lambda a, b: _not_implemented(),
    ],
)
def test_bytes_that_are_not_multiplied_right_are_not_used(broken, monkeypatch):
    monkeypatch.setattr(torch, '_int_mm', broken)
    assert not _bytes_pay.__wrapped__()


def _not_implemented():
    raise NotImplementedError('"int_mm" is not implemented')


def test_one_feature_has_no_rival():
    row, column = mutual_matches(np.array([[0.9], [0.2]], np.float32), 0.8)
    assert (row.tolist(), column.tolist()) == ([0], [0])


def test_a_shrunk_image_keeps_its_pixels():
    rng = np.random.default_rng(2)
    small = cv2.GaussianBlur(rng.integers(0, 256, (240, 320), dtype=np.uint8), (0, 0), 3)
    small = cv2.normalize(small, None, 0, 255, cv2.NORM_MINMAX)
    image = cv2.cvtColor(cv2.resize(small, (1280, 960)), cv2.COLOR_GRAY2RGB)
    full = RootSift(FeatureSettings(max_side=1280, max_features=300)).extract(image)
    shrunk = RootSift(FeatureSettings(max_side=640, max_features=300)).extract(image)
    nearest = np.linalg.norm(full.uv[:, None] - shrunk.uv[None], axis=2).min(axis=0)
    assert len(shrunk) > 50 and np.median(nearest) < 0.5


def test_no_structure_no_features():
    features = RootSift().extract(np.full((120, 160, 3), 90, dtype=np.uint8))
    assert len(features) == 0 and features.descriptors.shape == (0, 128)
