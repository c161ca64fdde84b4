"""Parity with the golden numbers of the PyTorch peer, through fairseq's parameter names."""

import pytest

from tests import golden_peer

GOLDEN = golden_peer.GOLDEN  # of other tests, too


def check(comparisons):
    found = list(comparisons)
    for comparison in found:
        comparison.check()
    return found


def test_features_of_every_layer():
    assert (
        len(check(golden_peer.features())) == 2 + 3 * golden_peer.golden_config().model.num_layers
    )


def test_padded_features_do_not_see_the_padding():
    assert golden_peer.golden("tiny_padded")["padding_mask"].any()
    check(golden_peer.features("tiny_padded"))


def test_targets_codes_and_loss():
    assert len(check(golden_peer.targets_codes_and_loss())) == 4


@pytest.mark.parametrize("scan_layers", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_three_updates(scan_layers):
    found = check(golden_peer.three_updates(scan_layers=scan_layers))
    assert len(found) > 3 * 3 + 3 + 40
    print("worst", max(comparison.difference for comparison in found[12:]))


def test_gradients_of_the_first_update():
    assert len(check(golden_peer.gradients())) == 3
