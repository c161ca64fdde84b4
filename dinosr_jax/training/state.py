"""The state of a training run, and its batches: arrays alone."""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from dinosr_jax.model.dinosr import DinoSR
from dinosr_jax.model.feature_encoder import receptive_field
from dinosr_jax.model.recogniser import Output
from dinosr_jax.objective import codebook as codebooks
from dinosr_jax.objective.objectives import OBJECTIVES
from dinosr_jax.objective.teacher import teacher_parts

Array = jax.Array


class Batch(NamedTuple):
    """Audio of one update, or of one held-out batch; None is what it does not need."""

    waveforms: Array  # [B, S] float32, 16 kHz, normalised per utterance
    num_samples: Array | None = None  # [B] int32, of each row; None where nothing is padded
    speakers: Array | None = None  # [B] int32, numbers of the speakers
    phones: Array | None = None  # [B, T] int32, numbers of the phones, -1 where there is none
    labels: Array | None = None  # [B, U] int32, symbols of the transcripts
    num_labels: Array | None = None  # [B] int32, of each row; 0 where it only fills the batch
    heard: Array | None = None  # [B, S] float32, of the student where they are others

    @property
    def student_waveforms(self) -> Array:
        """[B, S] float32, what the student hears."""
        return self.waveforms if self.heard is None else self.heard


@flax.struct.dataclass
class TrainState:
    """The state of a run. Random keys are derived from the seed and `step`, never stored.

    A recogniser has no teacher and no codebooks; objective 'data2vec' has no codebooks.
    """

    step: Array  # int32, finished optimizer updates
    params: Any  # the student, or the recogniser
    teacher_params: Any  # float32, `teacher_parts` of the student; {} of a recogniser
    opt_state: optax.OptState
    codebook: codebooks.Codebook | None


def stream_key(seed: int, stream: str, step: Array | int = 0) -> Array:
    """Random key of one named stream at one step of a run."""
    streams = "init codebook teacher mask dropout eval_mask channel_mask output perturb"
    number = streams.split().index(stream)
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), step)


def make_model(config: Any) -> DinoSR:
    """The network of a configuration, computing in its `compute_dtype`."""
    objective = OBJECTIVES[config.objective]
    heads = {"reads": objective.reads, "predicts": objective.predicts}
    return DinoSR(config.model, jnp.dtype(config.compute_dtype), **heads)


def init_state(config: Any, *, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update; trace it with `jax.jit` to make it on a mesh.

    The student is initialised from the seed; the teacher is a copy of it (with
    `teacher.init='reinit'` initialised anew), the codebooks are standardised noise. A recogniser is
    the student with an output layer in place of the heads.
    """
    model = make_model(config)
    samples = jnp.zeros((1, receptive_field(config.model.conv_layers)[0]))
    init = lambda stream: model.init(stream_key(config.seed, stream), samples)["params"]
    params = init("init")
    if config.task == "ctc":
        return _init_recogniser(config, params, optimizer)
    source = params if config.teacher.init == "copy" else init("teacher")
    teacher = teacher_parts(source, scope=config.teacher.scope)
    codebook = None
    if OBJECTIVES[config.objective].predicts == "codes":
        codebook = codebooks.init(
            stream_key(config.seed, "codebook"),
            num_codebooks=config.model.num_codebooks,
            codebook_size=config.model.codebook_size,
            width=config.model.width,
            scale=config.codebook.init_scale,
        )
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        teacher_params=jax.tree.map(jnp.copy, teacher),  # the state is donated: never alias
        opt_state=optimizer.init(params),
        codebook=codebook,
    )


def _init_recogniser(config: Any, params: Any, optimizer: optax.GradientTransformation) -> Any:
    """The state of a recogniser, of the parameters of a student."""
    frame = jnp.zeros((1, 1, config.model.width))
    output = Output(len(config.ctc.symbols)).init(stream_key(config.seed, "output"), frame)
    params = {name: part for name, part in params.items() if name != "heads"}
    params["output"] = output["params"]
    return TrainState(jnp.zeros((), jnp.int32), params, {}, optimizer.init(params), None)
