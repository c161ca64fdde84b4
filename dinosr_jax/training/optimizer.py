"""AdamW with fairseq's tri-stage learning rate, and frozen parts."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dinosr_jax.objective.objectives import OBJECTIVES

Array = jax.Array

# What `teacher.freeze_feature_encoder_step` stops.
FROZEN_PARTS = ("feature_encoder", "feature_projection")
NEVER = 2**31 - 1  # a step that no run reaches


def tri_stage(
    *,
    learning_rate: float,
    warmup_steps: int,
    hold_steps: int,
    decay_steps: int,
    init_scale: float,
    final_scale: float,
) -> optax.Schedule:
    """Linear warm-up, hold, exponential decay (fairseq TriStageLRSchedule).

    The schedule, of the number of updates done before, rises from init_scale * learning_rate to the
    peak, holds it, and falls to final_scale * learning_rate, which then stays.
    """
    schedules = [
        optax.linear_schedule(init_scale * learning_rate, learning_rate, max(warmup_steps, 1)),
        optax.constant_schedule(learning_rate),
        optax.exponential_decay(
            learning_rate,
            max(decay_steps, 1),
            max(final_scale, 1e-12),
            end_value=final_scale * learning_rate,
        ),
    ]
    return optax.join_schedules(schedules, [warmup_steps, warmup_steps + hold_steps])


class CountedState(NamedTuple):
    """Updates done, and the state of the optimizer inside."""

    count: Array
    inner: optax.OptState


def freeze_from(
    optimizer: optax.GradientTransformation, *, step: int, parts: tuple[str, ...]
) -> optax.GradientTransformation:
    """Stops named top-level parts of the parameters from update number `step` (from 1) on.

    Neither gradient nor weight decay moves them, and their gradients do not count in the norm
    that the others are clipped by.
    """

    def hold(tree: Any, frozen: Array) -> Any:
        stop = lambda x: jnp.where(frozen, jnp.zeros_like(x), x)
        return {k: jax.tree.map(stop, v) if k in parts else v for k, v in tree.items()}

    def init(params):
        return CountedState(jnp.zeros((), jnp.int32), optimizer.init(params))

    def update(gradients, state, params=None):
        frozen = state.count + 1 >= step
        updates, inner = optimizer.update(hold(gradients, frozen), state.inner, params)
        return hold(updates, frozen), CountedState(state.count + 1, inner)

    return optax.GradientTransformation(init, update)


def without_unused(
    optimizer: optax.GradientTransformation, config: Any
) -> optax.GradientTransformation:
    """Never moves parameters that the network of a configuration does not use.

    Those are the biases of query, key and value where `model.qkv_bias` is False, and, where heads
    read the `ffn` of their layer, the last layer's last LayerNorm (as in spidr's SpidR). Their
    gradients do not count in the norm that the others are clipped by.
    """
    last_norm = OBJECTIVES[config.objective].reads == "ffn"

    def hold(path: Any, leaf: Array) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not config.model.qkv_bias and re.search(r"attention/(query|key|value)/bias$", name):
            return jnp.zeros_like(leaf)
        if last_norm and name.startswith("encoder/layers/ffn_layer_norm/"):
            return leaf.at[-1].set(0.0)
        return leaf

    def update(gradients, state, params=None):
        held = jax.tree_util.tree_map_with_path(hold, gradients)
        updates, state = optimizer.update(held, state, params)
        return jax.tree_util.tree_map_with_path(hold, updates), state

    return optax.GradientTransformation(optimizer.init, update)


def wait_until(
    optimizer: optax.GradientTransformation, *, step: int
) -> optax.GradientTransformation:
    """Leaves parameters, and the optimizer's state, as they are for the first `step` updates.

    The moments start with the first gradient that counts, as torch's do for a parameter that had
    none before.
    """

    def init(params):
        return CountedState(jnp.zeros((), jnp.int32), optimizer.init(params))

    def update(gradients, state, params=None):
        waits = state.count < step
        updates, inner = optimizer.update(gradients, state.inner, params)
        updates = jax.tree.map(lambda new: jnp.where(waits, jnp.zeros_like(new), new), updates)
        inner = jax.tree.map(lambda new, old: jnp.where(waits, old, new), inner, state.inner)
        return updates, CountedState(state.count + 1, inner)

    return optax.GradientTransformation(init, update)


def make_schedule(config: Any) -> optax.Schedule:
    """The learning rate of a configuration."""
    names = "learning_rate warmup_steps hold_steps decay_steps init_scale final_scale".split()
    return tri_stage(**{name: config.optimizer[name] for name in names})


def make_optimizer(config: Any) -> optax.GradientTransformation:
    """AdamW on every parameter (biases and norms decay too, as in the official recipe).

    Of a recogniser, the feature encoder never learns, and all but the output layer wait.
    """
    if config.task == "ctc":
        return _make_finetuning_optimizer(config)
    c = config.optimizer
    adamw = optax.adamw(make_schedule(config), c.b1, c.b2, c.eps, weight_decay=c.weight_decay)
    if c.clip_norm:
        adamw = optax.chain(optax.clip_by_global_norm(c.clip_norm), adamw)
    step = config.teacher.freeze_feature_encoder_step
    optimizer = freeze_from(adamw, step=step or NEVER, parts=FROZEN_PARTS)
    return without_unused(optimizer, config)


@jax.named_scope("optimizer")
def move(optimizer: optax.GradientTransformation, gradients: Any, state: Any) -> tuple:
    """New parameters, what was added to them, and the new state of the optimizer."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    return optax.apply_updates(state.params, updates), updates, opt_state


def _make_finetuning_optimizer(config: Any) -> optax.GradientTransformation:
    c = config.optimizer
    adam = optax.chain(
        optax.scale_by_adam(c.b1, c.b2, c.eps), optax.add_decayed_weights(c.weight_decay)
    )
    parts = {
        "output": adam,
        "network": wait_until(adam, step=config.ctc.freeze_steps),
        "never": optax.set_to_zero(),
    }
    names = {"output": "output", "feature_encoder": "never"}
    label = lambda params: {name: names.get(name, "network") for name in params}
    optimizer = optax.chain(
        optax.partition(parts, label), optax.scale_by_learning_rate(make_schedule(config))
    )
    if c.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(c.clip_norm), optimizer)
    return optimizer
