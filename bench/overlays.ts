/**
 * Networks laid over two hosts that are network namespaces of this machine, to be compared with: Debian's nebula, and wireguard-go (there is no
 * WireGuard in the kernel here). Each has processes of its own, for as long as it is in use; undefined where it is not installed.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { until } from '../test/agents.ts'
import { answers, type LanHost } from './lan.ts'

const START_MS_MAX = 15_000
const NEBULA = '/usr/bin/nebula'
const WIREGUARD = '/usr/bin/wireguard-go'
const PORT = 4_242

export type Overlay = Disposable & {
  /** The far host in it. */
  address: string
  pids: readonly number[]
}
type Hosts = readonly [LanHost, LanHost]

/** From the first host to the second, which is the lighthouse, and listens at that port. */
export async function startNebula([near, far]: Hosts, port: number): Promise<Overlay | undefined> {
  if (!existsSync(NEBULA)) return undefined
  const address = (nth: number) => `10.99.1.${nth + 1}`
  const directory = mkdtempSync(join(tmpdir(), 'undernet-nebula-'))
  const certify = (...args: string[]) => execFileSync('nebula-cert', args, { cwd: directory, stdio: 'ignore' })
  certify('ca', '-name', 'bench')
  const children = [near, far].map((host, nth) => {
    const name = `n${nth}`
    certify('sign', '-name', name, '-ip', `${address(nth)}/24`)
    const isFar = nth === 1
    const config = {
      pki: { ca: join(directory, 'ca.crt'), cert: join(directory, `${name}.crt`), key: join(directory, `${name}.key`) },
      static_host_map: isFar ? {} : { [address(1)]: [`${far.address}:${PORT}`] },
      lighthouse: { am_lighthouse: isFar, hosts: isFar ? [] : [address(1)] },
      listen: { host: '0.0.0.0', port: PORT },
      tun: { dev: `${name}b` },
      logging: { level: 'error' },
      firewall: {
        outbound: [{ port: 'any', proto: 'any', host: 'any' }],
        inbound: [{ port: 'any', proto: 'any', host: 'any' }],
      },
    }
    const file = join(directory, `${name}.yml`)
    // JSON is YAML.
    writeFileSync(file, JSON.stringify(config))
    return within(host, NEBULA, '-config', file)
  })
  return await ready(near, { address: address(1), port }, children, () =>
    rmSync(directory, { recursive: true, force: true }),
  )
}

export async function startWireguard([near, far]: Hosts, port: number): Promise<Overlay | undefined> {
  if (!existsSync(WIREGUARD)) return undefined
  const address = (nth: number) => `10.99.2.${nth + 1}`
  const directory = mkdtempSync(join(tmpdir(), 'undernet-wg-'))
  const keys = [0, 1].map(() => execFileSync('wg', ['genkey'], { encoding: 'utf8' }).trim())
  const publicKeys = keys.map((key) => execFileSync('wg', ['pubkey'], { input: key, encoding: 'utf8' }).trim())
  const devices = [0, 1].map((nth) => `wg${process.pid % 10_000}x${nth}`)
  const children: ChildProcess[] = []
  for (const [nth, host] of [near, far].entries()) {
    const other = nth === 0 ? far : near
    const device = devices[nth] ?? ''
    children.push(within(host, WIREGUARD, '--foreground', device))
    await until(() => existsSync(`/var/run/wireguard/${device}.sock`), { what: 'wireguard-go runs', ms: START_MS_MAX })
    const file = join(directory, `key${nth}`)
    writeFileSync(file, keys[nth] ?? '', { mode: 0o600 })
    const peer = ['peer', publicKeys[1 - nth] ?? '', 'allowed-ips', `${address(1 - nth)}/32`]
    const set = ['set', device, 'listen-port', String(PORT + 1), 'private-key', file, ...peer]
    execFileSync('ip', ['netns', 'exec', host.namespace, 'wg', ...set, 'endpoint', `${other.address}:${PORT + 1}`])
    execFileSync('ip', ['-netns', host.namespace, 'address', 'add', `${address(nth)}/24`, 'dev', device])
    execFileSync('ip', ['-netns', host.namespace, 'link', 'set', device, 'up'])
  }
  return await ready(near, { address: address(1), port }, children, () =>
    rmSync(directory, { recursive: true, force: true }),
  )
}

function within({ namespace }: LanHost, ...command: string[]): ChildProcess {
  return spawn('ip', ['netns', 'exec', namespace, ...command], { stdio: 'ignore' })
}

/** Once the far host answers. */
async function ready(
  near: LanHost,
  { address, port }: { address: string; port: number },
  children: readonly ChildProcess[],
  tidy: () => void,
): Promise<Overlay> {
  const overlay = {
    address,
    pids: children.map(({ pid }) => pid ?? 0),
    [Symbol.dispose]: () => {
      for (const child of children) child.kill()
      tidy()
    },
  }
  try {
    await until(() => answers(near, address, port), { what: `${address} answers`, ms: START_MS_MAX })
    return overlay
  } catch (error) {
    overlay[Symbol.dispose]()
    throw error
  }
}
