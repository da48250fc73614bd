"""Geometry against definitions, scipy and finite differences."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from pose_reloc import geometry as g


def random_poses(N, seed):
    rng = np.random.default_rng(seed)
    R = Rotation.random(N, random_state=rng).as_matrix()
    return g.pose_matrix(R, rng.normal(scale=3, size=(N, 3)))


def skew(w):
    return np.array([[0, -w[2], w[1]], [w[2], 0, -w[0]], [-w[1], w[0], 0]])


HALF = math.sqrt(0.5)
BY_HAND = [
    ([1, 0, 0, 0], np.eye(3)),
    ([HALF, HALF, 0, 0], [[1, 0, 0], [0, 0, -1], [0, 1, 0]]),  # 90 deg about x: y -> z
    ([HALF, 0, HALF, 0], [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]),  # 90 deg about y: z -> x
    ([HALF, 0, 0, HALF], [[0, -1, 0], [1, 0, 0], [0, 0, 1]]),  # 90 deg about z: x -> y
    ([0, 1, 0, 0], np.diag([1, -1, -1])),
    ([0.5, 0.5, 0.5, 0.5], [[0, 0, 1], [1, 0, 0], [0, 1, 0]]),  # x -> y -> z -> x
]


@pytest.mark.parametrize('q, R', BY_HAND)
def test_quaternions_by_hand(q, R):
    np.testing.assert_allclose(g.rotation_from_quaternion(q), R, atol=1e-15)
    np.testing.assert_allclose(g.rotation_from_quaternion(np.multiply(q, -3)), R, atol=1e-15)
    np.testing.assert_allclose(g.quaternion_from_rotation(R), q, atol=1e-15)
    torch_q = torch.tensor(q, dtype=torch.float64)
    found = g.rotation_from_quaternion_torch(torch_q * -3)
    np.testing.assert_allclose(found.numpy(), R, atol=1e-15)
    found = g.quaternion_from_rotation_torch(torch.tensor(np.array(R), dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), q, atol=1e-15)


def test_order_of_quaternions():
    np.testing.assert_array_equal(g.wxyz_from_xyzw([[1, 2, 3, 4]]), [[4, 1, 2, 3]])
    np.testing.assert_array_equal(g.xyzw_from_wxyz([4, 1, 2, 3]), [1, 2, 3, 4])


@pytest.mark.parametrize('shape', [(), (5,), (2, 3)])
def test_quaternions_against_scipy_in_any_batch_shape(shape):
    rng = np.random.default_rng(0)
    q = rng.normal(size=(*shape, 4))
    R = g.rotation_from_quaternion(q)
    expected = Rotation.from_quat(g.xyzw_from_wxyz(q).reshape(-1, 4)).as_matrix()
    assert R.shape == (*shape, 3, 3)
    np.testing.assert_allclose(R.reshape(-1, 3, 3), expected, atol=1e-14)
    back = g.quaternion_from_rotation(R)
    assert back.shape == q.shape and np.all(back[..., 0] >= 0)
    unit = q / np.linalg.norm(q, axis=-1, keepdims=True)
    np.testing.assert_allclose(np.abs(np.sum(back * unit, -1)), 1, atol=1e-14)
    for function, x, y in (
        (g.rotation_from_quaternion_torch, q, R),
        (g.quaternion_from_rotation_torch, R, g.quaternion_from_rotation_torch(torch.tensor(R))),
    ):
        assert function(torch.tensor(x)).shape == y.shape
    torch_R = g.rotation_from_quaternion_torch(torch.tensor(q)).numpy()
    np.testing.assert_allclose(torch_R, R, atol=1e-14)


@pytest.mark.parametrize('q', [[0, 0, 0, 0], [math.nan, 0, 0, 1], [math.inf, 0, 0, 0]])
def test_no_rotation_from_a_bad_quaternion(q):
    with pytest.raises(ValueError):
        g.rotation_from_quaternion(q)


def test_inverse_and_matrix():
    T = random_poses(7, 1)
    np.testing.assert_allclose(g.invert_pose(T), np.linalg.inv(T), atol=1e-13)
    np.testing.assert_allclose(g.invert_pose(T[0]) @ T[0], np.eye(4), atol=1e-13)
    one_R = g.pose_matrix(np.eye(3), T[:, :3, 3])
    assert one_R.shape == (7, 4, 4)
    np.testing.assert_array_equal(one_R[:, :3, 3], T[:, :3, 3])


def test_projection_finds_the_nearest_rotation():
    rng = np.random.default_rng(2)
    R = Rotation.random(20, random_state=rng).as_matrix()
    M = R + rng.uniform(-0.05, 0.05, size=R.shape)
    found = g.project_to_so3(M)
    np.testing.assert_allclose(found @ np.swapaxes(found, -1, -2), np.eye(3)[None].repeat(20, 0),
                               atol=1e-14)  # fmt: skip
    np.testing.assert_allclose(np.linalg.det(found), 1)
    distance = np.linalg.norm(found - M, axis=(1, 2))
    for _ in range(50):
        other = Rotation.from_rotvec(rng.normal(scale=0.02, size=(20, 3))).as_matrix() @ found
        assert np.all(np.linalg.norm(other - M, axis=(1, 2)) > distance)
    np.testing.assert_allclose(g.project_to_so3(R), R, atol=1e-14)


@pytest.mark.parametrize(
    'M', [np.zeros((3, 3)), np.diag([1, 1, -1.0]), 3 * np.eye(3), np.full((3, 3), math.nan)]
)
def test_projection_refuses_what_is_no_rotation(M):
    with pytest.raises(ValueError):
        g.project_to_so3(M)


def test_network_convention():
    """w_t_c is the point that the camera sees at its origin; c_q_w turns world axes to camera's."""
    T = random_poses(6, 3)
    w_t_c, c_q_w = g.network_from_pose(T)
    points = np.random.default_rng(3).normal(size=(6, 3))
    seen = np.linalg.inv(T) @ np.c_[points, np.ones(6)][..., None]
    c_R_w = Rotation.from_quat(np.roll(c_q_w, -1, axis=1))
    np.testing.assert_allclose(c_R_w.apply(points - w_t_c), seen[:, :3, 0], atol=1e-13)
    np.testing.assert_allclose(g.pose_from_network(w_t_c, -5 * c_q_w), T, atol=1e-13)


def test_angles_keep_their_digits_at_zero_and_at_a_half_turn():
    for angle in (0, 1e-12, 1e-7, 0.3, 2.0, math.pi - 1e-7, math.pi):
        for axis in ([1, 0, 0], [0.6, 0, 0.8], [-1 / math.sqrt(3)] * 3):
            R = expm(angle * skew(axis))
            assert g.rotation_angle(R) == pytest.approx(angle, abs=1e-14, rel=1e-8)


def test_pose_error_is_independent_of_the_frames():
    T, other, moved = random_poses(3, 4)
    metres, radians = g.pose_error(T, other)
    assert metres == pytest.approx(np.linalg.norm(T[:3, 3] - other[:3, 3]))
    expected = Rotation.from_matrix(T[:3, :3]) * Rotation.from_matrix(other[:3, :3]).inv()
    assert radians == pytest.approx(expected.magnitude())
    np.testing.assert_allclose(g.pose_error(moved @ T, moved @ other), (metres, radians))
    np.testing.assert_allclose(g.pose_error(other, T), (metres, radians))


def test_residual_by_hand():
    """The truth lies 10 cm along world y and is turned by 0.2 rad about world z."""
    estimate = random_poses(1, 5)[0]
    turn = np.array(
        [[math.cos(0.2), -math.sin(0.2), 0], [math.sin(0.2), math.cos(0.2), 0], [0, 0, 1]]
    )
    true = g.pose_matrix(turn @ estimate[:3, :3], estimate[:3, 3] + [0, 0.1, 0])
    np.testing.assert_allclose(g.pose_residual(true, estimate), [0, 0.1, 0, 0, 0, 0.2], atol=1e-14)


def test_offsets_of_quaternions_are_residuals_by_the_sine_of_half_the_angle():
    """Up to the sign; also of equal poses, small turns and turns of almost 180 deg."""
    rng = np.random.default_rng(9)
    estimate, size = random_poses(60, 9), np.repeat([0.0, 1e-9, 1e-3, 1.0, 3.0, 3.141], 10)
    residual = rng.normal(size=(60, 6))
    residual[:, 3:] *= (size / np.linalg.norm(residual[:, 3:], axis=1))[:, None]
    true = g.perturb_pose(estimate, residual)
    expected = residual.copy()
    expected[:, 3:] *= (np.sinc(size / 2 / np.pi))[:, None]  # of size / 2 its sine over itself
    for i in range(0, 60, 3):  # three poses at once against each of the three
        some = slice(i, i + 3)
        t, q = g.network_from_pose(true[some])
        for j in range(3):
            s, p = g.network_from_pose(estimate[i + j])
            for a, b in ((1, 1), (-1, 0.2), (1, -7)):
                found = g.network_offset(t, a * q, s, b * p)
                np.testing.assert_allclose(found[:, :3], t - s, atol=1e-12)
                same = found[j, 3:] * np.sign(found[j, 3:] @ expected[i + j, 3:] or 1)
                np.testing.assert_allclose(same, expected[i + j, 3:], atol=1e-8)
                angle = g.pose_error(true[some], estimate[i + j])[1]
                lengths = np.linalg.norm(found[:, 3:], axis=1)
                np.testing.assert_allclose(lengths, 2 * np.sin(angle / 2), atol=1e-8)


def test_residual_is_exponential_and_round_trips():
    rng = np.random.default_rng(6)
    estimate = random_poses(50, 6)
    residual = rng.normal(size=(50, 6))
    residual[:, 3:] *= (
        rng.uniform(0, 3.1, (50, 1)) / np.linalg.norm(residual[:, 3:], axis=1)[:, None]
    )
    true = g.perturb_pose(estimate, residual)
    for i in range(5):
        expected = expm(skew(residual[i, 3:])) @ estimate[i, :3, :3]
        np.testing.assert_allclose(true[i, :3, :3], expected, atol=1e-12)
    np.testing.assert_allclose(true[:, :3, 3], estimate[:, :3, 3] + residual[:, :3])
    np.testing.assert_allclose(g.pose_residual(true, estimate), residual, atol=1e-11)
    one = g.perturb_pose(estimate[0], residual)  # one estimate, many residuals
    assert one.shape == (50, 4, 4)


def test_no_poses_and_poses_that_cannot_be_written(monkeypatch):
    """Also with the scipy of Ubuntu 22.04 and 24.04, which refuses both."""

    class OldRotation:
        def __getattr__(self, name):
            def make(values):
                if len(values) == 0 or not values.flags.writeable:
                    raise ValueError('as scipy 1.11')
                return getattr(Rotation, name)(values)

            return make

    monkeypatch.setattr(g, 'Rotation', OldRotation())
    fixed = np.broadcast_to(np.eye(4), (2, 4, 4))
    np.testing.assert_array_equal(g.pose_residual(fixed, fixed), np.zeros((2, 6)))
    np.testing.assert_array_equal(g.quaternion_from_rotation(fixed[:, :3, :3])[:, 0], [1, 1])
    np.testing.assert_array_equal(g.perturb_pose(fixed, np.broadcast_to(0.0, (2, 6))), fixed)
    none = fixed[:0]
    assert g.pose_residual(none, none).shape == (0, 6)
    assert g.perturb_pose(none, np.zeros((0, 6))).shape == (0, 4, 4)
    assert [values.shape for values in g.network_from_pose(none)] == [(0, 3), (0, 4)]


def test_interpolation_has_constant_speed():
    T0, T1 = random_poses(2, 7)
    np.testing.assert_allclose(g.interpolate_pose(T0, T1, 0), T0, atol=1e-14)
    np.testing.assert_allclose(g.interpolate_pose(T0, T1, 1), T1, atol=1e-14)
    metres, radians = g.pose_error(T0, T1)
    for alpha in (0.25, 0.5, 0.9):
        T = g.interpolate_pose(T0, T1, alpha)
        np.testing.assert_allclose(g.pose_error(T0, T), (alpha * metres, alpha * radians))
        np.testing.assert_allclose(
            g.pose_error(T, T1), ((1 - alpha) * metres, (1 - alpha) * radians)
        )


def branch_rotations():
    """Rotations in each of the four branches of the quaternion, and one on a border of two."""
    rng = np.random.default_rng(8)
    quaternions = np.concatenate([np.eye(4), -np.eye(4)[:1]]) + 0.2 * rng.normal(size=(5, 4))
    quaternions = np.concatenate([quaternions, np.eye(4), [[1, 1, 0, 0], [0, 1, -1, 0]]])
    return torch.tensor(g.rotation_from_quaternion(quaternions))


def test_torch_quaternion_in_every_branch():
    R = branch_rotations()
    q = g.quaternion_from_rotation_torch(R)
    np.testing.assert_allclose(q.norm(dim=-1).numpy(), 1, atol=1e-14)
    np.testing.assert_allclose(g.rotation_from_quaternion(q.numpy()), R.numpy(), atol=1e-14)


def test_torch_quaternion_gradients_in_every_branch():
    """Along the rotations exp(w) R, the only directions that a rotation matrix can move in."""
    R = branch_rotations()[:9]
    generators = torch.tensor(np.stack([skew(e) for e in np.eye(3)]))
    w = torch.zeros(len(R), 3, dtype=torch.float64, requires_grad=True)

    def quaternion(w):
        return g.quaternion_from_rotation_torch(
            torch.matrix_exp(torch.einsum('bi,ijk->bjk', w, generators)) @ R
        )

    assert torch.autograd.gradcheck(quaternion, [w], eps=1e-6, atol=1e-7)


def test_torch_quaternion_gradient_is_bounded_at_half_turns():
    R = branch_rotations().requires_grad_()
    g.quaternion_from_rotation_torch(R).square().mul(torch.arange(4.0)).sum().backward()
    assert torch.isfinite(R.grad).all() and R.grad.abs().max() < 10


def test_torch_rotation_gradients():
    q = torch.tensor(np.random.default_rng(9).normal(size=(6, 4)), requires_grad=True)
    assert torch.autograd.gradcheck(g.rotation_from_quaternion_torch, [q])


def test_6d_is_gram_schmidt():
    a = np.random.default_rng(10).normal(size=(8, 6))
    R = g.rotation_from_6d_torch(torch.tensor(a)).numpy()
    for i in range(8):
        Q, upper = np.linalg.qr(a[i].reshape(2, 3).T)
        np.testing.assert_allclose(R[i, :2], (Q * np.sign(np.diag(upper))).T, atol=1e-13)
        np.testing.assert_allclose(R[i, 2], np.cross(R[i, 0], R[i, 1]), atol=1e-13)
    assert torch.autograd.gradcheck(g.rotation_from_6d_torch, [torch.tensor(a, requires_grad=True)])
    rows = Rotation.random(5, random_state=1).as_matrix()
    again = g.rotation_from_6d_torch(torch.tensor(rows[:, :2].reshape(5, 6)))
    np.testing.assert_allclose(again.numpy(), rows, atol=1e-13)
