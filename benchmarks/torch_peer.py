"""The same DinoSR update in eager PyTorch, on the encoder of `transformers`, to time JAX against.

Shapes: B batch, S samples, T frames, D model, N codebooks, V codewords.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Data2VecAudioConfig, Data2VecAudioModel


def make_torch_step(config: Any, waveforms: np.ndarray, mask: np.ndarray) -> Callable[[], float]:
    """One update of a random network of the configured shape, always on the same batch.

    Args:
      config: Parsed configuration.
      waveforms: [B, S] float32.
      mask: [B, T] bool. (JAX draws its masks in the step; this side gets them for nothing.)

    Returns:
      Function of no arguments that updates student, teacher and codebooks and returns the loss.
    """
    torch.manual_seed(config.seed)
    m, n = config.model, config.model.num_codebooks
    student = Data2VecAudioModel(model_config(m)).train()
    student.feature_extractor._requires_grad = False  # no gradient of the audio itself
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    heads = nn.Linear(m.width, n * m.codebook_size)
    noise = torch.randn(n, m.codebook_size, m.width)
    sums = (noise - noise.mean(1, keepdim=True)) / noise.std(1, keepdim=True)
    counts = torch.ones(n, m.codebook_size)
    c = config.optimizer
    optimizer = torch.optim.AdamW(
        [*student.parameters(), *heads.parameters()],
        lr=c.init_scale * c.learning_rate,
        betas=(c.b1, c.b2),
        eps=c.eps,
        weight_decay=c.weight_decay,
        fused=True,  # the fastest on CPU
    )
    averaged = _averaged_parameters(student, teacher, config.teacher.scope)
    ffn: list[torch.Tensor] = []  # [B, T, D] of each layer of the teacher
    for layer in teacher.encoder.layers:
        layer.feed_forward.register_forward_hook(
            lambda _module, _inputs, output: ffn.append(output)
        )
    audio, masked = torch.tensor(waveforms), torch.tensor(mask)

    def step() -> float:
        projected = _project(student, audio)
        with torch.no_grad():
            ffn.clear()
            full = config.teacher.scope == "full"
            teacher.encoder(_project(teacher, audio) if full else projected.detach())
            targets = torch.stack(ffn[-n:])  # [N, B, T, D]
            variance, mean = torch.var_mean(targets, dim=2, correction=0, keepdim=True)
            targets = (targets - mean) * torch.rsqrt(variance + 1e-5)
            targets = targets[:, masked]  # [N, M, D]
            words = sums / counts[..., None]
            codes = torch.argmin(torch.cdist(targets, words), dim=-1)  # [N, M]
        inputs = torch.where(masked[..., None], student.masked_spec_embed, projected)
        hidden = student.encoder(inputs).last_hidden_state[masked]  # [M, D]
        logits = heads(hidden).unflatten(-1, (n, -1)).transpose(0, 1)  # [N, M, V]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), codes.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for old, new, copied in averaged:
                _ = old.copy_(new) if copied else old.lerp_(new, 1 - config.teacher.decay)
            chosen = nn.functional.one_hot(codes, m.codebook_size).to(targets.dtype)
            number = chosen.sum(1)  # [N, V]
            new_sums = chosen.transpose(1, 2) @ targets
            used, decay = number > 0, config.codebook.decay
            sums.copy_(torch.where(used[..., None], decay * sums + (1 - decay) * new_sums, sums))
            counts.copy_(torch.where(used, decay * counts + (1 - decay) * number, counts))
        return loss.item()

    return step


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
    )


def _project(model: Data2VecAudioModel, audio: torch.Tensor) -> torch.Tensor:
    """Waveforms [B, S] to projected features [B, T, D]."""
    return model.feature_projection(model.feature_extractor(audio).transpose(1, 2))[0]


def _averaged_parameters(student: nn.Module, teacher: nn.Module, scope: str) -> list[tuple]:
    """(teacher's, student's, whether it is copied) of every parameter that the teacher follows."""
    parts = ("encoder",) if scope == "encoder" else ("feature_", "encoder")
    pairs = zip(teacher.named_parameters(), student.parameters(), strict=True)
    found = ((name, old, new) for (name, old), new in pairs if name.startswith(parts))
    return [(old, new, "pos_conv" in name) for name, old, new in found]
