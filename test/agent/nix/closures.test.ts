/** Manifests of peers: fetched once, kept while there is room, and not asked for again and again when it fails. */
import { expect, it, vi } from 'vitest'
import { OPEN_NETWORK_ID } from '../../../agent/content/publication-key.ts'
import { Closures } from '../../../agent/nix/closures.ts'
import {
  encodeManifest,
  encodeSignatures,
  manifestCid,
  type NixArtifactBody,
} from '../../../protocols/artifact/artifact.ts'
import { MemoryBlobs, MemoryPeers } from './peers.ts'

const never = new AbortController().signal
type Body = Pick<NixArtifactBody, 'cid' | 'signatures'>

/** A peer with closures of `count` paths each. */
function network(now?: () => number) {
  const theirs = new MemoryBlobs()
  const blobs = new MemoryBlobs()
  const peers = new MemoryPeers(blobs)
  peers.peers.set('peer', { holds: theirs })
  const closures = new Closures({ blobs, fetcher: peers, ...(now && { now }) })
  const publish = async (nth: number, count = 1): Promise<Body> => {
    const paths = Array.from({ length: count }, (_, at) => ({
      path: `/nix/store/${`${nth}x${at.toString().padStart(6, '0')}`.padStart(32, '0')}-p`,
      nar: new Uint8Array(32),
      sizeBytes: 1,
      references: [],
    }))
    const manifest = encodeManifest({ v: 1, type: 'closure', root: 0, paths })
    const signatures = encodeSignatures(paths.map(() => []))
    for (const bytes of [manifest, signatures]) await theirs.write(undefined, [bytes], never)
    return { cid: manifestCid(manifest), signatures: manifestCid(signatures) }
  }
  return { blobs, peers, closures, publish, theirs }
}

const from = (body: Body, ...sources: string[]) => ({ body, network: OPEN_NETWORK_ID, sources: () => sources })

it('are fetched once for all who ask, and answered from memory after', async () => {
  const { closures, peers, publish } = network()
  const body = await publish(1, 3)
  const all = await Promise.all(Array.from({ length: 5 }, () => closures.load(from(body, 'peer'), never)))
  expect(all.every((closure) => closure === all[0])).toBe(true)
  expect([...(all[0]?.paths() ?? [])]).toHaveLength(3)
  expect(peers.asked).toHaveLength(2)
  expect(closures.peek(body)).toBe(all[0])
  expect(closures.delayMs({ body, network: OPEN_NETWORK_ID })).toBe(0)
})

it('that failed are not asked for again at once, but later', async () => {
  let now = 0
  const { closures, peers, publish, theirs } = network(() => now)
  const body = await publish(1)
  const held = new Map(theirs.blobs)
  theirs.blobs.clear()
  await expect(closures.load(from(body, 'peer'), never)).rejects.toMatchObject({ code: 'not-found' })
  const asked = peers.asked.length
  expect(closures.delayMs({ body, network: OPEN_NETWORK_ID })).toBe(Number.POSITIVE_INFINITY)
  await expect(closures.load(from(body, 'peer'), never)).rejects.toMatchObject({ code: 'not-found' })
  expect(peers.asked).toHaveLength(asked)
  for (const [digest, bytes] of held) theirs.blobs.set(digest, bytes)
  now = 60_000
  expect(closures.delayMs({ body, network: OPEN_NETWORK_ID })).toBe(0)
  expect((await closures.load(from(body, 'peer'), never)).pathCount).toBe(1)
})

it('that failed in one network are asked for in another, and are shared once they are here', async () => {
  const { closures, peers, publish } = network()
  const closed = 'c1'.repeat(32)
  const body = await publish(1)
  peers.peers.set('empty', { holds: new MemoryBlobs() })
  await expect(closures.load(from(body, 'empty'), never)).rejects.toMatchObject({ code: 'not-found' })
  const inClosed = { ...from(body, 'peer'), network: closed }
  expect([closures.delayMs(from(body)), closures.delayMs(inClosed)]).toEqual([Number.POSITIVE_INFINITY, 0])
  const closure = await closures.load(inClosed, never)
  expect(await closures.load(from(body, 'empty'), never)).toBe(closure)
  expect(new Set(peers.asked.map(({ peerId, network }) => `${peerId} ${network}`))).toEqual(
    new Set([`empty ${OPEN_NETWORK_ID}`, `peer ${closed}`]),
  )
})

it('go on loading when who asked has no more time, for whoever asks next', async () => {
  let now = 0
  const { closures, peers, publish, theirs } = network(() => now)
  const body = await publish(1)
  let release = () => {}
  const held = new Promise<void>((resolve) => {
    release = resolve
  })
  peers.peers.set('peer', { holds: { open: async (digest) => held.then(() => theirs.open(digest)) } })
  const deadline = new AbortController()
  const waiting = closures.load(from(body, 'peer'), deadline.signal)
  deadline.abort()
  await expect(waiting).rejects.toThrow(/abort/)
  now = 5_000
  expect(closures.delayMs({ body, network: OPEN_NETWORK_ID })).toBe(5_000)
  release()
  await vi.waitFor(() => expect(closures.peek(body)).toBeDefined())
})

it('make room for each other, those unused for longest first', async () => {
  const { closures, publish } = network()
  const bodies: Body[] = []
  for (let nth = 1; nth <= 6; nth++) bodies.push(await publish(nth, 10_000))
  for (const body of bodies.slice(0, 5)) await closures.load(from(body, 'peer'), never)
  expect(closures.peek(bodies[0] as Body)).toBeDefined()
  await closures.load(from(bodies[5] as Body, 'peer'), never)
  expect(bodies.map((body) => closures.peek(body) !== undefined)).toEqual([true, false, true, true, true, true])
})

it('are bounded while they are under way', async () => {
  const { closures, peers, publish } = network()
  peers.peers.set('hung', { holds: new MemoryBlobs(), hangs: true })
  const loads: Promise<unknown>[] = []
  for (let nth = 0; nth < 257; nth++) loads.push(closures.load(from(await publish(nth), 'hung'), never))
  await expect(loads[256]).rejects.toMatchObject({ code: 'limit' })
  const ended = Promise.allSettled(loads)
  await closures[Symbol.asyncDispose]()
  expect((await ended).every(({ status }) => status === 'rejected')).toBe(true)
})
