"""The same DinoSR update in PyTorch, on the encoder of `transformers`, to time JAX against.

Shapes: B batch, S samples, T frames, D model, N codebooks, V codewords.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Data2VecAudioConfig, Data2VecAudioModel

from benchmarks.turns import process_memory


def make_torch_step(
    config: Any,
    waveforms: np.ndarray,
    mask: np.ndarray,
    *,
    device: str = "cpu",
    compiled: bool = False,
) -> Callable[[], float]:
    """One update of a random network of the configured shape, always on the same batch.

    Attention is PyTorch's `scaled_dot_product_attention`. With a compute_dtype of bfloat16 the
    networks run under autocast; parameters, targets, codebooks and loss stay float32.

    Args:
      config: Parsed configuration.
      waveforms: [B, S] float32.
      mask: [B, T] bool. (JAX draws its masks in the step; this side gets them for nothing.)
      device: 'cpu' or 'cuda'.
      compiled: Whether layers and front end run through torch.compile.

    Returns:
      Function of no arguments that updates student, teacher and codebooks and returns the loss.
    """
    torch.manual_seed(config.seed)
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as jax has it
    m, n = config.model, config.model.num_codebooks
    student = Data2VecAudioModel(model_config(m)).to(device).train()
    student.feature_extractor._requires_grad = False  # no gradient of the audio itself
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    heads = nn.Linear(m.width, n * m.codebook_size, device=device)
    noise = torch.randn(n, m.codebook_size, m.width, device=device)
    sums = (noise - noise.mean(1, keepdim=True)) / noise.std(1, keepdim=True)
    counts = torch.ones(n, m.codebook_size, device=device)
    c = config.optimizer
    optimizer = torch.optim.AdamW(
        [*student.parameters(), *heads.parameters()],
        lr=c.init_scale * c.learning_rate,
        betas=(c.b1, c.b2),
        eps=c.eps,
        weight_decay=c.weight_decay,
        fused=True,  # the fastest
    )
    averaged = _averaged_parameters(student, teacher, config.teacher.scope)
    for layer in teacher.encoder.layers:
        layer.feed_forward.register_forward_hook(_keep)
    if compiled:
        compile_parts(student, device=device)
        compile_parts(teacher, device=device)
    audio, full = torch.tensor(waveforms, device=device), config.teacher.scope == "full"
    masked = torch.tensor(mask, device=device)
    where = masked.flatten().nonzero()[:, 0]  # [M]
    half = lambda: torch.autocast(device, torch.bfloat16, config.compute_dtype == "bfloat16")

    def step() -> float:
        with half():
            projected = _project(student, audio)
        with torch.no_grad():
            with half():
                teacher.encoder(_project(teacher, audio) if full else projected.detach())
            ffn = [layer.feed_forward.kept for layer in teacher.encoder.layers[-n:]]
            targets = torch.stack(ffn).float()  # [N, B, T, D]
            variance, mean = torch.var_mean(targets, dim=2, correction=0, keepdim=True)
            targets = (targets - mean) * torch.rsqrt(variance + 1e-5)
            targets = targets.flatten(1, 2)[:, where]  # [N, M, D]
            words = sums / counts[..., None]
            codes = torch.argmin(torch.cdist(targets, words), dim=-1)  # [N, M]
        with half():
            inputs = torch.where(masked[..., None], student.masked_spec_embed, projected)
            hidden = student.encoder(inputs).last_hidden_state.flatten(0, 1)[where]  # [M, D]
            logits = heads(hidden).unflatten(-1, (n, -1)).transpose(0, 1)  # [N, M, V]
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), codes.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for copied, (old, new) in averaged.items():
                weight = 1.0 if copied else 1 - config.teacher.decay
                torch._foreach_lerp_(old, new, weight)
            chosen = nn.functional.one_hot(codes, m.codebook_size).to(targets.dtype)
            number = chosen.sum(1)  # [N, V]
            new_sums = chosen.transpose(1, 2) @ targets
            used, decay = number > 0, config.codebook.decay
            sums.copy_(torch.where(used[..., None], decay * sums + (1 - decay) * new_sums, sums))
            counts.copy_(torch.where(used, decay * counts + (1 - decay) * number, counts))
        return loss.item()

    return step


def compile_parts(model: Data2VecAudioModel, *, device: str) -> None:
    """torch.compile of the front end and of each layer; on a CPU its graphs run eagerly.

    LayerDrop decides between the layers, where a graph would break: one compiled layer serves all.
    """
    backend = "inductor" if device == "cuda" else "aot_eager"
    parts = [model.feature_extractor, model.feature_projection, model.encoder.pos_conv_embed]
    for part in (*parts, *model.encoder.layers):
        part.compile(backend=backend)


def peak_memory(device: str) -> float:
    """GiB of the device, or of this process where that is the CPU; at most so far."""
    return torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else process_memory()


def rest(device: str) -> None:
    """Gives memory of a GPU that holds nothing back to it."""
    if device == "cuda":
        torch.cuda.empty_cache()


def model_config(m: Any) -> Data2VecAudioConfig:
    """The configuration of `transformers` for a `config.model`."""
    channels, kernels, strides = zip(*m.conv_layers, strict=True)
    return Data2VecAudioConfig(
        hidden_size=m.width,
        num_hidden_layers=m.num_layers,
        num_attention_heads=m.num_heads,
        intermediate_size=m.ffn_dim,
        conv_dim=channels,
        conv_kernel=kernels,
        conv_stride=strides,
        num_conv_pos_embeddings=m.pos_conv_depth,
        conv_pos_kernel_size=max(3, m.pos_conv_width // m.pos_conv_depth),
        num_conv_pos_embedding_groups=m.pos_conv_groups,
        hidden_dropout=m.dropout,
        attention_dropout=m.attention_dropout,
        activation_dropout=m.activation_dropout,
        feat_proj_dropout=0.0,
        layerdrop=m.layerdrop,
        attn_implementation="sdpa",
    )


def _project(model: Data2VecAudioModel, audio: torch.Tensor) -> torch.Tensor:
    """Waveforms [B, S] to projected features [B, T, D]."""
    return model.feature_projection(model.feature_extractor(audio).transpose(1, 2))[0]


def _keep(module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
    """Forward hook: the module keeps what it gave."""
    module.kept = output


def _averaged_parameters(student: nn.Module, teacher: nn.Module, scope: str) -> dict[bool, tuple]:
    """Whether it is copied -> (teacher's, student's) parameters that the teacher follows."""
    parts = ("encoder",) if scope == "encoder" else ("feature_", "encoder")
    found: dict[bool, tuple[list, list]] = {True: ([], []), False: ([], [])}
    for (name, old), new in zip(teacher.named_parameters(), student.parameters(), strict=True):
        if name.startswith(parts):
            for kept, parameter in zip(found["pos_conv" in name], (old, new), strict=True):
                kept.append(parameter)
    return found
