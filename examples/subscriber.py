#!/usr/bin/env python3
"""Follow the captions of Swapscribe with pyzmq and msgpack alone: join late, heal holes, forget what is purged.

    python subscriber.py --pub ipc://data/run/pub --replay ipc://data/run/replay --kinds transcript,gap

The algorithm is section 5 of common/PROTOCOL.md; take it into your own program.
"""

import argparse
import hashlib
import random
import sys

import msgpack
import zmq


class Subscriber:
    def __init__(self, args):
        self.args, self.loss = args, random.Random(args.seed)
        self.wanted = args.kinds and args.kinds.split(",")  # None: all kinds
        self.kinds = self.wanted and sorted({*self.wanted, "purged"})
        self.context = zmq.Context()
        self.sub = self.connect(zmq.SUB, args.pub)
        for topic in ["beat", *([f"event.{k}" for k in self.kinds] if self.kinds else ["event."])]:
            self.sub.subscribe(topic)
        self.forget("")

    def forget(self, journal):
        """`events` by seq, the newest seq of each (stream, kind), and `done`: all we want up to this seq is here."""
        self.journal, self.events, self.last, self.done, self.run = journal, {}, {}, 0, ("", 0.0)

    def connect(self, kind, address):
        socket = self.context.socket(kind)
        socket.linger, socket.rcvhwm = 0, 20_000
        if folder := self.args.curve:
            names = ("server.pub", "clients/client.pub", "clients/client.key")
            keys = [open(f"{folder}/{name}", "rb").read().strip() for name in names]
            socket.curve_serverkey, socket.curve_publickey, socket.curve_secretkey = keys
        socket.connect(address)
        return socket

    def ask(self, request):
        while True:  # the feed may be restarting
            with self.connect(zmq.REQ, self.args.replay) as socket:  # a new one: a REQ that got no answer is stuck
                socket.send(msgpack.packb({"protocol": 1, **request}))
                if socket.poll(3000):
                    return msgpack.unpackb(socket.recv())
            print("no answer from the feed, asking again", file=sys.stderr)

    def heal(self):
        """Page through everything after `done`. This is also how a late joiner begins."""
        while True:
            page = self.ask({"type": "replay", "after": self.done, "kinds": self.kinds})
            if page["type"] != "page":
                sys.exit(f"the feed refused: {page}")
            if page["journal"] != (self.journal or page["journal"]):
                print("another journal: beginning again", file=sys.stderr)
                self.forget(page["journal"])
                continue
            if page["first"] > self.done + 1:
                print(f"history is truncated: it begins at {page['first']}", file=sys.stderr)
            for event in page["events"]:
                self.take(event)
            self.journal, self.done = page["journal"], page["upto"]
            if self.done >= page["head"]:
                return

    def take(self, event):
        if event["seq"] in self.events:
            return
        self.events[event["seq"]] = event
        self.last[event["stream"], event["kind"]] = event["seq"]
        body = {} if event.get("purged") else msgpack.unpackb(event["body"])
        if body.get("type") == "purged":
            for seq in (s for first, last in body["seqs"] for s in range(first, last + 1) if s in self.events):
                self.events[seq].update(body=b"", purged=True)
        elif body.get("type") in ("transcript", "suppressed", "gap") and not self.args.quiet:
            minutes, seconds = divmod(body["span"][0] // 16000, 60)
            note = "" if body["type"] == "transcript" else f"({body['type']}: {body['reason']}) "
            print(f"{event['stream']} {minutes:02d}:{seconds:02d} {note}{body.get('text', '')}", flush=True)

    def live(self, event):
        seq, prev, topic = event["seq"], event["prev"], (event["stream"], event["kind"])
        if seq <= self.done or seq in self.events or (self.kinds and event["kind"] not in self.kinds):
            return
        if not (prev <= self.done or prev == self.last.get(topic) if self.kinds else seq == self.done + 1):
            return self.heal()
        self.take(event)
        self.done = self.done if self.kinds else seq

    def beat(self, beat):
        """The last messages of a topic have no successor whose `prev` could show that they were lost."""
        (feed, up_s), self.run = self.run, (beat["feed"], beat["up_s"])
        near = feed == beat["feed"] and beat["up_s"] - up_s < 50  # then it leaves no changed stream out
        if beat["journal"] != self.journal:
            return self.heal()
        heads = [((s, k), seq) for s, b in beat["streams"].items() for k, seq in b["heads"].items()]
        lost = any(t[1] in self.kinds and seq > max(self.done, self.last.get(t, 0)) for t, seq in heads if self.kinds)
        if beat["head"] > self.done:
            if not self.kinds or lost or not near:
                return self.heal()
            self.done = beat["head"]

    def turn(self):
        topic, payload = self.sub.recv_multipart()
        if self.loss.random() >= self.args.drop:
            (self.beat if topic == b"beat" else self.live)(msgpack.unpackb(payload))

    def state_hash(self, upto):
        digest = hashlib.sha256()
        for seq, e in sorted(self.events.items()):
            if seq <= upto and (not self.wanted or e["kind"] in self.wanted):
                body = "purged" if e.get("purged") else hashlib.sha256(e["body"]).hexdigest()
                line = [seq, e["prev"], e["stream"], e["kind"], e["producer"], e["n"], e["at_ns"], body]
                digest.update((" ".join(map(str, line)) + "\n").encode())
        return digest.hexdigest()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pub", required=True, metavar="ADDRESS")
    p.add_argument("--replay", required=True, metavar="ADDRESS")
    p.add_argument("--curve", metavar="FOLDER", help="keys for tcp: server.pub, clients/client.pub, clients/client.key")
    p.add_argument("--kinds", help="only these, with commas between")
    p.add_argument("--drop", type=float, default=0.0, help="lose this share of live messages, to see holes heal")
    p.add_argument("--seed", type=int, help="of the losses")
    p.add_argument("--exit-at-head", action="store_true", help="once complete, print the state hash and end")
    p.add_argument("--until", type=int, metavar="SEQ", help="what --exit-at-head waits for, if not the head at joining")
    p.add_argument("--quiet", action="store_true", help="print no captions")
    args = p.parse_args()
    me = Subscriber(args)
    me.heal()
    end = args.until or me.done
    while not args.exit_at_head or me.done < end:
        me.turn()
    print(f"head {end} sha256 {me.state_hash(end)}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
