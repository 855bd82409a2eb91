/**
 * The gate on real libp2p hosts over TCP: who gets a connection, and that nobody gets anything without one. What the hello itself refuses
 * is tested in test/protocols/hello.
 */
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { privateKeyFromRaw } from '@libp2p/crypto/keys'
import { gossipsub } from '@libp2p/gossipsub'
import { identify, identifyPush } from '@libp2p/identify'
import type {
  ConnectionEncrypter,
  Ed25519PrivateKey,
  Libp2p,
  MessageStream,
  MultiaddrConnection,
} from '@libp2p/interface'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { describe, expect, it, onTestFinished } from 'vitest'
import { Gate, type GateOptions } from '../../../agent/mesh/gate.ts'
import { type Refusal, refusal, refusalIn } from '../../../agent/mesh/refusals.ts'
import { WireError } from '../../../protocols/error.ts'
import { encodeFrame } from '../../../protocols/frame.ts'
import type { Grant, TokenDesk, TokenFault } from '../../../protocols/hello/hello.ts'
import { type Token, tokenId } from '../../../protocols/membership/token.ts'
import { HOUR, hex, makeKey, NOW, TestNetwork, TestParty } from '../../protocols/membership/people.ts'
import { LOOPBACK, quiet, until } from './nodes.ts'

const OWN_PROTOCOL = '/undernet/test/1'
const TRIES = 4
const PROTOCOLS = [
  '/ipfs/id/1.0.0',
  '/ipfs/id/push/1.0.0',
  '/ipfs/ping/1.0.0',
  '/undernet/kad/1',
  '/meshsub/1.2.0',
  OWN_PROTOCOL,
]

type Services = { identify: ReturnType<ReturnType<typeof identify>>; ping: ReturnType<ReturnType<typeof ping>> }
type Node = {
  node: Libp2p<Services>
  peerId: string
  gate: Gate | undefined
  party: TestParty
  refusals: Refusal[]
  opened: number
  /** Protocols whose handler was called, by anybody. */
  asked: string[]
  joined: string[]
}

/** A host with everything that an agent runs, behind the gate or, for a stranger, without one. */
async function start(party: TestParty, options: Partial<GateOptions> & { isGated?: boolean } = {}): Promise<Node> {
  const { isGated = true, ...rest } = options
  const refusals: Refusal[] = []
  const joined: string[] = []
  const gate = isGated
    ? new Gate({
        party,
        log: quiet,
        onRefused: (refusal) => refusals.push(refusal),
        joined: ({ name, chain, network }) => {
          joined.push(name)
          party.credentials.push({ network, secret: home.secret, chain })
        },
        ...rest,
      })
    : undefined
  const raw = party.key.privateKey.export({ format: 'jwk' })
  const privateKey = privateKeyFromRaw(
    Buffer.concat([Buffer.from(raw.d ?? '', 'base64url'), Buffer.from(raw.x ?? '', 'base64url')]),
  ) as Ed25519PrivateKey
  const node = (await createLibp2p({
    privateKey,
    addresses: { listen: [LOOPBACK] },
    transports: [tcp()],
    connectionEncrypters: [gate ? gate.secure(noise()) : noise()],
    streamMuxers: [yamux()],
    connectionMonitor: { enabled: false },
    connectionManager: { inboundConnectionThreshold: 1_000 },
    connectionGater: { denyDialMultiaddr: () => false, ...gate?.gater() },
    services: {
      ...(gate && { gate: gate.service }),
      identify: identify(),
      identifyPush: identifyPush(),
      ping: ping(),
      dht: kadDHT({ protocol: '/undernet/kad/1', clientMode: false, peerInfoMapper: passthroughMapper }),
      pubsub: gossipsub({ allowPublishToZeroTopicPeers: true }),
    },
  })) as unknown as Libp2p<Services>
  const it: Node = { node, peerId: node.peerId.toString(), gate, party, refusals, opened: 0, asked: [], joined }
  node.addEventListener('connection:open', () => {
    it.opened++
  })
  await node.handle(OWN_PROTOCOL, (stream) => void stream.close())
  const { registrar } = (node as unknown as { components: { registrar: Registrar } }).components
  const getHandler = registrar.getHandler.bind(registrar)
  registrar.getHandler = (protocol) => {
    it.asked.push(protocol)
    return getHandler(protocol)
  }
  onTestFinished(async () => {
    gate?.[Symbol.dispose]()
    await node.stop()
  })
  return it
}

type Registrar = { getHandler(protocol: string): unknown }

async function dial(from: Node, to: Node): Promise<Error | undefined> {
  try {
    await from.node.dial(to.node.getMultiaddrs(), { signal: AbortSignal.timeout(5_000) })
    return undefined
  } catch (error) {
    return error as Error
  }
}

/**
 * The protocols that a peer gets to speak, on every connection that it can make. libp2p takes one stream at a time of some, and may be speaking them by
 * itself just then: these are tried again.
 */
async function tryAll(from: Node, to: Node): Promise<string[]> {
  const answered = new Set<string>()
  for (let tries = 0; tries < TRIES && (tries === 0 || answered.size > 0); tries++)
    for (const protocol of PROTOCOLS.filter((one) => !answered.has(one)))
      if (await canSpeak(from, to, protocol)) answered.add(protocol)
  return PROTOCOLS.filter((one) => answered.has(one))
}

/** False where it is refused, by the connection or by what is on it. */
async function canSpeak(from: Node, to: Node, protocol: string): Promise<boolean> {
  try {
    const connection = await from.node.dial(to.node.getMultiaddrs(), { signal: AbortSignal.timeout(2_000) })
    const stream = await connection.newStream(protocol, { signal: AbortSignal.timeout(2_000) })
    stream.abort(new Error('seen'))
    return true
  } catch {
    return false
  }
}

const home = new TestNetwork(Date.now())

describe('the gate', () => {
  it('lets members in, by name, and everything works between them', async () => {
    const [a, b] = [await start(home.member({ name: 'a' })), await start(home.member({ name: 'b' }))]
    expect(await dial(a, b)).toBeUndefined()
    await until('b has let a in', () => b.gate?.admitted(a.peerId) !== undefined && b.node.getConnections().length > 0)
    expect(a.gate?.memberOf(home.id, b.peerId)?.name).toBe('b')
    expect(b.gate?.membersOf(home.id).map(({ member }) => member.name)).toEqual(['a'])
    expect(await tryAll(a, b)).toEqual(PROTOCOLS)
    expect(await tryAll(b, a)).toEqual(PROTOCOLS)
    expect(await a.node.services.ping.ping(b.node.peerId)).toBeGreaterThanOrEqual(0)
    expect([a.refusals, b.refusals]).toEqual([[], []])
    await a.node.hangUp(b.node.peerId)
    await until(
      'both forgot',
      () => a.gate?.admitted(b.peerId) === undefined && b.gate?.admitted(a.peerId) === undefined,
    )
  })

  it('gives a stranger with stock libp2p nothing, in either direction', async () => {
    const member = await start(home.member())
    const stranger = await start(new TestParty(), { isGated: false })
    expect(await tryAll(stranger, member)).toEqual([])
    expect(await dial(member, stranger)).toBeInstanceOf(Error)
    expect([member.opened, member.asked]).toEqual([0, []])
    expect(member.node.getPeers()).toEqual([])
    expect(stranger.asked).toEqual([])
    expect((await member.node.peerStore.all()).filter(({ protocols }) => protocols.length > 0)).toEqual([])
    expect(member.refusals.length).toBeGreaterThan(1)
    expect(member.refusals.every(({ peerId, wasIn }) => peerId === stranger.peerId && !wasIn)).toBe(true)
  })

  it('gives members of other networks, former members and thieves nothing, and says why', async () => {
    const network = new TestNetwork(Date.now())
    const member = await start(network.member({ name: 'member' }))
    const revoked = network.member()
    revoked.known.set(hex(network.id), new TestNetwork().revocations)
    network.revoke(revoked.key.publicKey)
    const thief = new TestParty(makeKey(), Date.now())
    thief.credentials.push(network.credentials(network.certify(member.party.key.publicKey)))
    thief.known.set(hex(network.id), network.revocations)
    for (const party of [home.member(), revoked, thief]) {
      const other = await start(party)
      await dial(other, member)
      await until('it was refused', () => member.refusals.some(({ peerId }) => peerId === other.peerId))
      await until('it is gone', () => other.node.getConnections().length === 0)
      expect(refusalIn(await dial(member, other))).toMatchObject({ code: 'not-allowed' })
    }
    expect([member.opened, member.asked]).toEqual([0, []])
    const whys = new Set(member.refusals.map(({ why }) => why.replace(/^.*: /, '')))
    expect(whys).toContain('the peer shares no network with this node')
    expect(whys).toContain('the certificate of "web1" is of another key')
  })

  it('tells who dials why it was refused, also when that comes after it began', async () => {
    const { now } = home
    const member = await start(home.member())
    const slow = home.member({ issued: now - HOUR, notBefore: now - HOUR, notAfter: now })
    slow.clock = now - 60_000
    const ended = await start(slow)
    await dial(ended, member)
    await until('it learned why', () => ended.refusals.length > 0)
    expect(ended.refusals[0]?.why).toBe('the peer refused our certificate: expired')
    await until('it is gone', () => ended.node.getConnections().length === 0)
  })

  it('lets those into the open network who take part in it, as no members', async () => {
    const [a, b] = [await start(home.member()), await start(new TestParty())]
    a.party.open = true
    expect(await dial(a, b)).toBeInstanceOf(Error)
    b.party.open = true
    expect(await dial(a, b)).toBeUndefined()
    await until('both are in', () => b.gate?.admitted(a.peerId)?.open === true && b.node.getConnections().length > 0)
    expect(a.gate?.memberOf(home.id, b.peerId)).toBeUndefined()
    expect(await tryAll(b, a)).toEqual(PROTOCOLS)
    a.party.open = false
    expect(a.gate?.recheck()).toBe(1)
    await until('b is out', () => b.node.getConnections().length === 0)
  })
})

describe('a connection', () => {
  it('is cut when the peer is revoked, and at once', async () => {
    const network = new TestNetwork(Date.now())
    const [a, b] = [await start(network.member({ name: 'a' })), await start(network.member({ name: 'b' }))]
    b.party.known.set(hex(network.id), new TestNetwork().revocations)
    await dial(b, a)
    await until('b is in', () => a.gate?.admitted(b.peerId) !== undefined)
    const [connection] = a.node.getConnections()
    network.revoke(b.party.key.publicKey)
    expect(a.gate?.recheck()).toBe(1)
    expect(connection?.status).not.toBe('open')
    expect(a.gate?.admitted(b.peerId)).toBeUndefined()
    expect(a.refusals).toMatchObject([{ peerId: b.peerId, wasIn: true, why: 'the key of "b" was revoked' }])
    await until('b lost it', () => b.node.getConnections().length === 0)
    expect(await dial(b, a)).toBeInstanceOf(Error)
    expect(a.gate?.recheck()).toBe(0)
  })

  it('is cut by itself when a certificate ends', async () => {
    const now = Date.now()
    const [a, b] = [await start(home.member()), await start(home.member({ name: 'brief', notAfter: now + 3_600_000 }))]
    await dial(a, b)
    await until('both are in', () => b.gate?.admitted(a.peerId) !== undefined)
    const [connection] = a.node.getConnections()
    a.party.clock = now + 3_600_000
    await until('it is cut', () => connection?.status !== 'open')
    expect(a.refusals[0]?.why).toBe('the certificate of "brief" ended')
  })

  it('is cut when this node leaves the network, or on demand', async () => {
    const [a, b] = [await start(home.member()), await start(home.member())]
    await dial(a, b)
    await until('both are in', () => b.gate?.admitted(a.peerId) !== undefined)
    const [connection] = a.node.getConnections()
    b.gate?.cut(a.peerId, 'no more')
    await until('it is cut', () => connection?.status !== 'open')
    await dial(a, b)
    await until('both are in again', () => a.gate?.admitted(b.peerId) !== undefined)
    a.party.credentials.length = 0
    // The first connection may not be gone altogether, and the other side may have dialled, too.
    expect(a.gate?.recheck()).toBeGreaterThan(0)
    expect(a.gate?.admitted(b.peerId)).toBeUndefined()
    await until('nothing is left', () => a.node.getConnections().length === 0)
  })

  it('goes on when hello is said again, after a network was joined', async () => {
    const [a, b] = [await start(new TestParty(makeKey(), Date.now())), await start(home.member({ name: 'b' }))]
    a.party.open = true
    b.party.open = true
    await dial(a, b)
    const [connection] = a.node.getConnections()
    expect(a.gate?.memberOf(home.id, b.peerId)).toBeUndefined()
    a.party.join(home, home.certify(a.party.key.publicKey, { name: 'a' }))
    expect((await a.gate?.refresh(b.peerId, AbortSignal.timeout(5_000)))?.members).toMatchObject([{ name: 'b' }])
    await until('b knows', () => b.gate?.memberOf(home.id, a.peerId)?.name === 'a')
    expect(connection?.status).toBe('open')
    expect(a.node.getConnections()).toHaveLength(1)
  })
})

describe('a token', () => {
  const secret = new Uint8Array(16).fill(5)
  const desk = (token: () => Token): TokenDesk & { used: string[]; wished: (string | undefined)[] } => {
    const used: string[] = []
    const wishes: (string | undefined)[] = []
    return {
      used,
      wished: wishes,
      find: (id) => (hex(id) === hex(tokenId(secret)) ? token() : undefined),
      redeem: (_id, key, wished): Grant | TokenFault => {
        wishes.push(wished)
        if (used.length > 0 && !used.includes(hex(key))) return 'used-up'
        used.push(hex(key))
        return { name: 'home', secret: home.secret, chain: home.certify(key, { name: 'new1' }) }
      },
    }
  }

  async function gateway() {
    const party = home.member({ name: 'gateway' })
    const token: Token = { network: home.id, issuer: party.key.publicKey, addresses: [], secret, expires: NOW + HOUR }
    const own = desk(() => token)
    return { issuer: await start(party, { desk: own }), token, own }
  }

  it('lets its holder in with one dial, and nobody else', async () => {
    const { issuer, token, own } = await gateway()
    const signal = AbortSignal.timeout(5_000)
    const newcomer = await start(new TestParty(makeKey(), Date.now()))
    newcomer.party.known.set(hex(home.id), home.revocations)
    expect(await dial(newcomer, issuer)).toBeInstanceOf(Error)
    const joined = await newcomer.gate?.join(
      token,
      issuer.peerId,
      () => newcomer.node.dial(issuer.node.getMultiaddrs()),
      signal,
      'db7',
    )
    expect(joined).toMatchObject({ name: 'home' })
    expect(newcomer.joined).toEqual(['home'])
    expect(own.wished).toEqual(['db7'])
    await until('it is a member there', () => issuer.gate?.memberOf(home.id, newcomer.peerId)?.name === 'new1')
    expect(newcomer.gate?.memberOf(home.id, issuer.peerId)?.name).toBe('gateway')
    const second = await start(new TestParty(makeKey(), Date.now()))
    const never = () => Promise.reject(new Error('dialled'))
    const bad = second.gate?.join(token, issuer.peerId, never, signal, 'Not A Name')
    await expect(bad).rejects.toMatchObject({ code: 'usage' })
    const late = second.gate?.join(token, issuer.peerId, () => second.node.dial(issuer.node.getMultiaddrs()), signal)
    await expect(late?.catch((error: unknown) => refusalIn(error)?.message)).resolves.toContain(
      'the token was used already',
    )
  })

  it('is shown also when somebody dials its issuer just then without it', async () => {
    const { issuer, token, own } = await gateway()
    const newcomer = await start(new TestParty(makeKey(), Date.now()))
    newcomer.party.known.set(hex(home.id), home.revocations)
    const begun = Promise.withResolvers<void>()
    newcomer.party.networks = () => {
      begun.resolve()
      return newcomer.party.credentials
    }
    const other = dial(newcomer, issuer)
    await begun.promise
    // libp2p makes one dial of the two.
    const again = () => newcomer.node.dial(issuer.node.getMultiaddrs())
    const joined = newcomer.gate?.join(token, issuer.peerId, again, AbortSignal.timeout(5_000))
    expect(await other).toBeInstanceOf(Error)
    await expect(joined).resolves.toMatchObject({ name: 'home' })
    expect(own.used).toHaveLength(1)
  })

  it('brings what it brings, and its own reason, whatever becomes of the dial that was waited for', async () => {
    const { issuer, token } = await gateway()
    const late = new WireError('refused', 'the peer shares no network with this node')
    const signal = AbortSignal.timeout(5_000)
    const join = async () => {
      const newcomer = await start(new TestParty(makeKey(), Date.now()))
      newcomer.party.known.set(hex(home.id), home.revocations)
      // One that was under way without the token, while another shows it.
      const dialled = async () => {
        await newcomer.node.dial(issuer.node.getMultiaddrs()).catch(() => undefined)
        throw refusal(issuer.peerId, late)
      }
      return await newcomer.gate?.join(token, issuer.peerId, dialled, signal)
    }
    await expect(join()).resolves.toMatchObject({ name: 'home' })
    const failure = await join().catch((error: unknown) => refusalIn(error)?.message)
    expect(failure).toContain('the token was used already')
  })

  it('is used over a connection that there is', async () => {
    const { issuer, token, own } = await gateway()
    const newcomer = await start(new TestParty(makeKey(), Date.now()))
    newcomer.party.known.set(hex(home.id), home.revocations)
    newcomer.party.open = true
    issuer.party.open = true
    await dial(newcomer, issuer)
    const never = () => Promise.reject(new Error('dialled'))
    await newcomer.gate?.join(token, issuer.peerId, never, AbortSignal.timeout(5_000))
    await until('it is a member there', () => issuer.gate?.memberOf(home.id, newcomer.peerId)?.name === 'new1')
    expect(own.used).toHaveLength(1)
  })
})

describe('a peer that has not said hello', () => {
  /** A secure channel on which nothing is said. */
  async function raw(member: Node): Promise<MessageStream> {
    const channel = Promise.withResolvers<MessageStream>()
    const stranger = await createLibp2p({
      transports: [tcp()],
      connectionEncrypters: [
        (components) => {
          const inner = noise()(components)
          const secureOutbound: ConnectionEncrypter['secureOutbound'] = async (connection, options) => {
            const secured = await inner.secureOutbound(connection, options)
            channel.resolve(secured.connection)
            return secured
          }
          return { protocol: inner.protocol, secureInbound: inner.secureInbound.bind(inner), secureOutbound }
        },
      ],
      streamMuxers: [yamux({ enableKeepAlive: false })],
      connectionMonitor: { enabled: false },
      connectionGater: { denyDialMultiaddr: () => false },
    })
    onTestFinished(async () => stranger.stop())
    await stranger.dial(member.node.getMultiaddrs(), { signal: AbortSignal.timeout(5_000) })
    return channel.promise
  }

  it.each([
    ['an empty frame', Uint8Array.of(0)],
    ['garbage', encodeFrame(new Uint8Array(100).fill(7))],
    ['too much', encodeFrame(new Uint8Array(200_000))],
    ['an endless length', Uint8Array.of(0x80, 0x80, 0x80, 0x01)],
    ['a name of a protocol', encodeFrame(new TextEncoder().encode('/multistream/1.0.0\n'))],
    ['the frame of a muxer', Uint8Array.of(0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0)],
  ])('and says %s is gone at once', async (_what, bytes) => {
    const member = await start(home.member())
    const channel = await raw(member)
    const startMs = performance.now()
    channel.send(bytes)
    await until('it is gone', () => channel.status !== 'open')
    expect(performance.now() - startMs).toBeLessThan(1_500)
    expect(member.opened).toBe(0)
  })

  it.each([
    ['nothing', []],
    ['half a message', [encodeFrame(new Uint8Array(100)).subarray(0, 50)]],
  ])('and says %s is gone when the time for it is over, and keeps nobody from saying theirs', async (_what, parts) => {
    const [a, b] = [await start(home.member({ name: 'a' })), await start(home.member({ name: 'b' }))]
    const silent = await Promise.all(Array.from({ length: 4 }, () => raw(b)))
    for (const channel of silent) for (const part of parts) channel.send(part)
    expect(await dial(a, b)).toBeUndefined()
    await until('a is in', () => b.gate?.memberOf(home.id, a.peerId) !== undefined)
    await until('the others are gone', () => silent.every(({ status }) => status !== 'open'), 6_000)
    expect(b.gate?.membersOf(home.id).map(({ member }) => member.name)).toEqual(['a'])
  })

  it('and comes by a transport that the gate has not seen is refused', async () => {
    const gate = new Gate({ party: home.member(), log: quiet })
    const { denyInboundEncryptedConnection, denyOutboundEncryptedConnection } = gate.gater()
    const peer = (await start(home.member())).node.peerId
    const connection = {
      status: 'open',
      remoteAddr: multiaddr('/ip4/127.0.0.1/udp/1/quic-v1'),
    } as unknown as MultiaddrConnection
    expect(await denyInboundEncryptedConnection(peer, connection)).toBe(true)
    await expect(async () => denyOutboundEncryptedConnection(peer, connection)).rejects.toThrow('came without one')
  })
})
