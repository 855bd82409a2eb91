/**
 * The Debian package: built twice it is the same, what is in it is what should be, and dpkg installs, upgrades, removes and purges it, into a directory
 * with an administration of its own and with the real scripts. What it does on machines that run is bench/soak-machines.ts.
 */
import { execFileSync, spawnSync } from 'node:child_process'
import {
  appendFileSync,
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { commentedConfig } from '../../agent/config/commented.ts'
import { serviceUnit } from '../../agent/service/unit.ts'
import { VERSION } from '../../agent/version.ts'
import type { Outcome } from '../agents.ts'
import { run } from '../agents.ts'

const SCRIPT = fileURLToPath(new URL('../../nix/deb.ts', import.meta.url))
const NEWER = `${VERSION}+next`
/** The link that starts it with the machine. */
const ENABLED = 'etc/systemd/system/multi-user.target.wants/undernet.service'
/** Programs that build, and that run in the scripts of packages. */
const NEEDED = ['dpkg-deb', 'readelf', 'strip', 'systemd-sysusers', 'deb-systemd-helper', 'userdel']
const missing = NEEDED.filter((program) => spawnSync('sh', ['-c', `command -v ${program}`]).status !== 0)
if (process.getuid?.() !== 0) missing.push('root')
if (missing.length > 0) console.warn(`skipped: no package is built without ${missing.join(', ')}`)

describe.skipIf(missing.length > 0)('the Debian package', () => {
  const directory = mkdtempSync(join(tmpdir(), 'undernet-deb-test-'))
  const at = (...names: string[]) => join(directory, ...names)
  const shown = (...args: string[]) => execFileSync('dpkg-deb', args, { encoding: 'utf8' })
  let file: string
  let again: string
  let newer: string

  beforeAll(async () => {
    // As on the machine of somebody else.
    const elsewhere = { TZ: 'Asia/Tokyo', LC_ALL: 'C.UTF-8', HOME: directory, FORCE_COLOR: '1', UNDERNET_QUOTA: '1GiB' }
    ;[file, again] = await Promise.all([build('umask 022', at('one')), build('umask 077', at('two'), elsewhere)])
    execFileSync('dpkg-deb', ['--raw-extract', file, at('unpacked')])
    newer = repacked(at('unpacked'), at('newer'))
  })
  afterAll(() => rmSync(directory, { recursive: true, force: true }))

  it('is the same, byte for byte, when it is built again', () => {
    expect(basename(file)).toMatch(new RegExp(`^undernet_${VERSION}_(amd64|arm64)\\.deb$`))
    expect(readFileSync(again).equals(readFileSync(file))).toBe(true)
    // What is not the same is seen.
    expect(readFileSync(newer).equals(readFileSync(file))).toBe(false)
  })

  it('belongs to root, and nobody else may write to it', () => {
    const entries = shown('-c', file).trimEnd().split('\n')
    expect(entries.length).toBeGreaterThan(40)
    expect(entries.filter((entry) => !/^(drwxr-xr-x|-rw-r--r--|-rwxr-xr-x) root\/root /.test(entry))).toEqual([])
    const programs = entries.filter((entry) => entry.startsWith('-rwx')).map((entry) => entry.split(' ').at(-1))
    expect(programs).toEqual(['./usr/bin/agent', './usr/lib/undernet/node'])
  })

  it('says what it needs, as its native code does', () => {
    const depends = shown('-f', file, 'Depends')
    expect(depends).toMatch(/libc6 \(>= 2\.\d+\), libgcc-s1 \(>= [\d.]+\), libstdc\+\+6 \(>= [\d.]+\), /)
    expect(shown('-f', file, 'Version').trim()).toBe(VERSION)
    expect(readFileSync(at('unpacked', 'DEBIAN', 'conffiles'), 'utf8')).toBe('/etc/undernet/agent.toml\n')
  })

  it('has the unit, the configuration and sums that are true of its files', () => {
    const text = (path: string) => readFileSync(at('unpacked', path), 'utf8')
    expect(text('usr/lib/systemd/system/undernet.service')).toBe(serviceUnit({ program: ['/usr/bin/agent'] }))
    expect(text('etc/undernet/agent.toml')).toBe(commentedConfig())
    const sums = spawnSync('md5sum', ['--check', '--quiet', 'DEBIAN/md5sums'], { cwd: at('unpacked') })
    expect([sums.status, String(sums.stderr)]).toEqual([0, ''])
    expect(text('usr/share/doc/undernet/copyright')).toMatch(/^Node\.js .* \(MIT\)$/m)
    for (const completion of [
      'bash-completion/completions/agent',
      'zsh/vendor-completions/_agent',
      'man/man1/agent.1.gz',
    ])
      expect(existsSync(at('unpacked', 'usr/share', completion)), completion).toBe(true)
  })

  it('runs with its own Node and its own koffi', async () => {
    const library = at('unpacked', 'usr/lib/undernet')
    const node = join(library, 'node')
    const { stdout } = await run(node, [join(library, 'main.js'), 'version', '--json'])
    expect(JSON.parse(stdout)).toMatchObject({ version: VERSION, node: process.versions.node })
    const script = `import('koffi').then(({ default: koffi }) => console.log(koffi.load(null).func('int getpid()')() === process.pid))`
    const { stdout: said, stderr } = spawnSync(node, ['--input-type=module', '-e', script], {
      cwd: library,
      encoding: 'utf8',
    })
    expect([said, stderr]).toEqual(['true\n', ''])
  })

  it('has scripts that a shell can read', () => {
    for (const script of ['preinst', 'postinst', 'prerm', 'postrm'])
      expect(spawnSync('sh', ['-n', at('unpacked', 'DEBIAN', script)]).status, script).toBe(0)
  })

  it('is refused for an architecture that there is no Node of', async () => {
    expect(await run(process.execPath, [SCRIPT, '--arch', 's390x'])).toMatchObject({
      code: 2,
      stderr: expect.stringContaining('choose --arch amd64 or arm64'),
    })
  })

  it('is not installed beside what `agent install` put there', async () => {
    const system = new System(at('taken'))
    for (const file of ['etc/systemd/system/undernet.service', 'var/lib/undernet-install/manifest.json']) {
      mkdirSync(dirname(system.path(file)), { recursive: true })
      writeFileSync(system.path(file), '')
    }
    const { code, stderr } = await system.tries('-i', newer)
    expect([code, stderr]).toEqual([1, expect.stringContaining("Run 'sudo agent uninstall' first")])
    expect([existsSync(system.path('usr/bin/agent')), ...system.users()]).toEqual([false])
    rmSync(system.path('etc/systemd/system/undernet.service'))
    await system.dpkg('-i', newer)
  })

  it('is installed, upgraded, removed, installed again and purged; what is the user’s stays until then', async () => {
    const system = new System(at('system'))
    const config = system.path('etc/undernet/agent.toml')
    const key = system.path('var/lib/undernet/node.key')
    await system.dpkg('-i', file)
    expect(system.users()).toEqual(['undernet'])
    expect(system.isEnabled()).toBe(true)
    // The agent ran, and somebody changed the configuration.
    mkdirSync(system.path('var/lib/undernet'), { recursive: true })
    writeFileSync(key, 'secret')
    appendFileSync(config, 'quota = "1GiB"\n')

    await system.dpkg('-i', newer)
    expect(readFileSync(config, 'utf8')).toBe(`${commentedConfig()}quota = "1GiB"\n`)
    expect(readFileSync(key, 'utf8')).toBe('secret')

    // Who disabled the service does not find it enabled by the next version.
    system.disable()
    await system.dpkg('-i', file)
    expect(system.isEnabled()).toBe(false)

    await system.dpkg('--remove', 'undernet')
    expect(existsSync(system.path('usr/bin/agent'))).toBe(false)
    expect([existsSync(config), existsSync(key), ...system.users()]).toEqual([true, true, 'undernet'])

    await system.dpkg('-i', file)
    expect(readFileSync(config, 'utf8')).toContain('1GiB')
    await system.dpkg('--purge', 'undernet')
    for (const gone of ['etc/undernet', 'var/lib/undernet', 'usr/lib/undernet', 'usr/share/doc/undernet'])
      expect(existsSync(system.path(gone)), gone).toBe(false)
    expect(system.isEnabled()).toBe(false)
    expect(system.users()).toEqual([])
    expect(await system.dpkg('--audit')).toMatchObject({ stdout: '' })
  })
})

/** Builds with the script, as people do; resolves to the package. */
async function build(before: string, outdir: string, env = {}): Promise<string> {
  const command = [process.execPath, SCRIPT, '--zstd', '--out', outdir]
  const { code, stdout, stderr } = await run('sh', ['-c', `${before}; exec "$@"`, 'sh', ...command], env)
  expect(code, stderr).toBe(0)
  return stdout.split(', ')[0] ?? ''
}

/** The same as a newer version, without building it. */
function repacked(unpacked: string, scratch: string): string {
  cpSync(unpacked, scratch, { recursive: true })
  const control = join(scratch, 'DEBIAN', 'control')
  writeFileSync(control, readFileSync(control, 'utf8').replace(`Version: ${VERSION}`, `Version: ${NEWER}`))
  execFileSync('dpkg-deb', ['--root-owner-group', '-Znone', '--build', scratch, `${scratch}.deb`])
  return `${scratch}.deb`
}

/** A directory that dpkg takes for a system: nothing is installed there, and scripts are told to work in it. */
class System {
  readonly #root: string

  constructor(root: string) {
    this.#root = root
    for (const directory of ['var/lib/dpkg/updates', 'var/lib/dpkg/info', 'etc', 'usr/lib'])
      mkdirSync(join(root, directory), { recursive: true })
    for (const empty of ['var/lib/dpkg/status', 'etc/passwd', 'etc/group', 'etc/shadow', 'etc/gshadow'])
      writeFileSync(join(root, empty), '')
    cpSync('/etc/login.defs', join(root, 'etc/login.defs'))
  }

  path(name: string): string {
    return join(this.#root, name)
  }

  isEnabled(): boolean {
    return lstatSync(this.path(ENABLED), { throwIfNoEntry: false }) !== undefined
  }

  /** As systemctl does. */
  disable(): void {
    rmSync(this.path(ENABLED))
  }

  users(): string[] {
    const lines = readFileSync(this.path('etc/passwd'), 'utf8').split('\n')
    return lines.map((line) => line.split(':')[0] ?? '').filter((name) => name !== '' && name !== 'root')
  }

  tries(...args: string[]): Promise<Outcome> {
    const how = ['--force-depends', '--force-script-chrootless', '--force-unsafe-io', '--log=/dev/null']
    return run('dpkg', [`--root=${this.#root}`, ...how, ...args])
  }

  async dpkg(...args: string[]): Promise<Outcome> {
    const result = await this.tries(...args)
    expect(result.code, result.stderr).toBe(0)
    return result
  }
}
