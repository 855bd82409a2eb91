/**
 * The flake and its NixOS module under a real Nix, with the stub of nixpkgs beside this file: everything that comes out is forced, and what
 * must fail does. With UNDERNET_NIXPKGS_LIB=DIRECTORY (nixpkgs' own `lib`) the module's cases run with that one, too.
 */
import { execFile } from 'node:child_process'
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { promisify } from 'node:util'
import { stringify } from 'smol-toml'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { loadConfig } from '../../agent/config/config.ts'
import { KEYS } from '../../agent/config/keys.ts'
import type { Form } from '../../agent/config/values.ts'
import { unitSections } from '../../agent/service/unit.ts'
import { optionsJson } from '../../nix/options.ts'
import { hasNix } from '../nix-paths.ts'

const root = resolve(import.meta.dirname, '../..')
const stub = join(root, 'test', 'nix', 'stub')
const real = process.env.UNDERNET_NIXPKGS_LIB
const libs = [['our stub', join(stub, 'lib.nix')], ...(real === undefined ? [] : [['nixpkgs’ lib', real]])]
const EVALUATE_MS_MAX = 60_000

type Outcome = { code: number; stdout: string; stderr: string }
type Service = { serviceConfig: Record<string, string | string[]>; unitConfig: Record<string, string> } & Record<
  string,
  unknown
>
type System = {
  drvPath: string
  environment: { etc: Record<string, { text?: string; source?: string }> }
  networking: { firewall: { allowedTCPPorts: number[]; allowedUDPPorts: number[] } }
  nix: { extraOptions: string }
  systemd: { services: { undernet: Service; 'undernet-nix-conf'?: { script: string } } }
  users: { users: Record<string, Record<string, unknown>> }
  options: Record<string, { type: string; description: string }>
}

let directory: string
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'undernet-flake-'))
})
afterAll(() => rmSync(directory, { recursive: true, force: true }))

async function nix(program: string, words: string[]): Promise<Outcome> {
  const env = {
    ...process.env,
    XDG_CACHE_HOME: join(directory, 'cache'),
    NIX_CONFIG: 'experimental-features = nix-command flakes',
  }
  const options = { env, timeout: EVALUATE_MS_MAX, maxBuffer: 64 * 1024 * 1024 }
  return await promisify(execFile)(program, words, options).then(
    ({ stdout, stderr }) => ({ code: 0, stdout, stderr }),
    ({ code, stdout, stderr }: Outcome) => ({ code, stdout, stderr }),
  )
}

/** Evaluates systems, each with `services.undernet` as said. */
async function evaluate(lib: string, cases: object[], { isTried = false } = {}): Promise<Outcome> {
  const file = join(directory, `cases-${Math.random()}.json`)
  writeFileSync(file, JSON.stringify(cases.map((undernet) => ({ services: { undernet, resolved: { enable: true } } }))))
  const call = `import ${root}/test/nix/case.nix { lib = import ${lib}; cases = ${file}; isTried = ${isTried}; }`
  return await nix('nix-instantiate', ['--eval', '--strict', '--json', '--read-write-mode', '-E', call])
}

async function systemWith(lib: string, undernet: object): Promise<System> {
  const { code, stdout, stderr } = await evaluate(lib, [{ enable: true, ...undernet }])
  expect([code, stderr]).toEqual([0, ''])
  return (JSON.parse(stdout) as [System])[0]
}

/** A value that no key of this form may have. */
function wrong(form: Form): unknown {
  if (form.is === 'list') return [wrong(form.of)]
  if (form.is === 'integer') return form.max + 1
  return { boolean: 'yes', choice: 'neither', path: 7, text: 'wrong value' }[form.is]
}

describe.skipIf(!hasNix).each(libs)('the NixOS module, with %s', (_, lib) => {
  it('has each key of the configuration, with a type and a description', async () => {
    const { options } = await systemWith(lib, {})
    expect(Object.keys(options).sort()).toEqual([...KEYS.keys()].sort())
    for (const [key, { type, description }] of Object.entries(options)) {
      expect([key, type]).toEqual([key, expect.stringMatching(/^null or .{3,}/)])
      expect(description).toContain(KEYS.get(key)?.help)
    }
  })

  it('writes a configuration that the agent reads as it was meant', async () => {
    type Options = Record<string, { default?: unknown }>
    const defaults = Object.entries(JSON.parse(optionsJson()) as Options).filter(([, one]) => one.default !== undefined)
    const others = {
      name: 'nas',
      state: '/var/lib/undernet',
      socket: '/run/undernet/agent.sock',
      private_paths: ['*.x'],
    }
    const settings = { ...Object.fromEntries(defaults.map(([key, one]) => [key, one.default])), ...others }
    expect(Object.keys(settings).sort()).toEqual([...KEYS.keys()].sort())
    const { environment } = await systemWith(lib, { settings })
    const written = JSON.parse(readFileSync(environment.etc['undernet/agent.toml']?.source ?? '', 'utf8'))
    const file = join(directory, 'agent.toml')
    writeFileSync(file, stringify(written))
    const { entries } = loadConfig({ env: {}, file })
    expect(Object.fromEntries(entries.map(({ key, value }) => [key, value]))).toEqual(settings)
    expect(entries.every(({ origin }) => origin === 'file')).toBe(true)
  })

  it('writes nothing for what nobody set', async () => {
    const { environment } = await systemWith(lib, { settings: { max_peers: 12 } })
    const written = readFileSync(environment.etc['undernet/agent.toml']?.source ?? '', 'utf8')
    expect(JSON.parse(written)).toEqual({ max_peers: 12 })
    expect(Object.keys(environment.etc)).toEqual(['undernet/agent.toml'])
  })

  it('refuses a wrong value of each key', async () => {
    const cases = [...KEYS].map(([key, { kind }]) => ({ enable: true, settings: { [key]: wrong(kind.form) } }))
    const { stdout } = await evaluate(lib, cases, { isTried: true })
    const accepted = [...KEYS.keys()].filter((_key, nth) => (JSON.parse(stdout) as boolean[])[nth] !== false)
    expect(accepted).toEqual([])
  })

  it.each([
    ['a key that there is not', { settings: { max_peer: 12 } }, /option `.*max_peer' does not exist/],
    ['a wrong port', { settings: { lanes: 70_000 } }, /lanes' .*not of type/s],
    ['an address that is not loopback', { settings: { http: '0.0.0.0:7478' } }, /http' .*not of type/s],
    ['a secret that would be in the store', { joinFile: './token' }, /joinFile' .*not of type/s],
    ['two files with tokens', { joinFile: '/run/a', settings: { join_file: '/run/b' } }, /are the same: say one/],
    ['names without the server of names', { dns: { enable: true }, settings: { dns: 'off' } }, /settings\.dns not off/],
    ['Nix without the cache', { nix: { substituter: true }, settings: { http: 'off' } }, /settings\.http not off/],
  ])('refuses %s, and says what is wrong', async (_what, undernet, message) => {
    const { code, stderr } = await evaluate(lib, [{ enable: true, ...undernet }])
    expect(code).not.toBe(0)
    expect(stderr).toMatch(message)
  })

  it('has the unit that is installed elsewhere, but for where programs and secrets are', async () => {
    const { systemd } = await systemWith(lib, { joinFile: '/run/secrets/token' })
    const { serviceConfig, unitConfig, description, after, wantedBy } = systemd.services.undernet
    const settings = Object.entries({
      ...unitConfig,
      ...serviceConfig,
      Description: description as string,
      After: (after as string[]).join(' '),
      WantedBy: (wantedBy as string[]).join(' '),
    }).flatMap(([key, value]) => [value].flat().map((one) => `${key}=${one}`))
    const agent = serviceConfig.ExecStart?.toString().split(' ')[0] ?? ''
    const kill = serviceConfig.ExecReload?.toString().split(' ')[0] ?? ''
    expect(agent).toMatch(/^\/nix\/store\/.+\/bin\/agent$/)
    const installed = unitSections({ program: [agent], kill, systemdVersion: 257 })
      .flatMap((one) => one.settings)
      .map(({ key, value }) => `${key}=${value}`)
      .map((one) => (one === 'LoadCredential=undernet.join' ? `${one}:/run/secrets/token` : one))
    expect(settings.sort()).toEqual(installed.sort())
  })

  it('restarts for what a running agent cannot take over, and reloads for the rest', async () => {
    const triggers = async (settings: object) => {
      const { restartTriggers, reloadTriggers } = (await systemWith(lib, { settings })).systemd.services.undernet
      return { restart: JSON.stringify(restartTriggers), reload: JSON.stringify(reloadTriggers) }
    }
    const before = await triggers({ quota: '5GiB', max_peers: 12 })
    const reloaded = await triggers({ quota: '6GiB', max_peers: 12 })
    expect(reloaded.restart).toBe(before.restart)
    expect(reloaded.reload).not.toBe(before.reload)
    expect((await triggers({ quota: '5GiB', max_peers: 13 })).restart).not.toBe(before.restart)
  })

  it('opens the firewall, and leads Nix, containers and names to the agent, when it is told to, and not else', async () => {
    const shut = await systemWith(lib, {})
    expect(shut.networking.firewall).toEqual({ allowedTCPPorts: [], allowedUDPPorts: [] })
    expect([shut.nix.extraOptions, shut.systemd.services['undernet-nix-conf']]).toEqual(['', undefined])

    const {
      networking,
      nix: ofNix,
      systemd,
      environment,
      users,
    } = await systemWith(lib, {
      openFirewall: true,
      users: ['alice'],
      nix: { substituter: true },
      containers: { enable: true },
      dns: { enable: true, domains: ['home.internal', 'lab.internal'] },
      settings: {
        listen: ['/ip4/0.0.0.0/tcp/7577', '/ip6/::/tcp/7577', '/ip4/0.0.0.0/udp/7578/quic-v1', '/ip4/127.0.0.1/tcp/0'],
        http: '127.0.0.1:7578',
        registries: ['https://registry.example?prefix=docker.io', 'https://other.example:5000/?network=home'],
      },
    })
    expect(networking.firewall).toEqual({ allowedTCPPorts: [7577, 7476], allowedUDPPorts: [7578, 7476, 7475, 5353] })
    expect(users.users.alice).toEqual({ extraGroups: ['undernet'] })
    expect(ofNix.extraOptions).toBe('!include /run/undernet-nix.conf')
    expect(systemd.services['undernet-nix-conf']?.script).toContain('extra-substituters = http://127.0.0.1:7578/nix')
    const containers = environment.etc['containers/registries.conf.d/undernet.conf']?.text ?? ''
    expect(containers.match(/^(location|prefix) = .*/gm)).toEqual([
      'location = "127.0.0.1:7578"',
      'prefix = "docker.io"',
      'location = "docker.io"',
      'location = "127.0.0.1:7578/docker.io"',
      'prefix = "other.example-5000"',
      'location = "other.example-5000"',
      'location = "127.0.0.1:7578/other.example-5000"',
    ])
    const resolved = environment.etc['systemd/resolved.conf.d/undernet.conf']?.text
    expect(resolved).toBe('[Resolve]\nDNS=127.0.0.1:7453\nDomains=~home.internal ~lab.internal\nDNSSEC=no\n')
  })
})

describe.skipIf(!hasNix)('the flake', () => {
  const words = ['--no-write-lock-file', '--override-input', 'nixpkgs', `path:${stub}`]

  let flake: string
  beforeAll(() => {
    flake = join(directory, 'flake')
    for (const one of ['flake.nix', 'nix', 'agent', 'protocols', 'package.json', 'package-lock.json', 'LICENSE'])
      cpSync(join(root, one), join(flake, one), { recursive: true })
  })

  it('makes a system of what README.md shows', async () => {
    const [, shown = ''] = /^```nix\n(.*?)^```$/ms.exec(readFileSync(join(root, 'README.md'), 'utf8')) ?? []
    expect(shown).toContain('services.undernet')
    const machine = mkdtempSync(join(directory, 'machine-'))
    writeFileSync(join(machine, 'flake.nix'), shown.replace('"…"', JSON.stringify(`path:${flake}`)))
    const name = `path:${machine}#nixosConfigurations.nas.toplevel.drvPath`
    const { code, stdout, stderr } = await nix('nix', ['eval', '--raw', ...words, name])
    expect([code, stdout]).toEqual([0, expect.stringMatching(/^\/nix\/store\/.*\.drv$/)])
    expect(stderr).not.toContain('error')
  })

  it('passes `nix flake check`, and has what its README says, for both systems', async () => {
    const checked = await nix('nix', ['flake', 'check', '--no-build', ...words, `path:${flake}`])
    expect([checked.code, checked.stderr]).toEqual([0, expect.stringContaining('evaluating flake')])

    const shown = await nix('nix', ['flake', 'show', '--json', ...words, `path:${flake}`])
    const both = (name: string, type: string) => ({
      'aarch64-linux': { [name]: expect.objectContaining({ type }) },
      'x86_64-linux': { [name]: expect.objectContaining({ type }) },
    })
    expect(JSON.parse(shown.stdout)).toMatchObject({
      packages: both('default', 'derivation'),
      devShells: both('default', 'derivation'),
      checks: both('machines', 'derivation'),
      nixosModules: { default: { type: 'nixos-module' } },
      overlays: { default: { type: 'nixpkgs-overlay' } },
    })
  })
})
