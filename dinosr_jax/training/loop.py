"""The training run: batches in, updates, records, evaluations and checkpoints out."""

import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from dinosr_jax import files
from dinosr_jax.config import complete, to_text
from dinosr_jax.data.batches.labelled import LabelledData
from dinosr_jax.data.batches.pipeline import SpeechData
from dinosr_jax.data.batches.transcribed import TranscribedData
from dinosr_jax.errors import UserError
from dinosr_jax.model.feature_encoder import num_frames
from dinosr_jax.progress import progress_bar
from dinosr_jax.training import processes, sharding
from dinosr_jax.training.best import Best
from dinosr_jax.training.checkpoint import Checkpoints, Restored, check_same_run
from dinosr_jax.training.compiled import Programs
from dinosr_jax.training.ctc.step import make_finetuning_step
from dinosr_jax.training.ctc.word_errors import WordErrors
from dinosr_jax.training.devices import check_attention
from dinosr_jax.training.environment import record_environment
from dinosr_jax.training.guard import Guard
from dinosr_jax.training.logs import RunLog
from dinosr_jax.training.metrics import to_record
from dinosr_jax.training.optimizer import make_optimizer
from dinosr_jax.training.state import TrainState, init_state
from dinosr_jax.training.step import make_first_codewords, make_train_step
from dinosr_jax.training.validation import Evaluation

_LOG = logging.getLogger(__name__)


class TrainingError(UserError, RuntimeError):
    """Training cannot go on; the message says why and what to do."""


class _Pending(NamedTuple):
    """An update whose metrics are still on the device."""

    step: int
    metrics: dict[str, jax.Array]
    ids: list[str]
    seconds: float
    frames: int
    num_bad: int


def train(
    config: Any,
    *,
    workdir: Path,
    train_data: SpeechData | TranscribedData,
    eval_data: SpeechData | TranscribedData | None,
    phone_data: LabelledData | None = None,
    initial: Mapping[str, Any] | None = None,
) -> int:
    """Trains to `config.num_steps`, going on from the last checkpoint in `workdir`.

    SIGTERM and SIGINT save a checkpoint after the update in progress and end the run. Of several
    processes, all call this with the same arguments and a workdir that all of them see.

    Args:
      config: Parsed configuration.
      workdir: Folder of the run; made if missing.
      train_data: Batches to learn from.
      eval_data: Held-out batches, or None: nothing is evaluated.
      phone_data: Held-out utterances whose phones are known, or None.
      initial: Parts of the parameters by name, for a new run to start with; None for random ones.

    Returns:
      The number of finished updates.

    Raises:
      CheckpointError: The checkpoints belong to another run, or cannot be written.
      TrainingError: The workdir cannot be used, the loss is not finite, or the codes collapsed and
        `config.guard.action` is 'stop'.
      ValueError: The devices do not fit `config.mesh`, or cannot run `model.attention`.
    """
    claimed = _claim(workdir) if processes.is_first() else contextlib.nullcontext()
    with claimed, processes.StopSignals() as stop, processes.ending_together():
        mesh = sharding.make_mesh(config)
        check_attention(config, mesh.devices.flat[0])
        optimizer = make_optimizer(config)
        abstract, make = sharding.make_state(mesh, lambda: init_state(config, optimizer=optimizer))
        keep = {"keep": config.keep_checkpoints, "keep_every": config.keep_every_steps}
        checkpoints, run = Checkpoints(workdir / "checkpoints", **keep), None
        try:
            restored = _restore(checkpoints, abstract, config, train_data.fingerprint)
            state = restored.state if restored else _start(config, abstract, make, initial)
            if processes.is_first():
                files.replace_text(workdir / "config.json", to_text(config) + "\n")
                record_environment(workdir / "environment.jsonl", step=int(state.step))
            data = (train_data, eval_data, phone_data)
            run = _Run(config, workdir, mesh, abstract, checkpoints, *data)
            if restored and run.guard:
                run.guard.resume(restored.data.get("guard"))
            return run.run(state, stop)
        finally:
            checkpoints.close()
            if run is not None and run.best is not None:
                run.best.close()


class _Run:
    """The loop, and what it keeps between updates."""

    def __init__(
        self,
        config: Any,
        workdir: Path,
        mesh: Mesh,
        abstract: Any,
        checkpoints: Checkpoints,
        train_data: SpeechData | TranscribedData,
        eval_data: SpeechData | TranscribedData | None,
        phone_data: LabelledData | None,
    ):
        self.config, self.workdir, self.mesh = config, workdir, mesh
        self.checkpoints, self.train_data = checkpoints, train_data
        make_step = make_finetuning_step if config.task == "ctc" else make_train_step
        self.train_step = sharding.jit_train_step(mesh, make_step(config), abstract)
        self.first_codewords: Callable | None = None
        if config.codebook.init == "frames" and abstract.codebook is not None:
            first = make_first_codewords(config)
            self.first_codewords = sharding.jit_train_step(mesh, first, abstract)
        self.programs = Programs(self._notify)
        self.evaluation: Evaluation | WordErrors | None = None
        self.best: Best | None = None  # of a recogniser
        where = (config, mesh, abstract, self.programs)
        if eval_data is not None and config.task == "ctc":
            self.evaluation = WordErrors(*where, eval_data=eval_data)
            self.best = Best(workdir / "best", fields=self.evaluation.best)
        elif eval_data is not None:
            self.evaluation = Evaluation(*where, eval_data=eval_data, phone_data=phone_data)
        self.guard = Guard(config) if config.task == "pretrain" else None
        self.collapse = ""  # the guard's warning, where it stops the run
        self.pending: _Pending | None = None

    def run(self, state: TrainState, stop: processes.StopSignals) -> int:
        """Runs the updates that are left; returns the number of finished ones."""
        c = self.config
        step = start = int(state.step)
        if step >= c.num_steps:
            _LOG.info("nothing to do: %d of %d updates are done", step, c.num_steps)
            return step
        self.log = RunLog(self.workdir, start_step=step) if processes.is_first() else None
        about = {"unit": "update", "disable": self.log is None}
        self.bar = progress_bar(total=c.num_steps, initial=step, **about)
        self.seconds, self.num_bad, self.since = 0.0, 0, time.monotonic()
        share = sharding.local_share(self.mesh)
        batches = self.train_data.batches(step, c.num_steps - step, share=share)
        try:
            for speech, batch in sharding.to_devices(self.mesh, batches, lambda b: b.arrays):
                if step == 0 and self.first_codewords is not None:
                    name, function = "first codewords", self.first_codewords
                    state, _ = self.programs.get(name, function, state, batch)(state, batch)
                update = self.programs.get("update", self.train_step, state, batch)
                state, metrics = update(state, batch)
                self._settle()  # the step before, while this one runs
                size, samples = batch.waveforms.shape
                frames = size * num_frames(samples, c.model.conv_layers)
                seconds = self.train_data.samples(step) / 16_000
                step += 1
                about = (speech.ids, seconds, frames, speech.num_bad)
                self.pending = _Pending(step, metrics, *about)
                last = step == c.num_steps or stop.is_set(step) or bool(self.collapse)
                evaluate = self._evaluates_at(step)
                save = last or step % c.checkpoint_steps == 0
                if evaluate or save:
                    self._settle(evaluate=state if evaluate else None)
                if save:
                    self._wait_for(self.best)
                    self.checkpoints.save(step, state, **self._about(step))
                if last or (save and self.collapse):
                    break
            self.checkpoints.wait()
            if self.best is not None:
                self.best.wait()
        finally:
            getattr(batches, "close", lambda: None)()
            self.bar.close()
            if self.log is not None:
                self.log.draw()
                self.log.close()
        if self.collapse:
            raise TrainingError(
                f"{self.collapse}\nStopped after update {step}, whose checkpoint is saved. To go "
                "on from there all the same: --config.guard.action=warn"
            )
        done = "finished" if step == c.num_steps else "stopped by a signal"
        _LOG.info("%s at update %d (from %d); checkpoint saved", done, step, start)
        return step

    def _evaluates_at(self, step: int) -> bool:
        c = self.config
        first = c.ctc.eval_after_steps if c.task == "ctc" else 0
        return step == c.num_steps or (step % c.eval_steps == 0 and step >= first)

    def _notify(self, text: str) -> None:
        if processes.is_first():
            self.bar.write(text, file=sys.stderr)  # where the bar is

    def _settle(self, *, evaluate: TrainState | None = None) -> None:
        """Fetches the metrics of the pending update, and checks and records them.

        Args:
          evaluate: The state after it, to be evaluated once the metrics are finite, or None.
        """
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        record = {"step": pending.step} | to_record(pending.metrics)
        self._check_finite(record, pending)
        self._check_collapse(record, pending)
        self.seconds += pending.seconds
        self.num_bad += pending.num_bad
        self.bar.update()
        self.bar.set_postfix(loss=f"{record['loss']:.3f}", refresh=False)
        if evaluate is None and pending.step % self.config.log_steps:
            return
        held_out = {} if evaluate is None else self._evaluate(evaluate)
        num_bad = processes.total(self.num_bad)
        now = time.monotonic()
        record["audio_seconds_per_second"] = self.seconds / max(now - self.since, 1e-9)
        record["audio_seconds"] = pending.seconds
        record["epoch"] = pending.step / self.train_data.batches_per_epoch
        record["num_bad_utterances"] = num_bad  # since the last record
        if shares := getattr(self.train_data, "shares", None):
            since = range(max(pending.step - self.config.log_steps, 0), pending.step)
            record |= {f"share/{name}": share for name, share in shares(since).items()}
        self.bar.set_postfix(
            loss=f"{record['loss']:.3f}", audio=f"{record['audio_seconds_per_second']:.1f} s/s"
        )
        self.seconds, self.num_bad, self.since = 0.0, 0, now
        if self.log is not None:
            self.log.write(record | held_out)

    def _check_finite(self, record: dict[str, float], pending: _Pending) -> None:
        names = ("loss", "gradient_norm", "update_norm", "parameter_norm")
        names = [name for name in (*names, "teacher_std", "feature_encoder_std") if name in record]
        if all(math.isfinite(record[name]) for name in names):
            return
        self.checkpoints.wait()
        complete = self.checkpoints.steps()
        kept = f"the checkpoint of update {complete[-1]} is safe" if complete else "none was saved"
        values = ", ".join(f"{name} {record[name]:g}" for name in names)
        ids = ", ".join(filter(None, processes.together(pending.ids)))
        raise TrainingError(
            f"update {pending.step} is not finite: {values}; {kept}.\nIts batch: "
            f"{ids}\nUsual causes: a learning rate that is too high for this batch size "
            "(config.optimizer.learning_rate, warmup_steps), or no gradient clipping "
            "(config.optimizer.clip_norm). Running the same command repeats it exactly."
        )

    def _check_collapse(self, record: dict[str, float], pending: _Pending) -> None:
        if self.guard is None:
            return
        text = self.guard.check(record, frames=pending.frames * record["masked_share"])
        if text and self.config.guard.action == "stop":
            self.collapse = self.collapse or text
        elif text:
            self._notify(text)

    def _evaluate(self, state: TrainState) -> dict[str, float]:
        """Metrics on held-out speech; names start with eval_."""
        if self.evaluation is None:
            return {}
        jax.block_until_ready(state)
        start = time.monotonic()
        metrics = self.evaluation.measure(state)
        self._notify(self.evaluation.summary(int(state.step), metrics))
        if self.best is not None:
            self._wait_for(self.checkpoints)
            if self.best.offer(int(state.step), state, metrics, self._about):
                self._notify(f"the best so far; kept in {self.best.directory}")
        if self.log is not None and int(state.step) < self.config.num_steps:  # else `run` draws
            self.log.draw()
        self.since += time.monotonic() - start  # not counted in the speed of training
        return metrics

    def _wait_for(self, other: Checkpoints | Best | None) -> None:
        """Several processes save one checkpoint at a time: orbax's barriers go by name."""
        if other is not None and jax.process_count() > 1:
            other.wait()

    def _about(self, step: int) -> dict[str, Any]:
        """What a checkpoint has beside the state."""
        data = {"fingerprint": self.train_data.fingerprint, "next_step": step}
        if self.guard is not None:
            data["guard"] = self.guard.history()
        return {"config": self.config.to_dict(), "data": data}


def _claim(workdir: Path) -> Any:
    """Makes the workdir and locks it, so that two runs never write into one."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = files.open_lock(workdir / ".lock")
    except OSError as error:
        raise TrainingError(
            f"--workdir {workdir} cannot be written ({error.strerror}); choose another folder"
        ) from error
    try:
        files.lock(lock.fileno(), name=workdir)
    except BlockingIOError as error:
        lock.close()
        raise TrainingError(
            f"--workdir {workdir} is in use by another run; wait for it, or choose another folder"
        ) from error
    return lock


def _start(
    config: Any, abstract: Any, make: Callable[[], Any], initial: Mapping[str, Any] | None
) -> TrainState:
    """The state of a new run."""
    state = make()
    if initial is None:
        if config.init:
            raise TrainingError(f"config.init={config.init}: its parameters were not given")
        return state
    replaced = {name: abstract.params[name] for name in initial}
    return state.replace(params={**state.params, **sharding.place_like(dict(initial), replaced)})


def _restore(
    checkpoints: Checkpoints, abstract: Any, config: Any, fingerprint: str
) -> Restored | None:
    """The last whole checkpoint, or None where the run is new."""

    def check(old: dict[str, Any], old_data: dict[str, Any]) -> None:
        data = {"old_data": old_data, "new_data": {"fingerprint": fingerprint}}
        where = checkpoints.directory
        changed = check_same_run(complete(old), config.to_dict(), **data, where=where)
        for name, (before, after) in changed.items():
            _LOG.warning("config.%s changes from %r to %r", name, before, after)

    restored = checkpoints.restore_latest(abstract, check=check)
    if restored is not None:
        _LOG.info("going on from update %d in %s", restored.step, checkpoints.directory)
    return restored
