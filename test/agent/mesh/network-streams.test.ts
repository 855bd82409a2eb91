/** Streams of a network over real hosts: members are told of each other and reach each other, and nobody else sees anything of it. */
import { randomBytes } from 'node:crypto'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { type Identify, identify } from '@libp2p/identify'
import type { Libp2p, Stream } from '@libp2p/interface'
import { tcp } from '@libp2p/tcp'
import { createLibp2p } from 'libp2p'
import { describe, expect, it } from 'vitest'
import { ephemeralNodeKey } from '../../../agent/identity/node-key.ts'
import type { NetworkScope } from '../../../agent/mesh/network-streams.ts'
import { encodeFrame, Frames } from '../../../protocols/frame.ts'
import { encodeHeader, NETWORK_PROTOCOL } from '../../../protocols/membership/streams.ts'
import { TUNNEL_PROTOCOL } from '../../../protocols/tunnel/tunnel.ts'
import { openGate } from '../../open-gate.ts'
import { type MemberHost, makeNetwork, startMember } from './member-hosts.ts'
import { addressesOf, join, until } from './nodes.ts'

const ECHO = '/test/echo/1'
/** More than libp2p lets be opened at once. */
const AT_ONCE = 150
const soon = () => AbortSignal.timeout(5_000)

/** Answers each frame with itself, and tells who asked. */
async function echo(scope: NetworkScope, options = { maxInboundStreams: 4 }, protocol = ECHO): Promise<string[]> {
  const asked: string[] = []
  const answer = async (stream: Stream, peerId: string) => {
    asked.push(peerId)
    const frames = new Frames(stream)
    for (let frame = await frames.read(soon()); frame; frame = await frames.read(soon()))
      await frames.write(frame, soon())
    await frames.close(soon())
  }
  await scope.handle(protocol, answer, options)
  return asked
}

async function ask(
  scope: NetworkScope,
  peerId: string,
  bytes = Uint8Array.of(1, 2, 3),
  protocol = ECHO,
): Promise<Uint8Array | undefined> {
  const frames = new Frames(await scope.openStream(peerId, protocol, soon()))
  await frames.write(bytes, soon())
  const answer = await frames.read(soon())
  await frames.close(soon())
  return answer
}

/** Who came and went. */
function watch(scope: NetworkScope): string[] {
  const seen: string[] = []
  scope.onPeer((peerId, direction) => seen.push(`${direction} ${peerId}`))
  scope.onPeerGone((peerId) => seen.push(`gone ${peerId}`))
  return seen
}

async function connect(from: MemberHost, to: MemberHost): Promise<void> {
  await join(from.host, to.host)
  await until('both let each other in', () => {
    return from.gate.admitted(to.peerId) !== undefined && to.gate.admitted(from.peerId) !== undefined
  })
}

describe('a scope', () => {
  it('opens as many tunnels as are asked for at once, some at a time', async () => {
    const home = makeNetwork()
    const [a, b] = await Promise.all([startMember('a', [home]), startMember('b', [home])])
    const [ofA, ofB] = [a.streams.of(home.id), b.streams.of(home.id)]
    const asked = await echo(ofB, { maxInboundStreams: AT_ONCE }, TUNNEL_PROTOCOL)
    await connect(a, b)
    const answers = await Promise.all(
      Array.from({ length: AT_ONCE }, () => ask(ofA, b.peerId, Uint8Array.of(1, 2, 3), TUNNEL_PROTOCOL)),
    )
    expect(answers.filter((answer) => answer?.byteLength === 3)).toHaveLength(AT_ONCE)
    expect(asked).toHaveLength(AT_ONCE)
  })

  it('tells of members only, and carries streams between them, also large ones', async () => {
    const home = makeNetwork()
    const [a, b, s] = await Promise.all([startMember('a', [home]), startMember('b', [home]), startMember('s', [])])
    const [ofA, ofB] = [a.streams.of(home.id), b.streams.of(home.id)]
    const [seenByA, seenByB] = [watch(ofA), watch(ofB)]
    const asked = await echo(ofB)
    await Promise.all([connect(a, b), connect(s, a), connect(s, b)])
    await until('they are told', () => seenByA.length > 0 && seenByB.length > 0)
    expect([seenByA, seenByB]).toEqual([[`outbound ${b.peerId}`], [`inbound ${a.peerId}`]])
    expect([ofA.connected(), ofB.connected()]).toEqual([[b.peerId], [a.peerId]])
    const bytes = randomBytes(1_000_000)
    expect(Buffer.compare((await ask(ofA, b.peerId, bytes)) ?? Buffer.alloc(0), bytes)).toBe(0)
    expect(asked).toEqual([a.peerId])
    await a.host.hangUp(b.peerId)
    await until('they are told again', () => seenByA.length > 1 && seenByB.length > 1)
    expect(seenByB[1]).toBe(`gone ${a.peerId}`)
  })

  it('dials a member that is not connected, and opens nothing to whoever is none', async () => {
    const home = makeNetwork()
    const [a, b, s] = await Promise.all([startMember('a', [home]), startMember('b', [home]), startMember('s', [])])
    await echo(b.streams.of(home.id))
    const told = Promise.withResolvers<void>()
    a.host.onPeer(() => told.resolve())
    await connect(a, b)
    await told.promise
    await a.host.hangUp(b.peerId)
    expect(await ask(a.streams.of(home.id), b.peerId)).toEqual(Uint8Array.of(1, 2, 3))
    await connect(a, s)
    await expect(ask(a.streams.of(home.id), s.peerId)).rejects.toMatchObject({ code: 'not-allowed' })
  })

  it('looks the same to a stranger whether there is a network, a member, a protocol, or nothing', async () => {
    const [home, other] = [makeNetwork(), makeNetwork()]
    const [a, b, s] = await Promise.all([startMember('a', [home]), startMember('b', []), startMember('s', [other])])
    const asked = await echo(a.streams.of(home.id))
    await Promise.all([connect(s, a), connect(s, b)])
    const header = (network: Uint8Array, protocol: string) => encodeFrame(encodeHeader({ network, protocol }))
    for (const peer of [a, b])
      for (const bytes of [
        header(home.id, ECHO),
        header(home.id, '/test/other/1'),
        header(other.id, ECHO),
        encodeFrame(randomBytes(40)),
        encodeFrame(randomBytes(300)),
        Uint8Array.of(0x80, 0x80, 0x80, 0x01),
      ]) {
        const stream = await s.host.openStream(peer.peerId, NETWORK_PROTOCOL, soon())
        stream.send(bytes)
        await until('it is reset', () => stream.status === 'reset')
      }
    expect(asked).toEqual([])
    await s.host.ping(a.peerId, soon())
    const [toldByA, toldByB] = [await protocolsOf(a), await protocolsOf(b)]
    expect(toldByA).toEqual(toldByB)
    expect(toldByA).toContain(NETWORK_PROTOCOL)
    expect(toldByA.filter((name) => name.includes('test'))).toEqual([])
  })

  it('keeps two networks of the same nodes apart', async () => {
    const [home, work] = [makeNetwork(), makeNetwork()]
    const [a, b, c] = await Promise.all([
      startMember('a', [home, work]),
      startMember('b', [home, work]),
      startMember('c', [work]),
    ])
    const [asked, askedAtWork] = [await echo(b.streams.of(home.id)), await echo(b.streams.of(work.id))]
    await Promise.all([connect(a, b), connect(c, b)])
    await ask(a.streams.of(work.id), b.peerId)
    await ask(c.streams.of(work.id), b.peerId)
    expect([asked, askedAtWork]).toEqual([[], [a.peerId, c.peerId]])
    expect(b.streams.of(home.id).connected()).toEqual([a.peerId])
    expect(b.streams.of(work.id).connected().sort()).toEqual([a.peerId, c.peerId].sort())
    await expect(ask(c.streams.of(home.id), b.peerId)).rejects.toMatchObject({ code: 'not-allowed' })
  })

  it('opens for connected peers when both have joined, and tells a listener that comes later', async () => {
    const home = makeNetwork()
    const [a, b] = await Promise.all([startMember('a', []), startMember('b', [home])])
    const seenByB = watch(b.streams.of(home.id))
    await echo(b.streams.of(home.id))
    await connect(a, b)
    expect(seenByB).toEqual([])
    a.party.join(home, home.certify(a.key.publicKey, { name: 'a' }))
    await a.gate.refresh(b.peerId, soon())
    await until('b is told', () => seenByB.length === 1)
    expect(seenByB).toEqual([`inbound ${a.peerId}`])
    // Its scope is made only now.
    const seenByA = watch(a.streams.of(home.id))
    await until('a is told', () => seenByA.length === 1)
    expect(await ask(a.streams.of(home.id), b.peerId)).toBeDefined()
  })

  it('resets the streams of a peer that shows its membership no more, though it stays connected', async () => {
    const home = makeNetwork()
    const [a, b] = await Promise.all([startMember('a', [home]), startMember('b', [home])])
    const seenByB = watch(b.streams.of(home.id))
    await echo(b.streams.of(home.id))
    await connect(a, b)
    const stream = await a.streams.of(home.id).openStream(b.peerId, ECHO, soon())
    await until('it is open', () => seenByB.length === 1)
    a.party.credentials.length = 0
    await a.gate.refresh(b.peerId, soon())
    await until('it is reset', () => stream.status !== 'open')
    await until('b is told', () => seenByB.includes(`gone ${a.peerId}`))
    expect(a.host.isConnected(b.peerId)).toBe(true)
    await expect(ask(a.streams.of(home.id), b.peerId)).rejects.toMatchObject({ code: 'not-allowed' })
  })

  it('lets a member have so many streams of a protocol, and the next when one has ended', async () => {
    const home = makeNetwork()
    const [a, b] = await Promise.all([startMember('a', [home]), startMember('b', [home])])
    const asked = await echo(b.streams.of(home.id), { maxInboundStreams: 2 })
    await connect(a, b)
    const scope = a.streams.of(home.id)
    const streams = await Promise.all([1, 2, 3].map(() => scope.openStream(b.peerId, ECHO, soon())))
    await until('one is refused', () => streams.filter(({ status }) => status === 'open').length === 2)
    for (const stream of streams) stream.abort(new Error('done'))
    await until('there is room again', () =>
      ask(scope, b.peerId).then(
        (answer) => answer !== undefined,
        () => false,
      ),
    )
    expect(asked.length).toBeGreaterThanOrEqual(3)
  })

  it('is gone when disposed, and another can take its place', async () => {
    const home = makeNetwork()
    const [a, b] = await Promise.all([startMember('a', [home]), startMember('b', [home])])
    const first = b.streams.of(home.id)
    await echo(first)
    await connect(a, b)
    const stream = await a.streams.of(home.id).openStream(b.peerId, ECHO, soon())
    await first[Symbol.asyncDispose]()
    await until('it is reset', () => stream.status !== 'open')
    const second = b.streams.of(home.id)
    expect(second).not.toBe(first)
    await echo(second)
    expect(await ask(a.streams.of(home.id), b.peerId)).toBeDefined()
  })
})

/** What a host tells a stranger by identify. */
async function protocolsOf({ host }: MemberHost): Promise<string[]> {
  const key = ephemeralNodeKey()
  const strange = openGate(key)
  const stranger = (await createLibp2p({
    privateKey: key.libp2pKey,
    transports: [tcp()],
    connectionEncrypters: [strange.secure(noise())],
    streamMuxers: [yamux()],
    connectionMonitor: { enabled: false },
    connectionGater: { denyDialMultiaddr: () => false, ...strange.gater() },
    services: { identify: identify({ runOnConnectionOpen: false }) },
  })) as unknown as Libp2p<{ identify: Identify }>
  try {
    const connection = await stranger.dial(addressesOf(host), { signal: soon() })
    return (await stranger.services.identify.identify(connection, { signal: soon() })).protocols.sort()
  } finally {
    await stranger.stop()
  }
}
