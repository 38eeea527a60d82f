"""`swapscribe simulate`: the same seed gives the same day, its figures add up, nothing is over the cap."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from arbiter import simulate
from arbiter.day import conversation, utterances
from common.settings import Settings, TranscriberSettings, UserError

pytestmark = pytest.mark.pure
RTX16 = ["--profile", "rtx16", "--card-mib", "16303", "--hours", "0.2", "--interval-s", "60"]


def day(tmp_path: Path, *more: str) -> simulate.Result:
    args = simulate.parser().parse_args([*RTX16, "--set", f"data_dir={tmp_path}", *more])
    return simulate.run(args)


def test_the_figures_of_a_day_add_up_and_are_those_of_its_seed(tmp_path: Path) -> None:
    r = day(tmp_path)
    assert sum(r.shares.values()) == pytest.approx(1.0)
    assert all(0 <= x <= 1 for x in [*r.shares.values(), *r.resident.values()])
    assert r.shares["burst"] > 0 and r.shares["switching"] > 0
    assert 0 < r.most_bytes <= 16_303 * 2**20 and r.cap_bytes < r.most_bytes + 2**30
    assert 10 <= r.summaries + r.summaries_open <= 12
    assert sum(r.starts.values()) >= r.summaries
    lag = r.caption_lag
    assert lag.n > 50 and 0 < lag.p50_s <= lag.p95_s <= lag.p99_s <= lag.max_s
    assert r.shares["switching"] <= 0.1
    assert day(tmp_path) == r
    assert day(tmp_path, "--seed", "2") != r


def test_a_slow_link_costs_captions_and_minutes(tmp_path: Path) -> None:
    fast, slow = day(tmp_path), day(tmp_path, "--link-gb-s", "1")
    assert slow.shares["switching"] > fast.shares["switching"]
    assert slow.summary_delay.p50_s > fast.summary_delay.p50_s


def test_without_a_pause_bursts_begin_by_patience(tmp_path: Path) -> None:
    talk = tmp_path / "talk.txt"
    talk.write_text("# one goes on and on\n0 3600\n")
    r = day(tmp_path, "--speech", str(talk))
    assert set(r.starts) <= {"patience", "overdue", "found"} and r.starts["patience"] > 0
    assert r.summary_delay.max_s >= Settings().gpu.patience_s


def test_it_is_not_silent_before_the_utterance_is_over_and_captioned(tmp_path: Path) -> None:
    """As the transcriber has it."""
    talk = tmp_path / "talk.txt"
    talk.write_text("".join(f"{k} {k + 0.6}\n" for k in range(3600)))  # pauses of 0.4 s end no utterance
    assert set(day(tmp_path, "--speech", str(talk)).starts) == {"patience"}
    talk.write_text("".join(f"{k} {k + 1.2}\n" for k in range(0, 3600, 3)))
    assert "silence" in day(tmp_path, "--speech", str(talk)).starts
    assert set(day(tmp_path, "--speech", str(talk), "--decode-s", "2").starts) == {"patience"}


def test_a_model_that_is_too_big_is_refused_and_said(tmp_path: Path) -> None:
    r = day(tmp_path, "--quantise", "none")
    assert not r.summaries and "summarizer: it wants" in r.refused and r.swaps_per_hour == 0
    assert any(line.startswith("refused: ") for line in simulate.text(r))


def test_measured_costs_are_used_and_said_to_be_measured(tmp_path: Path) -> None:
    entry = {
        "weights_bytes": 2 * 2**30,
        "working_bytes": 2**30,
        "reload_s": 3.0,
        "reload_gb_s": 0.7,
        "offload_s": 0.01,
        "step_s": 0.4,
    }
    (tmp_path / "calibration.json").write_bytes(
        msgspec.json.encode({"turbo 0123 threads=1 · some card · 1 · torch": entry})
    )
    r = day(tmp_path)
    assert "transcriber: turbo, 3.0 GiB, reload 3.00 s, measured on some card" in r.costs
    assert any("assumed" in line for line in r.costs)


def test_what_cannot_be_simulated_is_one_line(tmp_path: Path) -> None:
    for wrong in (["--interval-s", "0"], ["--hours", "0"], ["--link-gb-s", "-1"], ["--summarizer", "nobody"]):
        with pytest.raises(UserError) as caught:
            day(tmp_path, *wrong)
        assert "\n" not in str(caught.value)
    assert simulate.main(["--profile", "embedded", "--set", f"data_dir={tmp_path}"]) == 2


def test_speech_has_the_statistics_it_claims() -> None:
    spans = conversation(1, 36_000.0)
    share = sum(b - a for a, b in spans) / 36_000.0
    assert share == pytest.approx(1.752 / (1.752 + 0.508), abs=0.02)
    assert sum(b - a for a, b in conversation(1, 36_000.0, 0.4)) / 36_000.0 == pytest.approx(0.4, abs=0.03)
    said = utterances(spans, TranscriberSettings())
    assert sum(u.speech_s for u in said) == pytest.approx(sum(b - a for a, b in spans))
    assert all(u.ready_s >= u.end_s > u.begin_s and u.end_s - u.begin_s <= 15.1 for u in said)


def test_the_command_hands_its_options_on() -> None:
    from common.cli import cli

    assert "simulate" in cli.commands
    assert "simulate" in CliRunner().invoke(cli, ["--help"]).output
