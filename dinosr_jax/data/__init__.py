"""What comes in: folders of audio become random-access records, then batches of waveforms.

The only room of the package that imports tensorflow, and only in `manifest`,
`batches.pipeline` and, of `prepare`, in `audio_folder`, `librispeech` and `librispeech_builder`.
"""

import os

# Read by tensorflow when it is first imported: what it logs is nothing that a user could act on.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
