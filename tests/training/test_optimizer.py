"""Schedule and AdamW against transcriptions of fairseq and PyTorch; the freeze."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dinosr_jax.training.optimizer import freeze_from, make_optimizer, make_schedule, tri_stage
from tests.update_runs import config_of

PARTS = ("feature_encoder", "feature_projection")


def tiny_config(*, freeze=0, **optimizer):
    changes = {f"optimizer__{name}": value for name, value in optimizer.items()}
    return config_of(teacher__freeze_feature_encoder_step=freeze, **changes)


def fairseq_tri_stage(step, *, peak, warmup, hold, decay, init_scale, final_scale):
    """TriStageLRSchedule.step_update at num_updates = step."""
    init, final = init_scale * peak, final_scale * peak
    if step < warmup:
        return init + (peak - init) / warmup * step
    if step < warmup + hold:
        return peak
    if step <= warmup + hold + decay:
        # fairseq divides by zero where decay is 0; only its first step is reached then
        factor = -math.log(final_scale) / decay if decay else 0.0
        return peak * math.exp(-factor * (step - warmup - hold))
    return final


@pytest.mark.parametrize(
    ("warmup", "hold", "decay", "init_scale", "final_scale"),
    [
        (12_000, 188_000, 200_000, 0.01, 0.01),
        (10, 20, 30, 0.01, 0.05),
        (1, 1, 1, 0.5, 0.5),
        (0, 20, 30, 0.01, 0.01),
        (10, 0, 30, 0.0, 0.01),
        (10, 20, 0, 0.01, 0.01),
        (0, 0, 30, 0.01, 0.01),
        (0, 0, 0, 0.01, 0.01),
        (10, 20, 30, 1.0, 1.0),
    ],
)
def test_tri_stage_is_fairseqs(warmup, hold, decay, init_scale, final_scale):
    stages = {"warmup": warmup, "hold": hold, "decay": decay}
    scales = {"init_scale": init_scale, "final_scale": final_scale}
    steps = {f"{name}_steps": number for name, number in stages.items()}
    schedule = tri_stage(learning_rate=5e-4, **steps, **scales)
    edges = np.cumsum([0, warmup, hold, decay])
    steps = np.concatenate([edges + k for k in range(-2, 3)] + [np.linspace(0, edges[-1] + 9, 50)])
    steps = np.unique(np.clip(steps, 0, None).astype(int))
    expected = [fairseq_tri_stage(int(s), peak=5e-4, **stages, **scales) for s in steps]
    # optax computes the start as the difference to the peak, in float32
    np.testing.assert_allclose(jax.jit(jax.vmap(schedule))(steps), expected, rtol=1e-5)


def test_schedule_of_a_configuration():
    schedule = make_schedule(tiny_config(learning_rate=1e-3, warmup_steps=10))
    rates = [schedule(step) for step in (0, 5, 10)]
    np.testing.assert_allclose(rates, [1e-5, 5.05e-4, 1e-3], rtol=1e-5)


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"feature_encoder": (4, 3), "feature_projection": (5,)}
    shapes |= {"encoder": (3, 4), "heads": (2,)}
    return {part: {"kernel": rng.normal(size=shape)} for part, shape in shapes.items()}


def float32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def gradients_of(step, *, scale=1.0):
    return jax.tree.map(lambda x: scale * x, parameters(seed=100 + step))


def run(optimizer, gradients):
    """Parameters before the first and after each update."""
    params = float32(parameters())
    state = optimizer.init(params)

    @jax.jit
    def update(gradients, state, params):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    history = [params]
    for g in gradients:
        params, state = update(float32(g), state, params)
        history.append(params)
    return jax.device_get(history)


def clipped(gradients, norm):
    total = math.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(gradients)))
    return jax.tree.map(lambda g: g * min(1.0, norm / total), gradients) if norm else gradients


def torch_adamw(gradients, *, rates, b1, b2, eps, weight_decay, clip_norm):
    """torch.optim.AdamW in float64."""
    params = parameters()
    m = jax.tree.map(np.zeros_like, params)
    v = jax.tree.map(np.zeros_like, params)
    for t, (g, lr) in enumerate(zip(gradients, rates, strict=True), start=1):
        g = clipped(g, clip_norm)
        params = jax.tree.map(lambda p, lr=lr: p * (1 - lr * weight_decay), params)
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, m, g)
        v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, v, g)

        def move(p, m, v, lr=lr, t=t):
            denominator = np.sqrt(v) / math.sqrt(1 - b2**t) + eps
            return p - lr / (1 - b1**t) * m / denominator

        params = jax.tree.map(move, params, m, v)
    return params


@pytest.mark.parametrize(("scale", "clip_norm"), [(1.0, 0.0), (1e-6, 0.0), (10.0, 1.0)])
def test_adamw_is_torchs(scale, clip_norm):
    """Gradients about eps in size show where eps stands; a large rate and decay show theirs."""
    fields = {"learning_rate": 0.05, "warmup_steps": 3, "hold_steps": 1, "decay_steps": 3}
    config = tiny_config(**fields, weight_decay=0.1, clip_norm=clip_norm)
    gradients = [gradients_of(k, scale=scale) for k in range(5)]
    scales = {"init_scale": 0.01, "final_scale": 0.01}
    rates = [fairseq_tri_stage(k, peak=0.05, warmup=3, hold=1, decay=3, **scales) for k in range(5)]
    settings = {"b1": 0.9, "b2": 0.98, "eps": 1e-6, "weight_decay": 0.1, "clip_norm": clip_norm}
    expected = torch_adamw(gradients, rates=rates, **settings)
    found = run(make_optimizer(config), gradients)[-1]
    for part in expected:  # biases and norms decay too: every part, whatever its shape
        both = found[part]["kernel"], expected[part]["kernel"]
        np.testing.assert_allclose(*both, rtol=2e-6, atol=1e-6)


def test_freeze_from():
    config = tiny_config(learning_rate=0.01, warmup_steps=0, weight_decay=0.1, freeze=3)
    history = run(make_optimizer(config), [gradients_of(k) for k in range(5)])
    for update in range(1, 6):
        old, new = history[update - 1], history[update]
        for part in new:
            equal = np.array_equal(old[part]["kernel"], new[part]["kernel"])
            assert equal == (part in PARTS and update >= 3), (update, part)


def test_freeze_does_not_change_the_others():
    gradients = [gradients_of(k) for k in range(4)]
    adamw = optax.adamw(0.01, weight_decay=0.1)
    with jax.disable_jit():  # compiled, the two programs are fused, and so rounded, differently
        free = run(adamw, gradients)
        frozen = run(freeze_from(adamw, step=3, parts=PARTS), gradients)
    for update in range(1, 5):
        for part in free[0]:
            equal = np.array_equal(free[update][part]["kernel"], frozen[update][part]["kernel"])
            assert equal == (part not in PARTS or update < 3), (update, part)


def test_frozen_gradients_do_not_count_in_the_clip():
    def with_frozen(scale):
        scaled = lambda part, x: {"kernel": x["kernel"] * (scale if part in PARTS else 1)}
        return [{p: scaled(p, x) for p, x in gradients_of(k).items()} for k in range(4)]

    # sgd, because Adam undoes the scale of gradients
    sgd = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1))
    moved = lambda history, k: history[k]["encoder"]["kernel"] - history[k - 1]["encoder"]["kernel"]
    small, large = (run(freeze_from(sgd, step=3, parts=PARTS), with_frozen(s)) for s in (0.1, 100))
    for update in (1, 2):
        assert np.abs(moved(large, update)).max() < 0.1 * np.abs(moved(small, update)).max()
    for update in (3, 4):
        np.testing.assert_allclose(moved(large, update), moved(small, update), atol=1e-6)
        g = {p: gradients_of(update - 1)[p] for p in ("encoder", "heads")}
        expected = -0.1 * clipped(g, 0.5)["encoder"]["kernel"]
        np.testing.assert_allclose(moved(small, update), expected, atol=1e-6)


def test_loading_an_uncopied_state_dict_restores_nothing():
    """Why the official freeze of the feature encoder has no effect; see docs/reproducing.md."""
    torch = pytest.importorskip("torch")
    for copied in (False, True):
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Conv1d(1, 2, 3), torch.nn.LayerNorm(4))
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
        kept = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        stored = kept if copied else module.state_dict()
        for _ in range(3):
            optimizer.zero_grad()
            module(torch.randn(5, 1, 6)).pow(3).sum().backward()
            optimizer.step()
            module.load_state_dict(stored)
        back = [torch.equal(kept[name], tensor) for name, tensor in module.state_dict().items()]
        assert all(back) if copied else not any(back)
