/** What the local Nix is answered: own paths, paths of peers, and nothing else; and whom a refusal names. */
import { describe, expect, it, vi } from 'vitest'
import { OPEN_NETWORK_ID } from '../../../agent/content/publication-key.ts'
import { AgentError } from '../../../agent/error.ts'
import { CacheKey, isSignedBy } from '../../../agent/nix/signing.ts'
import { publisher, Receiver, restate } from './cache.ts'
import { FakeNix, hashPartOf } from './nix-database.ts'
import { sha256 } from './peers.ts'

async function closureOn(nix: FakeNix) {
  const leaf = await nix.add('leaf', 'l'.repeat(200_000))
  const root = await nix.add('root', 'r', { references: ['self', leaf] })
  return { leaf, root }
}

const empty = Promise.resolve(undefined)
const narinfoUrl = (path: string) => `/nix/${hashPartOf(path)}.narinfo`
const field = (body: string, name: string) => new RegExp(`^${name}: (.*)$`, 'm').exec(body)?.[1] ?? ''
const narUrl = (narinfo: string) => `/nix/${field(narinfo, 'URL')}`

it('says what kind of cache it is', async () => {
  using nix = new FakeNix()
  await using here = new Receiver(nix.store)
  const { body, statusCode } = await here.server.inject('/nix/nix-cache-info')
  expect(statusCode).toBe(200)
  expect(body).toBe(`StoreDir: ${nix.directory}\nWantMassQuery: 1\nPriority: 30\n`)
})

it('answers for an own published path from the store, signed with the own key', async () => {
  using nix = new FakeNix()
  const { root, leaf } = await closureOn(nix)
  await using here = new Receiver(nix.store)
  await here.publish(root)
  for (const path of [root, leaf]) {
    const { body, statusCode } = await here.server.inject(narinfoUrl(path))
    expect(statusCode).toBe(200)
    const info = nix.store.info(path)
    expect(field(body, 'StorePath')).toBe(path)
    expect(field(body, 'NarSize')).toBe(`${info?.narSize}`)
    expect(isSignedBy(here.key.publicKey, info as never, field(body, 'Sig'))).toBe(true)
    const nar = await here.server.inject(narUrl(body))
    expect(sha256(nar.rawPayload)).toBe(info?.narHash)
    expect(nar.headers).toMatchObject({ 'accept-ranges': 'bytes', 'content-length': `${info?.narSize}` })
  }
  expect(here.blobs.blobs.size).toBe(2)
  expect(here.substituter.counts).toEqual({ hits: 2, misses: 0 })
})

it('answers for a path of a peer whose key is trusted, under the own signature, and fetches ahead', async () => {
  using nix = new FakeNix()
  using empty = new FakeNix()
  const { root, leaf } = await closureOn(nix)
  await using here = new Receiver(nix.store)
  expect(empty.store.info(root)).toBeUndefined()
  const other = await publisher('peer-a', nix.store, root)
  here.meet(other)
  here.trust.add(other.key.publicKey.text)
  for (const path of [root, leaf]) {
    const { body, statusCode } = await here.server.inject(narinfoUrl(path))
    expect(statusCode).toBe(200)
    const info = nix.store.info(path)
    expect(isSignedBy(here.key.publicKey, info as never, field(body, 'Sig'))).toBe(true)
    expect(body).toContain(`Sig: ${other.key.publicKey.name}:`)
    await vi.waitFor(() => expect(here.blobs.has(info?.narHash ?? '')).toBe(true))
    const nar = await here.server.inject(narUrl(body))
    expect(sha256(nar.rawPayload)).toBe(info?.narHash)
  }
})

it('answers 404 for what nobody publishes, and for what is no store path', async () => {
  using nix = new FakeNix()
  await using here = new Receiver(nix.store)
  const hash = 'a'.repeat(32)
  for (const url of [
    `/nix/${hash}.narinfo`,
    '/nix/x.narinfo',
    `/nix/${hash}.ls`,
    '/nix/nar/x.nar',
    `/nix/nar/${'0'.repeat(52)}.nar`,
  ]) {
    for (const method of ['GET', 'HEAD'] as const) {
      expect((await here.server.inject({ url, method })).statusCode, url).toBe(404)
    }
  }
  expect(here.substituter.counts.hits).toBe(0)
  expect(here.faults).toEqual([])
})

it('refuses a path that no trusted key signed, naming peer and reason, and takes it once the key is trusted', async () => {
  using nix = new FakeNix()
  const { root, leaf } = await closureOn(nix)
  await using here = new Receiver(nix.store)
  const other = await publisher('peer-a', nix.store, root)
  here.meet(other)
  const { statusCode, body } = await here.server.inject(narinfoUrl(root))
  expect(statusCode).toBe(404)
  expect(body).toContain('peer-a')
  expect(body).toContain('does not trust')
  expect(here.faults).toMatchObject([{ peerId: 'peer-a', path: root, code: 'untrusted' }])
  expect(here.faults[0]?.next).toContain(`agent trust add ${other.key.publicKey.text}`)
  await here.server.inject(narinfoUrl(leaf))
  expect(here.faults).toHaveLength(1)
  here.trust.add(other.key.publicKey.text)
  expect((await here.server.inject(narinfoUrl(root))).statusCode).toBe(200)
})

it('takes a path that a member signed who may, in the network where that is so', async () => {
  using nix = new FakeNix()
  const { root } = await closureOn(nix)
  await using here = new Receiver(nix.store)
  const home = 'ab'.repeat(32)
  const other = await publisher('peer-a', nix.store, root, undefined, home)
  here.meet(other)
  expect((await here.server.inject(narinfoUrl(root))).statusCode).toBe(404)
  const refused = await here.substituter.refusal(other.candidate)
  expect(refused).toContain(
    `signed by ${other.key.publicKey.name}, which this agent does not trust; it needs a signature`,
  )
  here.signers.set(OPEN_NETWORK_ID, [other.key.publicKey])
  expect((await here.server.inject(narinfoUrl(root))).statusCode).toBe(404)
  here.signers.set(home, [other.key.publicKey])
  expect((await here.server.inject(narinfoUrl(root))).statusCode).toBe(200)
  expect(await here.substituter.refusal(other.candidate)).toBeUndefined()
})

it('refuses a forged narinfo, and takes the same path from an honest peer', async () => {
  using nix = new FakeNix()
  const { root } = await closureOn(nix)
  await using here = new Receiver(nix.store)
  const honest = await publisher('peer-honest', nix.store, root)
  const liar = await publisher('peer-liar', nix.store, root, honest.key)
  await restate(liar, (manifest) => {
    for (const entry of manifest.paths) entry.nar = new Uint8Array(32).fill(7)
    return manifest
  })
  here.trust.add(honest.key.publicKey.text)
  here.meet(liar)
  const refused = await here.server.inject(narinfoUrl(root))
  expect(refused.statusCode).toBe(404)
  expect(here.faults).toMatchObject([{ peerId: 'peer-liar', path: root, code: 'forged' }])
  here.meet(honest)
  const { statusCode, body } = await here.server.inject(narinfoUrl(root))
  expect(statusCode).toBe(200)
  expect(sha256((await here.server.inject(narUrl(body))).rawPayload)).toBe(nix.store.info(root)?.narHash)
})

it('refuses manifests that are not what the record says', async () => {
  using nix = new FakeNix()
  const { root, leaf } = await closureOn(nix)
  await using here = new Receiver(nix.store)
  const short = await publisher('peer-short', nix.store, root)
  await restate(short, (manifest) => manifest, [[]])
  const other = await publisher('peer-other', nix.store, leaf)
  other.candidate.body.cid = other.candidate.body.signatures
  here.meet(short)
  here.meet(other)
  expect((await here.server.inject(narinfoUrl(leaf))).statusCode).toBe(404)
  expect(here.faults.map(({ peerId, code }) => `${peerId} ${code}`).sort()).toEqual([
    'peer-other malformed',
    'peer-short malformed',
  ])
})

it('passes on no text of a peer that is not a signature or the content address', async () => {
  using nix = new FakeNix()
  const { root } = await closureOn(nix)
  await using here = new Receiver(nix.store)
  const other = await publisher('peer-a', nix.store, root)
  here.trust.add(other.key.publicKey.text)
  const injected = 'x\nReferences: \nCA: fixed:r:sha256:0'
  const signatures = other.manifest.paths.map(({ path }) => [
    injected,
    `${other.key.publicKey.name}:AAAA\nStorePath: /x`,
    other.key.sign(nix.store.info(path) as never),
  ])
  await restate(
    other,
    (manifest) => {
      for (const entry of manifest.paths) entry.ca = injected
      return manifest
    },
    signatures,
  )
  here.meet(other)
  const { body, statusCode } = await here.server.inject(narinfoUrl(root))
  expect(statusCode).toBe(200)
  expect(body).not.toContain('CA:')
  expect(body.match(/^(StorePath|References|Sig):/gm)).toEqual(['StorePath:', 'References:', 'Sig:', 'Sig:'])
})

it('hands out a large NAR while it arrives', async () => {
  using nix = new FakeNix()
  const { root, leaf } = await closureOn(nix)
  await using here = new Receiver(nix.store, { wholeBytesMax: 100_000 })
  const other = await publisher('peer-a', nix.store, root)
  here.trust.add(other.key.publicKey.text)
  here.meet(other)
  const open = vi.spyOn(here.peers, 'open')
  const digest = nix.store.info(leaf)?.narHash ?? ''
  const { body } = await here.server.inject(narinfoUrl(leaf))
  expect(here.blobs.has(digest)).toBe(false)
  expect(sha256((await here.server.inject(narUrl(body))).rawPayload)).toBe(digest)
  expect(open).toHaveBeenCalledOnce()
})

it('takes a corrupt NAR from nobody, and the honest one from the next peer', async () => {
  using nix = new FakeNix()
  const { root, leaf } = await closureOn(nix)
  await using here = new Receiver(nix.store)
  const liar = await publisher('peer-liar', nix.store, root)
  const digest = nix.store.info(leaf)?.narHash ?? ''
  here.meet(liar, { lies: (asked) => asked === digest })
  here.trust.add(liar.key.publicKey.text)
  const { body } = await here.server.inject(narinfoUrl(leaf))
  const url = narUrl(body)
  expect((await here.server.inject(url)).statusCode).toBe(404)
  expect(here.log.events.find(({ event }) => event === 'nix.nar-failed')?.fields).toMatchObject({ path: leaf })
  expect(here.peers.faults[0]).toMatchObject({ peerId: 'peer-liar', digest })
  expect(here.substituter.pathOf(digest)).toBe(leaf)
  here.meet(await publisher('peer-honest', nix.store, root, liar.key))
  expect(sha256((await here.server.inject(url)).rawPayload)).toBe(digest)
})

it('answers within two seconds when a peer hangs, and at once the second time', async () => {
  using nix = new FakeNix()
  const { root, leaf } = await closureOn(nix)
  await using here = new Receiver(nix.store)
  here.meet(await publisher('peer-hung', nix.store, root), { hangs: true })
  const started = performance.now()
  expect((await here.server.inject(narinfoUrl(root))).statusCode).toBe(404)
  expect(performance.now() - started).toBeLessThan(2_000)
  const again = performance.now()
  for (const path of [leaf, root]) expect((await here.server.inject(narinfoUrl(path))).statusCode).toBe(404)
  expect(performance.now() - again).toBeLessThan(500)
})

it('does not wait for a hung peer when another answers', async () => {
  using nix = new FakeNix()
  const { root, leaf } = await closureOn(nix)
  const larger = await nix.add('larger', 'x', { references: [root] })
  await using here = new Receiver(nix.store)
  here.meet(await publisher('peer-hung', nix.store, root), { hangs: true })
  const honest = await publisher('peer-honest', nix.store, larger)
  here.meet(honest)
  here.trust.add(honest.key.publicKey.text)
  const started = performance.now()
  expect((await here.server.inject(narinfoUrl(leaf))).statusCode).toBe(200)
  expect(performance.now() - started).toBeLessThan(1_000)
})

it('vouches for a whole closure, or says of each publisher why not', async () => {
  using nix = new FakeNix()
  const { root } = await closureOn(nix)
  await using here = new Receiver(nix.store)
  const signal = AbortSignal.timeout(10_000)
  const stranger = await publisher('peer-stranger', nix.store, root)
  const { body } = stranger.candidate
  await expect(here.substituter.vouch(body, OPEN_NETWORK_ID, signal)).rejects.toMatchObject({ code: 'not-found' })
  here.meet(stranger)
  await expect(here.substituter.vouch(body, OPEN_NETWORK_ID, signal)).rejects.toMatchObject({
    code: 'not-allowed',
    message: expect.stringMatching(/peer-stranger: .*does not trust/),
    next: expect.stringContaining(`agent trust add ${stranger.key.publicKey.text}`),
  })
  // The same content, so the same CID, with the signatures of somebody who is trusted.
  const friend = await publisher('peer-friend', nix.store, root)
  here.meet(friend)
  here.trust.add(friend.key.publicKey.text)
  await here.substituter.vouch(body, OPEN_NETWORK_ID, signal)

  // One path of the closure forged, and not the one that it is named after.
  await using other = new Receiver(nix.store)
  const liar = await publisher('peer-liar', nix.store, root)
  await restate(liar, (manifest) => {
    for (const entry of manifest.paths) if (entry.path !== root) entry.sizeBytes += 8
    return manifest
  })
  other.meet(liar)
  other.trust.add(liar.key.publicKey.text)
  const forged = { code: 'corrupt', message: expect.stringMatching(/peer-liar: .*leaf: its signature/) }
  await expect(other.substituter.vouch(liar.candidate.body, OPEN_NETWORK_ID, signal)).rejects.toMatchObject(forged)
  expect(other.faults).toMatchObject([{ peerId: 'peer-liar', code: 'forged' }])
})

describe('in several networks', () => {
  const CLOSED = 'c1'.repeat(32)

  it('asks in each only whom its records name, and takes a NAR from another when the first fails', async () => {
    using nix = new FakeNix()
    const { root } = await closureOn(nix)
    await using here = new Receiver(nix.store)
    const key = CacheKey.ephemeral('builder')
    here.trust.add(key.publicKey.text)
    const isManifest = (digest: string) => digest !== nix.store.info(root)?.narHash
    const member = await publisher('peer-member', nix.store, root, key, CLOSED)
    const open = await publisher('peer-open', nix.store, root, key)
    here.meet(member)
    here.meet(open)
    // The member has the manifest, and no NAR.
    const half = { open: (digest: string) => (isManifest(digest) ? member.holds.open(digest) : empty) }
    here.peers.peers.set('peer-member', { holds: half })
    here.holders.set(OPEN_NETWORK_ID, ['peer-of-the-dht'])
    const url = narUrl((await here.server.inject(narinfoUrl(root))).body)
    expect(sha256((await here.server.inject(url)).rawPayload)).toBe(nix.store.info(root)?.narHash)
    const asked = new Set(here.peers.asked.map(({ peerId, network }) => `${peerId} ${network}`))
    expect(asked).toContain(`peer-member ${CLOSED}`)
    expect(asked).toContain(`peer-open ${OPEN_NETWORK_ID}`)
    for (const one of asked) {
      const [peerId, network] = one.split(' ')
      expect(network, one).toBe(peerId === 'peer-member' ? CLOSED : OPEN_NETWORK_ID)
    }
    expect(here.fetched.map(({ failure }) => failure)).toEqual([undefined])
  })

  it('asks nobody of one in another, where both publish the same', async () => {
    using nix = new FakeNix()
    const { root } = await closureOn(nix)
    await using here = new Receiver(nix.store)
    const key = CacheKey.ephemeral('builder')
    const member = await publisher('peer-member', nix.store, root, key, CLOSED)
    const open = await publisher('peer-open', nix.store, root, key)
    here.trust.add(key.publicKey.text)
    here.meet(member)
    here.meet(open)
    here.peers.peers.set('peer-member', { holds: { open: () => empty } })
    expect((await here.server.inject(narinfoUrl(root))).statusCode).toBe(200)
    const asked = here.peers.asked.map(({ peerId, network }) => `${peerId} ${network}`)
    expect(new Set(asked)).toEqual(new Set([`peer-member ${CLOSED}`, `peer-open ${OPEN_NETWORK_ID}`]))
  })

  it('vouches in a network only by what is published there', async () => {
    using nix = new FakeNix()
    const { root } = await closureOn(nix)
    await using here = new Receiver(nix.store)
    const signal = AbortSignal.timeout(10_000)
    const friend = await publisher('peer-friend', nix.store, root, undefined, CLOSED)
    const stranger = await publisher('peer-stranger', nix.store, root)
    here.meet(friend)
    here.meet(stranger)
    here.trust.add(friend.key.publicKey.text)
    const { body } = stranger.candidate
    await expect(here.substituter.vouch(body, OPEN_NETWORK_ID, signal)).rejects.toMatchObject({ code: 'not-allowed' })
    expect(here.peers.asked.map(({ peerId }) => peerId)).not.toContain('peer-friend')
    await here.substituter.vouch(body, CLOSED, signal)
  })

  it('is not kept from the publishers of one by however many there are in another', async () => {
    using nix = new FakeNix()
    const { root } = await closureOn(nix)
    await using here = new Receiver(nix.store)
    for (let nth = 0; nth < 20; nth++) here.meet(await publisher(`peer-${nth}`, nix.store, root))
    const friend = await publisher('peer-friend', nix.store, root, undefined, CLOSED)
    here.meet(friend)
    here.trust.add(friend.key.publicKey.text)
    // What they all say is who signed it.
    for (const { body } of here.candidates) body.signer = friend.key.publicKey.text
    expect((await here.server.inject(narinfoUrl(root))).statusCode).toBe(200)
  })
})

it('stays up, and answers 404, when a part that it needs fails', async () => {
  using nix = new FakeNix()
  const { root } = await closureOn(nix)
  await using here = new Receiver(nix.store)
  here.candidates.push(null as never)
  vi.spyOn(here.published, 'byHashPart').mockImplementation(() => {
    throw new Error('disk on fire')
  })
  expect((await here.server.inject(narinfoUrl(root))).statusCode).toBe(404)
  expect(here.log.events.at(-1)).toMatchObject({ event: 'nix.narinfo-failed' })
})

it('finds the NAR of an answer that Nix remembers from before the agent was started', async () => {
  using nix = new FakeNix()
  const { root } = await closureOn(nix)
  const other = await publisher('peer-a', nix.store, root)
  let url = ''
  {
    await using before = new Receiver(nix.store)
    before.meet(other)
    before.trust.add(other.key.publicKey.text)
    url = narUrl((await before.server.inject(narinfoUrl(root))).body)
  }
  await using here = new Receiver(nix.store)
  here.meet(other)
  here.trust.add(other.key.publicKey.text)
  const size = (await here.server.inject({ url, method: 'HEAD' })).headers['content-length']
  expect(size).toBe(`${nix.store.info(root)?.narSize}`)
  expect(sha256((await here.server.inject(url)).rawPayload)).toBe(nix.store.info(root)?.narHash)
})

it('drops a blob that rotted on disk instead of handing it out whole, and fetches it again', async () => {
  using nix = new FakeNix()
  const { leaf, root } = await closureOn(nix)
  await using here = new Receiver(nix.store)
  const other = await publisher('peer-a', nix.store, root)
  here.meet(other)
  here.trust.add(other.key.publicKey.text)
  const digest = nix.store.info(leaf)?.narHash ?? ''
  const url = narUrl((await here.server.inject(narinfoUrl(leaf))).body)
  await vi.waitFor(() => expect(here.blobs.has(digest)).toBe(true))
  const rotten = Buffer.from(here.blobs.blobs.get(digest) as Buffer)
  rotten[1000] = 0xff
  here.blobs.blobs.set(digest, rotten)
  // What has just come is not looked at again.
  here.aheadMs = 10 * 60_000
  await expect(here.server.inject(url)).rejects.toThrow('are not those of this digest any more')
  expect(sha256((await here.server.inject(url)).rawPayload)).toBe(digest)
})

it('gives ranges, and says which there are', async () => {
  using nix = new FakeNix()
  const { leaf, root } = await closureOn(nix)
  await using here = new Receiver(nix.store)
  await here.publish(root)
  const url = narUrl((await here.server.inject(narinfoUrl(leaf))).body)
  const whole = (await here.server.inject(url)).rawPayload
  const size = whole.byteLength
  const ranges: [string, number, Buffer | undefined][] = [
    ['bytes=100-', 206, whole.subarray(100)],
    ['bytes=100-199', 206, whole.subarray(100, 200)],
    ['bytes=0-0', 206, whole.subarray(0, 1)],
    ['bytes=-16', 206, whole.subarray(-16)],
    [`bytes=10-${size * 2}`, 206, whole.subarray(10)],
    [`bytes=${size}-`, 416, undefined],
    ['bytes=-0', 416, undefined],
    ['bytes=5-4', 416, undefined],
    ['bytes=0-1,5-6', 200, whole],
    ['lines=1-2', 200, whole],
  ]
  for (const [range, status, expected] of ranges) {
    const { statusCode, rawPayload, headers } = await here.server.inject({ url, headers: { range } })
    expect(statusCode, range).toBe(status)
    if (expected) expect(rawPayload.equals(expected), range).toBe(true)
    if (status === 416) expect(headers['content-range']).toBe(`bytes */${size}`)
    if (status === 206) expect(headers['content-range']).toMatch(new RegExp(`^bytes \\d+-\\d+/${size}$`))
  }
})

it('stops fetching when nobody waits any more', async () => {
  using nix = new FakeNix()
  const { root, leaf } = await closureOn(nix)
  await using here = new Receiver(nix.store)
  const other = await publisher('peer-a', nix.store, root)
  here.meet(other)
  here.trust.add(other.key.publicKey.text)
  const base = await here.listen()
  const narinfo = await (await fetch(`${base}/${hashPartOf(leaf)}.narinfo`)).text()
  await vi.waitFor(() => expect(here.blobs.has(nix.store.info(leaf)?.narHash ?? '')).toBe(true))
  here.blobs.blobs.delete(nix.store.info(leaf)?.narHash ?? '')
  here.peers.peers.set('peer-a', { holds: other.holds, hangs: true })
  const hangUp = new AbortController()
  const asked = here.peers.asked.length
  const waiting = fetch(`${base}/${field(narinfo, 'URL')}`, { signal: hangUp.signal }).catch(() => 'gone')
  await vi.waitFor(() => expect(here.peers.asked.length).toBeGreaterThan(asked))
  hangUp.abort()
  expect(await waiting).toBe('gone')
  await vi.waitFor(() => expect(here.peers.cancelled).toBe(1))
})

it('answers for what is known to be absent in well under ten milliseconds, among many artifacts', async () => {
  using nix = new FakeNix()
  await using here = new Receiver(nix.store)
  await here.server.inject(`/nix/${'a'.repeat(32)}.narinfo`)
  const started = performance.now()
  for (let nth = 0; nth < 100; nth++) {
    const hash = nth.toString().padStart(32, 'z')
    expect((await here.server.inject(`/nix/${hash}.narinfo`)).statusCode).toBe(404)
  }
  expect((performance.now() - started) / 100).toBeLessThan(10)
})

it('hands on what there is no room to keep, manifests included, and nothing that failed otherwise', async () => {
  using nix = new FakeNix()
  const { root, leaf } = await closureOn(nix)
  const full = vi.fn(() => Promise.reject(new AgentError('limit', 'the quota is full of pins')))
  for (const wholeBytesMax of [undefined, 100_000]) {
    await using here = new Receiver(nix.store, { ...(wholeBytesMax && { wholeBytesMax }), isFull: full })
    const other = await publisher('peer-a', nix.store, root)
    here.trust.add(other.key.publicKey.text)
    here.meet(other)
    const { body } = await here.server.inject(narinfoUrl(leaf))
    expect(field(body, 'StorePath')).toBe(leaf)
    const nar = await here.server.inject(narUrl(body))
    expect(sha256(nar.rawPayload)).toBe(nix.store.info(leaf)?.narHash)
    expect(here.blobs.blobs.size).toBe(0)
  }
  expect(full).toHaveBeenCalled()
  full.mockImplementation(() => Promise.reject(new AgentError('not-found', 'nobody has it')))
  await using here = new Receiver(nix.store, { isFull: full })
  const other = await publisher('peer-a', nix.store, root)
  here.trust.add(other.key.publicKey.text)
  here.meet(other)
  expect((await here.server.inject(narinfoUrl(leaf))).statusCode).toBe(404)
})
