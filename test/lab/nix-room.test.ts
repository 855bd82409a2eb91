/**
 * The real Nix and an agent that has no room: what cannot be kept is installed all the same, and `agent status` says so. And a closure that
 * is pinned is kept with all that it consists of.
 */
import { randomBytes } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { SearchResult } from '../../agent/api/contract.ts'
import type { ContentList, GcResult, PinView } from '../../agent/api/room-contract.ts'
import { Bundle, RealAgent, until } from '../agents.ts'
import { trust } from '../network.ts'
import { hasNix, NixClosure, SecondStore } from '../nix-paths.ts'

const MIB = 2 ** 20

describe.skipIf(!hasNix)('an agent without room', () => {
  let bundle: Bundle
  let directory: string
  beforeAll(async () => {
    bundle = await Bundle.build()
    directory = mkdtempSync(join(tmpdir(), 'undernet-nix-room-'))
  })
  afterAll(() => {
    bundle?.[Symbol.dispose]()
    if (directory) rmSync(directory, { recursive: true, force: true })
  })

  async function publishing(closure: NixClosure) {
    await using stack = new AsyncDisposableStack()
    const a = stack.use(await RealAgent.start({ name: 'a', entry: bundle.entry, env: bundle.env }))
    const flags = ['--quota', '2MiB']
    const bootstrap = [await a.address()]
    const b = stack.use(await RealAgent.start({ name: 'b', entry: bundle.entry, env: bundle.env, bootstrap, flags }))
    await a.json('publish', closure.root, '--name', 'app')
    await until(async () => (await b.client.get<SearchResult>('search', { q: 'app' })).artifacts[0], {
      what: 'b finds it',
    })
    const take = await trust(b, a)
    const owned = stack.move()
    return { a, b, take, [Symbol.asyncDispose]: () => owned.disposeAsync() }
  }

  it('gives Nix what it asks for, keeps none of it, and says so', async () => {
    await using closure = await NixClosure.make({ paths: 5, bytesInRoot: 12_000_000 })
    await using agents = await publishing(closure)
    const { b, take } = agents
    const full = join(directory, 'full')
    writeFileSync(full, randomBytes(2 * MIB - 200))
    await b.json('publish', full, '--name', 'full')
    await using store = await SecondStore.make()
    const { ok, stderr } = await store.realise(closure.root, take)
    expect(ok, stderr).toBe(true)
    for (const path of closure.paths) expect(store.has(path)).toBe(true)
    const { items } = await b.json<ContentList>('content')
    expect(items.map(({ what }) => what)).toEqual(['full'])
    const { stdout } = await b.run('status')
    expect(stdout).toMatch(/there is no room for what Nix asks for: \d+ blobs were handed on without keeping them/)
    expect(stdout).toContain('agent unpin')
    const refused = await b.run('pin', 'app')
    expect(refused).toMatchObject({ code: 1, stderr: expect.stringMatching(/no room for .*\n.*agent pins/) as string })
  })

  it('keeps a closure that is pinned with its manifest and signatures, so that Nix has it when its publisher is gone', async () => {
    await using closure = await NixClosure.make({ paths: 8, bytesEach: 10_000 })
    await using agents = await publishing(closure)
    const { a, b, take } = agents
    const pin = await b.json<PinView>('pin', 'app')
    expect(pin).toMatchObject({ type: 'nix', root: closure.root, pathCount: 8, parts: 10, missing: 0 })
    // What a gives out from its Nix store is listed, too, without being named.
    const given = (await a.json<ContentList>('content', '--sort', 'served')).items.filter(
      ({ place }) => place === 'store',
    )
    expect(given.map(({ what }) => what ?? '').toSorted((a, b) => (a < b ? -1 : 1))).toEqual(closure.paths)
    expect(given.every(({ served, reasons }) => served.times > 0 && reasons[0]?.why === 'published')).toBe(true)
    await a.end('SIGKILL')
    expect(await b.json<GcResult>('gc', '--all')).toMatchObject({ blobs: 0 })
    await using store = await SecondStore.make()
    const { ok, stderr } = await store.realise(closure.root, take)
    expect(ok, stderr).toBe(true)
    const { items } = await b.json<ContentList>('content', closure.root)
    expect(items).toMatchObject([{ what: closure.root, place: 'blobs' }])
    expect((await b.json<ContentList>('content', 'app')).items).toHaveLength(10)
  })
})
