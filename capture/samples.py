"""`python -m capture.samples FILE`: the sound of a file as capture has it, s16le mono 16 kHz, on standard output."""

from __future__ import annotations

import os
import sys

import av.error

from capture.decode import Decoded, open_sound, unusable
from common.settings import UserError


def main(argv: list[str]) -> None:
    if len(argv) != 1:
        sys.exit("usage: python -m capture.samples FILE")
    name, out = argv[0], sys.stdout.buffer
    try:
        opened = open_sound(name, os.path.basename(name))
        sound = Decoded(opened, read_again=False)
        for piece in sound:
            out.write(piece.pcm)
        out.flush()
        if sound.error:
            raise sound.error
    except (av.error.FFmpegError, UserError) as e:
        sys.exit(str(unusable(os.path.basename(name), e)))
    except BrokenPipeError:  # who reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


if __name__ == "__main__":
    main(sys.argv[1:])
