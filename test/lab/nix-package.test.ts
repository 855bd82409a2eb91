/**
 * The package of Nix, built by a real Nix with what stands in for nixpkgs (test/nix/stub): what npm brings has the hashes of
 * nix/node-modules.json, and what comes out runs.
 */
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { expect, it } from 'vitest'
import manifest from '../../package.json' with { type: 'json' }
import { RealAgent, run } from '../agents.ts'
import { hasNix } from '../nix-paths.ts'

const stub = resolve(import.meta.dirname, '../nix/stub')

it.skipIf(!hasNix)('builds, and runs', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'undernet-package-'))
  try {
    const result = join(directory, 'result')
    const system = process.arch === 'arm64' ? 'aarch64-linux' : 'x86_64-linux'
    const expression = `(import ${stub}/pkgs.nix "${system}" (import ${stub}/lib.nix)).callPackage ${stub}/../../../nix/package.nix { }`
    const offline = ['--option', 'substitute', 'false', '--option', 'sandbox', 'false']
    const words = ['-E', expression, '--out-link', result, ...offline]
    const built = await run('nix-build', words, { UNDERNET_TEST_NODE: process.execPath })
    expect([built.code, built.stderr]).toEqual([0, expect.anything()])

    const { stdout } = await run(join(result, 'bin', 'agent'), ['version'])
    expect(stdout).toContain(manifest.version)
    expect(readdirSync(join(result, 'share', 'completions'))).toEqual(['agent.bash', 'agent.fish', 'agent.zsh'])
    // The native code that is beside the bundle, for this machine and no other.
    const library = join(result, 'lib', 'undernet')
    const load = `createRequire('${library}/dist/main.js')('koffi').load(null)`
    const loaded = await run(process.execPath, ['-e', `const { createRequire } = require('node:module'); ${load}`])
    expect([loaded.code, loaded.stderr]).toEqual([0, ''])
    await using agent = await RealAgent.start({ name: 'packaged', entry: join(library, 'dist', 'main.js') })
    expect((await agent.status()).version).toBe(manifest.version)
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
})
