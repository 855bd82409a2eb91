/**
 * Fifty times kill -9 at a random moment of publishing, fetching and replicating, on either of two agents as they are shipped. After each the
 * agent starts on what is left; all that it had acknowledged is there, is listed, and has its bytes; at the end both agents know the same,
 * each gives the other every byte right, and no rubbish is left on either disk.
 */
import { createHash } from 'node:crypto'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { CID } from 'multiformats/cid'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { ArtifactView, FetchEvent, PublishResult, SearchResult } from '../../agent/api/contract.ts'
import { Bundle, freePort, RealAgent, until } from '../agents.ts'

const KILLS = 50
/** The work of one round takes about this long; killed at any moment of it, or just after. */
const ROUND_MS_MAX = 150
const PUBLISHED_PER_ROUND = 6
/** From less than a piece to a dozen. */
const SIZE_BYTES_MAX = 3_000_000
/** Of what was acknowledged, looked at after each kill; at the end all of it. */
const CHECKED_PER_ROUND = 4
/** Both agents publish under few names, so that they replace and withdraw as well. */
const NAMES = 24

/** A kill between the agent's commit and its answer leaves either; nothing else. */
type Side = {
  agent: RealAgent
  state: string
  port: number /** Name to digest. */
  acknowledged: Map<string, string>
  unsure: Map<string, (string | null)[]>
}

describe('kill -9', { timeout: 240_000 }, () => {
  const seed = Number(process.env.SEED ?? Date.now() % 1_000_000)
  const random = randomOf(seed)
  const sides: Side[] = []
  let bundle: Bundle
  beforeAll(async () => {
    bundle = await Bundle.build()
  })
  afterAll(async () => {
    for (const { agent, state } of sides) {
      await agent[Symbol.asyncDispose]()
      rmSync(state, { recursive: true, force: true })
    }
    bundle?.[Symbol.dispose]()
  })

  const start = (side: { state: string; port: number }, name: string, bootstrap: number) =>
    RealAgent.start({
      name,
      entry: bundle.entry,
      env: bundle.env,
      state: side.state,
      listen: `/ip4/127.0.0.1/tcp/${side.port}`,
      bootstrap: [`/ip4/127.0.0.1/tcp/${bootstrap}`],
    })

  test('at any moment loses nothing that was acknowledged, and never gives a wrong byte', async () => {
    console.log(`seed ${seed}`)
    const ports = [await freePort(), await freePort()]
    for (const [nth, port] of ports.entries()) {
      const state = mkdtempSync(join(tmpdir(), 'undernet-kill-'))
      const agent = await start({ state, port }, `side-${nth}`, ports[1 - nth] as number)
      sides.push({ agent, state, port, acknowledged: new Map(), unsure: new Map() })
    }
    const [one, two] = sides as [Side, Side]
    for (let kill = 0; kill < KILLS; kill++) {
      const [victim, other] = random() < 0.5 ? [one, two] : [two, one]
      const stop = new AbortController()
      const work = Promise.allSettled([
        publishSome(victim, stop.signal),
        publishSome(other, stop.signal),
        fetchSome(victim, other, stop.signal),
        fetchSome(other, victim, stop.signal),
      ])
      await delay(random() * ROUND_MS_MAX)
      await victim.agent.end('SIGKILL')
      stop.abort()
      await work
      victim.agent = await start(victim, victim.agent.name, other.port)
      for (const side of [victim, other]) await expectKept(side, CHECKED_PER_ROUND)
    }
    for (const side of sides) await expectKept(side, NAMES)
    await expectSame(one, two)
    for (const [from, to] of [
      [one, two],
      [two, one],
    ] as const) {
      for (const [name, digest] of from.acknowledged) {
        expect(await digestThrough(to, `${from.agent.name}/${name}`), `${name} of ${from.agent.name}`).toBe(digest)
      }
    }
    for (const { agent, state } of sides) {
      await agent.end('SIGTERM')
      expect(readdirSync(join(state, 'blobs', 'incoming'))).toEqual([])
      expect(agent.logged('agent.failed')).toEqual([])
    }
    const count = one.acknowledged.size + two.acknowledged.size
    console.log(`${KILLS} kills; ${count} artifacts acknowledged and whole on both`)
    expect(count).toBeGreaterThan(NAMES / 2)
  })

  /** Publishes, replaces and withdraws, and notes what the agent acknowledged; what it did not may be either way. */
  async function publishSome({ agent, acknowledged, unsure }: Side, signal: AbortSignal): Promise<void> {
    for (let nth = 0; nth < PUBLISHED_PER_ROUND; nth++) {
      const name = `artifact-${Math.floor(random() * NAMES)}`
      const before = acknowledged.get(name) ?? null
      const isWithdrawal = before !== null && random() < 0.2
      const bytes = bytesOf(random, Math.floor(random() ** 3 * SIZE_BYTES_MAX) + 1)
      const digest = createHash('sha256').update(bytes).digest('hex')
      const maybe = unsure.get(name) ?? [before]
      unsure.set(name, [...maybe, isWithdrawal ? null : digest])
      if (isWithdrawal) await agent.client.post<ArtifactView>('unpublish', { ref: name }, signal)
      else await agent.client.upload<PublishResult>('upload', { type: 'file', name }, once(bytes), signal)
      unsure.delete(name)
      if (isWithdrawal) acknowledged.delete(name)
      else acknowledged.set(name, digest)
    }
  }

  /** Fetches what the other side has published, as far as it is known here already. */
  async function fetchSome(to: Side, from: Side, signal: AbortSignal): Promise<void> {
    for (const name of from.acknowledged.keys()) {
      const events = to.agent.client.events('fetch', { ref: `${from.agent.name}/${name}` }, signal)
      // It may be withdrawn or unknown; what matters is what the kill leaves.
      await lastOf(events).catch(() => undefined)
      if (signal.aborted) return
    }
  }

  /**
   * What the agent publishes is what it acknowledged; where it was killed before it could answer, what was asked of it or what was before. Of
   * `checked` artifacts the bytes are read; of all others the CID must do.
   */
  async function expectKept(side: Side, checked: number): Promise<void> {
    const { agent, acknowledged, unsure } = side
    const own = await ownOf(agent)
    for (const name of new Set([...acknowledged.keys(), ...unsure.keys(), ...own.keys()])) {
      const cid = own.get(name)
      const digest = cid === undefined ? null : digestIn(cid)
      const possible = unsure.get(name) ?? [acknowledged.get(name) ?? null]
      expect(possible, `${name} of ${agent.name}`).toContain(digest)
      unsure.delete(name)
      if (digest === null) acknowledged.delete(name)
      else acknowledged.set(name, digest)
    }
    const names = [...acknowledged.keys()].sort(() => random() - 0.5).slice(0, checked)
    for (const name of names) {
      expect(await digestThrough(side, own.get(name) ?? ''), `${name} of ${agent.name}`).toBe(acknowledged.get(name))
    }
  }

  /** Both have the same records: what each says of itself is what the other knows of it. */
  async function expectSame(one: Side, two: Side): Promise<void> {
    const all = async ({ agent }: Side) => {
      const { artifacts } = await agent.client.get<SearchResult>('search', { limit: 500 })
      return artifacts.map(({ cid, name }) => `${name} ${cid}`).sort()
    }
    await until(async () => JSON.stringify(await all(one)) === JSON.stringify(await all(two)), {
      what: 'both agents know the same artifacts',
      ms: 45_000,
    })
  }
})

/** This agent's own artifacts: name to CID. */
async function ownOf(agent: RealAgent): Promise<Map<string, string>> {
  const { artifacts } = await agent.client.get<SearchResult>('search', { limit: 500 })
  return new Map(artifacts.filter(({ own }) => own).map(({ name, cid }) => [name, cid]))
}

/** Fetches an artifact to an agent, reads it from there, and returns the hash of what came. */
async function digestThrough({ agent: { client } }: Pick<Side, 'agent'>, ref: string): Promise<string | undefined> {
  const signal = AbortSignal.timeout(30_000)
  const done = await lastOf(client.events('fetch', { ref }, signal))
  const part = done?.type === 'done' ? done.result.parts[0] : undefined
  if (part === undefined) return undefined
  const hash = createHash('sha256')
  for await (const chunk of client.download(`blobs/${part.digest}`, signal)) hash.update(chunk)
  return hash.digest('hex')
}

/** The hash that a file's CID is made of. */
function digestIn(cid: string): string {
  return Buffer.from(CID.parse(cid).multihash.digest).toString('hex')
}

async function lastOf(events: AsyncIterable<FetchEvent>): Promise<FetchEvent | undefined> {
  let last: FetchEvent | undefined
  for await (const event of events) last = event
  return last
}

async function* once(bytes: Uint8Array) {
  yield bytes
}

function bytesOf(random: () => number, sizeBytes: number): Buffer {
  return Buffer.alloc(sizeBytes, `${random()}`)
}

/** Mulberry32: small, and the same everywhere for one seed. */
function randomOf(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296
  }
}
