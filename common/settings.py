"""Settings: defaults < profile < TOML file < environment < command line.

In the environment a key is SWAPSCRIBE_SECTION__KEY, on the command line --set section.key=value. An unknown or
ill-typed key is one line that names its path. Units are in the names. Nothing is read at import.
"""

from __future__ import annotations

import os
import re
import tomllib
from math import isfinite
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec

from common import profiles

ENV_PREFIX = "SWAPSCRIBE_"
NO_FEED = "the feed does not answer; see: swapscribe status"


class UserError(Exception):
    """A person's mistake or missing thing: printed as one line that says what to do, exit status 2."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of settings sections."""


class Source(Section, frozen=True, kw_only=True):
    """One source of audio; its row in the table is `capture@NAME`."""

    name: str
    kind: str  # file | stdin | pcm | microphone | loopback
    path: str = ""  # file: path or URL; pcm: a file or FIFO of raw PCM
    pace: str = "realtime"  # file, and pcm in a file: realtime | max | a factor such as "4"
    rate_hz: int = 16_000  # stdin, pcm: samples a second
    channels: int = 1  # stdin, pcm
    format: str = "s16le"  # stdin, pcm: s16le s16be s24le s32le f32le u8 mulaw alaw
    device: str = ""  # microphone, loopback: number or part of the name; empty: the default one
    language: str = ""  # auto, or a code such as "pt"; empty: as transcriber.language
    glossary: tuple[str, ...] = ()  # names and terms to expect here, beside those of transcriber.glossary


class LauncherSettings(Section, frozen=True, kw_only=True):
    """Who keeps everything running."""

    spare: bool = True  # a process that has imported torch waits to take a dead model worker's place: some 150 MiB


class CaptureSettings(Section, frozen=True, kw_only=True):
    """Backlog writing."""

    sync_interval_ms: int = 250
    file_s: int = 60  # seconds of audio a backlog file holds
    ram_s: int = 60  # audio kept in RAM while the disk does not take it (at least 30)
    resume_within_s: int = 600  # a crashed live stream is continued within this time


class RetentionSettings(Section, frozen=True, kw_only=True):
    """When data is really deleted; 0 means never."""

    read_audio_h: float = 24.0  # audio that every reader has processed
    unread_audio_h: float = 0.0  # audio nobody has processed yet: only a limit you set here deletes it
    events_d: float = 0.0  # journal entries of streams that ended


class TranscriberSettings(Section, frozen=True, kw_only=True):
    """Voice activity, cutting, decoding and suppression."""

    model: str = "tiny.en"
    language: str = "auto"  # auto: found out for each stream and followed; or a code such as "pt"
    language_pause_s: float = 30.0  # after so long a pause somebody may go on in another language
    glossary: tuple[str, ...] = ()  # names and terms to expect, some 20 of them
    threads: int = 1
    vad_threshold: float = 0.5  # speech begins above it and ends below it minus 0.15
    pre_roll_ms: int = 300
    end_silence_ms: int = 500
    post_roll_ms: int = 300  # kept after the last speech frame
    min_speech_ms: int = 96
    max_utterance_s: float = 15.0
    silence_run_s: float = 5.0
    level_gate_dbfs: float = -60.0  # quieter "speech" is suppressed
    no_speech_threshold: float = 0.6
    logprob_threshold: float = -1.0
    compression_ratio_threshold: float = 2.4
    first_prompt: str = "The following is a speech."  # context for an English utterance, before the text before it
    batch_most: int = 16  # finished utterances decoded at once while captions are late; 1: always one by one
    batch_lag_s: float = 3.0  # one more of them for each so many seconds that captions are late
    batch_windows: int = 0  # neighbours share windows of 28 s; so many of these at once. 0: 4 on CUDA, else 1
    window: str = (
        "auto"  # of finals: whole (30 s) | cropped (the speech and 2 s, 30 s in doubt) | auto: as the model bears
    )
    prompt_within_s: float = 30.0  # the previous utterance's text is context if it ended no longer ago
    interim: bool = True  # text of live streams while it is being spoken, before its final
    interim_every_s: float = 0.5  # of new speech between two looks at it


class GpuSettings(Section, frozen=True, kw_only=True):
    """The one card, how much of it may be used, and the policy of who may be on it (docs/swap.md)."""

    device: str = "auto"  # auto: CUDA where there is a card and a CUDA build of torch | cuda | simulated
    index: int = 0  # which CUDA device, counted by bus as nvidia-smi does, among those of CUDA_VISIBLE_DEVICES
    cap_mib: int = 0  # leases have at most this much together; 0: all that the device has, less the margin
    margin_mib: int = 256  # never granted to anybody
    simulated_mib: int = 0  # capacity of the simulated card; 0: room for everything
    simulated_gb_s: float = 0.0  # 10^9 bytes a second over its link; 0: as fast as memory is copied
    simulated_reclaim_s: float = 0.0  # its memory is free this long after its holder was killed
    lag_soft_s: float = 3.0  # captions later than this put a burst off
    lag_hard_s: float = 20.0  # captions later than this cut a running burst short
    silence_s: float = 0.7  # a burst likes to begin after this much silence
    patience_s: float = 45.0  # after this it begins between two captions, also while somebody speaks
    overdue_s: float = 120.0  # it does not wait longer than this for anything
    burst_min_s: float = 5.0  # a running burst is not cut short before this, nor before it has got on
    max_hold_s: float = 60.0  # a burst gives back after this
    max_cuts: int = 3  # a burst is cut short at most so often
    rest_swaps: float = 9.0  # after a burst no other begins for this many times what its swap took: 9 is a tenth
    keep_at_least_s: float = 2.0  # a live worker is not pushed out by a better one before this,
    keep_reloads: float = 10.0  # nor before this many times its reload;
    keep_here: float = 1.25  # and who is there counts this many times more: else equals would change places for ever
    transcriber_weight: float = 4.0  # what a second without it costs, beside 1 for any other live worker
    translator_weight: float = 2.0
    evicted_for_s: float = 10.0  # who was evicted by hand stays away this long
    stuck_after_s: float = 30.0  # a worker that makes no step while input waits is asked to leave
    hello_timeout_s: float = 10.0  # a worker of before the arbiter's restart has this long to say so
    offload_within_s: float = 30.0  # a worker that has not measured itself is killed if it does not give back in this
    offload_at_least_s: float = 2.0  # one that has measured itself is given at least this
    reclaim_within_s: float = 10.0  # what a dead worker held counts as foreign if it is not free after this
    measure_timeout_s: float = 3.0  # a driver that does not answer in this is asked anew, by another process


class SpeakerSettings(Section, frozen=True, kw_only=True):
    """Who said it: the diarizer."""

    enabled: bool = True  # false: the diarizer is not started, and captions name nobody
    model: str = "pyannote-campplus"
    threads: int = 1
    max: int = 0  # so many speakers at most in a stream; 0: not known
    hop_s: float = 1.0  # a window is heard each time, where somebody speaks
    longest_hop_s: float = 5.0  # steps grow to this while the machine is too busy; as hop_s: never
    busy_lag_s: float = 5.0  # one more hop in a step for each so many seconds that turns or captions are late
    threshold: float = 0.55  # cosine distance from which a voice counts as another speaker
    settle_every_s: float = 60.0  # of a stream, at least: everything heard so far is clustered anew


class TranslateSettings(Section, frozen=True, kw_only=True):
    """Captions in other languages: the translator."""

    targets: tuple[str, ...] = ()  # codes such as "pt"; none: the translator is not started
    models: tuple[str, ...] = ("student-en-pt", "student-pt-en")  # the first that knows a pair of languages takes it
    threads: int = 1
    hold_s: float = 3.0  # a sentence that stops without an end is over after so much of the stream without more of it
    batch_most: int = 16  # sentences translated at once while translations are late; 1: always one by one


class SummarySettings(Section, frozen=True, kw_only=True):
    """Minutes of what was said."""

    enabled: bool = True  # false: the summarizer is not started
    model: str = "smollm2-135m"
    quantise: str = "none"  # none | nf4 (CUDA, needs bitsandbytes)
    threads: int = 1
    interval_s: float = 300.0  # minutes of the last so many seconds of a stream; 0: only at its end and when asked
    at_end: bool = True  # minutes of the rest when a stream ends
    context_tokens: int = 4096  # prompt and summary together, or less where the model knows less: memory of a burst
    max_new_tokens: int = 192  # length of one summary
    prefill_tokens: int = 256  # prompt tokens of one step: it can give the GPU back between two


class FeedSettings(Section, frozen=True, kw_only=True):
    """Where subscribers connect. Empty: ipc in the run folder; `tcp://HOST:PORT` is encrypted with CURVE."""

    pub_tcp: str = ""
    replay_tcp: str = ""
    curve_dir: str = ""  # server.key, server.pub, and clients/*.pub; made by `swapscribe keys`


class ViewerSettings(Section, frozen=True, kw_only=True):
    """The web page."""

    host: str = "127.0.0.1"
    port: int = 8765
    token: str = ""  # needed as ?token= or bearer when host is not loopback
    red_lag_s: float = 20.0  # /healthz turns red above this lag
    delays_over_s: float = 300.0  # caption delays are those of the last so many seconds


class Settings(Section, frozen=True, kw_only=True):
    """Everything that can be set."""

    profile: str = profiles.AUTO  # auto, or what `swapscribe models list` names: values under your own settings
    data_dir: str = "data"
    model_cache: str = ""  # empty: $XDG_CACHE_HOME/swapscribe or ~/.cache/swapscribe
    source: tuple[Source, ...] = ()
    launcher: LauncherSettings = LauncherSettings()
    capture: CaptureSettings = CaptureSettings()
    retention: RetentionSettings = RetentionSettings()
    transcriber: TranscriberSettings = TranscriberSettings()
    gpu: GpuSettings = GpuSettings()
    speakers: SpeakerSettings = SpeakerSettings()
    translate: TranslateSettings = TranslateSettings()
    summary: SummarySettings = SummarySettings()
    feed: FeedSettings = FeedSettings()
    viewer: ViewerSettings = ViewerSettings()

    @property
    def data(self) -> Path:
        return full_path(self.data_dir)

    @property
    def streams(self) -> Path:
        return self.data / "streams"

    def windows(self, stream: str) -> Path:
        """What the diarizer keeps of a stream while it goes on: voices of people, so it goes with a purge."""
        return self.data / "speakers" / stream

    @property
    def cache(self) -> Path:
        if self.model_cache:
            return full_path(self.model_cache)
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "swapscribe"

    def source_named(self, name: str) -> Source:
        for s in self.source:
            if s.name == name:
                return s
        known = ", ".join(s.name for s in self.source) or "none"
        raise UserError(f"no source named {name!r} in the settings (known: {known}); add a [[source]] with that name")


SOURCE_KINDS = ("file", "stdin", "pcm", "microphone", "loopback")
SIGNED = ("level_gate_dbfs", "logprob_threshold")  # all other numbers count or measure something
PCM_FORMATS = ("s16le", "s16be", "s24le", "s32le", "f32le", "u8", "mulaw", "alaw")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,31}")


def load(
    path: str | Path | None = None, overrides: tuple[str, ...] = (), environ: dict[str, str] | None = None
) -> Settings:
    """Merge all layers and check them. `path` None: ./swapscribe.toml if it exists. Raises UserError with one line."""
    env = dict(os.environ) if environ is None else environ
    tree: dict[str, Any] = {}
    chosen = path or env.get(f"{ENV_PREFIX}CONFIG")
    file = Path(os.path.expanduser(chosen)) if chosen else Path("swapscribe.toml")
    if file.exists():
        try:
            tree = tomllib.loads(file.read_text("utf-8-sig"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as e:
            raise UserError(f"{file}: not valid TOML: {e}") from None
    elif chosen:
        raise UserError(f"{file}: no such settings file")
    for key, value in env.items():
        if key.startswith(ENV_PREFIX) and key != f"{ENV_PREFIX}CONFIG":
            _put(tree, key.removeprefix(ENV_PREFIX).lower().split("__"), value, key)
    for item in overrides:
        dotted, eq, value = item.partition("=")
        if not eq:
            raise UserError(f"--set {item}: write section.key=value")
        _put(tree, dotted.split("."), value, f"--set {dotted}")
    profile = tree.get("profile", profiles.AUTO)
    if profile not in profiles.names():
        raise UserError(f"settings: profile: {profile!r} is none of {', '.join(profiles.names())}")
    try:
        settings = msgspec.convert(profiles.under(profile, tree), Settings, strict=False)
    except msgspec.ValidationError as e:
        raise UserError(f"settings: {readable(str(e))}") from None
    _check(settings)
    return settings


def _put(tree: dict[str, Any], keys: list[str], value: str, origin: str) -> None:
    node = tree
    for k in keys[:-1]:
        node = node.setdefault(k, {})
        if not isinstance(node, dict):
            raise UserError(f"{origin}: {k!r} is not a section")
    # A list or table is given as JSON: SWAPSCRIBE_SOURCE='[{"name": "mic", "kind": "microphone"}]'
    if value[:1] in "[{" and value:
        try:
            node[keys[-1]] = msgspec.json.decode(value)
            return
        except msgspec.DecodeError:
            pass
    node[keys[-1]] = value


def readable(message: str) -> str:
    """msgspec says ``Object contains unknown field `x` - at `$.a` ``; people read `a.x: unknown key`."""
    text, _, at = message.partition(" - at ")
    where = at.strip("`").removeprefix("$").lstrip(".")
    m = re.match(r"Object contains unknown field `(.*)`", text)
    if m:
        return f"{where + '.' if where else ''}{m[1]}: unknown key"
    return f"{where}: {text}" if where else text


def _check(s: Settings) -> None:
    seen: set[str] = set()
    for i, src in enumerate(s.source):
        check_source(src, f"settings: source[{i}]")
        if src.name in seen:
            raise UserError(f"settings: source[{i}].name: {src.name!r} is used twice")
        seen.add(src.name)
    for section in (f for f in s.__struct_fields__ if isinstance(getattr(s, f), Section)):
        for key, value in msgspec.structs.asdict(getattr(s, section)).items():
            if isinstance(value, float) and not isfinite(value):  # JSON has no such number, and NaN is below nothing
                raise UserError(f"settings: {section}.{key}: {value} is no finite number; give one, or leave it out")
            if isinstance(value, int | float) and value < 0 and key not in SIGNED:
                raise UserError(f"settings: {section}.{key}: {value} is below the least allowed, 0")
    for name, low, value in (
        ("capture.ram_s", 30, s.capture.ram_s),
        ("capture.sync_interval_ms", 20, s.capture.sync_interval_ms),
        ("capture.file_s", 1, s.capture.file_s),
        ("transcriber.threads", 1, s.transcriber.threads),
        ("transcriber.max_utterance_s", 2, s.transcriber.max_utterance_s),
        ("transcriber.silence_run_s", 1, s.transcriber.silence_run_s),
        ("transcriber.batch_most", 1, s.transcriber.batch_most),
        ("transcriber.batch_lag_s", 0.1, s.transcriber.batch_lag_s),
        ("transcriber.interim_every_s", 0.1, s.transcriber.interim_every_s),
        ("gpu.max_hold_s", 1, s.gpu.max_hold_s),
        ("gpu.keep_here", 1, s.gpu.keep_here),
        ("gpu.stuck_after_s", 1, s.gpu.stuck_after_s),
        ("gpu.offload_within_s", 0.1, s.gpu.offload_within_s),
        ("gpu.offload_at_least_s", 0.1, s.gpu.offload_at_least_s),
        ("gpu.reclaim_within_s", 0.1, s.gpu.reclaim_within_s),
        ("gpu.measure_timeout_s", 0.2, s.gpu.measure_timeout_s),
        ("speakers.threads", 1, s.speakers.threads),
        ("speakers.hop_s", 0.25, s.speakers.hop_s),
        ("speakers.longest_hop_s", s.speakers.hop_s, s.speakers.longest_hop_s),
        ("speakers.busy_lag_s", 0.5, s.speakers.busy_lag_s),
        ("speakers.threshold", 0.01, s.speakers.threshold),
        ("speakers.settle_every_s", 10, s.speakers.settle_every_s),
        ("translate.threads", 1, s.translate.threads),
        ("translate.hold_s", 0.5, s.translate.hold_s),
        ("translate.batch_most", 1, s.translate.batch_most),
        ("summary.threads", 1, s.summary.threads),
        ("summary.max_new_tokens", 16, s.summary.max_new_tokens),
        ("summary.context_tokens", s.summary.max_new_tokens + 512, s.summary.context_tokens),
        ("summary.prefill_tokens", 16, s.summary.prefill_tokens),
        ("viewer.delays_over_s", 1, s.viewer.delays_over_s),
    ):
        if value < low:
            raise UserError(f"settings: {name}: {value} is below the least allowed, {low}")
    check_language(s.transcriber.language, "settings: transcriber.language")
    check_glossary(s.transcriber.glossary, "settings: transcriber")
    for i, code in enumerate(s.translate.targets):
        if not re.fullmatch("[a-z]{2,3}", code) or code in s.translate.targets[:i]:
            raise UserError(f"settings: translate.targets: {code!r} is no code such as pt, or is there twice")
    if s.translate.targets and not s.translate.models:
        raise UserError("settings: translate.models: none is named, and translate.targets is not empty")
    if s.transcriber.window not in ("auto", "whole", "cropped"):
        raise UserError(f"settings: transcriber.window: {s.transcriber.window!r} is none of auto, whole, cropped")
    if s.gpu.device not in ("auto", "cuda", "simulated"):
        raise UserError(f"settings: gpu.device: {s.gpu.device!r} is none of auto, cuda, simulated")
    if s.summary.quantise not in ("none", "nf4"):
        raise UserError(f"settings: summary.quantise: {s.summary.quantise!r} is none of none, nf4")
    if s.speakers.longest_hop_s > 8:  # a window has 10 s: each sound must be heard with some before and behind it
        raise UserError(f"settings: speakers.longest_hop_s: {s.speakers.longest_hop_s} is over 8")
    if s.transcriber.max_utterance_s > 25:
        raise UserError(f"settings: transcriber.max_utterance_s: {s.transcriber.max_utterance_s} is over 25")
    if s.viewer.port > 65_535:
        raise UserError(f"settings: viewer.port: {s.viewer.port} is over 65535")
    if not 0.2 <= s.transcriber.vad_threshold <= 0.95:
        raise UserError(f"settings: transcriber.vad_threshold: {s.transcriber.vad_threshold} is not within 0.2 to 0.95")


def check_source(src: Source, where: str) -> None:
    """Raises UserError. A path is not looked at: it may appear later, and a URL may hold a password."""
    if not _NAME.fullmatch(src.name):
        raise UserError(f"{where}.name: {src.name!r} must be 1 to 32 of a-z 0-9 _ . - and begin with a letter or digit")
    if src.kind not in SOURCE_KINDS:
        raise UserError(f"{where}.kind: {src.kind!r} is none of {', '.join(SOURCE_KINDS)}")
    if src.kind in ("file", "pcm") and not src.path:
        raise UserError(f"{where}.path: a {src.kind} source needs a path")
    if not 8_000 <= src.rate_hz <= 192_000 or not 1 <= src.channels <= 32:
        raise UserError(f"{where}: rate_hz must be 8000 to 192000 and channels 1 to 32")
    if src.format not in PCM_FORMATS:
        raise UserError(f"{where}.format: {src.format!r} is none of {', '.join(PCM_FORMATS)}")
    if src.language:
        check_language(src.language, f"{where}.language")
    check_glossary(src.glossary, where)
    pace(src)


def check_language(code: str, where: str) -> None:
    """Raises UserError. Which languages a model knows is for `common.models`."""
    if code != "auto" and not re.fullmatch("[a-z]{2,3}", code):
        raise UserError(f"{where}: {code!r} is neither auto nor a code such as en or pt")


def check_glossary(terms: tuple[str, ...], where: str) -> None:
    """Raises UserError."""
    for term in terms:
        if not term.strip() or len(term) > 100 or not term.isprintable():
            raise UserError(f"{where}.glossary: {term!r} is no name or term of up to 100 characters")


def full_path(text: str) -> Path:
    """A path as a person writes it. `~` is as in a shell: where there is no such user it stands for itself."""
    return Path(os.path.expanduser(text)).absolute()


def sound_path(text: str) -> Path:
    """The `path` of a source that is no network URL: a path, or file:///its/path."""
    if text.startswith("file://"):
        return Path(unquote(text.removeprefix("file://").removeprefix("localhost"))).absolute()
    return full_path(text)


def pace(source: Source) -> float:
    """Speed of a file source as a factor of real time; 0 means as fast as it can be read."""
    if source.pace == "max":
        return 0.0
    if source.pace == "realtime":
        return 1.0
    try:
        factor = float(source.pace)
    except ValueError:
        factor = -1.0
    if not 0.01 <= factor <= 1000:
        raise UserError(
            f"settings: source {source.name}: pace {source.pace!r} is not realtime, max or a factor such as 4"
        )
    return factor


def lane(source: Source) -> str:
    """`batch` for a file read as fast as it can be, else `live`."""
    return "batch" if source.kind in ("file", "pcm") and pace(source) == 0.0 else "live"
