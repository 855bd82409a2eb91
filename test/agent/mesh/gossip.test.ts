/** Topics over real hosts on loopback: what is passed on, what is not, and what a late comer gets. */
import { randomBytes } from 'node:crypto'
import { describe, expect, test } from 'vitest'
import { MESSAGE_BYTES_MAX, Topic, type Validate } from '../../../agent/mesh/gossip.ts'
import type { Host } from '../../../agent/mesh/host.ts'
import { join, pubsubOf, quiet, startHost, until } from './nodes.ts'

function take(host: Host, validate: Validate = () => 'accept') {
  const topic = Topic.join(pubsubOf(host), '/test/topic', quiet)
  const got: { bytes: Uint8Array; from: string }[] = []
  topic.subscribe((bytes, from) => {
    got.push({ bytes: Uint8Array.from(bytes), from })
    return validate(bytes, from)
  })
  return { topic, got }
}

describe('Topic', () => {
  test('a message passes over a node that accepts it, and arrives once', async () => {
    const hosts = await Promise.all([startHost(), startHost(), startHost()])
    const [a, b, c] = hosts as [Host, Host, Host]
    const [ta, tb, tc] = [take(a), take(b), take(c)]
    await Promise.all([join(a, b), join(c, b)])
    await until(
      'all know of the topic',
      () => ta.topic.subscribers().length === 1 && tb.topic.subscribers().length === 2,
    )
    const bytes = randomBytes(MESSAGE_BYTES_MAX)
    expect(await ta.topic.publish(bytes)).toBe(1)
    await until('it arrives', () => tc.got.length === 1)
    expect(Buffer.from(tc.got[0]?.bytes ?? []).equals(bytes)).toBe(true)
    expect(tc.got[0]?.from).toBe(b.peerId)
    expect(tb.got).toHaveLength(1)
    expect(ta.got).toHaveLength(0)
  })

  test('what a node ignores or rejects goes no further; three rejects and the sender is not heard any more', async () => {
    const hosts = await Promise.all([startHost(), startHost(), startHost()])
    const [a, b, c] = hosts as [Host, Host, Host]
    const ta = take(a)
    const tb = take(b, (bytes) => (bytes[0] === 0 ? 'reject' : bytes[0] === 1 ? 'ignore' : 'accept'))
    const tc = take(c)
    await Promise.all([join(a, b), join(c, b)])
    await until(
      'all know of the topic',
      () => ta.topic.subscribers().length === 1 && tb.topic.subscribers().length === 2,
    )
    await ta.topic.publish(Uint8Array.of(1, 1))
    await ta.topic.publish(Uint8Array.of(2, 1))
    await until('what is accepted arrives', () => tc.got.length === 1)
    expect(tc.got[0]?.bytes).toEqual(Uint8Array.of(2, 1))
    for (const number of [1, 2, 3]) await ta.topic.publish(Uint8Array.of(0, number))
    await until('three are rejected', () => tb.got.length === 5)
    await until('the sender is ignored', async () => {
      const before = tb.got.length
      await ta.topic.publish(randomBytes(16).fill(2, 0, 1))
      await new Promise((resolve) => setTimeout(resolve, 300))
      return tb.got.length === before
    })
    expect(await tc.topic.publish(Uint8Array.of(2, 2))).toBe(1)
    await until('others are heard', () => tb.got.some(({ bytes }) => bytes[1] === 2 && bytes.length === 2))
  })

  test('alone, a message reaches nobody, which is no error; one too large is', async () => {
    const { topic } = take(await startHost())
    expect(await topic.publish(Uint8Array.of(1))).toBe(0)
    await expect(topic.publish(new Uint8Array(MESSAGE_BYTES_MAX + 1))).rejects.toThrow(RangeError)
  })

  test('gossip goes on after a connection was replaced by another', async () => {
    for (let round = 0; round < 5; round++) {
      const [a, b] = await Promise.all([startHost(), startHost()])
      const [ta, tb] = [take(a), take(b)]
      await Promise.allSettled([join(a, b), join(b, a)])
      await until(
        'both know of the topic',
        () => ta.topic.subscribers().length === 1 && tb.topic.subscribers().length === 1,
      )
      expect(await ta.topic.publish(Uint8Array.of(round, 1))).toBe(1)
      expect(await tb.topic.publish(Uint8Array.of(round, 2))).toBe(1)
      await until('both hear', () => ta.got.length === 1 && tb.got.length === 1)
    }
  })

  test('who connects a moment after a message passed still gets it', async () => {
    const [a, b, c] = await Promise.all([startHost(), startHost(), startHost()])
    const [ta, tb, tc] = [take(a), take(b), take(c)]
    await join(a, b)
    await until('both know of the topic', () => ta.topic.subscribers().length === 1)
    await ta.topic.publish(Uint8Array.of(1, 2, 3))
    await until('b has it', () => tb.got.length === 1)
    await join(c, b)
    await until('c has it', () => tc.got.length === 1, 4_000)
  })

  test('a topic can be left and joined again', async () => {
    const [a, b] = await Promise.all([startHost(), startHost()])
    const ta = take(a)
    take(b).topic[Symbol.dispose]()
    const again = take(b)
    await join(a, b)
    await until('known', () => ta.topic.subscribers().length === 1)
    await ta.topic.publish(Uint8Array.of(7))
    await until('it arrives', () => again.got.length === 1)
  })
})
