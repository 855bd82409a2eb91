/** Closed networks as they run on a node: started and stopped as they are joined and left; what one cannot do keeps no other from it. */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it, onTestFinished } from 'vitest'
import { Catalogs } from '../../../agent/catalog/catalogs.ts'
import { ephemeralNodeKey } from '../../../agent/identity/node-key.ts'
import { NetworkStreams } from '../../../agent/mesh/network-streams.ts'
import { ClosedNetworks, type ClosedNetworksOptions } from '../../../agent/node/closed-networks.ts'
import { Entrance } from '../../../agent/node/entrance.ts'
import { openDatabase } from '../../../agent/state/database.ts'
import { keptLog } from '../catalog/catalog.ts'
import { quiet, startHost } from '../mesh/nodes.ts'

/** All of a node that its networks run on. */
async function makeNode() {
  const directory = mkdtempSync(join(tmpdir(), 'undernet-closed-'))
  const db = openDatabase(join(directory, 'state.db'))
  const key = ephemeralNodeKey()
  const entrance = new Entrance({ db, directory, key, open: false, roll: () => undefined, log: quiet })
  const { gate, networks, issuer } = entrance
  const host = await startHost({ key, gate, open: false })
  const streams = await NetworkStreams.start({ host, gate, log: quiet })
  const catalogs = new Catalogs()
  const log = keptLog()
  const forgotten: string[] = []
  const publishing = {
    pins: { pin() {}, setPins() {}, pinReasons: () => [] },
    paths: { publish() {}, withdraw() {} },
  }
  const presence = { name: 'node', version: '0', capabilities: { system: 'x', cpus: 1, memoryBytes: 1 } }
  const deps = {
    key,
    host,
    streams,
    reach: { addresses: () => [], onAddresses: () => () => undefined },
    paths: { recheck() {}, serve: async () => ({ [Symbol.asyncDispose]: async () => undefined }) },
    gate,
    issuer,
    directory: entrance.directory,
    publishing,
    providers: undefined,
    presence,
    serve: async () => new AsyncDisposableStack(),
    route: async () => new AsyncDisposableStack(),
    hear() {},
    log: quiet,
  }
  const start = async (changed: Partial<ClosedNetworksOptions> = {}) => {
    const forget = async (id: string) => void forgotten.push(id)
    const closed = await ClosedNetworks.start({ networks, catalogs, forget, contentOf: [], deps, log, ...changed })
    onTestFinished(() => closed[Symbol.asyncDispose]())
    return closed
  }
  onTestFinished(async () => {
    await streams[Symbol.asyncDispose]()
    await host[Symbol.asyncDispose]()
    entrance[Symbol.dispose]()
    db.close()
    rmSync(directory, { recursive: true })
  })
  const fileOf = (id: string) => join(entrance.directory, `${id}.db`)
  return { networks, catalogs, log, forgotten, start, fileOf }
}

const names = (closed: ClosedNetworks) => closed.list().map(({ membership }) => membership.name)

describe('closed networks', () => {
  it('run from the start, and from when they are joined until they are left', async () => {
    const { networks, catalogs, forgotten, start, fileOf } = await makeNode()
    const home = networks.create('home', { memberName: 'node' })
    const closed = await start()
    expect(names(closed)).toEqual(['home'])
    const work = networks.create('work', { memberName: 'node' })
    await closed.settled()
    expect(names(closed)).toEqual(['home', 'work'])
    expect(closed.get(work.id)?.members.list()).toMatchObject([{ name: 'node' }])
    expect(catalogs.search('', 10, work.id).artifacts).toEqual([])

    networks.leave(home.id, { force: true })
    await closed.settled()
    expect(names(closed)).toEqual(['work'])
    expect(closed.get(home.id)).toBeUndefined()
    expect(forgotten).toEqual([home.id])
    expect([existsSync(fileOf(home.id)), existsSync(fileOf(work.id))]).toEqual([false, true])
    expect(() => catalogs.search('', 10, home.id)).toThrow()
  })

  it('that are joined and left at once end as they should', async () => {
    const { networks, start, fileOf } = await makeNode()
    const closed = await start()
    const home = networks.create('home', { memberName: 'node' })
    networks.leave(home.id, { force: true })
    const again = networks.create('home', { memberName: 'node' })
    await closed.settled()
    expect(closed.list().map(({ membership }) => membership.id)).toEqual([again.id])
    expect(existsSync(fileOf(home.id))).toBe(false)
  })

  it('of which a kill left something are forgotten at the next start, and those that are here are not', async () => {
    const { networks, forgotten, start, fileOf } = await makeNode()
    const home = networks.create('home', { memberName: 'node' })
    const [left, other] = ['ab'.repeat(32), 'cd'.repeat(32)]
    for (const suffix of ['', '-wal', '-shm']) writeFileSync(`${fileOf(left)}${suffix}`, 'left behind')
    const closed = await start({ contentOf: [other, home.id] })
    expect(names(closed)).toEqual(['home'])
    expect(forgotten.toSorted()).toEqual([left, other])
    for (const suffix of ['', '-wal', '-shm']) expect(existsSync(`${fileOf(left)}${suffix}`)).toBe(false)
  })

  it('whose database is corrupt do not run, say so, and can be left; the others run', async () => {
    const { networks, log, start, fileOf } = await makeNode()
    const [bad, good] = ['bad', 'good'].map((name) => networks.create(name, { memberName: 'node' }))
    writeFileSync(
      fileOf(bad?.id ?? ''),
      'not a database at all, but long enough to look like a header of one'.repeat(20),
    )
    const closed = await start()
    expect(names(closed)).toEqual(['good'])
    expect(closed.failed()).toMatchObject([{ membership: bad, reason: expect.stringContaining('cannot be used') }])
    expect(log.entries.map(({ event }) => event)).toContain('network.failed')
    networks.leave(bad?.id ?? '', { force: true })
    await closed.settled()
    expect(closed.failed()).toEqual([])
    expect(existsSync(fileOf(bad?.id ?? ''))).toBe(false)
    expect(names(closed)).toEqual([good?.name])
  })

  it('go on when one cannot be forgotten', async () => {
    const { networks, log, start } = await makeNode()
    const home = networks.create('home', { memberName: 'node' })
    const closed = await start({ forget: () => Promise.reject(new Error('the disk is full')) })
    networks.leave(home.id, { force: true })
    networks.create('work', { memberName: 'node' })
    await closed.settled()
    expect(names(closed)).toEqual(['work'])
    expect(log.entries).toContainEqual({
      event: 'network.unforgotten',
      fields: { network: home.id, reason: 'the disk is full' },
    })
  })

  it('want nobody whom they do not know, and know no clock while nobody is there', async () => {
    const { networks, start } = await makeNode()
    networks.create('home', { memberName: 'node' })
    const closed = await start()
    expect(closed.wants(ephemeralNodeKey().peerId)).toBe(false)
    expect(closed.clockOffsetMs()).toBeUndefined()
  })
})
