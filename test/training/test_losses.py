"""The losses against their definitions: integrals, cv2 projections and numbers computed by hand."""

import math

import cv2
import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.spatial.transform import Rotation

from pose_reloc.errors import SettingsError
from pose_reloc.network import PosePrediction
from training.losses import (
    LOSSES,
    LossSettings,
    PoseTarget,
    build_loss,
    homography_error,
    inverse_depth_mean,
)

NEAR, FAR = 0.6, 4.5


def tensor(x, dtype=torch.float64):
    return torch.as_tensor(np.asarray(x), dtype=dtype)


def wxyz(rotation):
    return np.roll(rotation.as_quat(), 1, axis=-1)


def random_batch(seed, B=6, K=12, dtype=torch.float64):
    """A prediction off by decimetres and tens of degrees, of any quaternion norm, and a target."""
    rng = np.random.default_rng(seed)
    camera_R_world = Rotation.random(B, random_state=rng)
    c = rng.normal(size=(B, 3))
    estimate = Rotation.from_rotvec(rng.normal(scale=0.3, size=(B, 3))) * camera_R_world
    norm = rng.uniform(0.5, 2, size=(B, 1)) * rng.choice([-1, 1], size=(B, 1))
    points_camera = rng.uniform((-1, -1, NEAR), (1, 1, FAR), size=(B, K, 3))
    points = np.stack([R.inv().apply(p) for R, p in zip(camera_R_world, points_camera)])
    near = rng.uniform(0.4, 1, size=B)
    prediction = PosePrediction(
        tensor(c + rng.normal(scale=0.2, size=(B, 3)), dtype), tensor(wxyz(estimate) * norm, dtype)
    )
    target = PoseTarget(
        tensor(c, dtype),
        tensor(wxyz(camera_R_world), dtype),
        tensor(np.stack([near, near + rng.uniform(0, 4, size=B)], 1), dtype),
        tensor(points + c[:, None], dtype),
        torch.ones(B, K, dtype=torch.bool),
    )
    return prediction, target


def make(name, **settings):
    """The loss `name` in float64."""
    return build_loss(LossSettings(name, **settings), (NEAR, FAR)).double()


def homography(prediction, target, i):
    """x -> H(x) of image i, from the definition: R - t n^T / x."""
    R_c = Rotation.from_quat(np.roll(target.c_q_w[i], -1)).as_matrix()
    R_hat = Rotation.from_quat(np.roll(prediction.c_q_w[i], -1)).as_matrix()
    R = R_hat @ R_c.T
    t = R_hat @ (target.w_t_c[i] - prediction.w_t_c[i]).numpy()
    n = np.array([0.0, 0.0, -1.0])
    return lambda x: R - np.outer(t, n) / x


def quadrature(H, near, far):
    return quad(lambda x: np.sum((np.eye(3) - H(x)) ** 2), near, far)[0] / (far - near)


def test_local_homography_is_the_integral():
    prediction, target = random_batch(0)
    expected = [
        quadrature(homography(prediction, target, i), *target.depth_range[i].tolist())
        for i in range(6)
    ]
    assert float(make('local_homography')(prediction, target)) == pytest.approx(
        np.mean(expected), rel=1e-10
    )


def test_global_homography_is_the_integral_over_one_range():
    prediction, target = random_batch(1)
    expected = [quadrature(homography(prediction, target, i), NEAR, FAR) for i in range(6)]
    loss = make('global_homography')(prediction, target)
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-10)


def test_homography_is_the_published_trace():
    prediction, target = random_batch(2)
    n = np.array([[0.0], [0.0], [-1.0]])
    k = math.log(FAR / NEAR) / (FAR - NEAR)
    found = homography_error(prediction, target, tensor(NEAR), tensor(FAR))
    for i in range(6):
        H = homography(prediction, target, i)
        R, t_nT = H(np.inf), H(np.inf) - H(1.0)
        t = -t_nT[:, 2:]
        A = (np.eye(3) - R) @ (np.eye(3) - R).T
        B = n @ t.T @ (np.eye(3) - R) + (np.eye(3) - R).T @ t @ n.T
        C = n @ t.T @ t @ n.T
        assert float(found[i]) == pytest.approx(np.trace(A + B * k + C / (NEAR * FAR)), rel=1e-12)


def corner_error(prediction, target, i, displacement):
    """Mean over depth and over the four image corners (+-1, +-1) of a squared displacement."""
    R_c = Rotation.from_quat(np.roll(target.c_q_w[i], -1))
    R_hat = Rotation.from_quat(np.roll(prediction.c_q_w[i], -1))
    c, c_hat = target.w_t_c[i].numpy(), prediction.w_t_c[i].numpy()
    corners = np.array([[u, v, 1.0] for u in (-1, 1) for v in (-1, 1)])

    def at(x):
        world = R_c.inv().apply(x * corners) + c
        estimate = R_hat.apply(world - c_hat)
        return np.mean(np.sum(displacement(x * corners, estimate, x) ** 2, axis=1))

    return quad(at, NEAR, FAR)[0] / (FAR - NEAR)


def test_homography_is_the_displacement_of_points_in_the_camera():
    """E[p p^T] = I over the corners p, so |H - I|_F^2 = E|(H - I) p|^2 with H p = P_hat / x."""
    prediction, target = random_batch(3)
    found = homography_error(prediction, target, tensor(NEAR), tensor(FAR))
    for i in range(6):
        expected = corner_error(prediction, target, i, lambda P, P_hat, x: (P_hat - P) / x)
        assert float(found[i]) == pytest.approx(expected, rel=1e-10)


def test_homography_is_the_reprojection_error_of_small_roll_and_shift():
    """Errors that move no point along the optical axis are seen in full by the image."""
    _, target = random_batch(4)
    rng = np.random.default_rng(4)
    true = Rotation.from_quat(np.roll(target.c_q_w.numpy(), -1, axis=1))
    shift = true.inv().apply(np.c_[rng.normal(scale=0.02, size=(6, 2)), np.zeros(6)])
    roll = Rotation.from_rotvec(np.c_[np.zeros((6, 2)), rng.normal(scale=0.02, size=6)])
    prediction = PosePrediction(target.w_t_c + tensor(shift), tensor(wxyz(roll * true)))
    found = homography_error(prediction, target, tensor(NEAR), tensor(FAR))
    for i in range(6):
        expected = corner_error(
            prediction, target, i, lambda P, Q, x: P[:, :2] / P[:, 2:] - Q[:, :2] / Q[:, 2:]
        )
        assert float(found[i]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('far', [NEAR, NEAR * 1.001, FAR, 1000.0])
def test_homography_is_zero_at_the_true_pose_only(far):
    """However the position tries to make up for a rotation error of angle a, 4 sin^2(a/2) stays."""
    _, target = random_batch(5, B=400)
    near, far = tensor(NEAR), tensor(far)
    true = PosePrediction(target.w_t_c, target.c_q_w)
    assert homography_error(true, target, near, far).abs().max() < 1e-28
    rng = np.random.default_rng(5)
    size = 10 ** rng.uniform(-4, math.log10(3), size=(400, 1))
    axis = rng.normal(size=(400, 3))
    turn = Rotation.from_rotvec(size * axis / np.linalg.norm(axis, axis=1, keepdims=True))
    true_R = Rotation.from_quat(np.roll(target.c_q_w.numpy(), -1, axis=1))
    q_hat = tensor(wxyz(turn * true_R))
    z, z_hat = true_R.as_matrix()[:, 2], (turn * true_R).as_matrix()[:, 2]
    k = inverse_depth_mean(near, far)
    best = target.w_t_c + k * near * far * tensor(z - z_hat)  # minimises L for this rotation
    floor = 4 * np.sin(size[:, 0] / 2) ** 2
    for w_t_c in (best, target.w_t_c, target.w_t_c + tensor(rng.normal(size=(400, 3)))):
        error = homography_error(PosePrediction(w_t_c, q_hat), target, near, far).numpy()
        assert np.all(error >= floor * (1 - 1e-6))
    moved = PosePrediction(target.w_t_c + tensor(size * axis), target.c_q_w)
    expected = np.sum((size * axis) ** 2, axis=1) / float(near * far)
    np.testing.assert_allclose(
        homography_error(moved, target, near, far).numpy(), expected, rtol=1e-6
    )


def test_local_equals_global_when_the_ranges_are_equal():
    prediction, target = random_batch(6)
    target = target._replace(depth_range=tensor([[NEAR, FAR]] * 6))
    local, world = make('local_homography'), make('global_homography')
    assert float(local(prediction, target)) == pytest.approx(float(world(prediction, target)))


def test_a_range_set_by_hand_goes_before_the_dataset():
    prediction, target = random_batch(7)
    by_hand = build_loss(LossSettings('global_homography', depth_range=(1.0, 9.0)), (NEAR, FAR))
    expected = homography_error(prediction, target, tensor(1.0), tensor(9.0)).mean()
    assert float(by_hand(prediction, target)) == pytest.approx(float(expected), rel=1e-12)


def test_an_image_without_valid_depth_takes_the_range_of_all():
    prediction, target = random_batch(18, B=4)
    ranges = tensor([[1.0, 2.0], [math.nan, math.nan], [0.0, 3.0], [2.0, 1.0]])
    w_t_c = prediction.w_t_c.clone().requires_grad_()
    prediction = prediction._replace(w_t_c=w_t_c)
    value = make('local_homography')(prediction, target._replace(depth_range=ranges))
    filled = tensor([[1.0, 2.0], [NEAR, FAR], [NEAR, FAR], [NEAR, FAR]])
    expected = homography_error(prediction, target, *filled.T).mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    value.backward()
    assert torch.isfinite(w_t_c.grad).all()


def test_mean_inverse_depth_and_its_limit():
    for ratio in (1e-15, 1e-9, 1e-6, 0.99e-3, 1.01e-3, 0.1, 1.0, 1e4):
        far = NEAR * (1 + ratio)
        expected = quad(lambda s, far=far: 1 / (NEAR + s * (far - NEAR)), 0, 1, epsabs=1e-13)[0]
        found = inverse_depth_mean(tensor(NEAR), tensor(far))
        assert float(found) == pytest.approx(expected, rel=1e-12)
    found32 = inverse_depth_mean(torch.tensor([NEAR] * 2), torch.tensor([NEAR, NEAR + 1e-6]))
    np.testing.assert_allclose(found32.numpy(), 1 / NEAR, rtol=1e-5)
    near = tensor(NEAR).requires_grad_()
    inverse_depth_mean(near, tensor(NEAR)).backward()
    assert near.grad.item() == pytest.approx(-0.5 / NEAR**2)  # -1/2 from each end of the range


def test_homography_sees_a_hundredth_of_a_degree_in_float32():
    target = PoseTarget(torch.zeros(1, 3), torch.tensor([[1.0, 0, 0, 0]]))
    angle = math.radians(0.01)
    q_hat = torch.tensor([[math.cos(angle / 2), math.sin(angle / 2), 0, 0]])
    prediction = PosePrediction(torch.zeros(1, 3), q_hat)
    error = homography_error(prediction, target, torch.tensor(1.0), torch.tensor(2.0))
    assert float(error) == pytest.approx(8 * math.sin(angle / 2) ** 2, rel=1e-3)


@pytest.mark.parametrize('name', LOSSES)
def test_both_signs_of_a_quaternion_give_the_same_loss(name):
    prediction, target = random_batch(8)
    loss = make(name)
    value = loss(prediction, target).item()
    flipped = target._replace(c_q_w=-target.c_q_w)
    assert loss(prediction, flipped).item() == pytest.approx(value, rel=1e-12)
    opposite = prediction._replace(c_q_w=-prediction.c_q_w)
    assert loss(opposite, target).item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize('name', [name for name in LOSSES if name not in ('posenet', 'maxerror')])
def test_the_norm_of_the_raw_quaternion_does_not_count(name):
    prediction, target = random_batch(9)
    loss = make(name)
    scaled = prediction._replace(c_q_w=7 * prediction.c_q_w)
    assert loss(scaled, target).item() == pytest.approx(loss(prediction, target).item(), rel=1e-12)


@pytest.mark.parametrize('settings', [{}, {'norm': 'l2'}, {'unit_quaternion': True}])
@pytest.mark.parametrize('name', LOSSES)
def test_gradients_against_finite_differences(name, settings):
    prediction, target = random_batch(10, B=3, K=5)
    loss = make(name, **settings)
    learned = {key: value.detach().clone() for key, value in loss.named_parameters()}
    inputs = [*prediction, *learned.values()]
    for x in inputs:
        x.requires_grad_(True)

    def value(w_t_c, c_q_w, *parameters):
        arguments = (PosePrediction(w_t_c, c_q_w), target)
        return torch.func.functional_call(loss, dict(zip(learned, parameters)), arguments)

    assert torch.autograd.gradcheck(value, inputs, eps=1e-6, atol=1e-6, rtol=1e-4)


def test_only_homoscedastic_learns_parameters():
    for name in LOSSES:
        names = {key for key, _ in make(name).named_parameters()}
        assert names == ({'s_x', 's_q'} if name == 'homoscedastic' else set())


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.parametrize('case', ['solution', 'opposite sign', 'zero quaternion', 'half turn'])
def test_gradients_are_finite_everywhere(name, dtype, case):
    prediction, target = random_batch(11, dtype=dtype)
    q = target.c_q_w
    half_turn = torch.stack([-q[:, 1], q[:, 0], -q[:, 3], q[:, 2]], 1)  # i q
    q_hat = {
        'solution': q,
        'opposite sign': -q,
        'zero quaternion': torch.zeros_like(q),
        'half turn': half_turn,
    }[case]
    w_t_c, q_hat = target.w_t_c.clone().requires_grad_(), q_hat.clone().requires_grad_()
    value = build_loss(LossSettings(name), (NEAR, FAR))(PosePrediction(w_t_c, q_hat), target)
    value.backward()
    assert value.dtype == dtype and value.shape == () and torch.isfinite(value)
    assert torch.isfinite(w_t_c.grad).all() and torch.isfinite(q_hat.grad).all()
    if case in ('solution', 'opposite sign') and name != 'homoscedastic':
        assert abs(float(value.detach())) < (5e-3 if dtype == torch.float32 else 1e-11)
    elif case == 'half turn' and 'homography' in name:
        assert float(value.detach()) == pytest.approx(8, rel=1e-5)


@pytest.mark.parametrize('name', LOSSES)
def test_descending_the_gradient_reaches_the_true_pose(name):
    prediction, target = random_batch(12, B=4, K=40)
    # The geometric loss of [K] is only asked to converge from nearby, as after its warm-up.
    start = 0.1 if name == 'geometric' else 1.0
    sign = (prediction.c_q_w * target.c_q_w).sum(-1, keepdim=True).sign()
    w_t_c = torch.lerp(target.w_t_c, prediction.w_t_c, start).requires_grad_()
    q_hat = torch.lerp(sign * target.c_q_w, prediction.c_q_w, start).requires_grad_()
    loss = make(name)
    optimizer = torch.optim.Adam([w_t_c, q_hat], lr=0.02, eps=loss.adam_eps)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 800)
    for _ in range(800):
        optimizer.zero_grad()
        loss(PosePrediction(w_t_c, q_hat), target).backward()
        optimizer.step()
        schedule.step()
    cosine = torch.cosine_similarity(q_hat, target.c_q_w, dim=-1).abs()
    assert (w_t_c - target.w_t_c).norm(dim=-1).max() < 1e-2
    assert torch.rad2deg(2 * torch.acos(cosine.clamp(max=1))).max() < 1


def test_posenet_by_hand():
    target = PoseTarget(tensor([[1, 2, 3], [0, 0, 0]]), tensor([[1, 0, 0, 0], [0, 1, 0, 0]]))
    prediction = PosePrediction(
        tensor([[1, 5, 7], [0, 0, 2]]), tensor([[3, 0, 0, 0], [0, 1, 0, 0]])
    )
    # (5 + 500 * 2 + 2 + 0) / 2 with the raw quaternion, (5 + 0 + 2 + 0) / 2 with the unit one.
    assert make('posenet')(prediction, target).item() == pytest.approx(503.5)
    assert make('posenet', beta=10.0)(prediction, target).item() == pytest.approx(13.5)
    assert make('posenet', unit_quaternion=True)(prediction, target).item() == pytest.approx(3.5)


def test_homoscedastic_by_hand():
    target = PoseTarget(tensor([[0, 0, 0]]), tensor([[1, 0, 0, 0]]))
    # Normalised, the quaternion is (0.6, 0, 0.8, 0).
    prediction = PosePrediction(tensor([[0, 3, -4]]), tensor([[1.2, 0, 1.6, 0]]))
    l1 = 7 + (0.4 + 0.8) * math.exp(3) - 3
    assert make('homoscedastic')(prediction, target).item() == pytest.approx(l1)
    l2 = 5 * math.exp(-1) + 1 + math.sqrt(0.16 + 0.64) * math.exp(2) - 2
    found = make('homoscedastic', norm='l2', s_x=1.0, s_q=-2.0)(prediction, target)
    assert found.item() == pytest.approx(l2)


def test_maxerror_by_hand():
    sixty_degrees = [math.cos(math.pi / 6), 0, 0, math.sin(math.pi / 6)]
    target = PoseTarget(tensor([[0, 0, 0]]), tensor([[1, 0, 0, 0]]))
    loss = make('maxerror')
    near = PosePrediction(tensor([[0, 0.3, 0.4]]), tensor([sixty_degrees]))
    assert loss(near, target).item() == pytest.approx(60)  # 50 cm, 60 deg
    away = PosePrediction(tensor([[0, 0.6, 0.8]]), tensor([sixty_degrees]))
    assert loss(away, target).item() == pytest.approx(100)  # 100 cm, 60 deg
    long = near._replace(c_q_w=3 * near.c_q_w)
    found = make('maxerror', unit_norm_weight=0.5)(long, target)
    assert float(found) == pytest.approx(60 + 0.5 * 2**2)


def cv2_geometric(prediction, target, i, clip=100.0):
    """Per-point clipped L1 distance of the two projections of image i, by OpenCV with K = I."""
    uv = []
    for c, q in (
        (target.w_t_c[i].numpy(), target.c_q_w[i].numpy()),
        (prediction.w_t_c[i].numpy(), prediction.c_q_w[i].numpy()),
    ):
        R = Rotation.from_quat(np.roll(q, -1))
        points = target.points[i].numpy().reshape(-1, 1, 3)
        uv.append(cv2.projectPoints(points, R.as_rotvec(), -R.apply(c), np.eye(3), None)[0])
    return np.minimum(np.abs(uv[0] - uv[1]).sum(axis=(1, 2)), clip)


def small_error(batch):
    """The same batch with the estimate moved near the truth, so that every point is before it."""
    prediction, target = batch
    q_hat = torch.nn.functional.normalize(prediction.c_q_w, dim=-1)
    q_hat = q_hat * (q_hat * target.c_q_w).sum(-1, keepdim=True).sign()
    return (
        PosePrediction(
            torch.lerp(target.w_t_c, prediction.w_t_c, 0.3), torch.lerp(target.c_q_w, q_hat, 0.3)
        ),
        target,
    )


def test_geometric_is_the_reprojection_error_of_opencv():
    prediction, target = small_error(random_batch(13))
    expected = [cv2_geometric(prediction, target, i).mean() for i in range(6)]
    assert float(make('geometric')(prediction, target)) == pytest.approx(np.mean(expected))
    clipped = [cv2_geometric(prediction, target, i, 0.1).mean() for i in range(6)]
    assert float(make('geometric', clip=0.1)(prediction, target)) == pytest.approx(np.mean(clipped))
    assert np.mean(clipped) < 0.9 * np.mean(expected)  # else the clip was not tried


def test_geometric_ignores_padding_and_images_without_points():
    prediction, target = small_error(random_batch(14))
    mask = torch.zeros(6, 12, dtype=torch.bool)
    mask[0, :3] = mask[1, 5:] = True
    points = torch.where(mask[..., None], target.points, torch.zeros(()).double())
    masked = target._replace(points=points, points_mask=mask)
    expected = [
        cv2_geometric(prediction, target, 0)[:3].mean(),
        cv2_geometric(prediction, target, 1)[5:].mean(),
    ]
    assert float(make('geometric')(prediction, masked)) == pytest.approx(np.mean(expected))
    nothing = masked._replace(points_mask=torch.zeros_like(mask))
    assert float(make('geometric')(prediction, nothing)) == 0


@pytest.mark.parametrize('z', [-3.0, -1e-9, 0.0, 1e-12, 1e-3])
def test_geometric_points_at_or_behind_the_estimated_camera_count_the_clip(z):
    target = PoseTarget(
        tensor([[0, 0, 0]]), tensor([[1, 0, 0, 0]]), points=tensor([[[0.1, 0.2, 2], [0, 0, 4]]])
    )
    w_t_c = tensor([[0, 0, 2 - z]]).requires_grad_()
    q_hat = tensor([[1, 0, 0, 0]]).requires_grad_()
    value = make('geometric')(PosePrediction(w_t_c, q_hat), target)
    value.backward()
    behind = 2 if 2 + z <= 0 else 1  # the second point is 2 m deeper
    assert float(value.detach()) == pytest.approx(100 * behind / 2)
    assert torch.isfinite(w_t_c.grad).all() and torch.isfinite(q_hat.grad).all()


@pytest.mark.parametrize('name', LOSSES)
def test_a_batch_is_the_mean_of_its_images(name):
    prediction, target = random_batch(15)
    loss = make(name)
    single = [
        loss(
            PosePrediction(*(x[i : i + 1] for x in prediction)),
            PoseTarget(*(x[i : i + 1] for x in target)),
        ).item()
        for i in range(6)
    ]
    assert loss(prediction, target).item() == pytest.approx(np.mean(single), rel=1e-12)


@pytest.mark.parametrize('name', LOSSES)
def test_autocast_does_not_lower_the_precision(name):
    prediction, target = random_batch(16, dtype=torch.float32)
    loss = build_loss(LossSettings(name), (NEAR, FAR))
    expected = loss(prediction, target).item()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert loss(prediction, target).item() == expected
    half = PosePrediction(*(x.bfloat16() for x in prediction))
    value = loss(half, target)
    assert value.dtype == torch.float32
    same = loss(PosePrediction(*(x.float() for x in half)), target)
    assert value.item() == same.item()


def test_the_published_adam_eps():
    eps = {name: loss.adam_eps for name, loss in LOSSES.items()}
    assert eps == {name: 1e-14 if 'homography' in name else 1e-8 for name in LOSSES}
    assert len(eps) == 6


@pytest.mark.parametrize(
    'settings',
    [
        {'name': 'l3'},
        {'norm': 'l0'},
        {'beta': 0.0},
        {'beta': math.nan},
        {'clip': -1.0},
        {'unit_norm_weight': -1.0},
        {'s_q': math.inf},
        {'depth_range': (0.0, 1.0)},
        {'depth_range': (2.0, 1.0)},
        {'depth_range': (1.0, math.inf)},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(SettingsError):
        LossSettings(**settings)


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(SettingsError, match='posenet.*local_homography'):
        LossSettings('l3')


def test_missing_depth_and_points_are_named():
    prediction, target = random_batch(17)
    with pytest.raises(SettingsError, match='--depth-range'):
        build_loss(LossSettings('global_homography'))
    with pytest.raises(SettingsError, match='depth range of every image'):
        make('local_homography')(prediction, target._replace(depth_range=None))
    with pytest.raises(SettingsError, match='3D points'):
        make('geometric')(prediction, target._replace(points=None))
    for name, loss in LOSSES.items():
        if not (loss.needs_depth_range or loss.needs_points):
            make(name)(prediction, PoseTarget(target.w_t_c, target.c_q_w))
