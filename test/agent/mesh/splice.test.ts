/** Two real streams made one, as a relay does it. */
import { setImmediate as turn } from 'node:timers/promises'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import type { Stream } from '@libp2p/interface'
import { tcp } from '@libp2p/tcp'
import { createLibp2p } from 'libp2p'
import { expect, onTestFinished, test } from 'vitest'
import { splice } from '../../../agent/mesh/splice.ts'
import { LOOPBACK, until } from './nodes.ts'

const BYTES = 3 * 1024 * 1024

/** A client's stream, the relay's two, and the other peer's. */
async function carried(): Promise<{ client: Stream; relay: [Stream, Stream]; peer: Stream }> {
  const nodes = await Promise.all(
    ['client', 'relay', 'peer'].map(() =>
      createLibp2p({
        addresses: { listen: [LOOPBACK] },
        transports: [tcp()],
        connectionEncrypters: [noise()],
        streamMuxers: [yamux()],
        connectionGater: { denyDialMultiaddr: () => false },
      }),
    ),
  )
  const [from, relay, to] = nodes as [(typeof nodes)[0], (typeof nodes)[0], (typeof nodes)[0]]
  onTestFinished(async () => void (await Promise.all(nodes.map((node) => node.stop() as Promise<void>))))
  const inbound = Promise.withResolvers<Stream>()
  const arrived = Promise.withResolvers<Stream>()
  await relay.handle('/test/1', (stream) => inbound.resolve(stream))
  await to.handle('/test/1', (stream) => arrived.resolve(stream))
  const client = await from.dialProtocol(relay.getMultiaddrs(), '/test/1')
  const outbound = await relay.dialProtocol(to.getMultiaddrs(), '/test/1')
  return { client, relay: [await inbound.promise, outbound], peer: await arrived.promise }
}

test('a relay holds no more for a peer that makes room by the byte, and all arrives', async () => {
  const { client, relay, peer } = await carried()
  const [inbound, outbound] = relay
  const spliced = splice(inbound, outbound)
  peer.pause()
  for (let sent = 0; sent < BYTES; sent += 65_536) client.send(new Uint8Array(65_536))
  await until('the relay has to wait', () => outbound.writeBufferLength > 0 && inbound.readStatus === 'paused')
  const queuedBytes = outbound.writeBufferLength
  for (let nth = 0; nth < 50; nth++) {
    outbound.dispatchEvent(new Event('drain'))
    await turn()
  }
  expect(outbound.writeBufferLength).toBeLessThanOrEqual(queuedBytes)
  let receivedBytes = 0
  peer.addEventListener('message', ({ data }) => {
    receivedBytes += data.byteLength
  })
  peer.resume()
  await until('all is there', () => receivedBytes === BYTES)
  await Promise.all([client.close(), peer.close()])
  expect(await spliced).toBe(BYTES)
})
