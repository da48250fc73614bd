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
    _mutual_matches_torch,
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
    product = _products(a, b)
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


def test_a_gpu_finds_the_same_matches_and_fetches_no_products(monkeypatch):
    rng = np.random.default_rng(3)
    raw = rng.gamma(0.5, size=(120, 128)).astype(np.float32)
    described = root_sift(raw + 0.3 * rng.gamma(0.5, size=raw.shape).astype(np.float32))
    uv = np.zeros((120, 2), np.float32)
    query, twice = Features(uv, root_sift(raw)), np.repeat(described[:20], 2, axis=0)
    others = [Features(uv[: len(d)], d) for d in (described, twice, described[:1], described[:0])]
    expected = nearest_matches(query, others, 0.9)
    assert [len(row) > 0 for row, _ in expected] == [True, False, True, False]
    sent, fetched, to = [], [], torch.Tensor.to

    def send(tensor, *where):  # to a GPU in name
        gpu = where == (torch.device('cuda'),)
        sent.extend([tensor] * gpu)
        return tensor if gpu else to(tensor, *where)

    monkeypatch.setattr(torch.Tensor, 'to', send)
    monkeypatch.setattr(torch.Tensor, 'cpu', lambda tensor: fetched.append(tensor) or tensor)
    found = nearest_matches(query, others, 0.9, torch.device('cuda'))
    for pair, right in zip(found, expected, strict=True):
        assert all(map(np.array_equal, pair, right))
    assert len(sent) == 1 + len(others) and max(x.numel() for x in fetched) <= 2 * 120


@pytest.mark.parametrize('ratio', [0.8, 1.0])
def test_matches_do_not_depend_on_where_they_are_found(ratio):
    # Few different products: many ties, and some above that of a vector with itself.
    product = np.random.default_rng(4).integers(-3, 12, (60, 40)).astype(np.float32)
    product[range(40), range(40)] += 8
    expected = mutual_matches(product, ratio, 16.0)
    assert 5 < len(expected[0]) < 35
    found = _mutual_matches_torch(torch.from_numpy(product), ratio, 16.0)
    assert all(map(np.array_equal, found, expected))


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


@pytest.mark.parametrize('sigma', [2.0, 6.0])
def test_features_lie_where_they_are_seen(sigma):
    """(0, 0) is the centre of a pixel: else a camera that is turned would see them elsewhere."""
    rng = np.random.default_rng(4)
    v, u = np.mgrid[:120, :120]
    offsets = []
    for centre in rng.uniform(50, 70, (20, 2)):
        blob = np.exp(-((u - centre[0]) ** 2 + (v - centre[1]) ** 2) / 2 / sigma**2)
        image = np.repeat((60 + 150 * blob).astype(np.uint8)[..., None], 3, axis=2)
        uv = RootSift(FeatureSettings(contrast_threshold=0.01)).extract(image).uv
        offsets.append(uv[np.linalg.norm(uv - centre, axis=1).argmin()] - centre)
    assert np.abs(np.mean(offsets, axis=0)).max() < 0.05
