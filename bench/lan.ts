/**
 * A LAN on one machine: hosts in network namespaces of their own, on a bridge, so that all that an agent sends can be counted at its
 * interface. Needs root and iproute2.
 */
import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'

export type LanHost = { namespace: string; address: string; interface: string }

/** Whether this user can make namespaces here. */
export function canMakeLan(): boolean {
  try {
    execFileSync('ip', ['netns', 'list'], { stdio: 'ignore' })
    return process.getuid?.() === 0
  } catch {
    return false
  }
}

/** Whether something listens there, as that host sees it, or this machine. */
export function answers(host: LanHost | undefined, address: string, port: number): boolean {
  const script = `require('node:net').connect(${port}, '${address}').on('connect', () => process.exit(0)).on('error', () => process.exit(1))`
  const command = [process.execPath, '-e', script] as const
  try {
    if (host === undefined) execFileSync(command[0], command.slice(1), { stdio: 'ignore' })
    else execFileSync('ip', ['netns', 'exec', host.namespace, ...command], { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
}

export class Lan implements Disposable {
  readonly hosts: readonly LanHost[]
  readonly #bridge: string

  /** `net` is the third byte of the addresses, and part of every name. */
  constructor(net: number, size: number) {
    const id = `u${process.pid}-${net}`
    this.#bridge = id
    this.hosts = Array.from({ length: size }, (_, nth) => ({
      namespace: `${id}-${nth}`,
      interface: `${id}-${nth}`,
      address: `10.78.${net}.${nth + 1}`,
    }))
    try {
      ip('link', 'add', id, 'type', 'bridge', 'mcast_snooping', '0')
      ip('link', 'set', id, 'up')
      for (const host of this.hosts) this.#plug(host)
    } catch (error) {
      this[Symbol.dispose]()
      throw error
    }
  }

  /** What the host sends leaves it no faster, in bits a second (`1gbit`); as over a cable, a switch holds a little of what waits. */
  limit({ namespace }: LanHost, rate: string): void {
    const shape = ['tbf', 'rate', rate, 'burst', '256kb', 'latency', '50ms']
    execFileSync('tc', ['-netns', namespace, 'qdisc', 'add', 'dev', 'eth0', 'root', ...shape])
  }

  /** Whole frames, sent and received, since the host was plugged in. */
  bytes({ interface: name }: LanHost): number {
    const counters = ['rx_bytes', 'tx_bytes'].map((one) => `/sys/class/net/${name}/statistics/${one}`)
    return counters.reduce((sum, file) => sum + Number(readFileSync(file, 'utf8')), 0)
  }

  [Symbol.dispose](): void {
    for (const { namespace } of this.hosts) attempt('netns', 'delete', namespace)
    attempt('link', 'delete', this.#bridge)
  }

  #plug({ namespace, interface: name, address }: LanHost): void {
    ip('netns', 'add', namespace)
    ip('link', 'add', name, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', namespace)
    ip('link', 'set', name, 'master', this.#bridge, 'up')
    const inside = (...args: string[]) => ip('-netns', namespace, ...args)
    // Neighbour discovery of IPv6 would be counted, and is not the agent's.
    ip('netns', 'exec', namespace, 'sysctl', '-q', '-w', 'net.ipv6.conf.all.disable_ipv6=1')
    inside('link', 'set', 'lo', 'up')
    inside('address', 'add', `${address}/24`, 'dev', 'eth0')
    inside('link', 'set', 'eth0', 'up')
    inside('route', 'add', 'default', 'dev', 'eth0')
  }
}

function ip(...args: string[]): void {
  execFileSync('ip', args, { stdio: ['ignore', 'ignore', 'pipe'] })
}

/** What was not made cannot be removed. */
function attempt(...args: string[]): void {
  try {
    ip(...args)
  } catch {
    // Not there.
  }
}
