/** A peer that gossips more than we can work on is slowed down, and one that breaks gossipsub's rules is cut off; nobody else notices. */
import { randomBytes } from 'node:crypto'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { setTimeout as delay } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { Topic } from '../../../agent/mesh/gossip.ts'
import { Turns } from '../../../agent/mesh/gossip-intake.ts'
import { join, pubsubOf, quiet, startHost, until } from './nodes.ts'

const MESSAGES = 3_000
/** Of work on each message. */
const WORK_MS = 0.5

function work(): void {
  for (const endMs = performance.now() + WORK_MS; performance.now() < endMs; );
}

test('a flood of messages is worked on, and the event loop has its turns', async () => {
  const [a, b] = [await startHost(), await startHost()]
  const [from, to] = [Topic.join(pubsubOf(a), 't', quiet), Topic.join(pubsubOf(b), 't', quiet)]
  let taken = 0
  to.subscribe(() => {
    taken++
    work()
    return 'accept'
  })
  await join(b, a)
  await until('they gossip', () => from.subscribers().length === 1)
  const loop = monitorEventLoopDelay({ resolution: 5 })
  await Promise.all(Array.from({ length: MESSAGES }, () => from.publish(randomBytes(200))))
  loop.enable()
  await until('all have come', () => taken === MESSAGES, 30_000)
  loop.disable()
  expect(loop.max / 1e6).toBeLessThan(MESSAGES * WORK_MS * 0.5)
})

test('a stream that claims a message of a gigabyte is reset, and the rest of the connection stays', async () => {
  const [a, b] = [await startHost(), await startHost()]
  const topics = [Topic.join(pubsubOf(a), 't', quiet), Topic.join(pubsubOf(b), 't', quiet)]
  await join(a, b)
  await until('they gossip', () => topics.every((topic) => topic.subscribers().length === 1))
  const stream = await a.openStream(b.peerId, '/meshsub/1.2.0', AbortSignal.timeout(5_000))
  stream.send(Uint8Array.of(0x80, 0x80, 0x80, 0x80, 0x04))
  stream.send(new Uint8Array(1_000))
  await until('it is reset', () => stream.status !== 'open')
  expect((await a.ping(b.peerId, AbortSignal.timeout(5_000))).rttMs).toBeGreaterThan(0)
})

test('turns are taken now and then, and at once where nothing else goes on', async () => {
  const turns = new Turns()
  let others = 0
  const ticking = setInterval(() => others++, 0)
  for (let nth = 0; nth < 100; nth++) {
    await turns.take()
    work()
  }
  clearInterval(ticking)
  expect(others).toBeGreaterThan(2)
})

test('work that comes after a pause does not wait for a turn', async () => {
  const turns = new Turns()
  for (const pauseMs of [0, 30, 30]) {
    await delay(pauseMs)
    let isNextTurn = false
    setImmediate(() => {
      isNextTurn = true
    })
    await turns.take()
    expect(isNextTurn).toBe(false)
  }
})
