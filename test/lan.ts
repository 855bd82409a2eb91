/**
 * Two hosts on one LAN, on this machine: network namespaces on a bridge, whose link can be cut in two ways. Needs root, iproute2 and
 * nftables.
 */
import { execFileSync } from 'node:child_process'
import { onTestFinished } from 'vitest'

/** Whether there can be namespaces; says so once where there cannot. */
export const hasNamespaces = process.getuid?.() === 0 && has('ip') && has('nft')
if (!hasNamespaces) console.warn('skipped: tests in network namespaces, which need root, iproute2 and nftables')

export type Lan = { hosts: [string, string]; drop(): () => void; pull(): () => void }

/** Two namespaces, 10.77.0.1 and 10.77.0.2, on a bridge in a third; no default route. Gone when the test ends. */
export function makeLan(): Lan {
  const name = `mesh${process.pid}x${Math.floor(Math.random() * 1e6)}`
  const bridge = `${name}s`
  const hosts: [string, string] = [`${name}a`, `${name}b`]
  onTestFinished(() => {
    for (const namespace of [...hosts, bridge]) execFileSync('ip', ['netns', 'del', namespace])
  })
  for (const namespace of [bridge, ...hosts]) run(`ip netns add ${namespace}`)
  run(`ip -n ${bridge} link add br0 type bridge`, `ip -n ${bridge} link set br0 up`)
  for (const [index, host] of hosts.entries()) {
    run(
      `ip -n ${host} link add eth0 type veth peer name port${index} netns ${bridge}`,
      `ip -n ${bridge} link set port${index} master br0 up`,
      `ip -n ${host} addr add 10.77.0.${index + 1}/24 dev eth0`,
      `ip -n ${host} link set eth0 up`,
      `ip -n ${host} link set lo up`,
    )
  }
  const within = `ip netns exec ${hosts[1]} nft`
  return {
    hosts,
    drop: () => {
      run(`${within} add table inet cut`)
      for (const hook of ['input', 'output']) {
        execFileSync('ip', [
          'netns',
          'exec',
          hosts[1],
          'nft',
          'add',
          'chain',
          'inet',
          'cut',
          hook,
          `{ type filter hook ${hook} priority 0; policy drop; }`,
        ])
      }
      return () => run(`${within} delete table inet cut`)
    },
    pull: () => {
      run(`ip -n ${bridge} link set port1 down`)
      return () => run(`ip -n ${bridge} link set port1 up`)
    },
  }
}

function run(...commands: string[]): void {
  for (const command of commands) {
    const [program = '', ...args] = command.split(' ')
    execFileSync(program, args)
  }
}

function has(program: string): boolean {
  try {
    execFileSync('which', [program], { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
}
