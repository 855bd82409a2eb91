/** A platform without native code for QUIC: simulated, since the one that runs this has it. */
import { expect, it, vi } from 'vitest'
import type { Log } from '../../../agent/log.ts'
import { addressesOf, join, LOOPBACK, startHost } from './nodes.ts'

vi.mock('@chainsafe/libp2p-quic', () => {
  throw new Error('no native code for this platform')
})

it('a host without QUIC says so once, and does with TCP, also when it was told to listen on both', async () => {
  const told: string[] = []
  const note = (_: unknown, event: string) => void told.push(event)
  const log = { debug: () => undefined, info: () => undefined, warn: note, error: note } as unknown as Log
  const [a, b] = [await startHost({ log }), await startHost({ listen: [LOOPBACK, '/ip4/127.0.0.1/udp/0/quic-v1'] })]
  await join(a, b)
  expect(a.isDirect(b.peerId)).toBe(true)
  expect(addressesOf(b).every((address) => address.toString().includes('/tcp/'))).toBe(true)
  expect(told.filter((event) => event === 'quic.unavailable')).toHaveLength(1)
})
