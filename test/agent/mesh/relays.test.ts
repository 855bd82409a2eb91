/** Relays over real hosts on loopback: who is carried, who is not, and that what goes through is what was sent. */
import { createHash, randomBytes } from 'node:crypto'
import type { Stream } from '@libp2p/interface'
import { describe, expect, it, onTestFinished } from 'vitest'
import type { NetworkScope } from '../../../agent/mesh/network-streams.ts'
import { Relays } from '../../../agent/mesh/relays.ts'
import { Frames } from '../../../protocols/frame.ts'
import {
  decodeRelayAnswer,
  encodeRelayRequest,
  RELAY_PROTOCOL,
  type RelayAnswer,
} from '../../../protocols/relay/exchange.ts'
import { type MemberHost, makeNetwork, startMember } from './member-hosts.ts'
import { join, quiet, until } from './nodes.ts'

const SWALLOW = '/test/swallow/1'
/** A stream must not be ended before the other side has said something: libp2p may lose what came before. */
const READY = Uint8Array.of(1)
const soon = () => AbortSignal.timeout(10_000)

type Station = { member: MemberHost; scope: NetworkScope; relays: Relays }

/** Members that know of each other that they are members, and the relays that each is said to have. */
async function stations(
  names: readonly string[],
  { carries = true, mayUse = () => true }: { carries?: boolean; mayUse?: (peerId: string) => boolean } = {},
): Promise<{ all: Station[]; known: Map<string, string[]> }> {
  const network = makeNetwork()
  const known = new Map<string, string[]>()
  const all: Station[] = []
  for (const name of names) {
    const member = await startMember(name, [network], false)
    const scope = member.streams.of(network.id)
    const relays = new Relays({ host: member.host, carries, log: quiet })
    const isMember = (peerId: string) => all.some((one) => one.member.peerId === peerId)
    await relays.serve('home', {
      scope,
      mayUse,
      isMember,
      issues: () => true,
      relaysOf: (peerId) => known.get(peerId) ?? [],
    })
    onTestFinished(() => relays[Symbol.asyncDispose]())
    all.push({ member, scope, relays })
  }
  return { all, known }
}

/** Reads a stream to its end, and answers with the hash of all of it. */
async function swallow({ scope }: Station): Promise<void> {
  await scope.handle(
    SWALLOW,
    async (stream) => {
      const hash = createHash('sha256')
      const frames = new Frames(stream)
      await frames.write(READY, soon())
      for (let frame = await frames.read(soon()); frame; frame = await frames.read(soon())) hash.update(frame)
      await frames.write(hash.digest(), soon())
      await frames.close(soon())
    },
    { maxInboundStreams: 8 },
  )
}

async function feeds({ scope }: Station, to: string, sizeBytes: number): Promise<void> {
  const bytes = randomBytes(sizeBytes)
  const frames = new Frames(await scope.openStream(to, SWALLOW, soon()))
  for (let at = 0; at < bytes.length; at += 100_000) await frames.write(bytes.subarray(at, at + 100_000), soon())
  expect(await frames.read(soon())).toEqual(READY)
  await frames.close(soon())
  expect(await frames.read(soon())).toEqual(Uint8Array.from(createHash('sha256').update(bytes).digest()))
}

async function asksToBeCarried({ scope }: Station, relay: string, peer: Uint8Array): Promise<RelayAnswer> {
  const frames = new Frames(await scope.openStream(relay, RELAY_PROTOCOL, soon()))
  await frames.write(encodeRelayRequest({ ask: 'to', peer }), soon())
  const answer = await frames.read(soon())
  frames.abort(new Error('that was all'))
  return decodeRelayAnswer(answer ?? new Uint8Array())
}

describe('a member that cannot be dialled', () => {
  it('is reached through whom it names, and through whoever is connected with both', async () => {
    const { all, known } = await stations(['a', 'b', 'relay'])
    const [a, b, relay] = all as [Station, Station, Station]
    await join(a.member.host, relay.member.host)
    await join(b.member.host, relay.member.host)
    await until('the relay knows both', () => relay.scope.connected().length === 2)
    known.set(b.member.peerId, [relay.member.peerId])
    await swallow(b)
    await a.relays.reach(b.member.peerId, soon())
    expect(a.member.host.links().find(({ peerId }) => peerId === b.member.peerId)).toMatchObject({
      path: 'relay',
      relay: relay.member.peerId,
    })
    await until('both are members to each other', () => a.scope.connected().includes(b.member.peerId))
    await Promise.all([1, 70_000, 3_000_000].map((sizeBytes) => feeds(a, b.member.peerId, sizeBytes)))
    expect(relay.relays.carriedCount).toBe(1)

    known.clear()
    await a.member.host.hangUp(b.member.peerId)
    await until('nothing is carried any more', () => relay.relays.carriedCount === 0)
    await a.relays.reach(b.member.peerId, soon())
    expect(a.member.host.isDirect(b.member.peerId)).toBe(false)
  })

  it('keeps what runs on the relay when a direct connection comes, which takes what begins from then on', async () => {
    const { all } = await stations(['a', 'b', 'relay'])
    const [a, b, relay] = all as [Station, Station, Station]
    await join(a.member.host, relay.member.host)
    await join(b.member.host, relay.member.host)
    await until('the relay knows both', () => relay.scope.connected().length === 2)
    await swallow(b)
    await a.relays.reach(b.member.peerId, soon())
    await until('both are members to each other', () => a.scope.connected().includes(b.member.peerId))
    const seen: string[] = []
    a.scope.onPeerGone((peerId) => seen.push(peerId))
    const stream = await a.scope.openStream(b.member.peerId, SWALLOW, soon())
    await join(a.member.host, b.member.host)
    expect(a.member.host.isDirect(b.member.peerId)).toBe(true)
    await feeds(a, b.member.peerId, 500_000)
    expect(relay.relays.carriedCount).toBe(1)
    const frames = new Frames(stream)
    await frames.write(Uint8Array.of(7), soon())
    expect(await frames.read(soon())).toEqual(READY)
    await frames.close(soon())
    expect(await frames.read(soon())).toEqual(Uint8Array.from(createHash('sha256').update(Uint8Array.of(7)).digest()))
    expect(seen).toEqual([])
  })
})

describe('a relay', () => {
  it.each<[string, Parameters<typeof stations>[1], RelayAnswer]>([
    ['that was told not to carry', { carries: false }, 'refused'],
    ['that has no grant for who asks', { mayUse: () => false }, 'refused'],
  ])('%s refuses', async (_, options, answer) => {
    const { all } = await stations(['a', 'b', 'relay'], options)
    const [a, b, relay] = all as [Station, Station, Station]
    await join(a.member.host, relay.member.host)
    await join(b.member.host, relay.member.host)
    await until('the relay knows both', () => relay.scope.connected().length === 2)
    expect(await asksToBeCarried(a, relay.member.peerId, b.member.key.publicKey)).toBe(answer)
    await expect(a.relays.reach(b.member.peerId, soon())).rejects.toThrow(/nobody carries/)
  })

  it('cuts what it carries when the grant is taken back', async () => {
    let mayUse = true
    const { all } = await stations(['a', 'b', 'relay'], { mayUse: () => mayUse })
    const [a, b, relay] = all as [Station, Station, Station]
    await join(a.member.host, relay.member.host)
    await join(b.member.host, relay.member.host)
    await until('the relay knows both', () => relay.scope.connected().length === 2)
    await a.relays.reach(b.member.peerId, soon())
    relay.relays.recheck('home')
    expect(relay.relays.carriedCount).toBe(1)
    mayUse = false
    relay.relays.recheck('home')
    await until('it is cut', () => relay.relays.carriedCount === 0 && !a.member.host.isConnected(b.member.peerId))
  })

  it('dials nobody, carries nobody to himself, and does not carry on what is carried to it', async () => {
    const { all } = await stations(['a', 'b', 'relay', 'far'])
    const [a, b, relay, far] = all as [Station, Station, Station, Station]
    await join(a.member.host, relay.member.host)
    expect(await asksToBeCarried(a, relay.member.peerId, b.member.key.publicKey)).toBe('absent')
    expect(await asksToBeCarried(a, relay.member.peerId, a.member.key.publicKey)).toBe('absent')
    // far - b - relay: b carries relay's connection to far.
    await join(b.member.host, relay.member.host)
    await join(far.member.host, b.member.host)
    await until('b knows both', () => b.scope.connected().length === 2)
    await relay.relays.reach(far.member.peerId, soon())
    expect(await asksToBeCarried(a, relay.member.peerId, far.member.key.publicKey)).toBe('absent')
  })

  it('that announces somebody else than who then speaks is found out', async () => {
    const { all } = await stations(['a', 'b', 'liar'])
    const [a, b, liar] = all as [Station, Station, Station]
    await join(liar.member.host, b.member.host)
    await until('both are members', () => liar.scope.connected().length === 1 && b.scope.connected().length === 1)
    const stream: Stream = await liar.scope.openStream(b.member.peerId, RELAY_PROTOCOL, soon())
    const frames = new Frames(stream)
    await frames.write(encodeRelayRequest({ ask: 'from', peer: a.member.key.publicKey }), soon())
    expect(decodeRelayAnswer((await frames.read(soon())) ?? new Uint8Array())).toBe('ok')
    await frames.writeBytes(randomBytes(4_000), soon()).catch(() => undefined)
    await until('b gave it up', () => stream.status !== 'open')
    expect(b.member.host.isConnected(a.member.peerId)).toBe(false)
  })
})
