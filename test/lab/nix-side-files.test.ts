/** What is around the paths of a cache, against the real Nix: listings are those that Nix writes, and Nix reads ours. */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { NixStore } from '../../agent/nix/nix-store.ts'
import { Receiver } from '../agent/nix/cache.ts'
import { run } from '../agents.ts'
import { hasNix, NixClosure } from '../nix-paths.ts'

const NIX = ['--extra-experimental-features', 'nix-command']

describe.skipIf(!hasNix)('with the real Nix', () => {
  it('lists a path as Nix does, gives single files of it, and the log of its build', async () => {
    const store = NixStore.ofMachine()
    await using closure = await NixClosure.make({ paths: 4 })
    const directory = mkdtempSync(join(tmpdir(), 'nix-listings-'))
    await using here = new Receiver(store, { logDirectory: '/nix/var/log/nix' })
    try {
      const cache = `file://${directory}/cache?write-nar-listing=true`
      execFileSync('nix', [...NIX, 'copy', '--to', cache, closure.root], { stdio: 'pipe' })
      await here.publish(closure.root)
      const url = await here.listen()
      for (const path of closure.paths) {
        const file = `${path.slice('/nix/store/'.length).slice(0, 32)}.ls`
        const ours = await (await fetch(`${url}/${file}`)).json()
        expect(ours).toEqual(JSON.parse(readFileSync(join(directory, 'cache', file), 'utf8')))
      }
      const env = { XDG_CACHE_HOME: directory }
      const listed = await run('nix', [...NIX, 'store', 'ls', '--store', url, '-R', closure.root], env)
      expect(listed.code, listed.stderr).toBe(0)
      const drv = store.info(closure.root)?.deriver ?? ''
      const log = await run('nix', [...NIX, 'log', '--store', url, drv], { ...env, PAGER: 'cat' })
      const own = await run('nix-store', ['--read-log', drv])
      expect(log.stdout).toBe(own.stdout)
    } finally {
      rmSync(directory, { recursive: true, force: true })
    }
  })
})
