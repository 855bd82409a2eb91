/** Tunnels that are open: within bounds, and noted when they are over. */
import { EventEmitter } from 'node:events'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import type { AuditFields } from '../../../agent/identity/audit.ts'
import { DATAGRAM_IDLE_MS_MAX, type Flow, Flows } from '../../../agent/routing/flows.ts'

const MINUTE_MS = 60_000

class FakeStream extends EventEmitter {
  sentBytes = 10
  receivedBytes = 1
  heldBytes = 0
  activeMs = performance.now()
  destroyed = false

  destroy(): void {
    this.destroyed = true
    this.emit('close')
  }
}

const flow = (stream: FakeStream, more: Partial<Flow> = {}): Flow => ({
  direction: 'in',
  network: 'home',
  service: 'web',
  peerId: 'id',
  node: 'pear',
  carrier: 'tcp',
  path: 'direct',
  ...more,
  stream,
})

describe('open tunnels', () => {
  let audit: AuditFields[]
  let flows: Flows
  beforeEach(() => {
    vi.useFakeTimers()
    audit = []
    flows = new Flows({ append: (fields) => void audit.push(fields) })
  })
  afterEach(() => {
    flows[Symbol.dispose]()
    vi.useRealTimers()
  })

  it('are noted when they end: the first at once, those alike together once a minute', () => {
    for (let nth = 0; nth < 100; nth++) {
      const stream = new FakeStream()
      flows.add(flow(stream))
      stream.destroy()
    }
    expect(audit).toMatchObject([
      { event: 'flow.served', name: 'pear', service: 'web', path: 'direct', flows: 1, sentBytes: 10 },
    ])
    vi.advanceTimersByTime(MINUTE_MS)
    expect(audit.slice(1)).toMatchObject([{ flows: 99, sentBytes: 990, receivedBytes: 99 }])
    vi.advanceTimersByTime(10 * MINUTE_MS)
    expect(audit).toHaveLength(2)
  })

  it('are noted at the end of the agent, too, and one that was closed before counts', () => {
    flows.add(flow(new FakeStream(), { direction: 'out' }))
    const closed = new FakeStream()
    closed.destroyed = true
    flows.add(flow(closed))
    expect(flows.list()).toHaveLength(1)
    flows[Symbol.dispose]()
    expect(audit.map(({ event }) => event)).toEqual(['flow.served', 'flow.used'])
  })

  it('end when they are idle: those of datagrams soon, streams late', () => {
    const [stream, datagrams] = [new FakeStream(), new FakeStream()]
    flows.add(flow(stream))
    flows.add(flow(datagrams, { carrier: 'udp' }))
    vi.advanceTimersByTime(DATAGRAM_IDLE_MS_MAX - MINUTE_MS)
    expect(datagrams.destroyed).toBe(false)
    vi.advanceTimersByTime(2 * MINUTE_MS)
    expect([stream.destroyed, datagrams.destroyed]).toEqual([false, true])
    vi.advanceTimersByTime(130 * MINUTE_MS)
    expect(stream.destroyed).toBe(true)
  })

  it('lose those that hold the most when memory is short, and no more', () => {
    const streams = [10, 100, 60].map((mib) => Object.assign(new FakeStream(), { heldBytes: mib * 2 ** 20 }))
    for (const stream of streams) flows.add(flow(stream))
    vi.advanceTimersByTime(5_000)
    expect(streams.map(({ destroyed }) => destroyed)).toEqual([false, true, false])
  })

  it('are so many at most', () => {
    for (let nth = 0; nth < 4_096; nth++) flows.add(flow(new FakeStream()))
    expect(flows.isFull).toBe(true)
    expect(flows.cut(({ service }) => service === 'web', 'enough')).toBe(4_096)
    expect(flows.isFull).toBe(false)
  })
})
