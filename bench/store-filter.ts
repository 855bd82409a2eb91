/**
 * What it costs that everybody knows what is in everybody's Nix store: bytes said and kept, the time of a miss, reading a store; each against
 * the plain way, a list of the hashes. Stores are made up, of 100,000 paths each.
 */
import { createHash, randomBytes } from 'node:crypto'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { DatabaseSync } from 'node:sqlite'
import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises'
import type { NixConfView } from '../agent/api/contract.ts'
import { Filters } from '../agent/catalog/filters.ts'
import { Records } from '../agent/catalog/records.ts'
import { ephemeralNodeKey } from '../agent/identity/node-key.ts'
import { makeLog } from '../agent/log.ts'
import { NixStore } from '../agent/nix/nix-store.ts'
import { encodeNix32 } from '../agent/nix/nix32.ts'
import { StoreIndex } from '../agent/nix/store-index.ts'
import { StoreRules } from '../agent/nix/store-rules.ts'
import { openDatabase } from '../agent/state/database.ts'
import { PieceHasher } from '../protocols/pieces/tree.ts'
import { encodePart, FILTER_KIND, filterKey, partName, partOfKey, partsFor } from '../protocols/records/filter.ts'
import { encodeRecord, OPEN_NETWORK, type SignedRecord } from '../protocols/records/record.ts'
import { Bundle, RealAgent, until } from '../test/agents.ts'
import { type Bench, byTurns, median, quantile, type Report, scaled, timed } from './harness.ts'

const PATHS = 100_000
const STORES = 10
const PATHS_IN_PART = 8_192
const ASKED = scaled(50_000)
const ASKED_BY_HTTP = scaled(2_000)
const TURNS = { countMax: 7, msMax: 60_000 }
const HASH_BYTES = 20
const LEASE_MS = 7 * 24 * 3_600_000
const MISS_MS_MAX = 10
const HASHED_BYTES = 64 * 1024 * 1024
const REFERENCES = 5
const SETTLED_MS = 10

export const bench: Bench = {
  name: 'store-filter',
  question: `What does it cost to know what is in ${STORES} Nix stores of ${PATHS.toLocaleString('en')} paths?`,
  minutesMax: 10,
  run,
}

const log = makeLog('silent')
const someHashPart = () => encodeNix32(randomBytes(HASH_BYTES))
const somePaths = (count: number) => Array.from({ length: count }, someHashPart)

async function run(report: Report): Promise<void> {
  const stores = Array.from({ length: STORES }, () => somePaths(PATHS))
  const records = stores.map((paths) => recordsOf(paths))
  sizes(report, stores, records)
  await misses(report, stores, records)
  await missesByHttp(report, records)
  await reading(report)
  await hashing(report)
}

/** As a publisher says them. */
function recordsOf(paths: readonly string[]): SignedRecord[] {
  const key = ephemeralNodeKey()
  const keys = paths.map(filterKey)
  const parts = partsFor(paths.length, PATHS_IN_PART)
  const issued = Date.now()
  return Array.from({ length: parts }, (_, part) => {
    const body = encodePart(
      part,
      parts,
      keys.filter((one) => partOfKey(one, parts) === part),
    )
    const what = { network: OPEN_NETWORK, kind: FILTER_KIND, name: partName(part), body }
    return encodeRecord({ ...what, seq: issued + part, issued, expires: issued + LEASE_MS }, key)
  })
}

function sizes(report: Report, stores: readonly string[][], records: readonly SignedRecord[][]): void {
  const bytes = records.map((all) => all.reduce((sum, record) => sum + record.bytes.byteLength, 0) / 1_000)
  report.result({
    what: `records of ${PATHS.toLocaleString('en')} paths`,
    samples: bytes,
    unit: 'KB',
    against: { what: 'a list of 20-byte hashes', samples: stores.map((paths) => (paths.length * HASH_BYTES) / 1_000) },
    goal: { timesAtMost: 0.1 },
  })
}

async function misses(report: Report, stores: readonly string[][], records: readonly SignedRecord[][]): Promise<void> {
  const before = await memoryBytes()
  using view = new View(records)
  const filterBytes = (await memoryBytes()) - before
  const sets = stores.map((paths) => new Set(paths))
  const setBytes = (await memoryBytes()) - before - filterBytes
  const MB = 1e6
  report.result({
    what: `memory of ${STORES} filters`,
    samples: [Math.max(filterBytes, view.filters.memoryBytes) / MB],
    unit: 'MB',
    against: { what: 'sets of hash parts', samples: [setBytes / MB] },
  })
  const absent = somePaths(ASKED)
  const tails: number[] = []
  let found = 0
  const ask = (has: (path: string) => boolean, tail?: number[]) => async () => {
    const each = absent.map((path) => {
      const startMs = performance.now()
      if (has(path)) found++
      return (performance.now() - startMs) * 1_000
    })
    tail?.push(quantile(each, 0.99))
    return median(each)
  }
  const samples = await byTurns(
    {
      filters: ask((path) => view.filters.holders(path).length > 0, tails),
      sets: ask((path) => sets.some((set) => set.has(path))),
    },
    TURNS,
  )
  const against = { what: 'sets of hash parts', samples: samples.sets }
  report.result({ what: `a miss with ${STORES} filters, median`, samples: samples.filters, unit: 'us', against })
  report.result({ what: 'the same, p99', samples: tails, unit: 'us' })
  const turns = samples.filters.length + 1
  const share = found / (ASKED * turns)
  report.result({
    what: 'misses for which somebody is asked',
    samples: [share * 100],
    unit: '%',
    goal: { atMost: 0.5 },
  })
}

/** The same as Nix sees it: a real agent that has these filters, and one that has none. */
async function missesByHttp(report: Report, records: readonly SignedRecord[][]): Promise<void> {
  using bundle = await Bundle.build()
  await using stack = new AsyncDisposableStack()
  const start = async (name: string, all: readonly SignedRecord[][]) => {
    const state = mkdtempSync(join(tmpdir(), `undernet-bench-${name}-`))
    stack.defer(() => rmSync(state, { recursive: true, force: true }))
    const db = openDatabase(join(state, 'state.db'))
    const known = new Records(db, { network: OPEN_NETWORK, signer: ephemeralNodeKey(), log })
    for (const some of all) known.acceptAll(some.map(({ bytes }) => bytes))
    known[Symbol.dispose]()
    db.close()
    const agent = stack.use(await RealAgent.start({ name, state, entry: bundle.entry, env: bundle.env }))
    return { agent, url: (await agent.client.get<NixConfView>('nix-conf')).url }
  }
  const [knowing, plain] = [await start('knowing', records), await start('plain', [])]
  const tails = { knowing: [] as number[], plain: [] as number[] }
  const ask = (url: string, tail: number[]) => async (turn: number) => {
    const each: number[] = []
    for (let nth = 0; nth < ASKED_BY_HTTP; nth++) {
      const startMs = performance.now()
      const reply = await fetch(`${url}/${someHashPart()}.narinfo`)
      await reply.text()
      each.push(performance.now() - startMs)
    }
    if (turn >= 0) tail.push(quantile(each, 0.99))
    return median(each)
  }
  const samples = await byTurns({ knowing: ask(knowing.url, tails.knowing), plain: ask(plain.url, tails.plain) }, TURNS)
  report.result({
    what: `an absent narinfo with ${STORES} filters, median`,
    samples: samples.knowing,
    unit: 'ms',
    against: { what: 'with none', samples: samples.plain },
  })
  report.result({
    what: 'the same, p99',
    samples: tails.knowing,
    unit: 'ms',
    against: { what: 'with none', samples: tails.plain },
    goal: { atMost: MISS_MS_MAX },
  })
  const MB = 1e6
  report.result({
    what: 'memory of that agent',
    samples: [knowing.agent.rssBytes / MB],
    unit: 'MB',
    against: { what: 'with none', samples: [plain.agent.rssBytes / MB] },
  })
}

/** A store is read while the agent has other work. */
async function reading(report: Report): Promise<void> {
  using nix = new MadeUpStore()
  const delays = { read: [] as number[], plainly: [] as number[] }
  const started = async () => {
    const index = new StoreIndex({ store: nix.store, rules: new StoreRules(['*.drv']), log })
    index.start()
    await until(() => index.isReady, { what: 'the store is read', ms: 60_000, everyMs: 1 })
    return index
  }
  const read = async () => {
    await using _index = await started()
  }
  const plainly = async () => {
    using db = new DatabaseSync(nix.path, { readOnly: true })
    const rows = db.prepare('SELECT path, hash FROM ValidPaths').all() as { path: string; hash: string }[]
    return new Map(rows.map(({ path, hash }) => [path, hash])).size
  }
  const watched = (work: () => Promise<unknown>, tail: number[]) => async (turn: number) => {
    const delay = monitorEventLoopDelay({ resolution: 1 })
    delay.enable()
    // It compares one turn with the one before.
    await sleep(SETTLED_MS)
    const ms = await timed(work)
    await sleep(SETTLED_MS)
    delay.disable()
    if (turn >= 0) tail.push(delay.max / 1e6)
    return ms
  }
  const samples = await byTurns({ read: watched(read, delays.read), plainly: watched(plainly, delays.plainly) }, TURNS)
  const against = { what: 'one SELECT into a Map', samples: samples.plainly }
  report.result({
    what: `a store of ${PATHS.toLocaleString('en')} paths is read`,
    samples: samples.read,
    unit: 'ms',
    against,
  })
  report.result({
    what: 'the longest turn of the event loop meanwhile',
    samples: delays.read,
    unit: 'ms',
    against: { what: 'one SELECT', samples: delays.plainly },
  })
  const before = await memoryBytes()
  await using index = await started()
  const bytes = ((await memoryBytes()) - before) / index.pathCount
  report.note(`An index of a store takes ${Math.round(bytes)} bytes a path in the agent that gives it out.`)
}

/** A NAR of which no piece list is known yet is read once, when somebody first asks for it. */
async function hashing(report: Report): Promise<void> {
  const bytes = randomBytes(1024 * 1024)
  const through = (update: (some: Uint8Array) => unknown) => async () => {
    const ms = await timed(async () => {
      for (let done = 0; done < HASHED_BYTES; done += bytes.byteLength) update(bytes)
    })
    return HASHED_BYTES / 1e6 / (ms / 1_000)
  }
  const samples = await byTurns(
    {
      pieces: () => {
        const hasher = new PieceHasher()
        return through((some) => hasher.update(some))()
      },
      plain: () => {
        const hash = createHash('sha256')
        return through((some) => hash.update(some))()
      },
    },
    TURNS,
  )
  const against = { what: 'SHA-256 alone', samples: samples.plain }
  report.result({ what: 'a piece list and the hash are made', samples: samples.pieces, unit: 'MB/s', against })
}

/** Filters of publishers that are all there. */
class View implements Disposable {
  readonly filters: Filters
  readonly #records: Records
  readonly #db = openDatabase(':memory:')

  constructor(all: readonly SignedRecord[][]) {
    this.#records = new Records(this.#db, { network: OPEN_NETWORK, signer: ephemeralNodeKey(), log })
    const here = { get: () => ({}) as never }
    // Records themselves are on the disk of an agent.
    const read = {
      network: OPEN_NETWORK,
      publisher: this.#records.publisher,
      list: () => all.flat(),
      onChange: () => () => {},
    }
    this.filters = new Filters({ records: read, nodes: here })
  }

  [Symbol.dispose](): void {
    this.filters[Symbol.dispose]()
    this.#records[Symbol.dispose]()
    this.#db.close()
  }
}

/** A database as Nix has it, without files: half of the paths are derivations. */
class MadeUpStore implements Disposable {
  readonly #directory = mkdtempSync(join(tmpdir(), 'undernet-bench-store-'))
  readonly path = join(this.#directory, 'db.sqlite')
  readonly store: NixStore

  constructor() {
    mkdirSync(join(this.#directory, 'store'))
    using db = new DatabaseSync(this.path)
    db.exec(`CREATE TABLE ValidPaths (
        id integer primary key autoincrement not null, path text unique not null, hash text not null,
        registrationTime integer not null, deriver text, narSize integer, ultimate integer, sigs text, ca text);
      CREATE TABLE Refs (referrer integer not null, reference integer not null, primary key (referrer, reference));
      CREATE INDEX IndexReferrer ON Refs(referrer); CREATE INDEX IndexReference ON Refs(reference); BEGIN`)
    const insert = db.prepare('INSERT INTO ValidPaths (path, hash, registrationTime, narSize) VALUES (?, ?, 0, 1000)')
    const refer = db.prepare('INSERT OR IGNORE INTO Refs VALUES (?, ?)')
    for (let nth = 1; nth <= PATHS; nth++) {
      insert.run(
        `/nix/store/${someHashPart()}-some${nth % 2 === 0 ? '.drv' : ''}`,
        `sha256:${randomBytes(32).toString('hex')}`,
      )
      // To paths of its own kind.
      for (let at = 1; at <= REFERENCES && nth > 2 * REFERENCES; at++) refer.run(nth, nth - 2 * at)
    }
    db.exec('COMMIT')
    this.store = new NixStore('/nix/store', this.path)
  }

  [Symbol.dispose](): void {
    this.store[Symbol.dispose]()
    rmSync(this.#directory, { recursive: true, force: true })
  }
}

/** Of what is held; collected garbage does not count, where Node was started so that it can be. */
async function memoryBytes(): Promise<number> {
  await nextTurn()
  globalThis.gc?.()
  const { heapUsed, arrayBuffers } = process.memoryUsage()
  return heapUsed + arrayBuffers
}
