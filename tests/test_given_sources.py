"""Sources in words, and what is never shown of them; raw PCM of any form; loopbacks; losses of a live connection."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import av
import msgspec
import numpy as np
import pytest

from capture.decode import Piece
from capture.loopback import Monitor
from capture.loopback import choose as choose_loopback
from capture.microphone import Device, NoDevice
from capture.network import Losses, bursts
from capture.pcm import SAMPLE_BYTES, converter, unpacker
from common import messages as m
from common import models
from common.child import Want
from common.given_sources import Added, describe, parse, plain_name, shown, with_added
from common.guests import Guests
from common.settings import PCM_FORMATS, Settings, Source, UserError, lane, load
from common.wire import run_dir

pytestmark = pytest.mark.pure
SECRETS = ("s3cret", "//me", "t0ken")


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("http://radio.example/live.mp3", "http://radio.example/live.mp3"),
        ("rtsp://me:s3cret@cam:554/1", "rtsp://cam:554/1"),
        ("RTSP://me:s3cret@cam/1", "RTSP://cam/1"),
        ("rtsp://me:s3c/s3cret@cam:554/1", "rtsp://cam:554/1"),
        ("rtsp://me:s3c?s3cret@cam/1", "rtsp://cam/1"),
        ("rtsp://me:s3c#s3cret@cam/1", "rtsp://cam/1"),
        ("rtsp://me:a@s3cret@cam/1", "rtsp://cam/1"),
        ("http://cam:8080/@me/live", "http://cam:8080/@me/live"),
        ("http://[::1]:8080/live", "http://[::1]:8080/live"),
        ("https://h/a?token=t0ken&user=me:&x", "https://h/a?token=…&user=…&…"),
        ("https://h/a#access=t0ken", "https://h/a"),
        (
            "[Errno 5] no: 'http://me:s3cret@h/a?k=t0ken' and srt://me:s3cret@b",
            "[Errno 5] no: 'http://h/a?k=…' and srt://b",
        ),
    ],
)
def test_no_secret_of_a_url_is_shown(url: str, seen: str) -> None:
    assert shown(url) == seen
    assert shown(seen) == seen
    assert not any(s in seen for s in SECRETS)


def test_words_become_sources(folder: Path) -> None:
    sound = folder / "My Talk (2).WAV"
    sound.touch()

    def fields(text: str) -> dict[str, object]:
        source, plain = parse(text), Source(name="x", kind="x")
        return {f: v for f in Source.__struct_fields__ if (v := getattr(source, f)) != getattr(plain, f)}

    assert fields("mic") == {"name": "mic", "kind": "microphone"}
    assert fields("mic:USB Audio") == {"name": "mic", "kind": "microphone", "device": "USB Audio"}
    assert fields("loopback:hdmi") == {"name": "loopback", "kind": "loopback", "device": "hdmi"}
    assert fields("-") == {"name": "stdin", "kind": "stdin"}
    raw = {"kind": "pcm", "path": str(sound), "rate_hz": 48_000, "channels": 2, "format": "f32le"}
    assert fields(f"pcm:{sound} rate_hz=48000 channels=2 format=f32le") == raw | {"name": "my-talk-2"}
    assert fields(str(sound)) == {"name": "my-talk-2", "kind": "file", "path": str(sound)}
    url = "rtsp://me:s3cret@cam.local:554/1?x=y"
    assert fields(url) == {"name": "cam.local", "kind": "file", "path": url}
    assert fields(f"{url} name=hall pace=1") == {"name": "hall", "kind": "file", "path": url, "pace": "1"}
    in_url = f"file://{folder}/My%20Talk%20(2).WAV"
    assert fields(in_url) == fields(f"file://localhost{in_url.removeprefix('file://')}") == fields(str(sound))
    assert parse("mic", {"mic", "mic-2"}).name == "mic-3"
    assert lane(parse(f"pcm:{sound} pace=max")) == "batch"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nothing.wav", "no such file; a source is a file, a URL, mic"),
        ("/", "is a folder"),
        ("file:///no/my%20talk.wav", "no such file"),
        ("mic name=Big", "must be 1 to 32 of"),
        ("mic name=taken", "another source is called 'taken'"),
        ("- rate_hz=fast", "rate_hz: Expected `int`"),
        ("- channels=99", "channels 1 to 32"),
        ("- format=mp3", "is none of s16le"),
        ("http://me:s3cret@h/a?t=t0ken pace=never", "pace 'never' is not realtime"),
        ("http://me:s3cret@h/a rate_hz=x", "--source http://h/a rate_hz=x"),
    ],
)
def test_words_that_are_no_source_are_one_line(text: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        parse(text, {"taken"})
    line = str(error.value)
    assert says in line and "\n" not in line
    assert not any(s in line for s in SECRETS)


def test_names_are_plain() -> None:
    assert [plain_name(t) for t in ("A b/c", "--x--", "", "日本", "q" * 40)] == [
        "a-b-c",
        "x",
        "source",
        "source",
        "q" * 32,
    ]


def test_added_sources_are_kept_in_private_files(settings: Settings) -> None:
    run = settings.data / "run"
    run.mkdir(parents=True)
    added, cam = Added(run), parse("rtsp://me:s3cret@cam/1")
    added.put(cam)
    added.put(parse("mic"))
    assert [s.name for s in added.all()] == ["cam", "mic"] and added.get("cam") == cam
    assert {p.stat().st_mode & 0o777 for p in added.folder.iterdir()} == {0o600}
    assert [s.name for s in with_added(settings).source] == ["cam", "mic"]
    (added.folder / "cam.json").write_text("{")
    assert [s.name for s in added.all()] == ["mic"], "a torn file is no source"
    added.drop("mic")
    added.clear()
    assert added.all() == () and with_added(settings) == settings
    assert describe(cam) == "cam (file rtsp://cam/1)"


@pytest.mark.parametrize(
    ("model", "language", "taken"),
    [
        ("tiny.en", "", True),
        ("tiny.en", "auto", True),
        ("tiny.en", "pt", False),
        ("base", "pt", True),
        ("base", "xx", False),
    ],
)
def test_a_language_that_the_model_does_not_know_is_refused_with_what_to_do(
    settings: Settings, model: str, language: str, taken: bool
) -> None:
    source = Source(name="hall", kind="microphone", language=language)
    guests = Guests(run_dir(settings), lambda s: Want(name=f"capture@{s.name}", source=s.name), model=model)
    answer = guests.capture([], lambda want: SimpleNamespace(want=want), msgspec.json.encode(source).decode())  # type: ignore[arg-type,return-value]
    assert isinstance(answer, m.Done) == taken
    chosen = msgspec.structs.replace(settings.transcriber, model=model)
    both = msgspec.structs.replace(settings, transcriber=chosen, source=(source,))
    if taken:
        models.check_sources(both)
        return
    assert isinstance(answer, m.Refused) and answer.reason.startswith(f"source hall: model {model} does not know")
    with pytest.raises(UserError) as refused:
        models.check_sources(both)
    assert str(refused.value) == answer.reason and "\n" not in answer.reason
    assert ("swapscribe models fetch base, then set transcriber.model=base" in answer.reason) == (language == "pt")


def test_several_sources_stand_in_the_settings() -> None:
    rows = '[{"name": "a", "kind": "loopback"}, {"name": "b", "kind": "pcm", "path": "/x", "format": "mulaw"}]'
    assert [s.kind for s in load(None, (), {"SWAPSCRIBE_SOURCE": rows}).source] == ["loopback", "pcm"]
    with pytest.raises(UserError, match=r"source\[0\].format: 'x' is none of s16le"):
        load(None, (), {"SWAPSCRIBE_SOURCE": '[{"name": "a", "kind": "stdin", "format": "x"}]'})


@pytest.mark.parametrize("form", PCM_FORMATS)
def test_raw_samples_mean_what_ffmpeg_says(form: str, folder: Path) -> None:
    rng, path = np.random.default_rng(3), folder / "raw"
    data = rng.uniform(-1.2, 1.2, 4000).astype("<f4").tobytes() if form == "f32le" else rng.bytes(12_000)
    path.write_bytes(data)
    ours = converter(16_000, 2, form)(data, False)
    with av.open(str(path), format=form, options={"sample_rate": "16000", "ch_layout": "stereo"}) as container:
        arrays = [f.to_ndarray().reshape(-1, 2) for f in container.decode(audio=0)]
    sound = np.concatenate(arrays)
    full, zero = (1.0, 0) if sound.dtype.kind == "f" else (2.0 ** (8 * sound.itemsize - 1), 128 * (sound.itemsize == 1))
    mono = ((sound.astype(np.float64) - zero) / full).astype(np.float32).mean(axis=1, dtype=np.float32)
    assert ours == np.clip(np.rint(mono * 32768), -32768, 32767).astype("<i2").tobytes()
    assert len(ours) == 2 * (len(data) // SAMPLE_BYTES[form] // 2)


def test_what_is_no_number_is_silence() -> None:
    odd = np.array([np.nan, np.inf, -np.inf, 0.5], "<f4").tobytes()
    assert unpacker("f32le")(odd).tolist() == [0.0, 1.0, -1.0, 0.5]


def device(number: int, name: str) -> Device:
    return Device(number, name, 2, 48_000, number == 0)


def test_a_loopback_is_chosen_by_name_or_number() -> None:
    mic, own, aloop, pulse = (
        device(0, "HDA"),
        device(1, "Monitor of HDA"),
        device(2, "Loopback: PCM"),
        device(3, "pulse"),
    )
    server = [Monitor("alsa.hdmi.monitor", False), Monitor("alsa.analog.monitor", True)]
    assert choose_loopback([mic, own, aloop], [], "") == (own, "")
    assert choose_loopback([mic, own, aloop], [], "loopback: pcm") == (aloop, "")
    assert choose_loopback([mic, own, aloop], server, "2") == (aloop, "")
    assert choose_loopback([mic, pulse], server, "") == (
        pulse._replace(name="alsa.analog.monitor"),
        "alsa.analog.monitor",
    )
    assert choose_loopback([mic, pulse], server, "HDMI")[1] == "alsa.hdmi.monitor"
    with pytest.raises(NoDevice, match=r"'usb' among Monitor of HDA, alsa\.hdmi\.monitor"):
        choose_loopback([mic, own, pulse], server, "usb")
    with pytest.raises(NoDevice, match=r"no loopback device$"):
        choose_loopback([mic], [], "")
    with pytest.raises(UserError, match="libasound2-plugins"):
        choose_loopback([mic], server, "")


def test_monitors_are_what_a_standin_pactl_lists(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from capture.loopback import monitors

    script = folder / "pactl"
    script.write_text(
        "#!/bin/sh\n# stand-in: what PulseAudio's and PipeWire's pactl print\n"
        'case "$1" in get-default-sink) echo out.analog;; list) '
        "printf '0\\tout.hdmi.monitor\\tm\\ts16le 2ch\\tIDLE\\n1\\tin.mic\\tm\\tx\\n';"
        "printf '2\\tout.analog.monitor\\tm\\tx\\n';; esac\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    assert monitors() == [Monitor("out.hdmi.monitor", False), Monitor("out.analog.monitor", True)]
    script.write_text("#!/bin/sh\necho 'Connection refused' >&2; exit 1\n")
    assert monitors() == []
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: (_ for _ in ()).throw(FileNotFoundError()))
    assert monitors() == []


def heard(pieces: list[tuple[float | None, float]], sound_s: float = 0.1) -> list[float]:
    """Losses told for pieces of (time stamp, arrival)."""
    losses = Losses()
    return [round(x, 2) for at_s, now_s in pieces if (x := losses.before(at_s, sound_s, now_s))]


def test_a_loss_is_what_time_stamps_and_the_clock_both_say() -> None:
    steady = [(i / 10, 50 + i / 10) for i in range(20)]
    later = [(at + 3, now + 3) for at, now in steady]
    assert heard(steady) == []
    assert heard(steady + [(a + 2, n + 2) for a, n in later]) == [3.0]
    assert heard(steady + [(a + 400, n - 1) for a, n in later]) == [], "stamps jump, nothing is missing by the clock"
    assert heard(steady + [(a - 1, n + 7) for a, n in later]) == [], "late, and then whole"
    assert heard(steady + [(a - 3, n) for a, n in later]) == [], "stamps begin anew"
    assert heard([(None, n) for _, n in steady + later]) == [], "no stamps: the clock alone cannot tell late from lost"
    burst = [(i / 10, 50.0) for i in range(50)]
    assert heard(burst + [(a + 5, n + 0.1) for a, n in steady] + [(a + 6, n + 1.1) for a, n in later]) == [2.0]
    jitter = [(i / 10, 50 + i / 10 + (i * 7 % 10) / 20) for i in range(200)]
    assert heard(jitter) == []


def test_many_small_losses_are_all_counted() -> None:
    pieces = [(i * 0.14, 50 + i * 0.14) for i in range(100)]  # of each 140 ms the last 40 are lost
    assert abs(sum(heard(pieces)) - 99 * 0.04) < 0.15


def test_what_comes_at_once_is_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pieces of a burst, and the first one that had to be waited for, lie right before now."""
    import time

    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def connection(sound_s: float, *took_s: float) -> Iterator[Piece]:
        for i, one_s in enumerate(took_s):
            now[0] += one_s
            yield Piece(bytes([i]), i * sound_s, sound_s)

    pieces = list(bursts(connection(0.1, *[0.001] * 4, *[0.1] * 4)))
    assert [p.pcm for p in pieces] == [bytes(range(5)), b"\5", b"\6", b"\7"]
    assert (pieces[0].at_s, round(pieces[0].sound_s, 3)) == (0.0, 0.5)
    late = [1.0, *[0.001] * 3, 0.03, *[0.001] * 3, 0.03, *[0.001] * 3]  # another process had the core meanwhile
    small = list(bursts(connection(0.02, *late, *[0.021] * 9)))
    assert [len(p.pcm) for p in small] == [12 + 4, 1, 1, 1, 1, 1]
    chunks = list(bursts(connection(0.02, *[0.001] * 4, *[0.2, *[0.001] * 9] * 2)))  # a server that sends 0.2 s at once
    assert len(chunks[0].pcm) == 5
    assert list(bursts([])) == []
