/** The configuration: precedence, origins, and what people are told of mistakes. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { changedKeys, loadConfig, socketInFile } from '../../../agent/config/config.ts'
import { configKeys } from '../../../agent/config/keys.ts'
import { nearest } from '../../../agent/config/nearest.ts'
import { AgentError } from '../../../agent/error.ts'

let home: string
let env: Record<string, string>
beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), 'undernet-config-'))
  env = { HOME: home }
})
afterEach(() => rmSync(home, { recursive: true, force: true }))

function writeConfig(toml: string): string {
  mkdirSync(join(home, '.config/undernet'), { recursive: true })
  const file = join(home, '.config/undernet/agent.toml')
  writeFileSync(file, toml)
  return file
}

function mistake(work: () => unknown): AgentError {
  try {
    work()
  } catch (error) {
    if (error instanceof AgentError) return error
    throw error
  }
  throw new Error('nothing was thrown')
}

const KEY = `node-1:${Buffer.alloc(32, 7).toString('base64')}`

describe('loadConfig', () => {
  it('works when told nothing', () => {
    const { values, entries, file } = loadConfig({ env })
    expect(values).toMatchObject({
      listen: [
        '/ip4/0.0.0.0/tcp/7477',
        '/ip6/::/tcp/7477',
        '/ip4/0.0.0.0/udp/7477/quic-v1',
        '/ip6/::/udp/7477/quic-v1',
      ],
      bootstrap: [],
      mdns: true,
      open: true,
      joinFile: undefined,
      http: { host: '127.0.0.1', port: 7478 },
      state: join(home, '.local/state/undernet'),
      socket: join(home, '.local/state/undernet/agent.sock'),
      quotaBytes: 20 * 2 ** 30,
      logLevel: 'info',
    })
    expect(values.name).toMatch(/^[0-9A-Za-z]/)
    expect(file).toBeUndefined()
    expect(entries.map(({ key }) => key)).toEqual(configKeys.map(({ key }) => key))
    expect(entries.every(({ origin }) => origin === 'default')).toBe(true)
  })

  it('prefers flags to variables, variables to the file, the file to defaults, and remembers which it was', () => {
    const file = writeConfig('name = "from-file"\nmax_peers = 5\nmdns = false\nlog_level = "warn"\n')
    const { values, entries } = loadConfig({
      env: { ...env, UNDERNET_NAME: 'from-env', UNDERNET_MAX_PEERS: '6' },
      flags: { name: 'from-flag' },
    })
    expect(values).toMatchObject({ name: 'from-flag', maxPeers: 6, mdns: false, quotaBytes: 20 * 2 ** 30 })
    const origins = new Map(entries.map(({ key, origin, source }) => [key, [origin, source]]))
    expect(origins.get('name')).toEqual(['flag', '--name'])
    expect(origins.get('max_peers')).toEqual(['env', 'UNDERNET_MAX_PEERS'])
    expect(origins.get('log_level')).toEqual(['file', file])
    expect(origins.get('quota')).toEqual(['default', ''])
  })

  it('names the flag that was really given', () => {
    const { entries } = loadConfig({ env, flags: { mdns: false } })
    expect(entries.find(({ key }) => key === 'mdns')).toEqual({
      key: 'mdns',
      value: false,
      origin: 'flag',
      source: '--no-mdns',
    })
  })

  it("uses the service's directories under systemd", () => {
    const { values } = loadConfig({ env: { STATE_DIRECTORY: '/var/lib/undernet', UNDERNET_CONFIG: writeConfig('') } })
    expect(values).toMatchObject({ state: '/var/lib/undernet', socket: '/run/undernet/agent.sock' })
  })

  it('puts the socket into the runtime directory of the session, if that exists', () => {
    expect(loadConfig({ env: { ...env, XDG_RUNTIME_DIR: home } }).values.socket).toBe(join(home, 'undernet/agent.sock'))
    const gone = loadConfig({ env: { ...env, XDG_RUNTIME_DIR: join(home, 'gone') } }).values
    expect(gone.socket).toBe(join(gone.state, 'agent.sock'))
  })

  it('puts the socket beside a state that was named', () => {
    expect(loadConfig({ env, flags: { state: '/srv/b' } }).values.socket).toBe('/srv/b/agent.sock')
  })

  it('takes paths of a file relative to the file, and ~ as the home', () => {
    writeConfig('state = "here"\nsocket = "~/s.sock"\njoin_file = "tokens"\n')
    const { values } = loadConfig({ env })
    expect(values.joinFile).toBe(join(home, '.config/undernet/tokens'))
    expect(values.state).toBe(join(home, '.config/undernet/here'))
    expect(values.socket).toMatch(/^\/.*\/s\.sock$/)
  })

  it('takes lists with commas or spaces from variables, and once each', () => {
    const { values } = loadConfig({
      env: { ...env, UNDERNET_LISTEN: '/ip4/127.0.0.1/tcp/1, /ip4/127.0.0.1/tcp/2 /ip4/127.0.0.1/tcp/1' },
    })
    expect(values.listen).toEqual(['/ip4/127.0.0.1/tcp/1', '/ip4/127.0.0.1/tcp/2'])
  })

  it('turns things off', () => {
    const { values } = loadConfig({ env: { ...env, UNDERNET_HTTP: 'off', UNDERNET_MDNS: 'no' } })
    expect(values).toMatchObject({ http: undefined, mdns: false })
  })

  it('names the nearest key for an unknown one, in the file and in the environment, all mistakes at once', () => {
    writeConfig('listn = []\nquota = "much"\n[log]\nlevel = 1\n')
    const { code, message } = mistake(() => loadConfig({ env: { ...env, UNDERNET_BOOTSTRAPS: 'x' } }))
    expect(code).toBe('usage')
    expect(message).toMatch(/unknown key listn; did you mean listen\?/)
    expect(message).toMatch(/unknown key log; did you mean/)
    expect(message).toMatch(/UNDERNET_BOOTSTRAPS; did you mean UNDERNET_BOOTSTRAP\?/)
    expect(message).toMatch(/quota must be a size like 20GiB/)
  })

  it('says where a file does not parse', () => {
    const file = writeConfig('name = "a"\nname = \n')
    expect(mistake(() => loadConfig({ env })).message).toMatch(new RegExp(`^${file}:2:\\d+: `))
  })

  it('insists on a file that was named', () => {
    expect(mistake(() => loadConfig({ env, file: join(home, 'gone.toml') })).message).toMatch(
      /gone\.toml cannot be read/,
    )
  })

  it.each([
    [{ listen: ['0.0.0.0:7477'] }, /write \/ip4\/0\.0\.0\.0\/tcp\/7477/],
    [{ listen: ['/ip4/300.0.0.1/tcp/1'] }, /must be a multiaddr/],
    [{ listen: ['/ip4/0.0.0.0/udp/7477'] }, /must be a multiaddr/],
    [{ listen: ['/ip4/0.0.0.0/udp/70000/quic-v1'] }, /must be a multiaddr/],
    [{ bootstrap: ['node.example:7477'] }, /write \/dns\/node\.example\/tcp\/7477/],
    [{ bootstrap: ['/ip4/192.0.2.1/tcp/0'] }, /must be a multiaddr/],
    [{ http: '0.0.0.0:7478' }, /must be a loopback address/],
    [{ http: '127.0.0.1:99999' }, /must be like/],
    [{ proxy: '192.0.2.1:7479' }, /must be a loopback address/],
    [{ dns: '7453' }, /must be like 127.0.0.1:7453/],
    [{ addresses: '10.0.0.0/16' }, /must be auto, or a range like/],
    [{ addresses: '127.0.0.0/16' }, /must be auto/],
    [{ addresses: '127.77.1.0/16' }, /must be auto/],
    [{ addresses: '127.300.0.0/16' }, /must be auto/],
    [{ quota: '1KiB' }, /must be at least 1MiB/],
    [{ quota: '99999999999TiB' }, /must be/],
    [{ upload_rate: '1KiB' }, /must be at least 64KiB/],
    [{ upload_rate: 'fast' }, /must be a size/],
    [{ lanes: '65536' }, /must be a port from 0 to 65535, or off/],
    [{ lanes: 'fast' }, /must be a port/],
    [{ max_peers: '0' }, /whole number from 1/],
    [{ max_peers: '1e9' }, /whole number from 1/],
    [{ log_level: 'loud' }, /one of debug, info/],
    [{ name: 'two words' }, /must be a name/],
    [{ name: '\x1b[2J' }, /must be a name/],
    [{ trusted_keys: ['cache.example-1:short'] }, /must be a public key/],
    [{ mdns: 'maybe' }, /true or false/],
    [{ open: 'closed' }, /true or false/],
    [{ join_file: '' }, /must be a path/],
    [{ registries: ['registry.example'] }, /must be the URL of a registry/],
    [{ registries: ['https://me:secret@registry.example'] }, /no password in its URL: log in/],
    [{ registries: ['https://registry.example?mirror=x'] }, /nothing like "mirror"/],
    [{ registries: ['https://registry.example?prefix=a/b'] }, /must have a prefix like docker\.io/],
    [{ registry_fresh: 'soon' }, /must be a time from 0s to 365d, like 5m/],
    [{ registry_fresh: '366d' }, /must be a time/],
  ])('refuses %j', (flags, message) => {
    expect(mistake(() => loadConfig({ env, flags })).message).toMatch(message)
  })

  it.each([
    [{ listen: ['/ip6/::1/tcp/0'] }, { listen: ['/ip6/::1/tcp/0'] }],
    [{ http: '[::1]:80' }, { http: { host: '::1', port: 80 } }],
    [
      { proxy: 'off', dns: 'off' },
      { proxy: undefined, dns: undefined },
    ],
    [{ addresses: 'auto' }, { addresses: undefined }],
    [{ addresses: '127.77.0.0/16' }, { addresses: { base: 0x7f4d0000, bits: 16 } }],
    [{ addresses: '127.77.5.0/24' }, { addresses: { base: 0x7f4d0500, bits: 24 } }],
    [{ quota: '1.5 GiB' }, { quotaBytes: 1.5 * 2 ** 30 }],
    [{ open: false }, { open: false }],
    [{ join_file: '/run/secrets/tokens' }, { joinFile: '/run/secrets/tokens' }],
    [{ join_file: 'off' }, { joinFile: undefined }],
    [{ quota: '500MB' }, { quotaBytes: 5e8 }],
    [{ upload_rate: '10MiB' }, { uploadRateBytes: 10 * 2 ** 20 }],
    [{ upload_rate: '1.5 MB/s' }, { uploadRateBytes: 1.5e6 }],
    [{ upload_rate: 'off' }, { uploadRateBytes: undefined }],
    [{ lanes: '7500' }, { lanePort: 7_500 }],
    [{ lanes: 'off' }, { lanePort: undefined }],
    [{ registries: ['https://registry.example?prefix=docker.io&network=home'] }, {}],
    [{ registries: ['http://127.0.0.1:5000'] }, { registries: ['http://127.0.0.1:5000'] }],
    [{ registry_fresh: '90m' }, { registryFreshMs: 90 * 60_000 }],
    [{ registry_fresh: '0s' }, { registryFreshMs: 0 }],
    [{ registry_auth: 'off' }, { registryAuthFile: undefined }],
    [{ trusted_keys: [KEY] }, { trustedKeys: [KEY] }],
    [{ bootstrap: ['/dns/node.example/tcp/7477/p2p/12D3KooWEZXjE41uU4EL2gpkAQeDXYok6wghN7wwNVPF5bwkaNfS'] }, {}],
  ])('takes %j', (flags, values) => {
    expect(loadConfig({ env, flags }).values).toMatchObject(values)
  })

  it('shows values that mean the same when they are read again', () => {
    const { entries, values } = loadConfig({ env, flags: { quota: '1.5GiB', http: '[::1]:80', trusted_keys: [KEY] } })
    const again = loadConfig({
      env,
      flags: Object.fromEntries(
        entries.map(({ key, value }) => [key, typeof value === 'number' ? String(value) : value]),
      ),
    })
    expect(again.values).toEqual(values)
  })

  it('never throws anything but an explanation, whatever the value', () => {
    fc.assert(
      fc.property(fc.constantFrom(...configKeys.map(({ key }) => key)), fc.string({ unit: 'binary' }), (key, value) => {
        try {
          loadConfig({ env, flags: { [key]: value } })
        } catch (error) {
          expect(error).toBeInstanceOf(AgentError)
        }
      }),
    )
  })
})

describe('reload', () => {
  it('reads the same sources again, and tells what can change while running from what cannot', () => {
    writeConfig('log_level = "info"\nname = "a"\n')
    const before = loadConfig({ env, flags: { max_peers: '3' } })
    writeConfig('log_level = "debug"\nname = "b"\n')
    const after = before.reload()
    expect(after.values).toMatchObject({ logLevel: 'debug', name: 'b', maxPeers: 3 })
    expect(changedKeys(before, after)).toEqual({ reloaded: ['log_level'], restart: ['name'] })
    expect(changedKeys(after, after)).toEqual({ reloaded: [], restart: [] })
  })
})

describe('socketInFile', () => {
  it('finds the socket even in a file with other mistakes, and nothing in a broken one', () => {
    expect(socketInFile(writeConfig('socket = "/s"\nlistn = 1\n'))).toBe('/s')
    expect(socketInFile(writeConfig('socket = '))).toBeUndefined()
    expect(socketInFile(writeConfig('socket = 3'))).toBeUndefined()
  })
})

describe('nearest', () => {
  it('finds what was meant', () => {
    const keys = configKeys.map(({ key }) => key)
    expect(['max-peers', 'Listen', 'trustedkeys', 'loglevel', 'mdsn'].map((word) => nearest(word, keys))).toEqual([
      'max_peers',
      'listen',
      'trusted_keys',
      'log_level',
      'mdns',
    ])
  })
})
