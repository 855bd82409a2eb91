/** A peer that was too busy to tell its protocols when it connected is asked again. */
import type { Connection } from '@libp2p/interface'
import { expect, onTestFinished, test, vi } from 'vitest'
import { Identifying } from '../../../agent/mesh/identifying.ts'
import { join, quiet, startHost, until } from './nodes.ts'

const WAIT_MS = 10

/** Each fails with what it is asked first. */
vi.mock(import('@libp2p/identify'), async (original) => {
  const real = await original()
  const identify: typeof real.identify = (init) => (components) => {
    const service = real.identify(init)(components)
    const first = vi.spyOn(service, 'identify').mockRejectedValueOnce(new Error('too busy'))
    onTestFinished(() => expect(first.mock.calls.length).toBeGreaterThan(1))
    return service
  }
  return { ...real, identify }
})

function made(answer: (nth: number) => Promise<unknown>) {
  let asked = 0
  const identifying = new Identifying({ ask: () => answer(++asked), log: quiet, waitMs: WAIT_MS })
  onTestFinished(() => identifying[Symbol.dispose]())
  const connection = {
    status: 'open',
    remotePeer: 'pear',
    abort: () => {
      connection.status = 'aborted'
    },
  }
  return { identifying, connection: connection as unknown as Connection, asked: () => asked }
}

const silent = () => Promise.reject(new Error('no answer'))
const rest = () => new Promise((resolve) => setTimeout(resolve, 10 * WAIT_MS))

test('until it answers', async () => {
  const { identifying, connection, asked } = made((nth) => {
    if (nth < 3) return silent()
    identifying.add(connection)
    return Promise.resolve()
  })
  identifying.watch(connection)
  expect(identifying.has(connection)).toBe(false)
  await until('it is known', () => identifying.has(connection))
  await rest()
  expect([asked(), connection.status]).toEqual([3, 'open'])
})

test('and its connection is ended when it never does', async () => {
  const { identifying, connection, asked } = made(silent)
  identifying.watch(connection)
  await until('it is ended', () => connection.status === 'aborted')
  expect(asked()).toBe(3)
})

test('unless it has answered, is gone, or nobody is to be asked any more', async () => {
  const known = made(silent)
  known.identifying.watch(known.connection)
  known.identifying.add(known.connection)
  const gone = made(silent)
  gone.identifying.watch(gone.connection)
  gone.connection.abort(new Error('gone'))
  const stopped = made(silent)
  stopped.identifying.watch(stopped.connection)
  stopped.identifying[Symbol.dispose]()
  stopped.identifying.watch(stopped.connection)
  await rest()
  expect([known, gone, stopped].map(({ asked }) => asked())).toEqual([0, 0, 0])
})

test('so that hosts that did not answer each other at first are told of all the same', async () => {
  const [near, far] = [await startHost(), await startHost()]
  const told: string[] = []
  for (const host of [near, far]) host.onPeer((peerId) => told.push(peerId))
  await join(near, far)
  await until('each is told of', () => told.length === 2, 20_000)
  expect(told.sort()).toEqual([near.peerId, far.peerId].sort())
}, 30_000)
