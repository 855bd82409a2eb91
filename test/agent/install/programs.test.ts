/** What Nix, container engines and the resolver are given, from what the agent says. */
import { parse } from 'smol-toml'
import { describe, expect, it } from 'vitest'
import { withBlock } from '../../../agent/install/block.ts'
import { commandsFor, containerdConf, filesOf } from '../../../agent/install/programs.ts'
import { Root } from '../../../agent/install/root.ts'
import { containerdConf as linesForContainerd, podmanConf } from '../../../agent/oci/client-conf.ts'
import { Tree } from './tree.ts'

const URL = 'http://127.0.0.1:7478'
const REGISTRIES = [{ prefix: 'docker.io', url: 'https://registry-1.docker.io' }]
const CONTAINERD = linesForContainerd(URL, REGISTRIES)
const CRI = CONTAINERD.files[0]?.lines ?? []

/** An agent that says what it is given. */
function agentSaying(answers: Record<string, unknown>) {
  return { get: async <Reply>(path: string) => answers[path] as Reply }
}

describe('filesOf', () => {
  it('gives Nix its lines, and the resolver its file', async () => {
    const agent = agentSaying({
      'nix-conf': { url: URL, publicKey: 'a:b', lines: ['extra-substituters = x'] },
      'dns-conf': { resolvers: [{ resolver: 'systemd-resolved', lines: ['[Resolve]', 'DNS=127.0.0.1:7453'] }] },
    })
    const root = new Root('/')
    expect(await filesOf('nix', agent, root)).toEqual({
      wanted: [{ kind: 'block', part: 'nix', path: '/etc/nix/nix.conf', lines: ['extra-substituters = x'] }],
      notes: [],
    })
    const { wanted } = await filesOf('dns', agent, root)
    expect(wanted).toMatchObject([
      { path: '/etc/systemd/resolved.conf.d/undernet.conf', text: '[Resolve]\nDNS=127.0.0.1:7453\n' },
    ])
  })

  it('gives each engine its files', async () => {
    using tree = new Tree()
    tree.put('etc/containers/policy.json', '{}')
    tree.put('etc/containerd/config.toml', 'version = 2\n')
    const agent = agentSaying({ 'oci-conf/podman': podmanConf(URL, REGISTRIES), 'oci-conf/containerd': CONTAINERD })
    const { wanted, notes } = await filesOf('containers', agent, new Root(tree.directory))
    expect(wanted.map(({ kind, path }) => [kind, path])).toEqual([
      ['file', '/etc/containers/registries.conf.d/undernet.conf'],
      ['file', '/etc/containerd/certs.d/docker.io/hosts.toml'],
      ['file', '/etc/containerd/certs.d/127.0.0.1:7478/hosts.toml'],
      ['block', '/etc/containerd/config.toml'],
    ])
    expect(notes).toEqual([])
  })
})

describe("containerd's own file", () => {
  it('gets the lines where there are none, and stays sound', () => {
    for (const there of [undefined, 'version = 2\n', 'version = 2\n[plugins."x"]\n  a = 1', '']) {
      const wanted = containerdConf(CRI, there)
      if (wanted === undefined || typeof wanted === 'string' || wanted.kind !== 'block')
        throw new Error(JSON.stringify(wanted))
      expect(parse(withBlock(there ?? '', wanted.lines))).toMatchObject({
        plugins: { 'io.containerd.grpc.v1.cri': { registry: { config_path: '/etc/containerd/certs.d' } } },
      })
    }
  })

  it('gets the same again, when it has them', () => {
    const wanted = containerdConf(CRI, withBlock('version = 2\n', CRI))
    expect(wanted).toMatchObject({ kind: 'block', lines: CRI })
    const first = withBlock('', ['version = 2', ...CRI])
    expect(containerdConf(CRI, first)).toMatchObject({ lines: ['version = 2', ...CRI] })
  })

  it('is left when it says the same, and to its owner when it says something else', () => {
    const table = '[plugins."io.containerd.grpc.v1.cri".registry]\n'
    expect(containerdConf(CRI, `version = 2\n${table}  config_path = "/etc/containerd/certs.d"\n`)).toBeUndefined()
    for (const other of [`${table}  config_path = "/elsewhere"\n`, `${table}  headers = {}\n`, 'not = [toml'])
      expect(containerdConf(CRI, other)).toContain('config_path = "/etc/containerd/certs.d"')
  })
})

describe('commandsFor', () => {
  it('tells only those whose files were changed', () => {
    expect(commandsFor(['/etc/nix/nix.conf', '/etc/x'])).toEqual([['systemctl', 'try-restart', 'nix-daemon.service']])
    expect(commandsFor(['/etc/containers/registries.conf.d/undernet.conf'])).toEqual([])
  })
})
