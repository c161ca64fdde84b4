"""SpidR, the successor of DinoSR, on LibriSpeech 960 h (Poli et al., 2025, arXiv:2512.20308).

The head of a layer reads that layer of the student and predicts the codes of the same layer of the
teacher, which comes to a stop exponentially; no layer is dropped. The paper trains 400,000 updates
in a day on 16 A100: a batch is 63 minutes of audio. Published for it (LibriSpeech dev, units of
layer 6): PNMI 0.602, ABX and loss curves in its repository.
What is not as published there: attention starts from normal noise here, as in DinoSR, and from
Xavier's uniform noise there.
Commands: as those of configs/base.py, with --config=configs/spidr.py
"""

from dinosr_jax.recipes import published_recipe


def get_config():
    """The published recipe of DinoSR, with what SpidR has otherwise."""
    config = published_recipe()
    config.objective = "spidr"
    config.workdir = "runs/spidr"
    config.compute_dtype = "bfloat16"
    config.model.layerdrop = 0.0
    config.model.qkv_bias = False
    config.teacher.init = "reinit"
    config.teacher.schedule = "exponential"
    config.teacher.freeze_feature_encoder_step = 200_001
    config.optimizer.b2 = 0.95
    config.optimizer.clip_norm = 10.0
    return config
