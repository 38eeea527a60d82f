"""One sweep over the audio of ended streams, then the end. The launcher starts it where no capture runs to do it.

In: the feed's beat, which names a few streams at a time: it waits until it has heard of each. No beat, nothing deleted.
"""

from __future__ import annotations

import time

import msgspec

from capture.retention import BEAT_WITHIN_S, Retention, say_swept
from common import messages as m
from common import topology, wire
from common.process import Process, arguments, main

LONGEST_S = 600.0

_beat = msgspec.msgpack.Decoder(m.Beat)


def run(process: Process) -> None:
    settings = process.settings
    readers = topology.audio_readers(settings)
    retention = Retention(settings.streams, "", settings.retention, readers)  # of no source: what is open is left alone
    beats = wire.subscriber([wire.ipc(settings, "pub")], ["beat"], hwm=10)
    poller = wire.poller(beats)
    unnamed = retention.waiting()
    began = heard = time.monotonic()
    while (
        unnamed and not process.stopping and (now := time.monotonic()) < min(heard + BEAT_WITHIN_S, began + LONGEST_S)
    ):
        poller.poll(250)
        while frames := wire.receive(beats):
            try:
                beat = _beat.decode(frames[-1])
            except m.UNDECODABLE:
                continue
            heard = now
            retention.hear(beat, now)
            unnamed -= set(beat.streams)
    say_swept(process.log, retention, retention.sweep(time.monotonic()))
    beats.close()


if __name__ == "__main__":
    main("sweeper", run, arguments(__doc__ or ""))
