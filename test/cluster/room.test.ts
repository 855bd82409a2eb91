/**
 * The room that content takes, by the commands that people type: what is pinned stays whatever happens, what nothing needs is freed, and the
 * upload rate that is configured holds, and changes without a restart.
 */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { PublishResult, SearchResult, Status } from '../../agent/api/contract.ts'
import type { ContentList, GcResult, PinList, PinView } from '../../agent/api/room-contract.ts'
import { Bundle, RealAgent, until } from '../agents.ts'
import { pattern } from '../protocols/pieces/pattern.ts'

const MIB = 2 ** 20

let bundle: Bundle
let directory: string
beforeAll(async () => {
  bundle = await Bundle.build()
  directory = mkdtempSync(join(tmpdir(), 'undernet-room-'))
})
afterAll(() => {
  bundle?.[Symbol.dispose]()
  if (directory) rmSync(directory, { recursive: true, force: true })
})

function fileOf(name: string, sizeBytes: number, seed: number): string {
  const path = join(directory, name)
  writeFileSync(path, pattern(sizeBytes, seed))
  return path
}

const start = (name: string, options: Partial<Parameters<typeof RealAgent.start>[0]> = {}) =>
  RealAgent.start({ name, entry: bundle.entry, env: bundle.env, ...options })

async function finds(who: RealAgent, words: string): Promise<void> {
  await until(async () => (await who.client.get<SearchResult>('search', { q: words })).artifacts.length > 0, {
    what: `${who.name} finds ${words}`,
  })
}

describe('pins', () => {
  it('bring an artifact here, and keep it through restarts, gc, a full quota and its publisher’s change of mind', async () => {
    await using a = await start('a')
    const folder = join(directory, 'site')
    mkdirSync(folder)
    writeFileSync(join(folder, 'page'), pattern(3 * MIB, 1))
    await a.json<PublishResult>('publish', folder, '--name', 'site')
    await a.json<PublishResult>('publish', fileOf('notes', 2 * MIB, 2), '--name', 'notes')
    const state = mkdtempSync(join(tmpdir(), 'undernet-room-b-'))
    const options = { state, bootstrap: [await a.address()], flags: ['--quota', '6MiB'] }
    {
      await using b = await start('b', options)
      await finds(b, 'notes')
      await finds(b, 'site')
      await b.json('get', 'notes', '--to', join(directory, 'got'))
      const pin = await b.json<PinView>('pin', 'site')
      expect(pin).toMatchObject({ name: 'site', network: 'open', type: 'folder', parts: 2, missing: 0 })
      const { items } = await b.json<ContentList>('content')
      expect(items.map(({ what, reasons }) => [what, reasons.map(({ why }) => why).sort()])).toEqual([
        ['site', ['fetched', 'pinned']],
        ['notes', ['fetched']],
        ['site (manifest)', ['fetched', 'pinned']],
      ])
    }
    {
      await using b = await start('b', options)
      expect((await b.json<PinList>('pins')).pins).toMatchObject([{ name: 'site', missing: 0 }])
      await a.json('unpublish', 'site')
      const would = await b.json<GcResult>('gc', '--all', '--dry-run')
      expect(would).toMatchObject({ blobs: 1, bytes: 2 * MIB, freed: [{ what: 'notes' }] })
      expect(await b.json<GcResult>('gc', '--all')).toMatchObject({ blobs: 1, dryRun: false })
      const { items } = await b.json<ContentList>('content', 'site')
      expect(items.map(({ place }) => place)).toEqual(['blobs', 'blobs'])
      expect((await b.run('publish', fileOf('large', 4 * MIB, 3), '--name', 'large')).stderr).toContain('no room for')
      await b.json('unpin', 'site')
      expect(await b.json<GcResult>('gc', '--all')).toMatchObject({ blobs: 2 })
      expect((await b.json<ContentList>('content')).items).toEqual([])
    }
    const served = await a.json<ContentList>('content', '--sort', 'served')
    expect(served.items[0]).toMatchObject({ what: 'notes', served: { times: 1, bytes: 2 * MIB } })
    expect(served.items[0]?.reasons).toMatchObject([{ why: 'published', name: 'notes', network: 'open' }])
    rmSync(state, { recursive: true, force: true })
  })
})

describe('the upload rate', () => {
  it('holds, and is lifted by SIGHUP', async () => {
    const file = join(directory, 'agent.toml')
    writeFileSync(file, 'upload_rate = "1MiB"\n')
    await using a = await start('a', { flags: ['--config', file] })
    await a.json('publish', fileOf('slow', 3 * MIB, 4), '--name', 'slow')
    await a.json('publish', fileOf('fast', 3 * MIB, 5), '--name', 'fast')
    await using b = await start('b', { bootstrap: [await a.address()] })
    await finds(b, 'slow')
    await finds(b, 'fast')
    const seconds = async (name: string) => {
      const begunMs = performance.now()
      await b.json('get', name, '--to', join(directory, 'here'))
      return (performance.now() - begunMs) / 1_000
    }
    const slow = await seconds('slow')
    expect(slow).toBeGreaterThan(2)
    writeFileSync(file, 'upload_rate = "off"\n')
    process.kill(a.pid, 'SIGHUP')
    await until(() => a.logged('config.reloaded').length > 0, { what: 'the configuration is read again' })
    expect(a.logged('config.reloaded')[0]).toMatchObject({ changed: ['upload_rate'], needRestart: [] })
    expect(await seconds('fast')).toBeLessThan(slow)
    expect((await a.client.get<Status>('status')).content.servedBytes).toBe(6 * MIB)
  })
})
