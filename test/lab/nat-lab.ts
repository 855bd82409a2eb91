/**
 * Two LANs behind NAT routers and a public network between them, on this machine: hosts in network namespaces, routers that masquerade and
 * drop whatever nobody inside asked for. Public addresses are of an ordinary public range, since libp2p takes the documentation's for
 * private ones; nothing leaves the namespaces. Needs root, iproute2 and nftables.
 */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const LANS = [1, 2] as const
type LanNumber = (typeof LANS)[number]

export class NatLab implements Disposable {
  readonly #prefix = `nat${process.pid}x${Math.floor(Math.random() * 1e5)}`
  readonly #made: string[] = []
  readonly #directory = mkdtempSync(join(tmpdir(), 'undernet-nat-'))

  /** A host with a public address, and one in each LAN. */
  static make(): NatLab {
    const lab = new NatLab()
    try {
      lab.#make()
      return lab
    } catch (error) {
      lab[Symbol.dispose]()
      throw error
    }
  }

  /** Namespace of the public host. */
  get relay(): string {
    return this.#name('relay')
  }

  get relayAddress(): string {
    return '45.10.0.10'
  }

  /** Namespace of the host in a LAN, 192.168.<lan>.11. */
  host(lan: LanNumber): string {
    return this.#name(`host${lan}`)
  }

  hostAddress(lan: LanNumber): string {
    return `192.168.${lan}.11`
  }

  /** From now on the router shows a socket at another port to each destination. */
  makeSymmetric(lan: LanNumber): void {
    this.#nat(lan, 'masquerade fully-random')
  }

  /** From now on the router drops what comes of a protocol, from either side, or to one port of the public host only; until that is undone. */
  drop(lan: LanNumber, what: 'udp' | 'tcp dport 7477'): () => void {
    const router = this.#router(lan)
    const protocol = what === 'udp' ? 'meta l4proto udp' : what
    this.#nft(
      router,
      `table ip cut {
         chain everything { type filter hook forward priority -1; ${protocol} drop; }
       }`,
    )
    return () => this.#nft(router, 'delete table ip cut')
  }

  /** From now on the routers know each other's LANs, and let everything through: as when somebody has put them into one VPN. */
  joinLans(): void {
    for (const lan of LANS) {
      const other = lan === 1 ? 2 : 1
      this.#ip('-n', this.#router(lan), 'route', 'add', `192.168.${other}.0/24`, 'via', `45.10.0.${other}`)
      this.#nft(
        this.#router(lan),
        `insert rule ip nat leaving ip daddr 192.168.0.0/16 accept
         insert rule ip filter forwarded ip saddr 192.168.0.0/16 accept`,
      )
    }
  }

  /** Undoes that; what is connected by it dies silently. */
  partLans(): void {
    for (const lan of LANS) {
      const other = lan === 1 ? 2 : 1
      this.#ip('-n', this.#router(lan), 'route', 'del', `192.168.${other}.0/24`)
      this.#nat(lan)
    }
  }

  [Symbol.dispose](): void {
    for (const namespace of this.#made) this.#ip('netns', 'del', namespace)
    rmSync(this.#directory, { recursive: true, force: true })
  }

  #make(): void {
    const hosts = LANS.map((lan) => this.host(lan))
    const routers = LANS.map((lan) => this.#router(lan))
    for (const name of [this.#name('pub'), this.relay, ...routers, ...hosts]) {
      this.#ip('netns', 'add', name)
      this.#made.push(name)
      this.#ip('-n', name, 'link', 'set', 'lo', 'up')
    }
    const pub = this.#name('pub')
    this.#bridge(pub, 'br0')
    this.#plug(this.relay, pub, 'br0', `${this.relayAddress}/24`)
    for (const lan of LANS) {
      const [router, host] = [this.#router(lan), this.host(lan)]
      this.#plug(router, pub, 'br0', `45.10.0.${lan}/24`, 'wan')
      this.#bridge(router, 'lan')
      this.#ip('-n', router, 'addr', 'add', `192.168.${lan}.1/24`, 'dev', 'lan')
      execFileSync('ip', ['netns', 'exec', router, 'sysctl', '-qw', 'net.ipv4.ip_forward=1'])
      this.#nat(lan)
      this.#plug(host, router, 'lan', `${this.hostAddress(lan)}/24`)
      this.#ip('-n', host, 'route', 'add', 'default', 'via', `192.168.${lan}.1`)
    }
  }

  #nat(lan: LanNumber, translation = 'masquerade'): void {
    this.#nft(
      this.#router(lan),
      `flush ruleset
       table ip nat {
         chain leaving { type nat hook postrouting priority 100; oifname "wan" ${translation}; }
       }
       table ip filter {
         chain forwarded { type filter hook forward priority 0; policy drop;
           ct state established,related accept; iifname "lan" accept; }
         chain incoming { type filter hook input priority 0; policy accept; iifname "wan" ct state new drop; }
       }`,
    )
  }

  #bridge(namespace: string, name: string): void {
    this.#ip('-n', namespace, 'link', 'add', name, 'type', 'bridge')
    this.#ip('-n', namespace, 'link', 'set', name, 'up')
  }

  /** Plugs a host into a bridge of another namespace. */
  #plug(host: string, at: string, bridge: string, address: string, device = 'eth0'): void {
    const port = `p${this.#made.indexOf(host)}`
    this.#ip('-n', host, 'link', 'add', device, 'type', 'veth', 'peer', 'name', port, 'netns', at)
    this.#ip('-n', at, 'link', 'set', port, 'master', bridge, 'up')
    this.#ip('-n', host, 'addr', 'add', address, 'dev', device)
    this.#ip('-n', host, 'link', 'set', device, 'up')
  }

  #router(lan: LanNumber): string {
    return this.#name(`r${lan}`)
  }

  #name(what: string): string {
    return `${this.#prefix}${what}`
  }

  #nft(namespace: string, rules: string): void {
    const file = join(this.#directory, 'rules.nft')
    writeFileSync(file, rules)
    execFileSync('ip', ['netns', 'exec', namespace, 'nft', '-f', file])
  }

  #ip(...args: string[]): void {
    execFileSync('ip', args)
  }
}
