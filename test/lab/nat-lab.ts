/**
 * Two LANs behind NAT routers and a public network between them, on this machine: hosts in network namespaces, routers that masquerade and
 * drop whatever nobody inside asked for. Public addresses are of an ordinary public range, since libp2p takes the documentation's for
 * private ones; nothing leaves the namespaces. Needs root, iproute2 and nftables.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const LANS = [1, 2] as const
type LanNumber = (typeof LANS)[number]

/** What lies between a LAN and the public network. */
export const ROUTER_KINDS = [
  /** Nothing but a router: its hosts have public addresses. */
  'open',
  /** Public addresses, and a firewall that lets in what somebody inside began. */
  'no inbound',
  'masquerade',
  /** Another port for each destination. */
  'symmetric',
  /** Masquerades, and passes on no UDP. */
  'no UDP',
  /** Masquerades twice: a router behind a router. */
  'LAN in LAN',
] as const
export type RouterKind = (typeof ROUTER_KINDS)[number]
type Kinds = Readonly<Record<LanNumber, RouterKind>>
const ORDINARY: Kinds = { 1: 'masquerade', 2: 'masquerade' }

/** What miniupnpd writes its rules into. */
const MINIUPNPD_TABLES = `table inet filter {
  chain miniupnpd { }
  chain prerouting_miniupnpd { }
  chain postrouting_miniupnpd { }
  chain forward { type filter hook forward priority 0; policy accept; jump miniupnpd; }
  chain prerouting { type nat hook prerouting priority -100; policy accept; jump prerouting_miniupnpd; }
  chain postrouting { type nat hook postrouting priority 100; policy accept; jump postrouting_miniupnpd; }
}`

export class NatLab implements Disposable {
  readonly #prefix = `nat${process.pid}x${Math.floor(Math.random() * 1e5)}`
  readonly #made: string[] = []
  readonly #daemons: ChildProcess[] = []
  readonly #directory = mkdtempSync(join(tmpdir(), 'undernet-nat-'))
  readonly #kinds: Kinds

  private constructor(kinds: Kinds) {
    this.#kinds = kinds
  }

  /** A host with a public address, and one in each LAN. */
  static make(kinds = ORDINARY): NatLab {
    const lab = new NatLab(kinds)
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

  /** Namespace of the host in a LAN. */
  host(lan: LanNumber): string {
    return this.#name(`host${lan}`)
  }

  hostAddress(lan: LanNumber): string {
    return `${this.#net(lan)}.11`
  }

  /** From now on the router shows a socket at another port to each destination. */
  makeSymmetric(lan: LanNumber): void {
    this.#nat(lan, 'symmetric')
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

  /** The router lets in what hosts of its LAN ask it to, by NAT-PMP or by UPnP, from now on. `by` is the one that it speaks. */
  async letPortsIn(lan: LanNumber, by: 'nat-pmp' | 'upnp'): Promise<void> {
    const router = this.#router(lan)
    this.#nft(router, `insert rule ip filter forwarded ct status dnat accept\n${MINIUPNPD_TABLES}`)
    const file = join(this.#directory, `miniupnpd${lan}.conf`)
    const settings = {
      ext_ifname: 'wan',
      listening_ip: 'lan',
      http_port: 5000,
      enable_natpmp: by === 'nat-pmp' ? 'yes' : 'no',
      enable_upnp: by === 'upnp' ? 'yes' : 'no',
      ipv6_disable: 'yes',
      secure_mode: 'yes',
      uuid: '3ac03f29-5381-424c-9cbf-b2c040a62bef',
      lease_file: join(this.#directory, `leases${lan}`),
    }
    const lines = Object.entries(settings).map(([key, value]) => `${key}=${value}`)
    writeFileSync(
      file,
      `${[...lines, 'allow 1024-65535 0.0.0.0/0 1024-65535', 'deny 0-65535 0.0.0.0/0 0-65535'].join('\n')}\n`,
    )
    const args = ['netns', 'exec', router, 'miniupnpd', '-d', '-f', file, '-P', join(this.#directory, `pid${lan}`)]
    const daemon = spawn('ip', args, { stdio: ['ignore', 'pipe', 'pipe'] })
    this.#daemons.push(daemon)
    // It says so when it listens.
    await once(daemon.stderr, 'data')
    daemon.stderr.resume()
    daemon.stdout.resume()
  }

  /** Programs of a host ask this one for names from now on. */
  useResolver(lan: LanNumber, address: string): void {
    const directory = join('/etc/netns', this.host(lan))
    mkdirSync(directory, { recursive: true })
    writeFileSync(join(directory, 'resolv.conf'), `nameserver ${address}\n`)
  }

  /** Ports of the router that lead to a host of its LAN by that. */
  portsIn(lan: LanNumber): number[] {
    const rules = execFileSync('ip', ['netns', 'exec', this.#router(lan), 'nft', 'list', 'table', 'inet', 'filter'])
    return [...rules.toString().matchAll(/dport (\d+) dnat/g)].map(([, port]) => Number(port))
  }

  [Symbol.dispose](): void {
    for (const daemon of this.#daemons) daemon.kill('SIGKILL')
    for (const namespace of this.#made) {
      this.#ip('netns', 'del', namespace)
      rmSync(join('/etc/netns', namespace), { recursive: true, force: true })
    }
    rmSync(this.#directory, { recursive: true, force: true })
  }

  #make(): void {
    const hosts = LANS.map((lan) => this.host(lan))
    const routers = LANS.map((lan) => this.#router(lan))
    const inner = LANS.filter((lan) => this.#kinds[lan] === 'LAN in LAN').map((lan) => this.#name(`in${lan}`))
    for (const name of [this.#name('pub'), this.relay, ...routers, ...inner, ...hosts]) {
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
      const inner = this.#kinds[lan] === 'LAN in LAN' ? this.#name(`in${lan}`) : undefined
      this.#route(router, inner === undefined ? this.#net(lan) : `192.168.${lan}`)
      this.#nat(lan)
      if (inner !== undefined) {
        this.#plug(inner, router, 'lan', `192.168.${lan}.31/24`, 'wan')
        this.#ip('-n', inner, 'route', 'add', 'default', 'via', `192.168.${lan}.1`)
        this.#route(inner, this.#net(lan))
        this.#nft(inner, rulesOf('masquerade'))
      }
      this.#plug(host, inner ?? router, 'lan', `${this.hostAddress(lan)}/24`)
      this.#ip('-n', host, 'route', 'add', 'default', 'via', `${this.#net(lan)}.1`)
    }
    for (const lan of LANS.filter((one) => isRouted(this.#kinds[one])))
      for (const name of [this.relay, ...routers.filter((one) => one !== this.#router(lan))])
        this.#ip('-n', name, 'route', 'add', `${this.#net(lan)}.0/24`, 'via', `45.10.0.${lan}`)
  }

  #route(name: string, net: string): void {
    this.#bridge(name, 'lan')
    this.#ip('-n', name, 'addr', 'add', `${net}.1/24`, 'dev', 'lan')
    execFileSync('ip', ['netns', 'exec', name, 'sysctl', '-qw', 'net.ipv4.ip_forward=1'])
  }

  /** The first three bytes of a host's network. */
  #net(lan: LanNumber): string {
    const kind = this.#kinds[lan]
    if (isRouted(kind)) return `45.20.${lan}`
    return kind === 'LAN in LAN' ? `10.9.${lan}` : `192.168.${lan}`
  }

  #nat(lan: LanNumber, kind = this.#kinds[lan]): void {
    this.#nft(this.#router(lan), `flush ruleset\n${rulesOf(kind)}`)
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

/** Whether hosts have public addresses. */
function isRouted(kind: RouterKind): boolean {
  return kind === 'open' || kind === 'no inbound'
}

function rulesOf(kind: RouterKind): string {
  const masquerade = `oifname "wan" masquerade${kind === 'symmetric' ? ' fully-random' : ''};`
  return `
    table ip nat {
      chain leaving { type nat hook postrouting priority 100; ${isRouted(kind) ? '' : masquerade} }
    }
    table ip filter {
      chain forwarded { type filter hook forward priority 0; policy ${kind === 'open' ? 'accept' : 'drop'};
        ${kind === 'no UDP' ? 'ip protocol udp drop;' : ''}
        ct state established,related accept; iifname "lan" accept; }
      chain incoming { type filter hook input priority 0; policy accept; iifname "wan" ct state new drop; }
    }`
}
