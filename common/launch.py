"""The launcher: keeps the processes of the table running, level-triggered: "should this row run, and does it?"

In: the rows wanted, name locks, Commands on the endpoint `launcher`. Out: processes, DATA/logs/NAME.log, RUN/NAME.exit.
One loop in the main thread (a model worker is killed when the *thread* that forked it ends). After a kill of the
launcher its model workers die with it; feed and captures live on, and the next launcher adopts them by name lock.
A private one, that of a `transcribe`, stops only what it started, remembers nothing, and takes up no live source.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

import msgspec

from common import messages as m
from common import topology, wire
from common.child import Life, Want, running
from common.ends import Ends, ended_streams, source_ended
from common.guests import Guests
from common.process import EXIT_NAME_TAKEN, EXIT_USER_ERROR, NameLock, holder
from common.settings import Settings
from common.spare import Spare

NAME = "launcher"
FIRST_DELAY_S, LONGEST_DELAY_S = 0.2, 10.0
STEADY_S = 20.0  # a life this long makes the next restart quick again
USER_ERROR_S = 30.0  # a person has to do something first
STOP_S = 10.0  # from SIGTERM to SIGKILL
TURN_S = 0.1
IDS_KEPT = 1000
PRIVATE = "ends with its command"  # the state under NAME of one that does
FIRST_SWEEP_S, SWEEP_EVERY_S = 60.0, 3600.0
SPARE_AFTER_S = 5.0  # no start of a model worker for so long
SPARE_EVERY_S = 60.0  # one that died is followed by the next


@dataclass
class Slot:
    """A row and its present life, if any."""

    want: Want
    life: Life | None = None
    fails: int = 0  # deaths since it last lived STEADY_S
    next_at: float = 0.0  # not started before
    done: bool = False  # its source is finished
    ended: frozenset[str] = frozenset()  # the streams that had ended when its life began
    leaving: bool = False  # goes when its process has ended: an added source that was released
    complaint: str = ""  # the last user error said, so that each is said once


class Launcher:
    """See the module. `each_turn` is called about ten times a second and may call `stop`."""

    def __init__(
        self,
        settings: Settings,
        table: Sequence[Want],
        say: Callable[[str], None],
        each_turn: Callable[[Launcher], None] | None = None,
        sweeper: Want | None = None,
        guests: Guests | None = None,
        private: bool = False,
        spare: Spare | None = None,
    ) -> None:
        self.settings, self.say, self.each_turn, self.sweeper = settings, say, each_turn, sweeper
        self.guests, self.private, self.spare = guests, private, spare
        self.run_dir = wire.run_dir(settings)
        self.slots = [Slot(w) for w in table]
        self.all_up = False  # has been so once
        self._stop_wanted = self._urgent = self._stopping = False
        self._began = time.monotonic()
        self._sweep: Life | None = None
        self._sweep_at = self._began + FIRST_SWEEP_S
        self._spare_at = 0.0  # when a new one may be started
        self._answers: dict[str, m.Answer] = {}
        self._garbage_said = False
        self._lock = NameLock(self.run_dir, NAME)
        self._ends = Ends(settings, self.run_dir / f"{NAME}.since")

    def run(self) -> None:
        """Hold the name, keep everything running until told to stop, then stop everything. Raises NameTaken."""
        self._lock.take()
        self._socket = wire.router(wire.ipc(self.settings, NAME))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        if not self.private:
            self._recall()
        while not self._stop_wanted:
            self._turn()
        self.say("stopping; Ctrl-C again stops at once")
        self._stop_all()
        if not self.private:
            self._ends.forget()
        if self.guests:
            self.guests.forget()
        self._socket.close()
        self._lock.release()

    def _recall(self) -> None:
        """What came to its end under a launcher that was killed is not played again."""
        for name, pid in running(self.run_dir, but=[s.want.name for s in self.slots]).items():
            self.say(f"{name} runs as pid {pid} but is not among these settings; it will be stopped with the others")
        fresh = self._ends.recall()
        if self.guests:
            self.guests.at_start(fresh, self.slots, Slot, self.say)
        for slot in self.slots:
            slot.ended = self._ends.ended
            slot.done = slot.want.finite and self._ends.over(slot.want.source)
        self._keep_ends()

    def _keep_ends(self) -> None:
        self._ends.keep({s.want.source for s in self.slots if s.want.finite and s.done and not s.leaving})

    def stop(self) -> None:
        self._stop_wanted = True

    def stop_leftovers(self) -> None:
        """Instead of `run`: stop, in order, what a launcher that is no more left running. Raises NameTaken."""
        self._lock.take()
        self._socket = wire.router(wire.ipc(self.settings, NAME))
        self._stop_all()
        self._socket.close()
        self._lock.release()

    def _on_signal(self, number: int, frame: object) -> None:
        self._urgent = self._stop_wanted  # the second one
        self._stop_wanted = True

    def _turn(self) -> None:
        """Compare what should run with what runs, act, then wait for a death, a request or TURN_S."""
        for slot in self.slots:
            if slot.life:
                self._watch(slot, slot.life)
            if not slot.life:
                self._fill(slot)
        self.slots = [s for s in self.slots if s.life or not s.leaving]
        self._keep_ends()
        if not self.all_up and not self._stopping and all(s.done or (s.life and s.life.up) for s in self.slots):
            self.all_up = True
            self.say(f"all {len(self.slots)} processes are up after {time.monotonic() - self._began:.1f} s")
        self._sweep_audio(time.monotonic())
        self._keep_spare(time.monotonic())
        if self.each_turn:
            self.each_turn(self)
        wire.poller(self._socket, *(s.life.fd for s in self.slots if s.life)).poll(int(TURN_S * 1000))
        self._serve()

    def _sweep_audio(self, now: float) -> None:
        """Captures delete old audio while they run; where none runs, a process that does it once an hour."""
        if self._sweep and not self._sweep.alive():
            self._sweep = None
        captured = any(s.life for s in self.slots if s.want.source)
        if self.sweeper and not (self._sweep or captured or self._stopping) and now >= self._sweep_at:
            self._sweep_at = now + SWEEP_EVERY_S
            with contextlib.suppress(OSError):  # no memory for a fork: in an hour again
                self._sweep = Life.start(self.sweeper, self._log(self.sweeper.name))

    def _keep_spare(self, now: float) -> None:
        """One waits while all model workers hold their names."""
        if not self.spare or self._stopping or now < self._spare_at or self.spare.waits:
            return
        lives = [s.life for s in self.slots if s.want.spare]
        if lives and all(x and x.up and now - x.began >= SPARE_AFTER_S for x in lives):
            self._spare_at = now + SPARE_EVERY_S
            with contextlib.suppress(OSError):  # no memory for a fork
                self.spare.start()

    def _watch(self, slot: Slot, life: Life) -> None:
        now = time.monotonic()
        if not life.alive():
            slot.life = None
            self._died(slot, life, now)
            return
        life.up = life.up or holder(self.run_dir, slot.want.name) == life.pid
        if now - life.began >= STEADY_S:
            slot.fails = 0
        if now >= life.kill_at:
            self._kill(slot, life)

    def _died(self, slot: Slot, life: Life, now: float) -> None:
        name, status = slot.want.name, life.status
        if status == EXIT_NAME_TAKEN:  # it never worked; whoever has the name is found in the next turn
            slot.next_at = now + FIRST_DELAY_S
            return
        by = "" if life.ours else life.killed_by(self.run_dir, name)
        life.ours = life.ours or bool(by)  # before it is recorded anew: an order is no poison
        self._record(slot, life, life.cause)
        finished = status == 0 or (slot.want.finite and source_ended(self.settings, slot.want.source, slot.ended))
        if life.ours:
            slot.next_at, slot.fails = now, 0
            how = f" ({life.cause}{f' by the {by}, see its log' if by else ''})" if status else ""
            self.say(f"{name} stopped{how}")
        elif slot.want.source and finished:
            slot.done = True
            self.say(f"{name} is finished")
        elif status is None:  # somebody ran it in our place; its end is no fault to wait after
            slot.next_at = now
            self.say(f"{name} (pid {life.pid}) has ended")
        elif status == EXIT_USER_ERROR:
            slot.next_at = now + USER_ERROR_S
            complaint = life.last_words(name) or f"see {self._log(name)}"
            if complaint != slot.complaint:
                self.say(f"{name} cannot run: {complaint} (tried again every {USER_ERROR_S:.0f} s)")
            slot.complaint = complaint
        elif status == 0:  # told to end by somebody else: a take-over, or a kill by hand
            slot.next_at = now + FIRST_DELAY_S
            self.say(f"{name} has ended")
        else:
            delay_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** (slot.fails - 1)) if slot.fails else 0.0
            slot.fails += 1
            slot.next_at = now + delay_s
            words = life.last_words(name) if status > 0 else ""
            again = f"again in {delay_s:.1f} s" if delay_s else "again at once"
            self.say(f"{name} died ({life.cause}), {again}; {words or f'its log: {self._log(name)}'}")

    def _fill(self, slot: Slot) -> None:
        name, now = slot.want.name, time.monotonic()
        if self.private and self._stopping:  # whoever has the name by now is somebody else's
            return
        slot.life = Life.adopt(self.run_dir, name, self._log(name))
        if slot.life:
            slot.done = False
            other = "" if self._stopping or slot.life.same_command(slot.want) else ", with other settings than these"
            self.say(f"{name} is running as pid {slot.life.pid}{other}; left alone until it ends")
        elif slot.want.command and not slot.done and not self._stopping and now >= slot.next_at:
            slot.ended = ended_streams(self.settings) if slot.want.finite else slot.ended
            try:
                ready = bool(self.spare and slot.want.spare and self.spare.waits)
                slot.life = Life.start(slot.want, self._log(name), self.spare)
                self._spare_at = 0.0 if ready else self._spare_at
                self.say(f"{name} started as pid {slot.life.pid}")
            except OSError as e:  # no memory for a fork, no space for a log
                slot.next_at = now + LONGEST_DELAY_S
                self.say(f"{name} cannot be started: {e}; again in {LONGEST_DELAY_S:.0f} s")

    def _end(self, slot: Slot, life: Life) -> None:
        """Ask a process to end; it is killed STOP_S later."""
        if not life.ours:
            life.ours, life.kill_at = True, time.monotonic() + STOP_S
            self._record(slot, life, f"signal {signal.SIGTERM:d}")
            life.signal(signal.SIGTERM)

    def _kill(self, slot: Slot, life: Life) -> None:
        life.ours, life.kill_at = True, inf
        self._record(slot, life, f"signal {signal.SIGKILL:d}")  # before the kill: its successor must find it
        self.say(f"{slot.want.name} does not stop; killed")
        life.signal(signal.SIGKILL)

    def _stop_all(self) -> None:
        """Captures, then workers, then the feed: SIGTERM, STOP_S, SIGKILL; also what runs beside our table."""
        self._stopping = True
        if self.spare:
            self.spare.close()
        if self.private:  # what we found running goes on
            self.slots = [s for s in self.slots if s.life and s.life.child]
        else:
            for name in running(self.run_dir, but=[s.want.name for s in self.slots]):
                survives = topology.row(name).survives_launcher
                self.slots.append(Slot(Want(name=name, survives=survives, source=name.partition("@")[2])))
        self._turn()
        for rank in (0, 1, 2):
            while lives := [(s, s.life) for s in self.slots if s.life and s.want.stop_rank <= rank]:
                for slot, life in lives:
                    self._end(slot, life)
                    if self._urgent and life.kill_at < inf:
                        self._kill(slot, life)
                self._turn()

    def _record(self, slot: Slot, life: Life, cause: str) -> None:
        try:
            life.record(self.run_dir, slot.want.name, cause)
        except OSError as e:
            self.say(f"{slot.want.name}: the cause of its end ({cause}) could not be written: {e}")

    def _log(self, name: str) -> Path:
        return self.settings.data / "logs" / f"{name}.log"

    def _serve(self) -> None:
        for _ in range(100):  # a flood of requests must not keep us from the processes
            frames = wire.receive(self._socket)
            if frames is None:
                return
            if len(frames) > 1:
                wire.send(self._socket, [*frames[:-1], m.encode(self._answer(frames[-1]))])

    def _answer(self, data: bytes) -> m.Answer:
        try:
            command = msgspec.msgpack.decode(data, type=m.Command)
        except m.UNDECODABLE as e:
            if not self._garbage_said:
                self._garbage_said = True
                self.say(f"refused something that is no command, here and from now on: {e}")
            return m.Refused(reason="not a command")
        if command.protocol != m.PROTOCOL:
            return m.Refused(reason=f"wrong protocol {command.protocol}, this launcher speaks {m.PROTOCOL}")
        if command.id not in self._answers:
            self._answers[command.id] = self._carry_out(command)
            if len(self._answers) > IDS_KEPT:
                del self._answers[next(iter(self._answers))]
        return self._answers[command.id]

    def _carry_out(self, command: m.Command) -> m.Answer:
        if command.verb == "ping":
            return m.Done(detail=str(os.getpid()))
        if command.verb == "status":
            about = {NAME: PRIVATE} if self.private else {}
            return m.Done(detail=json.dumps(about | {s.want.name: self._state(s) for s in self.slots}))
        if command.verb == "stop":
            self.stop()
            return m.Done(detail="stopping")
        if command.verb in ("capture", "release") and self.guests:
            return self._change_guests(self.guests, command)
        if command.verb != "restart":
            known = "restart, stop, status, ping, capture, release"
            return m.Refused(reason=f"unknown verb {command.verb!r}; known: {known}")
        wanted = command.args.get("process", "")
        chosen = [s for s in self.slots if wanted in (s.want.name, s.want.name.partition("@")[0])]
        if self._stopping or not chosen:
            names = ", ".join(s.want.name for s in self.slots)
            return m.Refused(
                reason="everything is stopping" if chosen else f"no process {wanted!r}; there are: {names}"
            )
        for slot in chosen:
            slot.done, slot.next_at, slot.fails, slot.complaint = False, 0.0, 0, ""
            if slot.life:
                self._end(slot, slot.life)
        return m.Done(detail=", ".join(s.want.name for s in chosen))

    def _change_guests(self, guests: Guests, command: m.Command) -> m.Answer:
        if self._stopping or self._stop_wanted:
            return m.Refused(reason="everything is stopping", retry_after_s=1.0)
        if command.verb == "capture":
            return guests.capture(self.slots, Slot, command.args.get("source", ""))
        slot = guests.release(self.slots, command.args.get("name", ""))
        if isinstance(slot, m.Refused):
            return slot
        if slot.life:
            self._end(slot, slot.life)
        return m.Done(detail=slot.want.name)

    def _state(self, slot: Slot) -> str:
        if slot.life:
            word = "stopping" if slot.life.ours else "up" if slot.life.up else "starting"
            return word if slot.life.child else f"{word}, not started by this launcher"
        if slot.done or slot.complaint:
            return "finished" if slot.done else f"cannot run: {slot.complaint}"
        return "waits for its restart" + (f", died {slot.fails} times" if slot.fails > 1 else "")
