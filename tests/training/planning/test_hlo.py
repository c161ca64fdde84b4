"""FLOPs against the formulas of each operation, bytes against programs counted by hand."""
# ruff: noqa: E501

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dinosr_jax.config import parse, published_recipe
from dinosr_jax.model import layers
from dinosr_jax.training.optimizer import make_optimizer
from dinosr_jax.training.planning.hlo import Collective, Program, array_bytes, flops
from dinosr_jax.training.state import Batch, init_state
from dinosr_jax.training.step import make_train_step

# Shortened from what libtpu 0.0.42 made of the update on v5e:4x4 with mesh.fsdp=2: a loop whose
# turns only its condition tells, a mesh in place of groups, a fusion that reduces and scatters.
TPU = """HloModule jit_train_step, is_scheduled=true, entry_computation_layout={(f32[3,32]{1,0})->()}

%all-reduce-scatter.1 (input.1: f32[32,32]) -> f32[32,16] {
  %input.1 = f32[32,32]{1,0:T(8,128)} parameter(0)
  %all-reduce.112 = f32[32,32]{1,0:T(8,128)} all-reduce(%input.1), channel_id=39, replica_groups={{0,1},{2,3},{4,5},{6,7}}, use_global_device_ids=true, to_apply=%add.clone
  ROOT %dynamic-slice.142 = f32[32,16]{1,0:T(8,128)} dynamic-slice(%all-reduce.112, %c, %c), dynamic_slice_sizes={32,16}
}

%fused_slice (param_0.8: f32[3,32,16], param_1.9: s32[]) -> f32[1,32,16] {
  %param_0.8 = f32[3,32,16]{2,1,0:T(8,128)} parameter(0)
  %param_1.9 = s32[]{:T(128)} parameter(1)
  ROOT %dynamic-slice.3 = f32[1,32,16]{2,1,0:T(8,128)} dynamic-slice(%param_0.8, %param_1.9), dynamic_slice_sizes={1,32,16}
}

%body (wide.param.1: (s32[], f32[3,32,16], f32[32,32])) -> (s32[], f32[3,32,16], f32[32,32]) {
  %wide.param.1 = (s32[]{:T(128)}, f32[3,32,16]{2,1,0:T(8,128)}, /*index=2*/f32[32,32]{1,0:T(8,128)S(1)}) parameter(0)
  %gte.0 = s32[]{:T(128)} get-tuple-element(%wide.param.1), index=0
  %gte.1 = f32[3,32,16]{2,1,0:T(8,128)} get-tuple-element(%wide.param.1), index=1
  %gte.2 = f32[32,32]{1,0:T(8,128)S(1)} get-tuple-element(%wide.param.1), index=2
  %slice_fusion = f32[1,32,16]{2,1,0:T(8,128)} fusion(%gte.1, %gte.0), kind=kLoop, calls=%fused_slice
  %all-gather.91 = f32[1,32,32]{1,2,0:T(8,128)} all-gather(%slice_fusion), channel_id=174, replica_groups=mesh['axis_0'=1,'axis_1'=2,'axis_2'=8], device_ids=([8,2]T(1,0)) {'axis_1'}, dimensions={2}
  %fusion.1 = f32[32,16]{1,0:T(8,128)S(1)} fusion(%gte.2), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[3,32,16]{2,1,0:T(8,128)}, f32[32,32]{1,0:T(8,128)S(1)}) tuple(%gte.0, %gte.1, %gte.2)
}

%condition (wide.param.2: (s32[], f32[3,32,16], f32[32,32])) -> pred[] {
  %constant.2149 = s32[]{:T(128)} constant(3)
  %wide.param.2 = (s32[]{:T(128)}, f32[3,32,16]{2,1,0:T(8,128)}, f32[32,32]{1,0:T(8,128)S(1)}) parameter(0)
  %gte.3 = s32[]{:T(128)} get-tuple-element(%wide.param.2), index=0
  ROOT %lt.148 = pred[]{:T(512)} compare(%gte.3, %constant.2149), direction=LT
}

ENTRY %main.337_spmd (param.32: f32[3,32,16], param.33: bf16[768]) -> f32[] {
  %param.32 = f32[3,32,16]{2,1,0:T(8,128)} parameter(0)
  %param.33 = bf16[768]{0:T(1024)(128)(2,1)} parameter(1)
  %tuple.2 = (s32[]{:T(128)}, f32[3,32,16]{2,1,0:T(8,128)}, f32[32,32]{1,0:T(8,128)S(1)}) tuple(%z, %param.32, %y)
  %while.37 = (s32[]{:T(128)}, f32[3,32,16]{2,1,0:T(8,128)}, f32[32,32]{1,0:T(8,128)S(1)}) while(%tuple.2), condition=%condition, body=%body
  %all-reduce-start = (bf16[768]{0:T(1024)(128)(2,1)}, bf16[768]{0:T(1024)(128)(2,1)}) all-reduce-start(%param.33, %param.33), replica_groups={}, to_apply=%add.clone
  %all-reduce-done = (bf16[768]{0:T(1024)(128)(2,1)}, bf16[768]{0:T(1024)(128)(2,1)}) all-reduce-done(%all-reduce-start)
  ROOT %copy-start.1 = (bf16[768]{0:T(1024)S(1)}, bf16[768]{0:T(1024)}, u32[]{:S(2)}) copy-start(%param.33)
}
"""


def test_collectives_of_a_program_for_tpus():
    found = {c.kind: c for c in Program(TPU, devices=16).collectives()}
    assert found == {
        "all-gather": Collective("all-gather", 32 * 32 * 4, 2, 3, True),
        "reduce-scatter": Collective("reduce-scatter", 32 * 32 * 4, 2, 3, True),
        "all-reduce": Collective("all-reduce", 2 * 768 * 2, 16, 1, True),
    }
    assert found["all-gather"].sent == 3 * 32 * 16 * 4  # its half, to the other one
    assert found["reduce-scatter"].sent == 3 * 32 * 16 * 4
    assert found["all-reduce"].sent == pytest.approx(2 * 15 / 16 * 3072)


def test_a_loop_of_unknown_length_is_said():
    unknown = TPU.replace("direction=LT", "direction=NE")
    found = {c.kind: (c.turns, c.counted) for c in Program(unknown, devices=16).collectives()}
    loops = dict.fromkeys(("all-gather", "reduce-scatter"), (1, False))
    assert found == loops | {"all-reduce": (1, True)}
    note = 'body=%body, backend_config={"known_trip_count":{"n":"7"},"x":[]}'
    noted = unknown.replace("body=%body", note)
    assert {c.turns for c in Program(noted, devices=16).collectives()} == {7, 1}


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("{{0,2,4},{1,3,5}}", 3),
        ("[2,8]<=[16]", 8),
        ("[2,4]<=[4,2]T(1,0)", 4),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}", 8),
        ("mesh['axis_0'=8,'axis_1'=2] {'axis_0':(1)4,'axis_1'}", 8),
        ("{}", 16),
    ],
)
def test_groups_of_devices(groups, devices):
    text = TPU.replace("replica_groups={},", f"replica_groups={groups},")
    found = [c.devices for c in Program(text, devices=16).collectives() if c.kind == "all-reduce"]
    assert found == [devices]


def test_groups_of_an_unknown_form_are_an_error():
    text = TPU.replace("replica_groups={},", "replica_groups=<0,1>,")
    with pytest.raises(ValueError, match="replica_groups of an unknown form: <0,1>"):
        Program(text, devices=16).collectives()
    with pytest.raises(ValueError, match="no ENTRY"):
        Program(TPU.replace("ENTRY ", ""))


def test_traffic_of_a_program_for_tpus():
    slices = 32 * 128 * 4  # 16 channels fill a tile; the fusion reads a slice, and its number
    gather = 32 * 128 * 4 + 128 * 32 * 4  # the scattered sum stays on the chip
    others = 1024 * 2 * (2 + 2) + 1024 * 2  # the all-reduce reads two and writes two; one copy
    assert Program(TPU, devices=16).traffic() == 3 * (2 * slices + 4 + gather) + others


KERNEL = """HloModule kernel

ENTRY %main (q: bf16[2,64,128], seeds: s32[2]) -> bf16[2,64,128] {
  %q = bf16[2,64,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %seeds = s32[2]{0:T(128)S(6)} parameter(1)
  ROOT %attention = bf16[2,64,128]{2,1,0:T(8,128)(2,1)} custom-call(%seeds, %q, %q), custom_call_target="tpu_custom_call", backend_config={"custom_call_config": {"body": "..."}}
}
"""


def test_a_kernel_reads_its_operands_and_writes_its_results():
    assert Program(KERNEL).traffic() == 3 * 2 * 64 * 128 * 2


def test_array_bytes():
    shape = "(bf16[3,5]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/f32[2,2]{1,0}, pred[], u32[]{:S(2)})"
    assert array_bytes(shape) == 30 + 16 + 1 + 4
    assert array_bytes(shape, main_memory=True) == 16 + 1


@pytest.mark.parametrize(
    ("shape", "elements"),
    [
        ("f32[11,995,768]{2,1,0:T(8,128)}", 11 * 1000 * 768),
        ("bf16[11,995,768]{2,0,1:T(8,128)(2,1)}", 16 * 995 * 768),  # the batch in the tiles
        ("f32[11,995]{0,1:T(8,128)}", 128 * 1000),
        ("pred[2,3,498,995]{2,3,1,0:T(8,128)(4,1)}", 2 * 3 * 512 * 1000),
        ("bf16[768]{0:T(1024)(128)(2,1)}", 1024),
        ("bf16[5]{0:T(8,128)}", 128),  # fewer axes than its tiles
        ("f32[3,5]{1,0}", 15),
        ("s32[]{:T(128)}", 1),
    ],
)
def test_arrays_fill_whole_tiles_of_main_memory(shape, elements):
    size = {"f32": 4, "s32": 4, "bf16": 2, "pred": 1}[shape.partition("[")[0]]
    assert array_bytes(shape, main_memory=True) == elements * size
    on_the_chip = shape.replace("}", "S(1)}")
    assert array_bytes(on_the_chip, main_memory=True) == 0


WHOLE, PART = 12 * 64 * 128 * 4, 64 * 128 * 4  # of a stack of 12 layers, and of one
LAYOUT, SLICED = "{2,1,0:T(8,128)}", "dynamic_slice_sizes={1,64,128}"


def moved(fused, *, result, operands="%stack, %number, %layer"):
    """Traffic of one fusion of a stack [12, 64, 128], a number and a layer [1, 64, 128]."""
    return (
        Program(f"""HloModule test

%inner (p: f32[12,64,128], i: s32[]) -> bf16[1,64,128] {{
  %p = f32[12,64,128]{LAYOUT} parameter(0)
  %i = s32[] parameter(1)
  %part = f32[1,64,128]{LAYOUT} dynamic-slice(%p, %i, %i, %i), {SLICED}
  ROOT %half = bf16[1,64,128]{LAYOUT} convert(%part)
}}

%fused (stack: f32[12,64,128], number: s32[], layer: f32[1,64,128]) -> f32[] {{
  %layer = f32[1,64,128]{LAYOUT} parameter(2)
  %stack = f32[12,64,128]{LAYOUT} parameter(0)
  %number = s32[] parameter(1)
  {fused.replace(chr(10), chr(10) + "  ")}
}}

ENTRY %main (stack: f32[12,64,128], number: s32[], layer: f32[1,64,128]) -> f32[] {{
  %stack = f32[12,64,128]{LAYOUT} parameter(0)
  %number = s32[]{{:S(6)}} parameter(1)
  %layer = f32[1,64,128]{{2,1,0:T(8,128)S(1)}} parameter(2)
  ROOT %result = {result} fusion({operands}), kind=kLoop, calls=%fused
}}
""")
    ).traffic()


@pytest.mark.parametrize(
    ("fused", "result", "expected"),
    [
        # a slice of the stack; what is on the chip costs nothing
        ("ROOT %x = f32[1,64,128] dynamic-slice(%stack, %number, %number, %number)", "f32", PART),
        # through a change of shape and of type
        (
            "%r = f32[12,8192] bitcast(%stack)\n%c = bf16[12,8192] convert(%r)\n"
            "ROOT %x = bf16[1,8192] dynamic-slice(%c, %number, %number)",
            "bf16",
            PART,
        ),
        # in a fusion within the fusion, next to a product
        (
            "%w = bf16[1,64,128] fusion(%stack, %number), kind=kLoop, calls=%inner\n"
            "ROOT %x = f32[1,64,128] convolution(%layer, %w), window={size=1}",
            "f32",
            PART,
        ),
        # two slices
        (
            "%a = f32[1,64,128] dynamic-slice(%stack, %number, %number, %number)\n"
            "%b = f32[1,64,128] slice(%stack), slice={[0:1], [0:64], [0:128]}\n"
            "ROOT %x = f32[1,64,128] add(%a, %b)",
            "f32",
            2 * PART,
        ),
        # a slice, and the whole as well
        (
            "%a = f32[1,64,128] dynamic-slice(%stack, %number, %number, %number)\n"
            "%b = f32[64,128] reduce(%stack, %number), dimensions={0}, to_apply=%add\n"
            "ROOT %x = f32[1,64,128] add(%a, %b)",
            "f32",
            WHOLE,
        ),
    ],
)
def test_a_fusion_reads_what_it_uses(fused, result, expected):
    on_the_chip = f"{result}[1,64,128]{{2,1,0:T(8,128)S(1)}}"
    assert moved(fused, result=on_the_chip) == expected


def test_a_fusion_that_updates_a_slice_in_place_writes_the_slice():
    update = "dynamic-update-slice(%stack, %layer, %number, %number, %number)"
    stack = f"f32[12,64,128]{LAYOUT}"
    assert moved(f"ROOT %x = {stack} {update}", result=stack) == PART
    other = "%y = f32[1,64,128] negate(%layer)\n"
    several = f"{other}%x = {stack} {update}\n%b = {stack} bitcast(%x)\n"
    several += "ROOT %t = (f32[12,64,128], f32[1,64,128]) tuple(%b, %y)"
    both = f"({stack}, f32[1,64,128]{LAYOUT})"
    assert moved(several, result=both) == 2 * PART
    # not in place: what is updated is computed here
    fresh = f"%s = {stack} negate(%stack)\n%x = {stack} " + update.replace("%stack", "%s")
    assert moved(f"{fresh}\nROOT %b = {stack} bitcast(%x)", result=stack) == 2 * WHOLE


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ('custom-call(), custom_call_target="AllocateBuffer"', 0),  # nothing is written yet
        ('custom-call(%x), custom_call_target="tpu_custom_call"', 2 * WHOLE),
        ("copy(%x)", 2 * WHOLE),
        ("copy(f32[12,64,128]{2,1,0:T(8,128)} %x), control-predecessors={%one}", 2 * WHOLE),
        ("bitcast(%x)", 0),
        ("dynamic-update-slice(%x, %one, %i, %i, %i)", 2 * PART),
        ("scatter(%x, %i, %one), to_apply=%add", 2 * PART + 4),
    ],
)
def test_what_instructions_move(instruction, expected):
    text = f"""ENTRY %main (x: f32[12,64,128]) -> f32[12,64,128] {{
  %x = f32[12,64,128]{LAYOUT} parameter(0)
  %one = f32[1,64,128]{LAYOUT} parameter(1)
  %i = s32[] parameter(2)
  ROOT %y = f32[12,64,128]{LAYOUT} {instruction}
}}
"""
    assert Program(text).traffic() == expected


def test_a_row_that_is_picked_out_is_read_alone():
    text = f"""ENTRY %main (x: f32[12,64,128]) -> f32[1,64,128] {{
  %x = f32[12,64,128]{LAYOUT} parameter(0)
  %i = s32[1]{{0}} parameter(1)
  ROOT %y = f32[1,64,128]{LAYOUT} gather(%x, %i), offset_dims={{0,1}}
}}
"""
    assert Program(text).traffic() == 2 * PART + 4


def test_a_loop_over_a_stack_reads_each_layer_once():
    """XLA's own program: the weights of a scan are sliced, not read whole in every turn."""
    turn = lambda x, kernel: (jnp.tanh(x @ kernel), None)
    run = jax.jit(lambda x, kernels: jax.lax.scan(turn, x, kernels)[0])
    kernels = jnp.ones((100, 64, 64))
    found = Program(run.lower(jnp.ones((8, 64)), kernels).compile().as_text()).traffic()
    assert kernels.nbytes <= found < 4 * kernels.nbytes


def test_collectives_of_a_program_that_xla_makes_here():
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    place = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))

    def loss(x, kernels):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0].sum()

    shardings = (place("data"), place(None, "fsdp", None))
    gradient = jax.grad(loss, argnums=1)
    step = jax.jit(gradient, in_shardings=shardings, out_shardings=shardings[1])
    lowered = step.lower(jnp.ones((16, 32)), jnp.ones((5, 32, 32)))
    found = Program(lowered.compile().as_text(), devices=8).collectives()
    assert {c.turns for c in found} == {5} and all(c.counted for c in found)
    gradients = [c for c in found if c.kind in ("all-reduce", "reduce-scatter") and c.devices == 4]
    assert [c.size for c in gradients] == [32 * 16 * 4]


def traced_flops(function, *arguments):
    return flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def test_flops_of_products_and_loops():
    x, kernel = jnp.ones((3, 7, 5)), jnp.ones((5, 5))
    once = 2 * 3 * 7 * 5 * 5
    assert traced_flops(lambda x: x @ kernel, x) == once
    assert traced_flops(lambda x: jnp.einsum("btd,bsd->bts", x, x), x) == 2 * 3 * 7 * 7 * 5
    loop = lambda x: jax.lax.scan(lambda x, _: (x @ kernel, None), x, None, length=6)[0]
    assert traced_flops(loop, x) == 6 * once
    nested = lambda x: jax.lax.scan(lambda x, _: (loop(x), None), x, None, length=2)[0]
    assert traced_flops(nested, x) == 12 * once
    twice = lambda x: x @ kernel @ kernel
    either = lambda x: jax.lax.cond(x.sum() > 0, lambda x: x @ kernel, twice, x)
    assert traced_flops(jax.jit(either), x) == 2 * once


def test_flops_of_what_is_written_for_one_device():
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    cut, gram = PartitionSpec("data"), lambda x: x @ x.T
    run = jax.shard_map(gram, mesh=mesh, in_specs=cut, out_specs=cut, axis_names={"data"})
    assert traced_flops(jax.jit(run), jnp.ones((16, 3))) == 4 * (2 * 4 * 4 * 3)


def test_flops_of_a_kernel_are_those_of_all_blocks():
    def kernel(x_ref, y_ref, z_ref):
        z_ref[...] = x_ref[...] @ y_ref[...]

    x, y = jnp.ones((32, 16)), jnp.ones((16, 24))
    cut = {"in_specs": [pl.BlockSpec((8, 16), lambda i, j: (i, 0))]}
    cut["in_specs"].append(pl.BlockSpec((16, 12), lambda i, j: (0, j)))
    cut["out_specs"] = pl.BlockSpec((8, 12), lambda i, j: (i, j))
    shape = jax.ShapeDtypeStruct((32, 24), jnp.float32)
    call = pl.pallas_call(kernel, grid=(4, 2), out_shape=shape, **cut)
    assert traced_flops(call, x, y) == 2 * 32 * 16 * 24


def test_flops_of_recomputation():
    x, kernel = jnp.ones((4, 5)), jnp.ones((5, 5))
    once = 2 * 4 * 5 * 5
    function = lambda kernel: jnp.tanh(jnp.tanh(x @ kernel) @ kernel).sum()
    assert traced_flops(jax.grad(function), kernel) == 5 * once  # of 6, not that of x
    full = jax.checkpoint(function, policy=jax.checkpoint_policies.nothing_saveable)
    assert traced_flops(jax.grad(full), kernel) > 5 * once


@pytest.mark.parametrize(("kernel", "stride"), [(10, 5), (3, 2), (2, 2)])
def test_flops_of_convolutions_and_their_gradients(kernel, stride):
    layout = ("NWC", "WIO", "NWC")
    x, taps = jnp.ones((2, 61, 6)), jnp.ones((kernel, 6, 8))
    how = {"window_strides": (stride,), "padding": "VALID", "dimension_numbers": layout}
    run = lambda x, taps: jax.lax.conv_general_dilated(x, taps, **how)
    frames = (61 - kernel) // stride + 1
    once = 2 * 2 * frames * kernel * 6 * 8
    assert traced_flops(run, x, taps) == once
    for argument in (0, 1):
        gradient = jax.grad(lambda *a: (run(*a) ** 2).sum(), argnums=argument)
        assert traced_flops(gradient, x, taps) == 2 * once


def test_flops_of_padded_and_grouped_convolutions():
    x, taps = jnp.ones((1, 9, 8)), jnp.ones((5, 2, 8))
    run = lambda x: jax.lax.conv_general_dilated(
        x, taps, (1,), [(2, 2)], dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=4
    )
    met = sum(0 <= t + k - 2 < 9 for t in range(9) for k in range(5))
    assert traced_flops(run, x) == 2 * met * 2 * 8
    assert np.isfinite(traced_flops(jax.grad(lambda x: run(x).sum()), x))


def test_flops_of_the_published_update(monkeypatch):
    """Against a sum over the architecture, exact but for the edges of padding.

    Student: forward, gradient of the inputs and of the parameters; teacher: forward.
    """
    monkeypatch.setattr(layers, "platform", lambda: "tpu")
    config = published_recipe()
    config.model.remat = "none"
    config.model.attention = "xla"  # the fused kernel computes a product twice, in whole blocks
    config = parse(config)
    samples = 20 * 16_000 - 320 * 5 + 80
    batch = Batch(jax.ShapeDtypeStruct((16, samples), jnp.float32))
    state = jax.eval_shape(lambda: init_state(config, optimizer=make_optimizer(config)))
    found = flops(jax.make_jaxpr(make_train_step(config))(state, batch).jaxpr)

    # 995 frames in eight pieces of 125
    convolutions, frames, channels = [], 124 * 320 + 400, 1
    for width, kernel, stride in config.model.conv_layers:
        frames = (frames - kernel) // stride + 1
        convolutions.append(8 * 2 * frames * kernel * channels * width)
        channels = width
    assert frames == 125
    frames = 995
    layer = 2 * frames * (4 * 768**2 + 2 * 768 * 3072) + 2 * 2 * frames**2 * 768
    encoder = 12 * layer + 5 * 2 * frames * 19 * 96 * 768  # groups of 48, in pairs
    heads = 2 * frames * 768 * 256 * 8
    student = 3 * (sum(convolutions) + 2 * frames * 512 * 768 + encoder + heads)
    student -= convolutions[0]  # no gradient of the waveform
    codebooks = 2 * heads  # distances, sums
    assert found == pytest.approx(16 * (student + encoder + codebooks), rel=1e-3)
