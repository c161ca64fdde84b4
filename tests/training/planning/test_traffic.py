"""Places of the traffic: by hand, and of the programs that XLA makes here of both tasks."""

import functools

import jax
import pytest

from dinosr_jax.training.ctc.step import make_finetuning_step
from dinosr_jax.training.optimizer import make_optimizer
from dinosr_jax.training.planning import tpu_compile
from dinosr_jax.training.planning.estimate import UNNAMED
from dinosr_jax.training.planning.hlo import Program
from dinosr_jax.training.planning.traffic import place, traffic_by_place
from dinosr_jax.training.state import init_state
from dinosr_jax.training.step import make_train_step
from tests.update_runs import config_of

LAYER = "encoder/while/body/closed_call/checkpoint/cond/branch_0_fun/TransformerLayer"
BACK = "transpose(jvp(DinoSR.encode))"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"jvp(DinoSR.encode)/{LAYER}/attention/key/dot_general", "attention's projections"),
        (f"jvp(DinoSR.encode)/{LAYER}/attention/attention.attend/sub", "attention"),
        (f"jvp(DinoSR.encode)/{LAYER}/attention_layer_norm/reduce_sum", "LayerNorm"),
        ("jvp(DinoSR.encode)/encoder/layer_norm/reduce_sum", "LayerNorm"),
        (f"jvp(DinoSR.encode)/{LAYER}/ffn_in/dot_general", "feed-forward"),
        (f"jvp(DinoSR.encode)/{LAYER}/mul", "feed-forward"),
        ("jvp(DinoSR.encode)/encoder/pos_conv/while/body/reduce_sum", "positional convolutions"),
        ("jvp(DinoSR.encode)/encoder/while/body/dynamic_update_slice", "loop over layers"),
        ("jvp(DinoSR.convolve)/feature_encoder/conv_0/layer_norm/mul", "feature encoder"),
        ("jvp(DinoSR.encode)/encoder/broadcast_in_dim", "rest of the encoder"),
        ("jvp(DinoSR.x)/feature_projection/layer_norm/mul", "feature projection"),
        (f"jvp(DinoSR.encode)/{LAYER}/attention/random_bits/xor", "random numbers"),
    ],
)
def test_places_in_a_network(path, expected):
    path = f"jit(train_step)/{path}"
    assert place(path) == f"{expected}, student, forward"
    assert place(path.replace("jvp(", "jvp(teacher)/(")) == f"{expected}, teacher, forward"
    backward = path.replace("jvp(DinoSR.encode)", BACK).replace("jvp(DinoSR.x)", BACK)
    if backward != path:
        assert place(backward) == f"{expected}, student, backward"
        anew = backward.replace("checkpoint/", "checkpoint/rematted_computation/")
        if anew != backward:
            assert place(anew) == f"{expected}, student, recomputed"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("jvp(codebook_distances)/nbtd,nvd->nbtv/dot_general", "codebook distances"),
        ("jvp(codebook_statistics)/eq", "one-hot statistics"),
        ("jvp(teacher)/targets/sub", "targets"),
        ("transpose(jvp(DinoSR.predict))/heads/dot_general", "heads and loss"),
        ("transpose(jvp(prediction_loss))/mul", "heads and loss"),
        ("optimizer/mul", "optimizer"),
        ("teacher_update/jit(_where)/select_n", "EMA of the teacher"),
        ("codebook_update/mul", "codebook update"),
        ("metrics/reduce_sum", "metrics"),
        ("masks/sort", "masks"),
        ("add", UNNAMED),
    ],
)
def test_places_outside_of_it(path, expected):
    assert place(f"jit(train_step)/{path}") == expected


NAMED = 'metadata={op_name="jit(train_step)/%s" stack_frame_id=1}'
HEADS, LOSS, ADAM = (NAMED % name for name in ("heads/dot", "prediction_loss/exp", "optimizer/mul"))
PROGRAM = f"""HloModule test

%product (a: f32[10,100]) -> f32[10,100] {{
  %a = f32[10,100]{{1,0}} parameter(0)
  %d = f32[10,100]{{1,0}} dot(%a, %a), {HEADS}
  %e = f32[10,100]{{1,0}} exponential(%d), {NAMED % "metrics/exp"}
  ROOT %f = f32[10,100]{{1,0}} exponential(%e), {NAMED % "metrics/exp"}
}}

%inner (b: f32[10,100]) -> f32[10,100] {{
  %b = f32[10,100]{{1,0}} parameter(0)
  %m = f32[10,100]{{1,0}} multiply(%b, %b), {ADAM}
  ROOT %n = f32[10,100]{{1,0}} multiply(%m, %b), {ADAM}
}}

%several (c: f32[10,100]) -> f32[10,100] {{
  %c = f32[10,100]{{1,0}} parameter(0)
  %g = f32[10,100]{{1,0}} fusion(%c), kind=kLoop, calls=%inner, {LOSS}
  ROOT %h = f32[10,100]{{1,0}} add(%g, %c), {NAMED % "metrics/reduce_sum"}
}}

ENTRY %main (x: f32[10,100]) -> f32[10,100] {{
  %x = f32[10,100]{{1,0}} parameter(0)
  %y = f32[10,100]{{1,0}} fusion(%x), kind=kOutput, calls=%product, {NAMED % "metrics/exp"}
  %z = f32[10,100]{{1,0}} fusion(%y), kind=kLoop, calls=%several, {LOSS}
  %copied = f32[10,100]{{0,1}} copy(%y)
  %sum = f32[10,100]{{0,1}} all-reduce(%copied), replica_groups={{{{0,1}}}}, to_apply=%add, {ADAM}
  %other = f32[10,100]{{1,0}} copy(%x), {NAMED % "add"}
  %zero = f32[] constant(0), {NAMED % "broadcast_in_dim"}
  %fill = f32[10,100]{{1,0}} broadcast(%zero), metadata={{op_name="broadcast.7"}}
  %both = (f32[10,100]{{1,0}}, f32[10,100]{{1,0}}) tuple(%fill, %other)
  %first = f32[10,100]{{1,0}} get-tuple-element(%both), index=0
  ROOT %last = f32[10,100]{{1,0}} multiply(%first, %first), {ADAM}
}}
"""


def test_a_fusion_belongs_to_its_product_or_to_most_of_its_instructions():
    """And what has no path to what it is made of, or to what is made of it."""
    both = 2 * 10 * 100 * 4  # read and written
    found = traffic_by_place(Program(PROGRAM, devices=2))
    filled, squared = both // 2 + 4, both // 2 + both  # two operands
    expected = {"heads and loss": 2 * both, "optimizer": both + filled + squared, UNNAMED: both}
    assert dict(found) == expected | {"exchange between devices": both}
    assert [size for _, size in found] == sorted((size for _, size in found), reverse=True)


@functools.cache
def compiled(task):
    """The program of an update of the tiny network, for one CPU."""
    config = config_of(task=task, ctc__symbols=("<blank>", "|", "a", "b"))
    state = jax.eval_shape(lambda: init_state(config, optimizer=make_optimizer(config)))
    make = {"ctc": make_finetuning_step, "pretrain": make_train_step}[task]
    batch = tpu_compile._abstract_batch(task, None, 4, 16_080)
    quickly = {"xla_backend_optimization_level": 0}  # what LLVM does is not in the text
    return Program(jax.jit(make(config)).lower(state, batch).compile(quickly).as_text())


@pytest.mark.parametrize("task", ["pretrain", "ctc"])
def test_the_places_of_an_update(task):
    program = compiled(task)
    found = dict(traffic_by_place(program))
    assert sum(found.values()) == program.traffic()
    assert found.get(UNNAMED, 0) < 0.1 * program.traffic()
    kinds = {"heads and loss", "optimizer", "metrics", "masks"}
    kinds |= {f"attention, student, {way}" for way in ("forward", "backward")}
    teacher = {"attention, teacher, forward", "codebook distances", "one-hot statistics"}
    teacher |= {"targets", "EMA of the teacher", "feature encoder, student, backward"}
    assert kinds <= set(found)
    assert teacher & set(found) == (teacher if task == "pretrain" else set())
