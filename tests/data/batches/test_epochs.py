import pytest

from dinosr_jax.data.batches.epochs import Epochs


def test_epochs_are_drawn_once_while_in_use():
    drawn = []
    epochs = Epochs(lambda number: drawn.append(number) or f"epoch {number}", num_batches=3)
    assert [epochs.at(step) for step in (0, 2, 3, 1)] == [
        ("epoch 0", 0), ("epoch 0", 2), ("epoch 1", 0), ("epoch 0", 1),
    ]  # fmt: skip
    assert drawn == [0, 1]
    epochs.at(30)
    assert epochs.at(0) == ("epoch 0", 0) and drawn == [0, 1, 10, 0]
    with pytest.raises(ValueError, match="step is -1"):
        epochs.at(-1)
