"""Fine-tuning with CTC: its update, and its errors on held-out speech."""
