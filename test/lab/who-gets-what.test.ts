/**
 * Who gets what of an agent: members with different labels, former members, a member of another network, strangers with our hello and with
 * libp2p alone, and whoever sits in between try every protocol and every endpoint of two agents, one that takes part in the open network
 * and one that does not. The table of what they got is printed, and is exactly what policy and specifications say.
 */
import { once } from 'node:events'
import { readdirSync, statSync } from 'node:fs'
import { get, type IncomingMessage } from 'node:http'
import { connect } from 'node:net'
import { networkInterfaces } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { AuditEntry } from '../../agent/api/membership-contract.ts'
import { Prelude } from '../../agent/mesh/prelude.ts'
import { Frames } from '../../protocols/frame.ts'
import { HELLO_PROTOCOL } from '../../protocols/hello/hello.ts'
import { STATEMENTS_PROTOCOL } from '../../protocols/membership/exchange.ts'
import { RENEWAL_PROTOCOL } from '../../protocols/membership/renewal.ts'
import { NETWORK_PROTOCOL } from '../../protocols/membership/streams.ts'
import { PIECES_PROTOCOL } from '../../protocols/pieces/exchange.ts'
import { RECORDS_PROTOCOL } from '../../protocols/records/exchange.ts'
import { Bundle, type RealAgent, until } from '../agents.ts'
import type { Attacker } from './attacker.ts'
import { ATTEMPTS, type Got, LEVELS, type Target, tryAll, tryPlain } from './attempts.ts'
import { Cast } from './cast.ts'
import { floodStreams, sendMalformed, sendMalformedOn, sendMalformedTo } from './malformed.ts'
import { ByteRelay, ManInTheMiddle, recordHello, replayHello } from './relays.ts'
import { BareChannels } from './stock-peer.ts'

const MIB = 2 ** 20
/** What all attacks together may add to an agent's memory: of what V8 takes for work it gives little back. */
const GROWTH_BYTES_MAX = 256 * MIB
/** How long the owner may wait for an answer meanwhile, on a machine that also runs the attack. */
const ANSWER_MS_MAX = 3_000
const FLOOD_STREAMS = 2_000
const WATCH_MS = 100
/** Of an answer to whoever replays a recording: the agent's half of a Noise handshake, and no more. */
const HANDSHAKE_BYTES_MAX = 1_024

type Row = Readonly<Record<string, Got>>
const COLUMNS = ['let in', 'hello told', ...ATTEMPTS]
const nothing: Row = Object.fromEntries(COLUMNS.map((column) => [column, 'nothing']))
const inside: Row = { identify: 'public', 'id push': 'public', ping: 'public', tokens: 'refused' }
const asMember: Row = {
  ...nothing,
  ...inside,
  'let in': 'private',
  'hello told': 'private',
  'hello again': 'private',
  'home records': 'private',
  'home statements': 'private',
  'home renewal': 'private',
  'home relay': 'private',
  'home gossip': 'private',
  'home piece': 'private',
  // The answer is the one for what is not there.
  'home piece, other net': 'refused',
  'open piece': 'refused',
}
const ofOpen: Row = { kad: 'public', 'open gossip': 'public', 'open records': 'public', 'open piece': 'public' }
const asStranger: Row = {
  ...nothing,
  ...inside,
  ...ofOpen,
  'let in': 'public',
  'hello told': 'public',
  'hello again': 'public',
  'home piece': 'refused',
  'home piece, other net': 'refused',
}
/** Of a token that was spent it is told why, to whoever knows of it. */
const toldWhy: Row = Object.fromEntries(COLUMNS.map((column) => [column, 'refused']))
const withToken: Row = { ...nothing, tokens: 'refused' }

const EXPECTED: Readonly<Record<'closed' | 'open', Readonly<Record<string, Row>>>> = {
  closed: {
    member: asMember,
    guest: { ...asMember, 'home piece': 'refused' },
    'former, revoked': withToken,
    // Its tag shows that it knows the secret, so it is shown the certificate behind the listener's: protocols/hello/spec.md.
    'former, ended': { ...toldWhy, 'hello told': 'private' },
    'other network': withToken,
    stranger: withToken,
    'stock libp2p': nothing,
    'relay of bytes': nothing,
    'replayed hello': nothing,
    'man in the middle': nothing,
  },
  open: {
    // It issues no certificates.
    member: { ...asMember, ...ofOpen, 'home renewal': 'refused' },
    guest: { ...asMember, ...ofOpen, 'home renewal': 'refused', 'home piece': 'refused' },
    'former, revoked': asStranger,
    'former, ended': { ...asStranger, 'hello told': 'private' },
    'other network': asStranger,
    stranger: asStranger,
    'stock libp2p': nothing,
    'relay of bytes': nothing,
    // That it takes part in the open network, the agent says to everybody who does.
    'replayed hello': { ...nothing, 'hello told': 'public' },
    'man in the middle': { ...nothing, 'hello told': 'public' },
  },
}

let bundle: Bundle
let cast: Cast
beforeAll(async () => {
  bundle = await Bundle.build()
  cast = await Cast.start({ entry: bundle.entry, env: bundle.env })
})
afterAll(async () => {
  await cast?.[Symbol.asyncDispose]()
  bundle?.[Symbol.dispose]()
})

describe.each(['closed', 'open'] as const)('of an agent whose open network is off or on: %s', (which) => {
  it('everybody gets what policy and specifications say, and nothing else', async () => {
    const { target } = cast[which]
    const table: Record<string, Row> = {}
    for (const [who, attacker] of Object.entries(cast.attackers)) table[who] = await tryAll(attacker, target)
    table['stock libp2p'] = { ...nothing, ...(await tryPlain(cast.stock, target)) }
    table['relay of bytes'] = await relayBytes(cast.attackers.member, target)
    table['replayed hello'] = await replay(cast.attackers, target)
    table['man in the middle'] = await standBetween(cast.attackers.member, target)
    console.log(`what they got of the agent "${which}":\n${print(table)}`)
    expect(table).toEqual(EXPECTED[which])
    expect(await cast.stock.known()).toEqual([])
    for (const who of ['former, revoked', 'former, ended', 'other network', 'stranger'] as const)
      expect(cast.attackers[who].hears(target.address, target.network), who).toBe(false)
  })

  it('its endpoints for people are out of reach from elsewhere', async () => {
    const { agent } = cast[which]
    const { hostname, port } = new URL((await agent.status()).http ?? '')
    expect(hostname).toBe('127.0.0.1')
    const others = Object.values(networkInterfaces())
      .flatMap((all) => all ?? [])
      .filter(({ family, internal }) => family === 'IPv4' && !internal)
    for (const host of ['127.0.0.2', ...others.map(({ address }) => address)])
      expect(await isOpen(host, Number(port)), host).toBe(false)
    expect(await statusAs('evil.example', hostname, port)).toBeGreaterThanOrEqual(400)
    expect(modesOf(agent.state)).toEqual([])
    expect(statSync(agent.socket).mode & 0o777).toBe(0o600)
  })

  it('the audit log names who was refused, and why', async () => {
    const { agent } = cast[which]
    const entries = await auditOf(agent)
    const whys = (who: string, event: string) =>
      entries.filter((one) => one.event === event && one.peerId === who).map(({ why }) => String(why))
    const { attackers, stock } = cast
    expect(whys(stock.peerId, 'peer.refused').length).toBeGreaterThan(0)
    expect(whys(attackers.guest.peerId, 'access.refused').join()).toMatch(/content:fetch/)
    if (which === 'open') return
    for (const who of ['former, revoked', 'other network', 'stranger'] as const)
      expect(whys(attackers[who].peerId, 'peer.refused').join(), who).toMatch(/shares no network/)
    expect(whys(attackers['former, ended'].peerId, 'peer.refused').join()).toMatch(/"ended" ended at/)
  })
})

describe('malformed input', () => {
  it.each(['closed', 'open'] as const)('everywhere leaves the agent "%s" as it was', async (which) => {
    const { agent, target } = cast[which]
    const { member } = cast.attackers
    await using watch = watching(agent)
    const streams = await attack(which)
    console.log(
      `malformed input to "${which}": ${streams} streams, ${(watch.grownBytes / MIB).toFixed(0)} MiB more, slowest answer ${watch.slowestMs.toFixed(0)} ms`,
    )
    expect(agent.isGone).toBe(false)
    expect(watch.grownBytes).toBeLessThan(GROWTH_BYTES_MAX)
    expect(watch.slowestMs).toBeLessThan(ANSWER_MS_MAX)
    await member.hangUp(target.address)
    // A member that broke the rules is paused where it did, and a member it is all the same.
    expect(await tryAll(member, target)).toMatchObject({ 'let in': 'private', 'home piece': 'private' })
  })
})

/** On every protocol, by whoever can reach it; in place of hello and secure channel; and more streams than anybody needs. */
async function attack(which: 'closed' | 'open'): Promise<number> {
  const { address, network } = cast[which].target
  const { member, stranger } = cast.attackers
  const who = which === 'open' ? stranger : member
  const protocols = ['/ipfs/id/1.0.0', '/ipfs/id/push/1.0.0', '/ipfs/ping/1.0.0', HELLO_PROTOCOL, NETWORK_PROTOCOL]
  const ofOpenNetwork = ['/undernet/kad/1', '/meshsub/1.2.0', RECORDS_PROTOCOL]
  const reached = [...protocols, PIECES_PROTOCOL, ...(which === 'open' ? ofOpenNetwork : [])]
  const ofMembers = ['/meshsub/1.2.0', RECORDS_PROTOCOL, STATEMENTS_PROTOCOL, RENEWAL_PROTOCOL]
  await Promise.all([
    ...reached.map((protocol) => sendMalformed(() => who.open(address, protocol))),
    ...ofMembers.map((protocol) => sendMalformed(() => member.openIn(address, network, protocol))),
  ])
  await using strangers = new AsyncDisposableStack()
  await sendMalformedOn(async () => strangers.use(await BareChannels.start()).open(address))
  const [, host = '', port = ''] = /^\/ip4\/([^/]+)\/tcp\/(\d+)/.exec(address) ?? []
  await sendMalformedTo(host, Number(port))
  return await floodStreams(() => who.open(address, NETWORK_PROTOCOL), FLOOD_STREAMS)
}

/** A recording of a whole session of a member is worth nothing to who made it, nor is playing it again. */
async function relayBytes(member: Attacker, target: Target): Promise<Row> {
  using relay = await ByteRelay.start(target.address)
  await member.hangUp(target.address)
  const { 'home piece': got } = await tryAll(member, { ...target, address: relay.address, tokens: [] })
  expect(got).toBe('private')
  await member.hangUp(target.address)
  const passed = Buffer.concat([...relay.said, relay.answered])
  const secrets = [target.network, target.secret, target.secretDigest, Buffer.from(target.secretName)]
  const isReadable = secrets.some((one) => passed.includes(Buffer.from(one)))
  const answer = await relay.replay(0)
  const isAnswered = answer.byteLength > HANDSHAKE_BYTES_MAX
  return isReadable || isAnswered ? Object.fromEntries(COLUMNS.map((column) => [column, 'private'])) : nothing
}

/** What a member said in its hello, from others: on a channel of their own, and on a stream where they have a connection. */
async function replay({ member, stranger }: Cast['attackers'], target: Target): Promise<Row> {
  await member.hangUp(target.address)
  const said = await recordHello(member, target.address)
  await using channels = await BareChannels.start()
  const channel = await channels.open(target.address)
  const answers = await replayHello(said, new Prelude(channel))
  channel.abort(new Error('that is all'))
  if (await stranger.enter(target.address).catch(() => undefined)) {
    const stream = await stranger.open(target.address, HELLO_PROTOCOL)
    answers.push(...(await replayHello(said, new Frames(stream))))
    stream.abort(new Error('that is all'))
  }
  return { ...nothing, 'hello told': toldBy(answers, target) }
}

/** A member dials somebody who passes everything on to the agent, and back. */
async function standBetween(member: Attacker, target: Target): Promise<Row> {
  await using between = await ManInTheMiddle.start(target.address)
  await expect(member.enter(between.address)).rejects.toThrow()
  await until(() => between.toTarget.length > 0, { what: 'the member spoke, and that was passed on' })
  expect(member.isIn(between.address)).toBe(false)
  return { ...nothing, 'hello told': toldBy(between.fromTarget, target) }
}

function toldBy(answers: readonly Uint8Array[], { network }: Target): Got {
  const isPrivate = answers.some((one) => Buffer.from(one).includes(Buffer.from(network)))
  return isPrivate ? 'private' : answers.length > 0 ? 'public' : 'nothing'
}

type Watch = AsyncDisposable & { grownBytes: number; slowestMs: number }

/** Looks at an agent's memory, and at how long its owner waits, until disposed. */
function watching(agent: RealAgent): Watch {
  const before = agent.rssBytes
  const stopping = new AbortController()
  const stop = async () => {
    stopping.abort()
    await work
  }
  const watch: Watch = { grownBytes: 0, slowestMs: 0, [Symbol.asyncDispose]: stop }
  const work = (async () => {
    while (!stopping.signal.aborted) {
      const startMs = performance.now()
      await agent.status()
      watch.slowestMs = Math.max(watch.slowestMs, performance.now() - startMs)
      watch.grownBytes = Math.max(watch.grownBytes, agent.rssBytes - before)
      await delay(WATCH_MS)
    }
  })()
  return watch
}

/** What a browser is told that was led here by somebody's DNS. */
async function statusAs(name: string, host: string, port: string): Promise<number> {
  const asked = get({ host, port, path: '/nix/nix-cache-info', headers: { host: name } })
  const [response] = (await once(asked, 'response')) as [IncomingMessage]
  response.resume()
  return response.statusCode ?? 0
}

async function auditOf(agent: RealAgent): Promise<AuditEntry[]> {
  const signal = AbortSignal.timeout(10_000)
  return await Array.fromAsync(agent.client.lines<AuditEntry>('audit', { limit: 1_000 }, signal))
}

/** Files in a state directory that others than their owner could read. */
function modesOf(directory: string): string[] {
  expect(statSync(directory).mode & 0o077).toBe(0)
  const secret = /^(node\.key|cache\.key|audit\.jsonl|[0-9a-f]{64}\.root)$/
  return readdirSync(directory, { recursive: true, encoding: 'utf8' })
    .filter((name) => secret.test(name.split('/').at(-1) ?? ''))
    .filter((name) => (statSync(join(directory, name)).mode & 0o077) !== 0)
}

async function isOpen(host: string, port: number): Promise<boolean> {
  const socket = connect({ host, port })
  try {
    return await new Promise((resolve) =>
      socket.once('connect', () => resolve(true)).once('error', () => resolve(false)),
    )
  } finally {
    socket.destroy()
  }
}

function print(table: Readonly<Record<string, Row>>): string {
  const wide = Math.max(...Object.keys(table).map(({ length }) => length))
  const cells = (name: string, of: (column: string) => string) =>
    [name.padEnd(wide), ...COLUMNS.map((column) => of(column).padEnd(Math.max(column.length, LEVEL_WIDTH)))].join('  ')
  return [
    cells('', (column) => column),
    ...Object.entries(table).map(([who, row]) => cells(who, (column) => row[column] ?? '')),
  ].join('\n')
}

const LEVEL_WIDTH = Math.max(...LEVELS.map(({ length }) => length))
