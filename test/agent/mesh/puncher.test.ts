/**
 * Holes between real hosts on loopback, where there is no router: what the two sides say, open and close is the same. Real routers are in
 * test/lab/punch.test.ts.
 */
import { createHash, randomBytes } from 'node:crypto'
import type { Socket } from 'node:dgram'
import { describe, expect, it, onTestFinished } from 'vitest'
import type { NetworkScope } from '../../../agent/mesh/network-streams.ts'
import { randomPorts } from '../../../agent/mesh/punch-sockets.ts'
import { Puncher, type PuncherOptions } from '../../../agent/mesh/puncher.ts'
import { type Reflection, Reflections } from '../../../agent/mesh/reflections.ts'
import { Reflector } from '../../../agent/mesh/reflector.ts'
import { Relays } from '../../../agent/mesh/relays.ts'
import { Frames } from '../../../protocols/frame.ts'
import {
  decodePunchOffer,
  encodePunchOffer,
  PUNCH_PROBES_MAX,
  PUNCH_PROTOCOL,
  type PunchRefusal,
} from '../../../protocols/punch/punch.ts'
import { type MemberHost, makeNetwork, startMember } from './member-hosts.ts'
import { join, quiet, until } from './nodes.ts'

const HASH = '/test/hash/1'
const soon = () => AbortSignal.timeout(15_000)

type Station = {
  member: MemberHost
  scope: NetworkScope
  reflections: Pick<Reflections, 'askFrom' | 'quicFrom'>
  relays: Relays
}

/** Two members that only a third connects, which also tells them where they are seen; the first has the smaller peer id. */
async function relayed(): Promise<{ a: Station; b: Station; network: ReturnType<typeof makeNetwork> }> {
  const network = makeNetwork()
  const all: Station[] = []
  for (const name of ['relay', 'one', 'two']) {
    const member = await startMember(name, [network], false)
    const scope = member.streams.of(network.id)
    const relays = new Relays({ host: member.host, carries: true, log: quiet })
    const isMember = (peerId: string) => all.some((one) => one.member.peerId === peerId)
    await relays.serve('home', { scope, mayUse: () => true, issues: () => true, isMember, relaysOf: () => [] })
    onTestFinished(() => relays[Symbol.asyncDispose]())
    const hostOf = (peerId: string) => member.host.hostOf(peerId)
    const touchQuic = async () => undefined
    all.push({
      member,
      scope,
      relays,
      reflections: new Reflections({ scopes: () => [scope], hostOf, touchQuic, log: quiet }),
    })
  }
  const [relay, ...others] = all as [Station, Station, Station]
  const reflector = await Reflector.start({ hosts: ['127.0.0.1'], port: 0, log: quiet })
  onTestFinished(() => reflector[Symbol.asyncDispose]())
  await reflector.serve(relay.scope, () => true)
  for (const { member } of others) await join(member.host, relay.member.host)
  await until('the relay knows both', () => relay.scope.connected().length === 2)
  const [a, b] = others.toSorted((x, y) => (x.member.peerId < y.member.peerId ? -1 : 1)) as [Station, Station]
  await a.relays.reach(b.member.peerId, soon())
  await until(
    'both are members to each other',
    () => a.scope.connected().includes(b.member.peerId) && b.scope.connected().includes(a.member.peerId),
  )
  return { a, b, network }
}

async function punches(station: Station, options: Partial<PuncherOptions> = {}): Promise<Puncher> {
  const { member, scope, reflections } = station
  const puncher = new Puncher({
    host: member.host,
    reflections,
    isOn: true,
    log: quiet,
    mayReach: () => true,
    ...options,
  })
  onTestFinished(() => puncher[Symbol.asyncDispose]())
  await puncher.serve(scope)
  return puncher
}

const pathOf = (from: Station, to: Station) =>
  from.member.host.links().find(({ peerId }) => peerId === to.member.peerId)?.path
const arePunched = (a: Station, b: Station) =>
  until('both are on a way of their own', () => pathOf(a, b) === 'punched' && pathOf(b, a) === 'punched', 15_000)

/** Says that its router is symmetric. */
function symmetric({ reflections }: Station): Station['reflections'] {
  return {
    quicFrom: async () => undefined,
    askFrom: async (socket: Socket, signal: AbortSignal): Promise<Reflection> => {
      const { seen: _, ...rest } = await reflections.askFrom(socket, signal)
      return { ...rest, seen: undefined, kind: 'symmetric' }
    },
  }
}

async function feeds(from: Station, to: Station, sizeBytes: number): Promise<void> {
  const bytes = randomBytes(sizeBytes)
  const frames = new Frames(await from.scope.openStream(to.member.peerId, HASH, soon()))
  for (let at = 0; at < bytes.length; at += 100_000) await frames.write(bytes.subarray(at, at + 100_000), soon())
  await frames.write(new Uint8Array(), soon())
  expect(await frames.read(soon())).toEqual(Uint8Array.from(createHash('sha256').update(bytes).digest()))
  await frames.close(soon())
}

async function hashes({ scope }: Station): Promise<void> {
  await scope.handle(
    HASH,
    async (stream) => {
      const hash = createHash('sha256')
      const frames = new Frames(stream)
      for (let frame = await frames.read(soon()); frame?.byteLength; frame = await frames.read(soon()))
        hash.update(frame)
      await frames.write(hash.digest(), soon())
      await frames.close(soon())
    },
    { maxInboundStreams: 8 },
  )
}

async function asks({ scope }: Station, peerId: string): Promise<PunchRefusal | 'offer'> {
  const frames = new Frames(await scope.openStream(peerId, PUNCH_PROTOCOL, soon()))
  const offer = { router: 'fixed', address: Uint8Array.of(45, 10, 0, 1), port: 9, tag: new Uint8Array(16) } as const
  await frames.write(encodePunchOffer(offer), soon())
  const answer = decodePunchOffer((await frames.read(soon())) ?? new Uint8Array())
  frames.abort(new Error('that was all'))
  return typeof answer === 'string' ? answer : 'offer'
}

describe('two members on a relay', () => {
  it('come through by QUIC, go on there, tell nobody of the place, and close it with the connection', async () => {
    const { a, b } = await relayed()
    await hashes(b)
    await punches(a)
    await punches(b)
    await arePunched(a, b)
    await Promise.all([1, 50_000, 2_000_000].map((sizeBytes) => feeds(a, b, sizeBytes)))
    await feeds(a, b, 3_000_000)
    for (const { member } of [a, b]) {
      expect(member.host.addresses().every((address) => address.includes('/tcp/'))).toBe(true)
      expect(member.host.hostOf(a === b ? '' : (member === a.member ? b : a).member.peerId)).toBeUndefined()
    }
    for (const [one, other] of [
      [a, b],
      [b, a],
    ] as const) {
      const known = await one.member.host.addressesOf(other.member.peerId)
      expect(known.filter((address) => address.toString().includes('/udp/'))).toEqual([])
    }
    // Both are gone on both sides: the one through the hole, and the relayed one beside it.
    await a.member.host.hangUp(b.member.peerId)
    await until('both have let go', () => pathOf(a, b) === undefined && pathOf(b, a) === undefined)
  })

  it('come through where one is behind a symmetric router, whichever it is', async () => {
    const { a, b } = await relayed()
    await hashes(b)
    await punches(a, { reflections: symmetric(a) })
    await punches(b)
    await arePunched(a, b)
    await feeds(a, b, 500_000)
    const other = await relayed()
    await punches(other.a)
    await punches(other.b, { reflections: symmetric(other.b) })
    await arePunched(other.a, other.b)
  })

  it('stay there when both routers are symmetric, when one does not want to, and when an address is not for them', async () => {
    const { a, b } = await relayed()
    const tries: unknown[] = []
    const log = {
      debug: (fields: { how?: string }, event: string) => event === 'hole.none' && tries.push(fields.how),
      info: () => undefined,
      warn: () => undefined,
      error: () => undefined,
    } as unknown as typeof quiet
    const first = await punches(a, { reflections: symmetric(a), log })
    const second = await punches(b, { reflections: symmetric(b) })
    await until('it was tried', () => tries.length === 1)
    expect(tries).toEqual(['relay'])
    await first[Symbol.asyncDispose]()
    await second[Symbol.asyncDispose]()
    expect(pathOf(a, b)).toBe('relay')
  })

  it('do not where one is told not to, or has an address that nobody is sent to', async () => {
    const { a, b } = await relayed()
    await punches(b, { isOn: false })
    expect(await asks(a, b.member.peerId)).toBe('off')
    const other = await relayed()
    await punches(other.b, { mayReach: (address) => address !== '127.0.0.1' })
    expect(await asks(other.a, other.b.member.peerId)).toBe('no-udp')
    expect(await asks(other.a, other.b.member.peerId)).toBe('busy')
  })
})

it('cuts a hole with the membership that it was made under', async () => {
  const { a, b, network } = await relayed()
  await punches(a)
  await punches(b)
  await arePunched(a, b)
  network.revoke(b.member.key.publicKey)
  expect(a.member.gate.recheck()).toBeGreaterThan(0)
  await until('nothing is left of it', () => pathOf(a, b) === undefined && pathOf(b, a) === undefined)
})

it('tries different ports, within those that routers give out', () => {
  const ports = randomPorts(PUNCH_PROBES_MAX)
  expect(new Set(ports).size).toBe(PUNCH_PROBES_MAX)
  expect(ports.every((port) => port >= 1_024 && port <= 65_535)).toBe(true)
})
