/**
 * kill -9 in the middle of publishing, replacing, withdrawing, fetching and replicating, at random moments: two agents do all of that at
 * once, one of them (or both) is killed, and started again; at times it is killed again while it starts. After each restart
 *
 * - what it acknowledged holds: each publication is there with its bytes, each withdrawal is not undone; of the one operation that was
 *   under way either all has happened or nothing;
 * - the other agent can get what it publishes, and no byte of anything is wrong;
 * - both agents know the same records;
 * - nothing is left of what was half written.
 *
 * The seed is printed; KILL_SEED repeats a run, as far as its moments can be repeated.
 */
import { createHash } from 'node:crypto'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { setTimeout as delay } from 'node:timers/promises'
import { expect, test } from 'vitest'
import type { PublishResult, SearchResult } from '../../agent/api/contract.ts'
import { fileCid } from '../../protocols/artifact/artifact.ts'
import { Bundle, freePort, RealAgent, until } from '../agents.ts'
import { randomFrom } from '../random.ts'

const KILLS = 50
/** After the work of a round began; enough for several operations. */
const KILL_MS_MAX = 500
/** A start takes about as long. */
const KILL_STARTING_MS_MAX = 500
/** Published by a node at a time. */
const NAMES_MAX = 16
const BYTES_MAX = 10 * 1024 * 1024
/** Several times what is published, so that fetched blobs are evicted, too. */
const QUOTA = '400MiB'
/** A comparison on connecting, and time for a busy machine. */
const AGREE_MS_MAX = 30_000
const CHUNK_BYTES = 64 * 1024

/** A file that may be published: `cid` follows from the bytes, which follow from the rest. */
type File = { name: string; cid: string; digest: string; sizeBytes: number; fill: string }

class Node {
  readonly name: string
  readonly state = mkdtempSync(join(tmpdir(), 'undernet-kill-'))
  readonly port: number
  readonly bootstrap: string
  /** What it acknowledged. */
  readonly published = new Map<string, File>()
  /** The operation under way: the file, or the withdrawal of the name. */
  pending: { name: string; file: File | undefined } | undefined
  #agent: RealAgent | undefined

  constructor(name: string, port: number, otherPort: number) {
    this.name = name
    this.port = port
    this.bootstrap = `/ip4/127.0.0.1/tcp/${otherPort}`
  }

  get agent(): RealAgent {
    if (this.#agent === undefined) throw new Error(`${this.name} has not been started`)
    return this.#agent
  }

  launch({ entry, env }: Bundle): RealAgent {
    const { name, state, port, bootstrap } = this
    const listen = `/ip4/127.0.0.1/tcp/${port}`
    const flags = ['--quota', QUOTA]
    this.#agent = RealAgent.launch({ name, state, entry, env, listen, bootstrap: [bootstrap], flags })
    return this.#agent
  }

  async dispose(): Promise<void> {
    await this.#agent?.[Symbol.asyncDispose]()
    rmSync(this.state, { recursive: true, force: true })
  }
}

test(`killed ${KILLS} times at random, no agent loses what it acknowledged, and none has a wrong byte`, {
  timeout: 900_000,
}, async () => {
  const seed = Number(process.env.KILL_SEED ?? Math.floor(Math.random() * 2 ** 32))
  console.log(`KILL_SEED=${seed}`)
  const random = randomFrom(seed)
  const startedMs = performance.now()
  const counts = { kills: 0, whileStarting: 0, published: 0, withdrawn: 0, fetched: 0, halfDone: 0, halfFetched: 0 }
  using bundle = await Bundle.build()
  const ports = [await freePort(), await freePort()] as const
  const nodes = [new Node('a', ports[0], ports[1]), new Node('b', ports[1], ports[0])] as const
  try {
    await Promise.all(nodes.map((node) => node.launch(bundle).answers()))
    await until(async () => (await nodes[0].agent.status()).peers.length === 1, { what: 'they meet' })
    while (counts.kills < KILLS) {
      const victims = random() < 0.1 ? [...nodes] : [random() < 0.5 ? nodes[0] : nodes[1]]
      await workUntilKilled(nodes, victims, random, counts)
      for (const victim of victims) {
        while (random() < 0.2) {
          const starting = victim.launch(bundle)
          await delay(random() * KILL_STARTING_MS_MAX)
          await starting.end('SIGKILL')
          counts.kills++
          counts.whileStarting++
        }
      }
      await Promise.all(victims.map((victim) => victim.launch(bundle).answers()))
      for (const node of nodes) await expectTruth(node, random, counts)
      await expectAgreement(nodes)
      await expectServed(nodes, random)
    }
    await expectAllServed(nodes)
    await expectNothingLeft(nodes)
  } finally {
    for (const node of nodes) await node.dispose()
  }
  console.log(`${JSON.stringify(counts)} in ${Math.round((performance.now() - startedMs) / 1_000)} s`)
})

type Random = () => number
type Nodes = readonly [Node, Node]
type Counts = Record<
  'kills' | 'whileStarting' | 'published' | 'withdrawn' | 'fetched' | 'halfDone' | 'halfFetched',
  number
>

/** Both nodes publish and fetch as fast as they can until the victims are killed; resolves when nobody does anything any more. */
async function workUntilKilled(nodes: Nodes, victims: Node[], random: Random, counts: Counts): Promise<void> {
  const over = new AbortController()
  const files = nodes.map(({ published }) => [...published.values()])
  const work = nodes.flatMap((node, nth) => [
    publishUntil(node, random, counts, over.signal),
    fetchUntil(node, files[1 - nth] ?? [], random, counts, over.signal),
  ])
  await delay(random() * KILL_MS_MAX)
  // From here on, failures are what a kill is.
  over.abort()
  await Promise.all(victims.map((victim) => victim.agent.end('SIGKILL')))
  counts.kills += victims.length
  counts.halfFetched += victims.filter(({ state }) => readdirSync(join(state, 'blobs', 'partial')).length > 0).length
  await Promise.all(work)
}

/** Publishes under new names, in place of what a name meant, and withdraws, one after the other. */
async function publishUntil(node: Node, random: Random, counts: Counts, over: AbortSignal): Promise<void> {
  const { client } = node.agent
  // Requests are not aborted with the signal: only the kill may cut them, so that the agent that stays gets them whole.
  const signal = AbortSignal.timeout(60_000)
  try {
    while (!over.aborted) {
      const kept = [...node.published.keys()].filter((name) => name.startsWith('kept'))
      if (kept.length >= NAMES_MAX) {
        const name = kept[Math.floor(random() * kept.length)] ?? ''
        node.pending = { name, file: undefined }
        await client.post('unpublish', { ref: name }, signal)
        node.published.delete(name)
        counts.withdrawn++
      } else {
        const isNew = random() < 0.6
        const file = makeFile(
          isNew ? `kept-${node.name}-${hexOf(random)}` : `swap-${node.name}-${Math.floor(random() * 4)}`,
          random,
        )
        node.pending = { name: file.name, file }
        const { artifact } = await client.upload<PublishResult>(
          'upload',
          { type: 'file', name: file.name },
          bytesOf(file),
          signal,
        )
        expect(artifact.cid).toBe(file.cid)
        node.published.set(file.name, file)
        counts.published++
      }
      node.pending = undefined
    }
  } catch (error) {
    if (!over.aborted) throw error
  }
}

/** Fetches what the other published before the round, and looks at each byte. */
async function fetchUntil(node: Node, files: File[], random: Random, counts: Counts, over: AbortSignal): Promise<void> {
  const { client } = node.agent
  const kept = files.filter(({ name }) => name.startsWith('kept')).sort(() => random() - 0.5)
  try {
    for (const file of kept) {
      if (over.aborted) return
      // What is withdrawn meanwhile is not found, or not there any more.
      const isFound = await fetchFile(node.agent, file, over).catch((error: Error) => {
        if (over.aborted || /no artifact|no peer/.test(error.message)) return false
        throw error
      })
      if (!isFound) continue
      expect(await digestOf(client.download(`blobs/${file.digest}`, over)), file.name).toBe(file.digest)
      counts.fetched++
    }
  } catch (error) {
    if (!over.aborted || (error as Error).name === 'AssertionError') throw error
  }
}

async function fetchFile(agent: RealAgent, { cid }: File, signal: AbortSignal): Promise<boolean> {
  const events = await Array.fromAsync(agent.client.events('fetch', { ref: cid }, signal))
  return events.at(-1)?.type === 'done'
}

/** Holds what the agent has against what it acknowledged. */
async function expectTruth(node: Node, random: Random, counts: Counts): Promise<void> {
  const { published, pending, agent } = node
  const own = new Map(
    (await views(agent)).filter((view) => view.own).map(({ name, cid }) => [name, cid] as [string, string]),
  )
  if (pending) {
    const cid = own.get(pending.name)
    if (cid === pending.file?.cid) {
      if (pending.file) published.set(pending.name, pending.file)
      else published.delete(pending.name)
      counts.halfDone++
    }
    node.pending = undefined
  }
  const expected = new Map([...published.values()].map(({ name, cid }) => [name, cid]))
  expect(own, `what ${node.name} publishes`).toEqual(expected)
  const newest = [...published.values()].slice(-3)
  for (const file of [...newest, pick(published, random)].filter((one) => one !== undefined)) {
    const digest = await digestOf(agent.client.download(`blobs/${file.digest}`, AbortSignal.timeout(30_000)))
    expect(digest, `${file.name} on ${node.name}`).toBe(file.digest)
  }
  const incoming = join(node.state, 'blobs', 'incoming')
  await until(() => readdirSync(incoming).length === 0, { what: `nothing half written on ${node.name}` })
}

async function expectAgreement(nodes: Nodes): Promise<void> {
  const lines = async ({ agent }: Node) =>
    (await views(agent))
      .map(({ publisher, name, cid, issued }) => `${publisher.peerId} ${name} ${cid} ${issued}`)
      .sort()
  const agree = async () => {
    const [a, b] = await Promise.all([lines(nodes[0]), lines(nodes[1])])
    return a.join('\n') === b.join('\n')
  }
  const said = () => nodes.map(({ name, agent }) => `${name}:\n${agent.log.slice(-20).join('\n')}`).join('\n')
  await until(agree, { what: () => `both know the same records\n${said()}`, ms: AGREE_MS_MAX })
}

/** Everything that each publishes, from the other. */
async function expectAllServed(nodes: Nodes): Promise<void> {
  for (const [nth, { agent }] of nodes.entries()) {
    for (const file of (nodes[1 - nth] as Node).published.values()) await expectFetched(agent, file)
  }
}

async function expectFetched(agent: RealAgent, file: File): Promise<void> {
  const signal = AbortSignal.timeout(60_000)
  expect(await fetchFile(agent, file, signal)).toBe(true)
  expect(await digestOf(agent.client.download(`blobs/${file.digest}`, signal)), file.name).toBe(file.digest)
}

/** Each gets one of the other's, at times by the command that people type. */
async function expectServed(nodes: Nodes, random: Random): Promise<void> {
  for (const [nth, node] of nodes.entries()) {
    const file = pick((nodes[1 - nth] as Node).published, random)
    if (file === undefined) continue
    if (random() < 0.2) {
      const directory = mkdtempSync(join(tmpdir(), 'undernet-kill-'))
      const { code, stderr } = await node.agent.run('get', file.cid, '--to', directory)
      expect(code, stderr).toBe(0)
      expect(readdirSync(directory)).toEqual([file.name])
      expect(
        createHash('sha256')
          .update(readFileSync(join(directory, file.name)))
          .digest('hex'),
      ).toBe(file.digest)
      rmSync(directory, { recursive: true })
    } else await expectFetched(node.agent, file)
  }
}

/** At the end: sound databases, files that are what their names say, and none that nobody knows. */
async function expectNothingLeft(nodes: Nodes): Promise<void> {
  for (const { agent, state } of nodes) {
    const { content } = await agent.status()
    expect(await agent.end('SIGTERM')).toBe(0)
    using db = new DatabaseSync(join(state, 'state.db'))
    expect(db.prepare('PRAGMA integrity_check').all()).toEqual([{ integrity_check: 'ok' }])
    const directory = join(state, 'blobs')
    const files = readdirSync(directory, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile())
    const whole = files.filter(({ parentPath }) => /\/[0-9a-f]{2}$/.test(parentPath))
    expect(whole).toHaveLength(content.blobs)
    for (const { parentPath, name } of whole) {
      expect(
        createHash('sha256')
          .update(readFileSync(join(parentPath, name)))
          .digest('hex'),
      ).toBe(name)
    }
    const partial = db
      .prepare('SELECT digest FROM content_partials')
      .all()
      .map((row) => row.digest)
    const others = files.filter((file) => !whole.includes(file)).map(({ name }) => name)
    expect(new Set(others)).toEqual(new Set(partial))
  }
}

async function views(agent: RealAgent): Promise<SearchResult['artifacts']> {
  const { artifacts, truncated } = await agent.client.get<SearchResult>('search', { limit: 500 })
  expect(truncated).toBe(false)
  return artifacts
}

/** Mostly small, at times many pieces. */
function makeFile(name: string, random: Random): File {
  const sizeBytes = Math.ceil((random() < 0.6 ? 0.02 : 1) * random() * BYTES_MAX)
  const file = { name, sizeBytes, fill: hexOf(random) }
  const hash = createHash('sha256')
  for (const chunk of chunksOf(file)) hash.update(chunk)
  const digest = hash.digest('hex')
  return { ...file, digest, cid: fileCid(digest).toString() }
}

function* chunksOf({ sizeBytes, fill }: Pick<File, 'sizeBytes' | 'fill'>): Generator<Buffer> {
  for (let at = 0; at < sizeBytes; at += CHUNK_BYTES) {
    yield Buffer.alloc(Math.min(CHUNK_BYTES, sizeBytes - at), `${fill} ${at} `)
  }
}

async function* bytesOf(file: File): AsyncGenerator<Buffer> {
  yield* chunksOf(file)
}

async function digestOf(bytes: AsyncIterable<Uint8Array>): Promise<string> {
  const hash = createHash('sha256')
  for await (const chunk of bytes) hash.update(chunk)
  return hash.digest('hex')
}

function pick<T>(map: ReadonlyMap<string, T>, random: Random): T | undefined {
  return [...map.values()][Math.floor(random() * map.size)]
}

function hexOf(random: Random): string {
  return Math.floor(random() * 2 ** 32).toString(16)
}
