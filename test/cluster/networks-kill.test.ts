/**
 * kill -9 at random moments while networks are made, joined and left, something is published in them, members are revoked and policies
 * set. After each restart the agent can be used: what it acknowledged holds, of the one operation that was under way either all has
 * happened or nothing, and nothing is left of a network that it is not in.
 *
 * The seed is printed; KILL_SEED repeats a run, as far as its moments can be repeated.
 */
import { randomBytes } from 'node:crypto'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { setTimeout as delay } from 'node:timers/promises'
import { expect, test } from 'vitest'
import type { PublishResult, SearchResult } from '../../agent/api/contract.ts'
import type { InviteResult, NetworkDetail, NetworkList, PolicyView } from '../../agent/api/membership-contract.ts'
import { AgentError } from '../../agent/error.ts'
import { ephemeralNodeKey } from '../../agent/identity/node-key.ts'
import { peerIdOf } from '../../agent/identity/peer-id.ts'
import { decodeRevocation } from '../../protocols/membership/revocation.ts'
import type { RealAgent } from '../agents.ts'
import { randomFrom } from '../random.ts'
import { Lab } from './members.ts'

const KILLS = 20
/** After the work of a round began: several operations, each of some milliseconds and a few syncs of the disk. */
const KILL_MS_MAX = 400
/** A node is in sixteen at most; fewer, so that leaving them has its share. */
const NETWORKS_MAX = 5
/** The network that is joined by a token. */
const JOINED = 'joined'
const REQUEST_MS_MAX = 60_000

/** A network that the agent acknowledged, and what it did there. */
type Known = { version: number; revoked: Set<string>; published: Set<string> }
type Step = { what: string; name: string; item?: string }

class Truth {
  readonly networks = new Map<string, Known>()
  /** Under way: it may have happened or not. */
  pending: Step | undefined
  /** In the network that is joined again and again: what was said there before it was left is still known to others, and comes back. */
  readonly remembered = new Set<string>()
  readonly counts: Record<string, number> = {}

  done({ what, name, item = '' }: Step): void {
    const network = this.networks.get(name)
    if (what === 'create' || what === 'join') {
      this.networks.set(name, { version: what === 'create' ? 1 : 0, revoked: new Set(), published: new Set() })
    } else if (what === 'leave') this.networks.delete(name)
    else if (what === 'publish') network?.published.add(item)
    else if (what === 'unpublish') network?.published.delete(item)
    else if (what === 'revoke') network?.revoked.add(item)
    else if (what === 'policy' && network !== undefined) network.version++
    this.counts[what] = (this.counts[what] ?? 0) + 1
    this.pending = undefined
  }
}

test(`killed ${KILLS} times at random, an agent loses nothing of its networks that it acknowledged`, {
  timeout: 600_000,
}, async () => {
  const seed = Number(process.env.KILL_SEED ?? Math.floor(Math.random() * 2 ** 32))
  console.log(`KILL_SEED=${seed}`)
  const random = randomFrom(seed)
  const startedMs = performance.now()
  await using lab = await Lab.open()
  const issuer = await lab.start({ name: 'issuer', flags: ['--no-open'] })
  await issuer.client.post<NetworkDetail>('networks', { name: JOINED })
  let victim = await lab.start({ name: 'victim', flags: ['--no-open'] })
  const truth = new Truth()
  for (let kills = 0; kills < KILLS; kills++) {
    const over = new AbortController()
    const work = workUntil(victim, issuer, truth, random, over.signal)
    await delay(random() * KILL_MS_MAX)
    // From here on, failures are what a kill is.
    over.abort()
    await victim.end('SIGKILL')
    await work
    victim = await lab.restart(victim)
    await expectTruth(victim, truth)
  }
  await expectUsable(victim, issuer, truth)
  await lab.end(victim)
  using db = new DatabaseSync(join(victim.state, 'state.db'))
  expect(db.prepare('PRAGMA integrity_check').all()).toEqual([{ integrity_check: 'ok' }])
  const seconds = Math.round((performance.now() - startedMs) / 1_000)
  console.log(`${KILLS} kills, acknowledged: ${JSON.stringify(truth.counts)}, in ${seconds} s`)
})

/** One operation after the other, as fast as the agent does them. */
async function workUntil(
  { client }: RealAgent,
  issuer: RealAgent,
  truth: Truth,
  random: () => number,
  over: AbortSignal,
): Promise<void> {
  const signal = AbortSignal.timeout(REQUEST_MS_MAX)
  try {
    while (!over.aborted) {
      const step = nextStep(truth, random)
      const { what, name, item = '' } = step
      // Made by another agent, which is not killed.
      const token = what === 'join' ? await tokenOf(issuer) : ''
      truth.pending = step
      if (what === 'publish') truth.remembered.add(item)
      if (what === 'create') await client.post('networks', { name }, signal)
      else if (what === 'join') await client.post('join', { token }, signal)
      else if (what === 'leave') await client.delete(`networks/${name}`, { force: 'true' })
      else if (what === 'revoke') await client.post(`members/${item}/revoke`, { network: name }, signal)
      else if (what === 'unpublish') await client.post('unpublish', { ref: item, network: name }, signal)
      else if (what === 'publish') {
        const chunks = (async function* () {
          yield Buffer.from(`${item} of ${name}`)
        })()
        const isDone = await client
          .upload<PublishResult>('upload', { type: 'file', name: item, network: name }, chunks, signal)
          .catch((error: unknown) => {
            // Nobody would see it: the policy has not come from the issuer yet.
            if (name === JOINED && error instanceof AgentError && error.code === 'not-allowed') return undefined
            throw error
          })
        if (isDone === undefined) continue
      } else await client.put('policy', { network: name, text: POLICY })
      truth.done(step)
    }
  } catch (error) {
    if (!over.aborted) throw error
  }
}

/** In force after each change: what everybody may. */
const POLICY = '[[grants]]\nfrom = "*"\nto = "*"\nallow = ["content:fetch", "content:publish"]\n'

function nextStep({ networks }: Truth, random: () => number): Step {
  const names = [...networks.keys()]
  const made = names.filter((name) => name !== JOINED)
  const name = pick(names, random)
  const own = pick(made, random)
  const roll = random()
  if (name === undefined || (names.length < NETWORKS_MAX && roll < 0.2))
    return { what: 'create', name: `network-${randomBytes(4).toString('hex')}` }
  if (!networks.has(JOINED) && roll < 0.4) return { what: 'join', name: JOINED }
  if (roll < 0.5 || own === undefined) return { what: 'leave', name }
  if (roll < 0.65) return { what: 'revoke', name: own, item: peerIdOf(ephemeralNodeKey().publicKey) }
  if (roll < 0.8) return { what: 'policy', name: own }
  const published = pick([...(networks.get(name)?.published ?? [])], random)
  if (published !== undefined && roll < 0.85) return { what: 'unpublish', name, item: published }
  return { what: 'publish', name, item: `file-${randomBytes(4).toString('hex')}` }
}

async function tokenOf({ client }: RealAgent): Promise<string> {
  const { token } = await client.post<InviteResult>('invitations', { labels: {}, uses: 1, expiresSeconds: 3_600 })
  return token
}

/** Holds the agent against what it acknowledged; of what was under way either may be. */
async function expectTruth({ client, state }: RealAgent, truth: Truth): Promise<void> {
  const { networks } = await client.get<NetworkList>('networks')
  const { pending } = truth
  if (pending !== undefined) {
    const isDone = await hasHappened({ client, state } as RealAgent, pending, networks, truth)
    if (isDone) truth.done(pending)
    truth.pending = undefined
    const half = isDone ? 'halfDone' : 'undone'
    truth.counts[half] = (truth.counts[half] ?? 0) + 1
  }
  expect(networks.map(({ name }) => name).toSorted()).toEqual([...truth.networks.keys()].toSorted())
  const { artifacts } = await client.get<SearchResult>('search', { limit: 500 })
  for (const network of networks) {
    const { name, id, rootKey, member } = network
    const known = truth.networks.get(name) as Known
    const isMade = name !== JOINED
    expect(member.state, name).toBe('member')
    expect(rootKey, name).toBe(isMade ? 'here' : 'absent')
    if (isMade) expect((await client.get<PolicyView>('policy', { network: name })).version).toBe(known.version)
    expect(revokedIn(state, id)).toEqual(known.revoked)
    const own = artifacts.filter((one) => one.network === name && one.own).map((one) => one.name)
    const said = own.filter((one) => isMade || known.published.has(one) || !truth.remembered.has(one))
    expect(new Set(said), `published in ${name}`).toEqual(known.published)
  }
  // Of networks that it is not in there is neither a key nor a database.
  const ids = networks.map(({ id }) => id)
  const files = readdirSync(join(state, 'networks')).filter((name) => !ids.includes(name.split('.')[0] ?? ''))
  expect(files).toEqual([])
  const roots = readdirSync(join(state, 'networks')).filter((name) => name.endsWith('.root'))
  expect(roots).toHaveLength(networks.filter(({ name }) => name !== JOINED).length)
}

async function hasHappened(
  { client, state }: RealAgent,
  { what, name, item = '' }: Step,
  networks: NetworkDetail[],
  truth: Truth,
): Promise<boolean> {
  const network = networks.find((one) => one.name === name)
  if (what === 'create' || what === 'join') return network !== undefined
  if (what === 'leave') return network === undefined
  if (what === 'revoke') return revokedIn(state, network?.id ?? '').has(item)
  if (what === 'policy') {
    const { version } = await client.get<PolicyView>('policy', { network: name })
    return version === (truth.networks.get(name)?.version ?? 0) + 1
  }
  const { artifacts } = await client.get<SearchResult>('search', { limit: 500 })
  const isThere = artifacts.some((one) => one.name === item && one.network === name)
  return what === 'publish' ? isThere : !isThere
}

/** Peer ids of the keys that are revoked in a network, as the agent has them on the disk. */
function revokedIn(state: string, id: string): Set<string> {
  using db = new DatabaseSync(join(state, 'state.db'), { readOnly: true })
  const rows = db.prepare("SELECT bytes FROM network_statements WHERE network = ? AND kind = 'revocation'").all(id) as {
    bytes: Uint8Array
  }[]
  const network = Uint8Array.from(Buffer.from(id, 'hex'))
  return new Set(rows.map(({ bytes }) => peerIdOf(decodeRevocation(bytes, network).statement.key)))
}

/** At the end everything can still be done, and a machine that joined is seen. */
async function expectUsable(victim: RealAgent, issuer: RealAgent, truth: Truth): Promise<void> {
  const { client } = victim
  const signal = AbortSignal.timeout(REQUEST_MS_MAX)
  for (const name of truth.networks.keys()) await client.delete(`networks/${name}`, { force: 'true' })
  await client.post('networks', { name: 'last' }, signal)
  await client.post('join', { token: await tokenOf(issuer) }, signal)
  const { networks } = await client.get<NetworkList>('networks')
  expect(networks.map(({ name }) => name)).toEqual([JOINED, 'last'])
  expect((await client.get<{ warnings: object[] }>('status')).warnings).toEqual([])
}

function pick<T>(list: readonly T[], random: () => number): T | undefined {
  return list[Math.floor(random() * list.length)]
}
