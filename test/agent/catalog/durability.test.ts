/** What the catalog promises about the disk: nothing that was acknowledged is lost, whenever the process is killed. */
import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Artifacts } from '../../../agent/catalog/artifacts.ts'
import { Nodes } from '../../../agent/catalog/nodes.ts'
import { Records } from '../../../agent/catalog/records.ts'
import { ephemeralNodeKey, loadOrMakeNodeKey } from '../../../agent/identity/node-key.ts'
import { openDatabase } from '../../../agent/state/database.ts'
import { fileCid } from '../../../protocols/artifact/artifact.ts'
import { OPEN_NETWORK } from '../../../protocols/records/record.ts'
import { clockAt, DAY_MS, keptLog, MINUTE_MS, makeStore, recordBy, stateOf } from './catalog.ts'

const WRITER = fileURLToPath(new URL('./killed-writer.ts', import.meta.url))
/** Each takes about a second. */
const KILLS = 8

let directory: string
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'undernet-catalog-'))
})
afterAll(() => rmSync(directory, { recursive: true }))

describe('a store that is opened again', () => {
  it('has what it had, but for what others say again soon', () => {
    const options = { key: ephemeralNodeKey(), clock: clockAt(), path: join(directory, 'again.sqlite') }
    const [long, short] = [recordBy(ephemeralNodeKey()), recordBy(ephemeralNodeKey(), { leaseMs: MINUTE_MS })]
    let state: string
    let seq: number
    {
      using store = makeStore(options)
      store.records.accept(long.bytes)
      seq = store.records.put({ kind: 'note', name: 'mine', body: 1, leaseMs: 2 * DAY_MS }).seq
      state = stateOf(store)
      store.records.accept(short.bytes)
    }
    options.clock.at -= DAY_MS / 2
    using store = makeStore(options)
    expect(stateOf(store)).toBe(state)
    expect(store.records.own('note').map(({ name }) => name)).toEqual(['mine'])
    expect(store.records.put({ kind: 'note', name: 'mine', body: 2, leaseMs: 1 }).seq).toBe(seq + 1)
    expect(store.records.accept(short.bytes)).toBe('refused:future')
  })

  it('drops what expired while it was closed', () => {
    const options = { key: ephemeralNodeKey(), clock: clockAt(), path: join(directory, 'expired.sqlite') }
    {
      using store = makeStore(options)
      store.records.accept(recordBy(ephemeralNodeKey()).bytes)
    }
    options.clock.at += DAY_MS
    using store = makeStore(options)
    expect(store.records.counts()).toEqual({ records: 0, publishers: 0, bytes: 0 })
  })

  it('finds no artifact whose record was held in memory only', () => {
    const options = { key: ephemeralNodeKey(), clock: clockAt(), path: join(directory, 'memory.sqlite') }
    const body = { type: 'file', cid: fileCid('00'.repeat(32)), sizeBytes: 1, description: '' }
    const open = () => {
      const store = makeStore(options)
      return { store, artifacts: new Artifacts({ ...store, nodes: new Nodes(store.records) }) }
    }
    const before = open()
    before.store.records.accept(recordBy(ephemeralNodeKey(), { kind: 'artifact', leaseMs: MINUTE_MS, body }).bytes)
    expect(before.artifacts.search('a', 9).artifacts).toHaveLength(1)
    before.store[Symbol.dispose]()
    const after = open()
    expect(after.artifacts.search('a', 9).artifacts).toEqual([])
    expect(after.artifacts.count().known).toBe(0)
    after.store[Symbol.dispose]()
  })
})

describe('kill -9', () => {
  it('at any moment loses nothing acknowledged, and leaves records and search in agreement', async () => {
    const state = join(directory, 'killed')
    rmSync(state, { recursive: true, force: true })
    const path = mkdtempSync(`${state}-`)
    /** What the last acknowledged word about each name was. */
    const told = new Map<string, string>()
    for (let run = 0; run < KILLS; run++) {
      for (const line of await killedAfter(path, run, 300 + ((run * 37) % 150))) {
        const [who, name, what = ''] = line.split(' ')
        if (who !== 'stranger') told.set(name ?? '', what)
      }
    }
    expect(told.size).toBeGreaterThan(0)
    const db = openDatabase(join(path, 'state.sqlite'))
    expect(db.prepare('PRAGMA integrity_check').get()).toEqual({ integrity_check: 'ok' })
    const key = loadOrMakeNodeKey(join(path, 'node.key'))
    using records = new Records(db, { network: OPEN_NETWORK, signer: key, log: keptLog() })
    const artifacts = new Artifacts({ db, records, nodes: new Nodes(records) })
    const own = new Map(artifacts.own().map((artifact) => [artifact.name, artifact.body.sizeBytes]))
    for (const [name, what] of told) {
      // What was said but not yet told when the kill came may have replaced it.
      const stored = own.get(name)
      if (what === 'gone') expect(stored === undefined || stored > 0).toBe(true)
      else expect(stored ?? Number.POSITIVE_INFINITY).toBeGreaterThanOrEqual(Number(what))
    }
    const found = artifacts.search('', 1_000).artifacts.filter(({ isOwn }) => isOwn)
    expect(found.map(({ name }) => name).sort()).toEqual([...own.keys()].sort())
    for (const { name } of found.slice(0, 20))
      expect(artifacts.search(name, 5).artifacts.map((one) => one.name)).toContain(name)
  }, 60_000)
})

/** Runs the writer, kills it after its first word and that many milliseconds, and gives back the whole lines that it had printed. */
async function killedAfter(path: string, run: number, ms: number): Promise<string[]> {
  const writer = spawn(process.execPath, [WRITER, path, String(run)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  let printed = ''
  writer.stdout.setEncoding('utf8').on('data', (text: string) => {
    printed += text
  })
  writer.stdout.once('data', () => setTimeout(() => writer.kill('SIGKILL'), ms))
  await new Promise((resolve) => writer.once('close', resolve))
  expect(writer.signalCode).toBe('SIGKILL')
  return printed.split('\n').slice(0, -1)
}
