"""The utterance that is shown: times of codes and phones, and the recording inside."""

import io
import wave

import numpy as np
import pytest
from matplotlib.text import Text

from dinosr_jax.report.figures import utterance as utterance_figure
from dinosr_jax.report.figures.drawing import style
from dinosr_jax.report.figures.utterance import to_wav, utterance_picture
from dinosr_jax.report.run_files import ExampleUtterance


@pytest.fixture
def drawn(monkeypatch):
    found = []
    monkeypatch.setattr(utterance_figure, "to_png", lambda f, dpi: found.append(f) or b"x")
    with style():
        yield found


def make(seconds=2.0, layers=(3, 4)):
    samples, frames = int(16_000 * seconds), (int(16_000 * seconds) - 400) // 320 + 1
    codes = np.repeat(np.arange(frames) // 10, 1)[None] + np.zeros((len(layers), 1), int)
    return ExampleUtterance(
        name="en/activated",
        text="activated",
        waveform=np.sin(np.arange(samples) / 5).astype(np.float32),
        codes=codes,
        layers=np.asarray(layers),
        phone_starts=np.asarray([0.0, 0.5]),
        phone_ends=np.asarray([0.5, seconds]),
        phone_labels=["SIL", "AH"],
    )


def test_the_recording_is_heard_as_it_was():
    waveform = make().waveform * 7
    with wave.open(io.BytesIO(to_wav(waveform))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767
    np.testing.assert_allclose(samples, waveform * 0.9 / np.abs(waveform).max(), atol=2e-5)
    assert len(to_wav(np.zeros(100, np.float32))) == 44 + 200  # silence too


def test_codes_stand_where_their_frames_are(drawn):
    """Frame i of the published network is centred at 12.5 + 20 i ms, and 20 ms wide."""
    picture = utterance_picture(make(), receptive_field=(400, 320))
    wide, narrow = drawn
    assert picture.png and picture.narrow_png
    tracks = wide.axes[2]
    names = [label.get_text() for label in tracks.get_yticklabels()]
    assert names == ["phone", "layer 3", "layer 4"]
    first, second = [bar for bar in tracks.patches if round(bar.get_y() + 0.43) == 1][:2]
    assert first.get_x() == pytest.approx(0.0025)
    assert second.get_x() == pytest.approx(0.2025) and second.get_width() == pytest.approx(0.2)
    silence = [bar for bar in tracks.patches if round(bar.get_y() + 0.43) == 0][0]
    assert (silence.get_x(), silence.get_width()) == (0.0, 0.5)
    assert {"SIL", "AH"} <= {text.get_text() for text in tracks.texts}


def test_lines_cover_the_whole_and_letters_are_large_enough(drawn):
    utterance_picture(make(seconds=3.7), receptive_field=(400, 320))
    wide, narrow = drawn
    spans = [axes.get_xlim() for axes in narrow.axes[2::3]]
    assert len(spans) == 4 and spans[0][0] == 0 and spans[-1][1] == pytest.approx(3.7)
    assert all(a[1] == pytest.approx(b[0]) for a, b in zip(spans, spans[1:], strict=False))
    assert len(wide.axes) == 2 * 3 and narrow.get_size_inches()[0] == 4.5
    for figure in drawn:
        figure.draw_without_rendering()
        texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text()]
        assert min(text.get_fontsize() for text in texts) >= 9


def test_codes_of_like_phones_have_like_colours(drawn):
    ranks = {3: np.asarray([0, 9, *range(1, 9)])}  # code 1 is last
    utterance_picture(make(layers=(3,)), receptive_field=(400, 320), ranks=ranks)
    bars = [b for b in drawn[0].axes[2].patches if round(b.get_y() + 0.43) == 1]
    colours = np.asarray([bar.get_facecolor()[:3] for bar in bars[:3]])
    near, far = np.abs(colours[0] - colours[2]).sum(), np.abs(colours[0] - colours[1]).sum()
    assert near < 0.3 * far


@pytest.mark.parametrize(
    ("seconds", "field"), [(0.06, (400, 320)), (14.0, (400, 320)), (2.0, (41, 8)), (1.0, (1, 1))]
)
def test_any_length_and_any_network(drawn, seconds, field):
    picture = utterance_picture(make(seconds=seconds), receptive_field=field)
    assert ("first 12 s are drawn" in picture.caption) == (seconds > 12)


def test_silence_is_drawn_too(drawn):
    silent = make()._replace(waveform=np.zeros(32_000, np.float32))
    utterance_picture(silent, receptive_field=(400, 320))
    for figure in drawn:
        figure.draw_without_rendering()
