"""Heads: LSTMs against PyTorch and NumPy, the mean over real frames, SpecAugment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinosr_jax.evaluation.probes import heads

pytestmark = pytest.mark.usefixtures("compile_quickly")
LENGTHS = np.array([7, 1, 4])
H = 5


def lstm_params(width, seed=0):
    module = heads.BiLSTM(H)
    x = np.random.default_rng(seed).standard_normal((3, 7, width)).astype(np.float32)
    return module, x, module.init(jax.random.key(seed), x, LENGTHS)


def one_direction(cell, x):
    """[T, D] by the equations of an LSTM."""
    sigmoid = lambda a: 1 / (1 + np.exp(-a))
    h, c, found = np.zeros(H), np.zeros(H), []
    for frame in x:
        gate = {
            n: frame @ cell[f"i{n}"]["kernel"] + h @ cell[f"h{n}"]["kernel"] + cell[f"h{n}"]["bias"]
            for n in "ifgo"
        }
        c = sigmoid(gate["f"]) * c + sigmoid(gate["i"]) * np.tanh(gate["g"])
        h = sigmoid(gate["o"]) * np.tanh(c)
        found.append(h)
    return np.array(found)


def test_the_lstm_is_that_of_its_equations_and_starts_backwards_at_the_last_real_frame():
    module, x, params = lstm_params(3)
    x[np.arange(7)[None] >= LENGTHS[:, None]] = 1e3  # padding
    found = module.apply(params, x, LENGTHS)
    cells = jax.tree.map(np.asarray, params["params"])
    assert len(cells) == 2
    forward, backward = cells["forward"], cells["backward"]
    for row, length in enumerate(LENGTHS):
        real = x[row, :length].astype(np.float64)
        both = one_direction(forward, real), one_direction(backward, real[::-1])[::-1]
        expected = np.concatenate(both, axis=1)
        np.testing.assert_allclose(found[row, :length], expected, atol=1e-5)


def test_the_lstm_is_pytorch_s():
    torch = pytest.importorskip("torch")
    module, x, params = lstm_params(3, seed=1)
    cells = params["params"]
    forward, backward = cells["forward"], cells["backward"]
    theirs = torch.nn.LSTM(3, H, bidirectional=True, batch_first=True)
    join = lambda cell, names, leaf: torch.tensor(
        np.concatenate([np.asarray(cell[n][leaf]).T for n in names])
    )
    with torch.no_grad():
        for suffix, cell in (("", forward), ("_reverse", backward)):
            for kind, gates, leaf in (
                ("weight_ih", "i", "kernel"), ("weight_hh", "h", "kernel"), ("bias_ih", "h", "bias")
            ):  # fmt: skip
                names = [f"{gates}{gate}" for gate in "ifgo"]
                getattr(theirs, f"{kind}_l0{suffix}").copy_(join(cell, names, leaf))
            getattr(theirs, f"bias_hh_l0{suffix}").zero_()
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            torch.tensor(x), torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False
        )
        expected, _ = torch.nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    found = np.asarray(module.apply(params, x, LENGTHS))
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(found[row, :length], expected[row, :length], atol=1e-5)


def test_initial_parameters_are_within_pytorch_s_bounds():
    head = heads.Head(9, 64, lstm_widths=(16,))
    params = head.init(jax.random.key(0), np.zeros((1, 2, 3, 100)), np.ones(1, int))["params"]
    assert params["weights"].tolist() == [0, 0, 0]
    bound = {"project": 100**-0.5, "classify": 32**-0.5}
    for name, limit in bound.items():
        largest = np.abs(params[name]["kernel"]).max()
        assert 0.9 * limit < largest <= limit
    for path, leaf in jax.tree_util.tree_leaves_with_path(params["lstm_0"]):
        twice = 2 if "bias" in jax.tree_util.keystr(path) else 1
        assert 0.5 / 4 < np.abs(leaf).max() <= twice / 4


def test_the_mean_is_that_of_real_frames():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((3, 7, 2, 4)).astype(np.float32)
    head = heads.Head(6, 5, pooled=True)
    params = head.init(jax.random.key(1), features, LENGTHS)
    params["params"]["weights"] = jnp.array([0.3, -1.0])
    shares = np.exp([0.3, -1.0]) / np.exp([0.3, -1.0]).sum()
    found = head.apply(params, features, LENGTHS)
    assert found.shape == (3, 6)
    numbers = jax.tree.map(np.asarray, params["params"])
    for row, length in enumerate(LENGTHS):
        x = np.einsum("tld,l->td", features[row, :length], shares)
        x = (x @ numbers["project"]["kernel"] + numbers["project"]["bias"]).mean(axis=0)
        expected = x @ numbers["classify"]["kernel"] + numbers["classify"]["bias"]
        np.testing.assert_allclose(found[row], expected, atol=1e-5)


def test_masks_are_of_their_widths_and_within_the_length():
    lengths = np.array([60, 30, 9])
    settings = heads.Augment(0, num_feature_masks=2, feature_mask_width=4, time_mask_width=8)
    x = np.ones((3, 60, 90), np.float32)
    widest = [0, 0, 0, 0]
    for seed in range(60):
        found = np.asarray(heads.augmented(jax.random.key(seed), x, lengths, settings=settings))
        assert set(np.unique(found)) <= {0, 1}
        for row, length in enumerate(lengths):
            gone = (found[row] == 0).all(axis=1)
            assert gone.sum() <= 2 * 8 and not gone[length:].any()
            widest[row] = max(widest[row], gone.sum())
        gone = (found == 0).all(axis=1)
        assert gone.sum(axis=1).max() <= 2 * 4
        widest[3] = max(widest[3], gone.sum(axis=1).max())
    assert widest[0] > 10 and widest[1] > 10 and widest[3] > 5
    alone = settings._replace(num_time_masks=0)
    narrow = heads.augmented(jax.random.key(0), x[..., :14], lengths, settings=alone)
    assert (np.asarray(narrow) == 1).all()  # few features: none is taken


def test_masks_of_a_share_of_the_frames():
    lengths = np.array([200, 50, 20])
    settings = heads.Augment(0, num_feature_masks=0, time_mask_share=0.04)
    masked = lambda key: heads.augmented(key, np.ones((3, 200, 2)), lengths, settings=settings)
    found = [np.asarray(masked(jax.random.key(k))) for k in range(30)]
    gone = (np.array(found) == 0).all(axis=3).sum(axis=2)  # [draws, rows]
    assert 20 < gone[:, 0].max() <= 8 * 8  # 8 masks of 8 frames
    assert 2 < gone[:, 1].max() <= 2 * 2 and gone[:, 2].max() == 0


def test_warping_moves_time_and_keeps_the_ends():
    lengths = np.array([40, 25, 10])
    settings = heads.Augment(5, num_feature_masks=0, num_time_masks=0)
    ramp = np.broadcast_to(np.arange(40.0, dtype=np.float32)[None, :, None], (3, 40, 2)).copy()
    moved = []
    for seed in range(20):
        found = np.asarray(heads.augmented(jax.random.key(seed), ramp, lengths, settings=settings))
        np.testing.assert_allclose(found[..., 0], found[..., 1])
        np.testing.assert_array_equal(found[2], ramp[2])  # too short to be warped
        for row, length in enumerate(lengths[:2]):
            line = found[row, :length, 0]
            assert (np.diff(line) >= 0).all() and line[0] <= 1 and line[-1] >= length - 2
            moved.append(np.abs(line - ramp[row, :length, 0]).max())
            np.testing.assert_array_equal(found[row, length:], ramp[row, length:])
    assert max(moved) > 3 and max(moved) <= 5.5 and min(moved) < 3
