#!/usr/bin/env node
// Follow the captions of Swapscribe with zeromq and @msgpack/msgpack alone: join late, heal holes, forget what is purged.
//
//     npm ci && node subscriber.mjs --pub ipc://data/run/pub --replay ipc://data/run/replay --kinds transcript,gap
//
// The algorithm is section 5 of common/PROTOCOL.md; take it into your own program. Node 20 or newer.

import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { decode as unpack, encode } from '@msgpack/msgpack'
import { Request, Subscriber } from 'zeromq'

const text = { type: 'string' }
const flag = { type: 'boolean', default: false }
const { values: args } = parseArgs({
  options: {
    pub: text, // address
    replay: text, // address
    curve: text, // folder of keys for tcp: server.pub, clients/client.pub, clients/client.key
    kinds: text, // only these, with commas between
    drop: { type: 'string', default: '0' }, // lose this share of live messages, to see holes heal
    seed: { type: 'string', default: '1' }, // of the losses
    'exit-at-head': flag, // once complete, print the state hash and end
    until: text, // the seq that --exit-at-head waits for, if not the head at joining
    quiet: flag, // print no captions
  },
})
if (!args.pub || !args.replay) {
  console.error('usage: node subscriber.mjs --pub ADDRESS --replay ADDRESS [--kinds a,b] [--exit-at-head [--until SEQ]]')
  process.exit(2)
}

const decode = (data) => unpack(data, { useBigInt64: true }) // at_ns needs all its 64 bits
const num = (value) => Number(value) // everything else is far below 2^53
const wanted = args.kinds?.split(',') // undefined: all kinds
const kinds = wanted && [...new Set([...wanted, 'purged'])].sort()
const loss = { state: num(args.seed) >>> 0, next() { return (this.state = (this.state * 1664525 + 1013904223) >>> 0) / 2 ** 32 } }

const key = (name) => readFileSync(`${args.curve}/${name}`, 'utf8').trim()
const curve = args.curve && {
  curveServerKey: key('server.pub'), curvePublicKey: key('clients/client.pub'), curveSecretKey: key('clients/client.key'),
}

// `events` by seq, the newest seq of each (stream, kind), and `done`: all we want up to this seq is here.
let journal, events, last, done, run
function forget(id) { [journal, events, last, done, run] = [id, new Map(), new Map(), 0, {}] }
const topicOf = (stream, kind) => `${stream} ${kind}`

async function ask(request) {
  for (;;) { // the feed may be restarting
    const socket = new Request({ ...curve, linger: 0, receiveTimeout: 3000, sendTimeout: 3000 }) // a REQ without an answer is stuck: a new one
    try {
      socket.connect(args.replay)
      await socket.send(encode({ protocol: 1, ...request }))
      return decode((await socket.receive())[0])
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error
      console.error('no answer from the feed, asking again')
    } finally {
      socket.close()
    }
  }
}

/** Page through everything after `done`. This is also how a late joiner begins. */
async function heal() {
  for (;;) {
    const page = await ask({ type: 'replay', after: done, kinds: kinds ?? null })
    if (page.type !== 'page') throw new Error(`the feed refused: ${page.reason}`)
    if (journal && page.journal !== journal) {
      console.error('another journal: beginning again')
      forget(page.journal)
      continue
    }
    if (page.first > done + 1) console.error(`history is truncated: it begins at ${page.first}`)
    page.events.forEach(take);
    [journal, done] = [page.journal, num(page.upto)]
    if (done >= page.head) return
  }
}

function take(event) {
  const seq = num(event.seq)
  if (events.has(seq)) return
  events.set(seq, event)
  last.set(topicOf(event.stream, event.kind), seq)
  const body = event.purged ? {} : decode(event.body)
  if (body.type === 'purged') {
    for (const [from, to] of body.seqs) {
      for (let s = num(from); s <= to; s++) if (events.has(s)) Object.assign(events.get(s), { body: null, purged: true })
    }
  } else if (['transcript', 'suppressed', 'gap'].includes(body.type) && !args.quiet) {
    const second = Math.floor(num(body.span[0]) / 16000)
    const clock = [Math.floor(second / 60), second % 60].map((n) => String(n).padStart(2, '0')).join(':')
    const note = body.type === 'transcript' ? '' : `(${body.type}: ${body.reason}) `
    console.log(`${event.stream} ${clock} ${note}${body.text ?? ''}`)
  }
}

async function live(event) {
  const [seq, prev] = [num(event.seq), num(event.prev)]
  if (seq <= done || events.has(seq) || (kinds && !kinds.includes(event.kind))) return
  const whole = kinds ? prev <= done || prev === last.get(topicOf(event.stream, event.kind)) : seq === done + 1
  if (!whole) return heal()
  take(event)
  if (!kinds) done = seq
}

/** The last messages of a topic have no successor whose `prev` could show that they were lost. */
async function beat(beat) {
  const near = run.feed === beat.feed && beat.up_s - run.up_s < 50 // then it leaves no changed stream out
  run = { feed: beat.feed, up_s: Number(beat.up_s) }
  if (beat.journal !== journal) return heal()
  const lost = Object.entries(beat.streams).some(([stream, b]) => Object.entries(b.heads).some(
    ([kind, seq]) => kinds?.includes(kind) && seq > Math.max(done, last.get(topicOf(stream, kind)) ?? 0)))
  if (beat.head <= done) return
  if (!kinds || lost || !near) return heal()
  done = num(beat.head)
}

function stateHash(upto) {
  const digest = createHash('sha256')
  for (const [seq, e] of [...events].sort(([a], [b]) => a - b)) {
    if (seq > upto || (wanted && !wanted.includes(e.kind))) continue
    const body = e.purged ? 'purged' : createHash('sha256').update(e.body).digest('hex')
    digest.update(`${seq} ${e.prev} ${e.stream} ${e.kind} ${e.producer} ${e.n} ${e.at_ns} ${body}\n`)
  }
  return digest.digest('hex')
}

const sub = new Subscriber({ ...curve, linger: 0, receiveHighWaterMark: 20000 })
sub.connect(args.pub)
sub.subscribe('beat', ...(kinds ? kinds.map((k) => `event.${k}`) : ['event.']))
forget('')
await heal()
const end = args.until ? num(args.until) : done
while (!args['exit-at-head'] || done < end) {
  const [topic, payload] = await sub.receive()
  if (loss.next() < num(args.drop)) continue
  await (topic.toString() === 'beat' ? beat : live)(decode(payload))
}
console.log(`head ${end} sha256 ${stateHash(end)}`)
process.exit(0)
