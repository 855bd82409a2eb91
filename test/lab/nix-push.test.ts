/**
 * `nix copy --to` the agent, with the real Nix and real agents: what one machine pushes another installs, and nobody pushes what he may
 * not. The store that is pushed from is a second one, so that the agent gets what its own machine does not have.
 */
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { NixConfView, SearchResult } from '../../agent/api/contract.ts'
import { type RealAgent, run, until } from '../agents.ts'
import { invite, joinWith, Lab, says } from '../cluster/members.ts'
import { takeFrom } from '../network.ts'
import { hasNix, NixClosure, SecondStore } from '../nix-paths.ts'

const PATHS = 12

describe.skipIf(!hasNix)('nix copy --to an agent', () => {
  let lab: Lab
  let a: RealAgent
  let b: RealAgent
  let closure: NixClosure
  beforeAll(async () => {
    lab = await Lab.open()
    a = await lab.start({ name: 'a', flags: ['--no-open'] })
    b = await lab.start({ name: 'b', flags: ['--no-open'], bootstrap: [await a.address()] })
    await says(a, 'network', 'create', 'home')
    await joinWith(b, await invite(a))
    closure = await NixClosure.make({ paths: PATHS, bytesEach: 20_000, bytesInRoot: 1_000_000 })
  })
  afterAll(async () => {
    await closure?.[Symbol.asyncDispose]()
    await lab?.[Symbol.asyncDispose]()
  })

  const urlOf = async (agent: RealAgent) => (await agent.client.get<NixConfView>('nix-conf')).url

  function copy(path: string, target: string, from: string[] = []) {
    const args = ['--extra-experimental-features', 'nix-command', 'copy', '--to', target, ...from, path]
    return run('nix', args, { XDG_CACHE_HOME: join(lab.path('cache'), `${Math.random()}`) })
  }

  async function installed(who: RealAgent, builder: RealAgent, root: string) {
    await until(async () => (await who.json<SearchResult>('search', '')).artifacts.some((one) => one.root === root), {
      what: `${who.name} hears of ${root}`,
    })
    const { publicKey } = await builder.client.get<NixConfView>('nix-conf')
    await who.json('trust', 'add', publicKey)
    await using store = await SecondStore.make()
    const { ok, stderr } = await store.realise(root, await takeFrom(who))
    expect(ok, stderr).toBe(true)
    expect(await store.verify()).not.toMatch(/modified|error|disappeared/)
    return await store.requisites(root)
  }

  it('takes what this machine has, unsigned, as Nix compresses it by default, and shares it from the store', async () => {
    const copied = await copy(closure.root, await urlOf(a))
    expect(copied.code, copied.stderr).toBe(0)
    expect(await installed(b, a, closure.root)).toEqual(closure.paths)
    // Manifest and signatures: the NARs are in the store.
    expect((await a.status()).content).toMatchObject({ pathsShared: PATHS, blobs: 2 })
    const again = await copy(closure.root, await urlOf(a))
    expect(again.code, again.stderr).toBe(0)
    await says(a, 'unpublish', closure.root.slice('/nix/store/'.length))
    expect((await a.status()).content).toMatchObject({ pathsShared: 0, blobs: 0 })
  })

  it.each(['none', 'xz', 'zstd', 'gzip', 'br'])(
    'takes what another machine built and signed with a trusted key, compressed with %s',
    async (compression) => {
      const secret = lab.path(`secret-${compression}`)
      const open = lab.path(`public-${compression}`)
      await run('nix-store', ['--generate-binary-cache-key', `ci-${compression}`, secret, open])
      const { root, paths, store } = await builtElsewhere()
      await using _store = store
      const target = `${await urlOf(a)}/in/home?compression=${compression}&write-nar-listing=true`
      const refused = await copy(root, target, ['--from', store.directory])
      expect(refused.code).not.toBe(0)
      expect(refused.stderr).toContain('403')
      expect(refused.stderr).toContain('nix store sign')
      await a.json('trust', 'add', (await run('cat', [open])).stdout.trim())
      const copied = await copy(root, `${target}&secret-key=${secret}`, ['--from', store.directory])
      expect(copied.code, copied.stderr).toBe(0)
      await b.json('trust', 'add', (await run('cat', [open])).stdout.trim())
      expect(await installed(b, a, root)).toEqual(paths)
      const { content } = await a.status()
      expect(content.blobs).toBeGreaterThan(paths.length)
      await says(a, 'unpublish', root.slice('/nix/store/'.length))
      expect((await a.status()).content.blobs).toBe(0)
    },
  )

  it('sends nothing by a guess into the open network, nor for another user', async () => {
    await using alone = await lab.start({ name: 'alone' })
    const refused = await copy(closure.root, await urlOf(alone))
    expect(refused.code).not.toBe(0)
    expect(refused.stderr).toContain('/nix/in/open')
    const named = await copy(closure.root, `${await urlOf(alone)}/in/open`)
    expect(named.code, named.stderr).toBe(0)
    await until(async () => (await alone.status()).artifacts.own === 1, { what: 'it is published' })
    const put = [
      '-s',
      '-o',
      '/dev/null',
      '-w',
      '%{http_code}',
      '-X',
      'PUT',
      '-d',
      'x',
      `${await urlOf(a)}/nar/${'0'.repeat(52)}.nar`,
    ]
    const own = await run('curl', put)
    expect(own.stdout).toBe('400')
    if (process.getuid?.() !== 0) return
    const other = await run('setpriv', ['--reuid', '65534', '--clear-groups', 'curl', ...put])
    expect(other.stdout).toBe('403')
  })

  /** A closure in a store of its own, gone from this machine's. */
  async function builtElsewhere() {
    const made = await NixClosure.make({ paths: 4, bytesEach: 30_000 })
    const store = await SecondStore.make()
    const words = ['copy', '--no-check-sigs', '--to', store.directory, made.root]
    const { code, stderr } = await run('nix', ['--extra-experimental-features', 'nix-command', ...words])
    expect(code, stderr).toBe(0)
    await made[Symbol.asyncDispose]()
    return { root: made.root, paths: made.paths, store }
  }
})
