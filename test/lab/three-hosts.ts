/**
 * Hosts on one switch, on this machine: network namespaces on a bridge, whose links can be pulled and slowed down one by one. Needs root
 * and iproute2.
 */
import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'

export type Hosts = Disposable & {
  /** The namespace of a host; its address is 10.78.0.1 and so on. */
  namespace(nth: number): string
  address(nth: number): string
  /** Takes a host off the switch; the returned function puts it back. */
  pull(nth: number): () => void
}

/** So many hosts; `slowBits` a second is what the last of them can receive, if it is said. */
export function makeHosts(count: number, slowBits?: string): Hosts {
  removeAbandoned()
  const name = `rev${process.pid}x${Math.floor(Math.random() * 1e6)}`
  const made: string[] = []
  const hosts: Hosts = {
    namespace: (nth) => `${name}h${nth}`,
    address: (nth) => `10.78.0.${nth + 1}`,
    pull: (nth) => {
      ip(`-n ${name} link set port${nth} down`)
      return () => ip(`-n ${name} link set port${nth} up`)
    },
    [Symbol.dispose]: () => {
      for (const namespace of made) ip(`netns del ${namespace}`)
    },
  }
  try {
    for (const namespace of [name, ...Array.from({ length: count }, (_, nth) => hosts.namespace(nth))]) {
      ip(`netns add ${namespace}`)
      made.push(namespace)
    }
    ip(`-n ${name} link add br0 type bridge`)
    ip(`-n ${name} link set br0 up`)
    for (let nth = 0; nth < count; nth++) {
      const namespace = hosts.namespace(nth)
      ip(`-n ${namespace} link add eth0 type veth peer name port${nth} netns ${name}`)
      ip(`-n ${name} link set port${nth} master br0 up`)
      ip(`-n ${namespace} addr add ${hosts.address(nth)}/24 dev eth0`)
      ip(`-n ${namespace} link set eth0 up`)
      ip(`-n ${namespace} link set lo up`)
    }
    if (slowBits === undefined) return hosts
    const slow = `qdisc add dev port${count - 1} root tbf rate ${slowBits} burst 64kb latency 400ms`
    execFileSync('ip', ['netns', 'exec', name, 'tc', ...slow.split(' ')])
    return hosts
  } catch (error) {
    hosts[Symbol.dispose]()
    throw error
  }
}

/** Namespaces of processes that were killed. */
function removeAbandoned(): void {
  const names = execFileSync('ip', ['netns', 'list'], { encoding: 'utf8' })
  for (const [, name = '', pid = ''] of names.matchAll(/^(rev(\d+)x\w+)/gm)) {
    if (!existsSync(`/proc/${pid}`)) ip(`netns del ${name}`)
  }
}

function ip(command: string): void {
  execFileSync('ip', command.split(' '))
}
