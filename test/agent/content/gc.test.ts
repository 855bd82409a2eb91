/** Pins, eviction and gc together: whatever happens in whatever order, nothing goes that is needed, and what is counted is what is there. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import fc from 'fast-check'
import { describe, expect, onTestFinished, test } from 'vitest'
import type { BlobSource } from '../../../agent/content/content.ts'
import { collectGarbage } from '../../../agent/content/gc.ts'
import { PartialBlob } from '../../../agent/content/partial-blob.ts'
import { listOf } from '../../../agent/content/piece-lists.ts'
import { Pins } from '../../../agent/content/pins.ts'
import { OPEN_NETWORK_ID, PUBLICATION_PIN } from '../../../agent/content/publication-key.ts'
import { AgentError } from '../../../agent/error.ts'
import { pattern } from '../../protocols/pieces/pattern.ts'
import { digestOf, never, Store, until } from './peers.ts'

const KIB = 1024
const DAY_MS = 24 * 60 * 60_000
const WRITER = fileURLToPath(new URL('./killed-collector.ts', import.meta.url))

const pinsOf = (store: Store) => new Pins({ db: store.db, index: store.index, blobs: store.blobs })
const all = { all: true, dryRun: false }

/** Fetched bytes, as an honest peer gave them. */
async function fetched(store: Store, bytes: Uint8Array, network = OPEN_NETWORK_ID): Promise<string> {
  const { digest } = await store.blobs.write(undefined, [bytes], never)
  store.index.put({ digest, sizeBytes: bytes.byteLength, usedMs: store.index.get(digest)?.usedMs ?? 0 }, { network })
  return digest
}

describe('gc', () => {
  test('frees what nobody may be given, what was left half fetched and what was not used for long; with all, every fetched blob', async () => {
    let now = 100 * DAY_MS
    using store = new Store({ now: () => now })
    const old = await fetched(store, pattern(1_000, 1))
    now += 31 * DAY_MS
    const recent = await fetched(store, pattern(1_000, 2))
    const needless = (await store.blobs.write(undefined, [pattern(1_000, 3)], never)).digest
    const published = await store.publish(pattern(1_000, 4))
    const [stale, fresh] = [digestOf(pattern(9, 5)).digest, digestOf(pattern(9, 6)).digest]
    store.index.putPartial({ digest: stale, sizeBytes: 500, network: OPEN_NETWORK_ID }, now - 2 * DAY_MS)
    store.index.putPartial({ digest: fresh, sizeBytes: 500, network: OPEN_NETWORK_ID }, now)
    using after = store.reopened({ now: () => now })

    const garbage = (freed: { digest: string }[]) => freed.map(({ digest }) => digest).sort()
    // Their files were never made, so opening the directory has dropped the rows.
    expect(after.index.partials()).toEqual([])
    for (const [digest, usedMs] of [
      [stale, now - 2 * DAY_MS],
      [fresh, now],
    ] as const)
      after.index.putPartial({ digest, sizeBytes: 500, network: OPEN_NETWORK_ID }, usedMs)
    const would = await collectGarbage(after.blobs, { all: false, dryRun: true, now }, never)
    expect(garbage(would)).toEqual([old, needless, stale].sort())
    expect(after.blobs.has(old)).toBe(true)
    expect(garbage(await collectGarbage(after.blobs, { all: false, dryRun: false, now }, never))).toEqual(
      garbage(would),
    )
    expect([old, needless, recent, published.digest].map((one) => after.blobs.has(one))).toEqual([
      false,
      false,
      true,
      true,
    ])
    expect(garbage(await collectGarbage(after.blobs, { all: true, dryRun: false, now }, never))).toEqual(
      [recent, fresh].sort(),
    )
    expect(after.blobs.has(published.digest)).toBe(true)
  })

  test('brings the store back below a quota that was made smaller', async () => {
    let now = DAY_MS
    using store = new Store({ now: () => now })
    const digests: string[] = []
    for (let seed = 0; seed < 4; seed++) {
      now += 60 * 60_000
      digests.push(await fetched(store, pattern(1_000, seed)))
    }
    store.blobs.setQuota(2_000)
    const freed = await collectGarbage(store.blobs, { all: false, dryRun: false, now }, never)
    expect(freed.map(({ digest }) => digest)).toEqual(digests.slice(0, 2))
    expect(store.blobs.stats.bytes).toBe(2_000)
  })

  test('leaves what came into use while it ran', async () => {
    using store = new Store()
    const digests = await Promise.all(Array.from({ length: 100 }, (_, at) => fetched(store, pattern(100, at))))
    const collecting = collectGarbage(store.blobs, all, never)
    // It gives others their turn in between.
    const [pinned, opened] = digests.slice(-2) as [string, string]
    const last = [...store.blobs.evictable()].at(-1)?.digest ?? ''
    store.blobs.pin(last, 'now')
    const source = await store.blobs.open(opened)
    const freed = await collecting
    expect(freed.map(({ digest }) => digest)).not.toContain(last)
    if (source) expect(store.blobs.has(opened)).toBe(true)
    expect(store.blobs.has(last)).toBe(true)
    expect(pinned).toBeDefined()
    await source?.close?.()
  })

  test('ends with its signal', async () => {
    using store = new Store()
    await fetched(store, pattern(100))
    await expect(collectGarbage(store.blobs, all, AbortSignal.abort(new Error('left')))).rejects.toThrow('left')
    expect(store.blobs.stats.blobs).toBe(1)
  })
})

describe('what is read', () => {
  test('is not evicted before its file is even open, and may go after the last reader', async () => {
    using store = new Store({ quotaBytes: 2 * KIB })
    const first = await fetched(store, pattern(KIB, 1))
    const opening = store.blobs.open(first)
    await fetched(store, pattern(KIB, 2))
    const third = fetched(store, pattern(KIB, 3))
    const source = await opening
    await third
    expect(store.blobs.has(first)).toBe(true)
    const again = await store.blobs.open(first)
    await source?.close?.()
    await source?.close?.()
    expect(store.blobs.isInUse(first)).toBe(true)
    await again?.close?.()
    expect(store.blobs.isInUse(first)).toBe(false)
  })
})

describe('a disk that others have filled', () => {
  test('is told of before anything is fetched, and what was fetched once makes room', async () => {
    using store = new Store()
    let freeBytes = 0
    const { Blobs } = await import('../../../agent/content/blobs.ts')
    const blobs = Blobs.open({
      directory: join(store.directory, 'blobs'),
      index: store.index,
      lists: store.lists,
      quotaBytes: 2 ** 30,
      log: store.log,
      freeBytes: () => freeBytes,
    })
    const digest = digestOf(pattern(9)).digest
    const fetching = { digest, network: OPEN_NETWORK_ID }
    expect(() => blobs.keepPartial(fetching, 1_000)).toThrow(/disk of .* is full/)
    expect(store.index.partials()).toEqual([])
    await blobs.write(undefined, [pattern(5_000, 1)], never)
    freeBytes = 2 ** 20 - 1_000
    blobs.keepPartial(fetching, 1_000)
    expect(blobs.stats.blobs).toBe(0)
  })
})

type Model = { sizeBytes: number; isPinned: boolean; opened: number }

/** Steps of a test, each on the store and on what is expected of it. */
class Room {
  store = new Store({ quotaBytes: 64 * KIB, now: () => this.nowMs })
  pins = pinsOf(this.store)
  nowMs = DAY_MS
  readonly blobs = new Map<string, Model>()
  readonly readers: { digest: string; source: BlobSource }[] = []
  readonly fetches: PartialBlob[] = []
  quotaBytes = 64 * KIB

  async write(sizeBytes: number, seed: number): Promise<void> {
    this.nowMs += 60 * 60_000
    const bytes = pattern(sizeBytes, seed)
    const { digest } = digestOf(bytes)
    const isNew = !this.store.blobs.has(digest)
    try {
      await fetched(this.store, bytes)
      if (isNew) this.blobs.set(digest, { sizeBytes, isPinned: false, opened: 0 })
    } catch (error) {
      expect(error).toMatchObject({ code: 'limit' })
      // Only where what must stay leaves no room.
      expect(this.#stayingBytes() + sizeBytes).toBeGreaterThan(this.quotaBytes)
    }
    this.#forgetEvicted()
  }

  #stayingBytes(): number {
    const staying = [...this.blobs.values()].filter(({ isPinned, opened }) => isPinned || opened > 0)
    const fetching = this.fetches.reduce((sum, { list }) => sum + list.sizeBytes, 0)
    return staying.reduce((sum, { sizeBytes }) => sum + sizeBytes, fetching)
  }

  /** What may go may be gone; what must stay is here. */
  #forgetEvicted(): void {
    for (const [digest, { isPinned, opened }] of this.blobs) {
      if (this.store.blobs.has(digest)) continue
      expect({ isPinned, opened }).toEqual({ isPinned: false, opened: 0 })
      this.blobs.delete(digest)
    }
  }

  #nth(nth: number): [string, Model] | undefined {
    return [...this.blobs][nth % Math.max(1, this.blobs.size)]
  }

  pin(nth: number): void {
    const [digest, model] = this.#nth(nth) ?? []
    if (digest === undefined || model === undefined) return
    this.pins.add({ network: OPEN_NETWORK_ID, cid: digest, name: 'x', type: 'file', sizeBytes: model.sizeBytes }, [
      digest,
    ])
    model.isPinned = true
  }

  unpin(nth: number): void {
    const [digest, model] = this.#nth(nth) ?? []
    if (digest === undefined || model === undefined) return
    if (model.isPinned) this.pins.remove(digest)
    else expect(() => this.pins.remove(digest)).toThrow(AgentError)
    model.isPinned = false
  }

  async open(nth: number): Promise<void> {
    const [digest, model] = this.#nth(nth) ?? []
    const source = digest && (await this.store.blobs.open(digest))
    if (!source || !model) return
    model.opened++
    this.readers.push({ digest, source })
  }

  async close(nth: number): Promise<void> {
    const [reader] = this.readers.splice(nth % Math.max(1, this.readers.length), 1)
    if (!reader) return
    await reader.source.close?.()
    const model = this.blobs.get(reader.digest)
    if (model) model.opened--
  }

  async begin(sizeBytes: number, seed: number): Promise<void> {
    const bytes = pattern(sizeBytes, 1_000 + seed)
    const { digest, hashes } = digestOf(bytes)
    if (this.store.blobs.has(digest) || this.fetches.some((one) => one.digest === digest)) return
    try {
      const fetching = { digest, network: OPEN_NETWORK_ID }
      this.fetches.push(await PartialBlob.open(this.store.blobs, fetching, listOf(sizeBytes, hashes), never))
    } catch (error) {
      expect(error).toMatchObject({ code: 'limit' })
    }
    this.#forgetEvicted()
  }

  async leave(): Promise<void> {
    await this.fetches.shift()?.leave()
  }

  async gc(isAll: boolean): Promise<void> {
    const would = await collectGarbage(this.store.blobs, { all: isAll, dryRun: true, now: this.nowMs }, never)
    const freed = await collectGarbage(this.store.blobs, { all: isAll, dryRun: false, now: this.nowMs }, never)
    expect(freed).toEqual(would)
    this.#forgetEvicted()
    if (!isAll) return
    for (const { isPinned, opened } of this.blobs.values()) expect(isPinned || opened > 0).toBe(true)
  }

  setQuota(quotaBytes: number): void {
    this.quotaBytes = quotaBytes
    this.store.blobs.setQuota(quotaBytes)
  }

  async restart(): Promise<void> {
    for (const { source } of this.readers.splice(0)) await source.close?.()
    for (const one of this.fetches.splice(0)) await one.leave()
    for (const model of this.blobs.values()) model.opened = 0
    this.store = this.store.reopened({ quotaBytes: this.quotaBytes, now: () => this.nowMs })
    this.pins = pinsOf(this.store)
  }

  async check(): Promise<void> {
    const bytes = [...this.blobs.values()].reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
    expect(this.store.blobs.stats).toMatchObject({ blobs: this.blobs.size, bytes })
    expect(bytesOnDisk(join(this.store.directory, 'blobs'))).toBe(bytes)
    expect(
      this.pins
        .list()
        .map(({ cid }) => cid)
        .sort(),
    ).toEqual(
      [...this.blobs]
        .filter(([, { isPinned }]) => isPinned)
        .map(([digest]) => digest)
        .sort(),
    )
  }

  async end(): Promise<void> {
    await this.restart()
    this.store[Symbol.dispose]()
  }
}

test('any sequence of writing, pinning, reading, fetching, gc, quotas and restarts keeps what must stay, and counts right', async () => {
  const nth = fc.nat(20)
  const sizeBytes = fc.integer({ min: 1, max: 24 * KIB })
  const step = fc.oneof(
    { weight: 6, arbitrary: fc.tuple(fc.constant('write' as const), sizeBytes, fc.nat(30)) },
    { weight: 2, arbitrary: fc.tuple(fc.constantFrom('pin' as const, 'unpin' as const), nth) },
    { weight: 2, arbitrary: fc.tuple(fc.constantFrom('open' as const, 'close' as const), nth) },
    { weight: 2, arbitrary: fc.tuple(fc.constant('begin' as const), sizeBytes, fc.nat(5)) },
    { weight: 1, arbitrary: fc.tuple(fc.constant('leave' as const)) },
    { weight: 1, arbitrary: fc.tuple(fc.constant('gc' as const), fc.boolean()) },
    { weight: 1, arbitrary: fc.tuple(fc.constant('setQuota' as const), fc.integer({ min: 8 * KIB, max: 96 * KIB })) },
    { weight: 1, arbitrary: fc.tuple(fc.constant('restart' as const)) },
  )
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 5, maxLength: 40 }), async (steps) => {
      const room = new Room()
      try {
        for (const [what, ...args] of steps) {
          await (room[what] as (...given: unknown[]) => unknown).call(room, ...args)
          await room.check()
        }
      } finally {
        await room.end()
      }
    }),
    { numRuns: 40 },
  )
})

describe('a kill -9 in the middle of gc', () => {
  test('leaves a store that is whole, and all that was pinned', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'undernet-gc-'))
    onTestFinished(() => rmSync(directory, { recursive: true, force: true }))
    for (let nth = 0; nth < 5; nth++) {
      const collector = spawn(process.execPath, [WRITER, directory, String(nth)], {
        stdio: ['ignore', 'pipe', 'inherit'],
      })
      const pinned = await killedWhileCollecting(collector, nth)
      const store = new Store({ directory })
      const { blobs, bytes } = store.blobs.stats
      expect(bytesOnDisk(join(directory, 'blobs'))).toBe(bytes)
      for (const digest of pinned) expect((await store.contents(digest))?.byteLength).toBe(3_000)
      for (const digest of store.index.digests()) expect(existsSync(store.blobs.pathOf(digest))).toBe(true)
      expect(blobs).toBeGreaterThanOrEqual(pinned.length)
      expect(store.index.pinReasons(PUBLICATION_PIN)).toEqual([])
      await collectGarbage(store.blobs, all, never)
      expect(store.blobs.stats.blobs).toBe(pinsOf(store).list().length)
      store.db.close()
    }
  })
})

/** Kills it after so many of its lines `freed`; gives back what it said is pinned. */
async function killedWhileCollecting(collector: ChildProcess, nth: number): Promise<string[]> {
  let text = ''
  collector.stdout?.on('data', (chunk: Buffer) => {
    text += chunk.toString()
  })
  await until(() => text.split('freed').length > 3 + nth * 20)
  collector.kill('SIGKILL')
  await once(collector, 'exit')
  return [...text.matchAll(/^pinned (\w{64})$/gm)].map(([, digest]) => digest as string)
}

function bytesOnDisk(directory: string): number {
  return readdirSync(directory)
    .filter((name) => /^[0-9a-f]{2}$/.test(name))
    .flatMap((name) => readdirSync(join(directory, name)).map((file) => statSync(join(directory, name, file)).size))
    .reduce((sum, size) => sum + size, 0)
}
