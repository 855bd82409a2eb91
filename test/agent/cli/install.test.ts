/**
 * `agent install` into a directory, and out of it again, with the real Node, the real sysusers and a bundle that is one line. On machines that
 * boot: bench/soak-install.ts.
 */
import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parse } from 'smol-toml'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { loadConfig } from '../../../agent/config/config.ts'
import { lockInstallation } from '../../../agent/install/machine.ts'
import { Root } from '../../../agent/install/root.ts'
import { Tree } from '../install/tree.ts'
import { run } from './capture.ts'

const isAble =
  process.getuid?.() === 0 && ['systemd-sysusers', 'userdel'].every((one) => spawnSync(one, ['--help']).status === 0)
if (!isAble) console.warn('skipped: needs root, systemd-sysusers and userdel to make a user in a directory')

/** sysusers and userdel keep the version before, and a lock, as they do for every user. */
const OF_THEIR_OWN = /^\/etc\/((passwd|group|shadow|gshadow|subuid|subgid)-|\.pwd\.lock)$/
/** Below node_modules, so that koffi is found. */
const CACHE = fileURLToPath(new URL('../../../node_modules/.cache', import.meta.url))
let bundle: string
const started = process.argv[1]

beforeAll(() => {
  mkdirSync(CACHE, { recursive: true })
  bundle = mkdtempSync(join(CACHE, 'install-'))
  writeFileSync(join(bundle, 'main.js'), 'console.log("hello")\n')
  process.argv[1] = join(bundle, 'main.js')
})
afterAll(() => {
  process.argv[1] = started as string
  rmSync(bundle, { recursive: true, force: true })
})

function machine(): Tree {
  const tree = new Tree()
  tree.put('etc/passwd', 'root:x:0:0:root:/root:/bin/sh\n')
  tree.put('etc/group', 'root:x:0:\n')
  tree.put('etc/shadow', 'root:*:20000::::::\n')
  tree.put('etc/gshadow', 'root:*::\n')
  return tree
}

describe.skipIf(!isAble)('agent install --root', () => {
  it('shows everything first, does it, does it only once, and takes all of it away', async () => {
    using tree = machine()
    const to = ['--root', tree.directory]
    const before = tree.snapshot(OF_THEIR_OWN)

    const plan = await run(['install', '--dry-run', ...to])
    expect(plan.status, plan.err).toBe(0)
    for (const line of [
      'make     /etc/systemd/system/undernet.service',
      '  + Type=notify',
      '  + #max_peers = 24',
      'make     /usr/local/bin/agent (executable)',
      `run      systemd-sysusers --root=${tree.directory} undernet.conf`,
    ])
      expect(plan.out).toContain(`${line}\n`)
    expect(tree.snapshot(OF_THEIR_OWN)).toEqual(before)

    const first = await run(['install', ...to])
    expect(first.status, first.err).toBe(0)
    expect(tree.read('etc/passwd')).toMatch(
      /^undernet:x:\d+:\d+:undernet agent:\/var\/lib\/undernet:\/usr\/sbin\/nologin$/m,
    )
    const after = tree.snapshot()
    expect(after['etc/systemd/system/multi-user.target.wants/undernet.service']).toBe(
      '-> /etc/systemd/system/undernet.service',
    )
    const second = await run(['install', ...to])
    expect(second).toEqual({ status: 0, out: 'Nothing to change: everything is as it should be.\n', err: '' })
    expect(tree.snapshot()).toEqual(after)

    const stays = await run(['uninstall', '--dry-run', ...to])
    expect(stays.out).toContain('remove   /usr/local/bin/agent\n')
    expect(tree.snapshot()).toEqual(after)
    const gone = await run(['uninstall', ...to])
    expect(gone.status, gone.err).toBe(0)
    expect(gone.out).toContain('Nothing of the agent is left.')
    expect(tree.snapshot(OF_THEIR_OWN)).toEqual(before)
    expect((await run(['uninstall', ...to])).out).toContain('Nothing to take away')
  })

  it('puts a program there that runs, and a configuration that holds', async () => {
    using tree = machine()
    expect((await run(['install', '--root', tree.directory])).status).toBe(0)
    const program = join(tree.directory, 'usr/local/lib/undernet/current')
    const said = spawnSync(join(program, 'bin/node'), [join(program, 'dist/main.js')], { encoding: 'utf8' })
    expect(said.stdout).toBe('hello\n')
    const koffi = spawnSync(join(program, 'bin/node'), ['-e', "require('koffi').load(null)"], {
      cwd: program,
      encoding: 'utf8',
    })
    expect(koffi.status, koffi.stderr).toBe(0)

    const toml = tree.read('etc/undernet/agent.toml')
    expect(parse(toml)).toEqual({})
    const all = join(tree.directory, 'all.toml')
    writeFileSync(all, toml.replace(/^#(?=[a-z_]+ = |\s+"|\])/gm, ''))
    const env = { STATE_DIRECTORY: '/var/lib/undernet', RUNTIME_DIRECTORY: '/run/undernet' }
    const shown = ({ entries }: ReturnType<typeof loadConfig>) =>
      Object.fromEntries(entries.filter(({ key }) => key !== 'name').map(({ key, value }) => [key, value]))
    expect(shown(loadConfig({ env, file: all }))).toEqual(
      shown(loadConfig({ env, file: join(tree.directory, 'etc/undernet/agent.toml') })),
    )
  })

  it('keeps the state, and the user to whom it belongs, until it is purged', async () => {
    using tree = machine()
    const to = ['--root', tree.directory]
    const before = tree.snapshot(OF_THEIR_OWN)
    await run(['install', ...to])
    tree.put('var/lib/undernet/node.key', 'key')
    tree.put('etc/undernet/agent.toml', 'name = "mine"\n')
    const left = await run(['uninstall', ...to])
    expect(left.out).toContain('left     /etc/undernet/agent.toml (it was changed since)')
    expect(left.out).toContain('Kept: /var/lib/undernet')
    expect(tree.read('etc/passwd')).toContain('undernet:')
    await run(['install', ...to])
    expect(tree.read('etc/undernet/agent.toml')).toBe('name = "mine"\n')
    const purged = await run(['uninstall', '--purge', ...to])
    expect(purged.status, purged.err).toBe(0)
    expect(tree.snapshot(OF_THEIR_OWN)).toEqual(before)
  })

  it('says as JSON what it does', async () => {
    using tree = machine()
    const { out } = await run(['install', '--json', '--root', tree.directory])
    const { changes, commands } = JSON.parse(out) as { changes: { action: string; path: string }[]; commands: string[] }
    expect(changes).toContainEqual({ action: 'create', path: '/usr/local/bin/agent', note: 'executable' })
    expect(commands).toEqual([`systemd-sysusers --root=${tree.directory} undernet.conf`])
  })

  it('replaces an older program, and keeps only the new one', async () => {
    using tree = machine()
    const to = ['--root', tree.directory]
    await run(['install', ...to])
    const programs = () =>
      Object.keys(tree.snapshot()).filter((path) => /^usr\/local\/lib\/undernet\/[^/]+$/.test(path))
    const older = programs()
    writeFileSync(join(bundle, 'main.js'), 'console.log("newer")\n')
    const { out } = await run(['install', ...to])
    expect(out).toMatch(/^made {5}\S+ \(\d+ files, .*\)\nreplaced \S+current -> \S+\n$/)
    expect(programs()).toHaveLength(2)
    expect(programs()).not.toEqual(older)
    await run(['uninstall', ...to])
    expect(programs()).toEqual([])
  })
})

describe('agent install, where it cannot be', () => {
  it('leaves a machine to its package, and NixOS to its configuration', async () => {
    using tree = machine()
    tree.put('usr/lib/systemd/system/undernet.service', '')
    expect(await run(['install', '--root', tree.directory])).toMatchObject({
      status: 1,
      err: expect.stringMatching(/the agent is here already, by a package[\s\S]*apt/),
    })
    rmSync(join(tree.directory, 'usr'), { recursive: true })
    tree.put('etc/NIXOS', '')
    expect((await run(['install', '--root', tree.directory])).err).toContain('services.undernet.enable')
    expect(Object.keys(tree.snapshot())).toHaveLength(6)
    rmSync(join(tree.directory, 'etc/NIXOS'))
    mkdirSync(join(tree.directory, 'etc/systemd/system'), { recursive: true })
    symlinkSync('/dev/null', join(tree.directory, 'etc/systemd/system/undernet.service'))
    expect((await run(['install', '--root', tree.directory])).err).toContain('systemctl unmask undernet.service')
  })

  it('names what is in its way, and changes nothing', async () => {
    using tree = machine()
    tree.put('usr/local/bin/agent', 'another agent')
    const before = tree.snapshot()
    const { status, err } = await run(['install', '--root', tree.directory])
    expect(status).toBe(1)
    expect(err).toMatch(/not of `agent install`:\s+\S+\/usr\/local\/bin\/agent\n\s+Move it away, or give --force/)
    expect(tree.snapshot()).toEqual(before)
  })

  it('asks for what it needs: a directory that is there, a bundle, an agent that runs', async () => {
    using tree = machine()
    expect((await run(['install', '--root', join(tree.directory, 'none')])).status).toBe(5)
    expect(await run(['install', '--root', tree.directory, '--nix'])).toMatchObject({
      status: 2,
      err: expect.stringContaining('sudo agent install --nix'),
    })
    const before = process.argv[1] as string
    process.argv[1] = fileURLToPath(import.meta.url)
    try {
      expect((await run(['install', '--root', tree.directory])).err).toContain('npm run build')
    } finally {
      process.argv[1] = before
    }
    expect((await run(['uninstall', '--nix', '--purge'])).status).toBe(2)
  })

  it('waits for no other one', async () => {
    using tree = machine()
    using _ = await lockInstallation(new Root(tree.directory))
    expect((await run(['install', '--root', tree.directory])).err).toContain('another installation is at work')
  })
})
