/** What the local Nix is answered of paths that are in peers' stores and were published by nobody. */
import { beforeEach, describe, expect, it } from 'vitest'
import type { Holder } from '../../../agent/catalog/filters.ts'
import { CacheKey, isSignedBy } from '../../../agent/nix/signing.ts'
import type { StorePath } from '../../../agent/nix/store-paths.ts'
import { publisher, Receiver } from './cache.ts'
import { FakeNix, hashPartOf } from './nix-database.ts'
import { sha256 } from './peers.ts'

const HOME = 'ab'.repeat(32)
const builder = CacheKey.ephemeral('builder')
const field = (body: string, name: string) => new RegExp(`^${name}: (.*)$`, 'm').exec(body)?.[1] ?? ''
let asked: string[]
beforeEach(() => {
  asked = []
})

/** A receiver, and a path that is in the stores of these peers. */
async function made(nix: FakeNix, peerIds: readonly string[], say: (path: StorePath) => StorePath = (path) => path) {
  const leaf = await nix.add('leaf', 'l'.repeat(100_000))
  const info = nix.store.info(leaf)
  if (!info) throw new Error('it was just added')
  const deriver = `${nix.directory}/${'0'.repeat(32)}-leaf.drv`
  const truth: StorePath = { ...info, signatures: [builder.sign(info)], deriver }
  const here = new Receiver(nix.store)
  const holders = peerIds.map((peerId): Holder => ({ peerId, signer: builder.publicKey.text, network: HOME }))
  here.storesOf = (hashPart) => (hashPart === hashPartOf(leaf) ? holders : [])
  here.askStore = async (peerId, network, hashPart) => {
    asked.push(`${peerId} ${network === HOME} ${hashPart === hashPartOf(leaf)}`)
    return peerId.startsWith('empty') ? undefined : say(truth)
  }
  const { holds } = await publisher('nobody', nix.store, leaf)
  for (const peerId of peerIds) here.peers.peers.set(peerId, { holds })
  return { here, leaf, info, url: `/nix/${hashPartOf(leaf)}.narinfo` }
}

describe('a path in the stores of peers', () => {
  it('is answered for when it is believed, and its NAR comes from any of them', async () => {
    using nix = new FakeNix()
    const { here, info, url } = await made(nix, ['empty-1', 'full-1', 'full-2'])
    await using _here = here
    here.signers.set(HOME, [builder.publicKey])
    const { body, statusCode } = await here.server.inject(url)
    expect(statusCode).toBe(200)
    expect(field(body, 'StorePath')).toBe(info.path)
    expect(field(body, 'Deriver')).toBe(`${'0'.repeat(32)}-leaf.drv`)
    expect(isSignedBy(here.key.publicKey, info, field(body, 'Sig'))).toBe(true)
    const nar = await here.server.inject(`/nix/${field(body, 'URL')}`)
    expect(sha256(nar.rawPayload)).toBe(info.narHash)
    expect(here.peers.asked.every(({ network }) => network === HOME)).toBe(true)
    // By now the first has been asked too, for what it does not have: that is no fault.
    expect(here.faults).toEqual([])
  })

  it('is refused, and told of, when nobody who is trusted signed it', async () => {
    using nix = new FakeNix()
    const { here, url, info } = await made(nix, ['full-1'])
    await using _here = here
    const { body, statusCode } = await here.server.inject(url)
    expect([statusCode, body]).toEqual([404, expect.stringContaining(`full-1: ${info.path}: it is signed by builder`)])
    expect(here.faults).toMatchObject([
      { peerId: 'full-1', code: 'untrusted', next: expect.stringContaining('agent trust add') },
    ])
    // In another network that key may sign; here it may not.
    here.signers.set('cd'.repeat(32), [builder.publicKey])
    expect((await here.server.inject(url)).statusCode).toBe(404)
  })

  it('is not taken when it was altered, or is of another store', async () => {
    using nix = new FakeNix()
    const altered = await made(nix, ['liar'], (path) => ({ ...path, narSize: path.narSize + 1 }))
    await using _one = altered.here
    altered.here.signers.set(HOME, [builder.publicKey])
    expect((await altered.here.server.inject(altered.url)).statusCode).toBe(404)
    expect(altered.here.faults).toMatchObject([{ code: 'forged' }])
    const elsewhere = await made(nix, ['other'], (path) => ({
      ...path,
      path: path.path.replace(nix.directory, '/gnu/store'),
    }))
    await using _two = elsewhere.here
    elsewhere.here.signers.set(HOME, [builder.publicKey])
    expect((await elsewhere.here.server.inject(elsewhere.url)).statusCode).toBe(404)
  })

  it('is asked of nobody when no filter has it', async () => {
    using nix = new FakeNix()
    const { here } = await made(nix, ['full-1'])
    await using _here = here
    const { statusCode } = await here.server.inject(`/nix/${'0'.repeat(32)}.narinfo`)
    expect([statusCode, asked]).toEqual([404, []])
  })

  it('is waited for within the budget, whoever is silent', async () => {
    using nix = new FakeNix()
    const { here, url } = await made(nix, ['mute-1', 'mute-2', 'mute-3'])
    await using _here = here
    here.askStore = (_peerId, _network, _hashPart, signal) =>
      new Promise((_resolve, reject) => signal.addEventListener('abort', () => reject(new Error('late'))))
    const startMs = performance.now()
    expect((await here.server.inject(url)).statusCode).toBe(404)
    expect(performance.now() - startMs).toBeLessThan(3_000)
  })
})
