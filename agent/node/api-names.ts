/** What the endpoints about names do: those in use, and the lines for resolvers of this machine. */
import type { NamesApi } from '../api/names-api.ts'
import type { DnsConfView, NameList } from '../api/names-contract.ts'
import { AgentError } from '../error.ts'
import type { DnsServer } from '../routing/dns-server.ts'
import { TOP } from '../routing/internal-names.ts'
import type { NodeNames } from './names.ts'
import type { NodeRouting } from './routing.ts'

type Parts = {
  names: Pick<NodeNames, 'list' | 'reverseZone'>
  dns: Pick<DnsServer, 'address'> | undefined
  routing: Pick<NodeRouting, 'networks'>
}

export class NodeNamesApi implements NamesApi {
  readonly #parts: Parts

  constructor(parts: Parts) {
    this.#parts = parts
  }

  list(): NameList {
    return this.#parts.names.list()
  }

  dnsConf(): DnsConfView {
    const { names, dns, routing } = this.#parts
    if (dns === undefined) {
      throw new AgentError('failed', 'the DNS server is off (dns = off), so a resolver has nothing to ask', {
        next: 'Start the agent with --dns 127.0.0.1:7453.',
      })
    }
    const domains = routing.networks().map(({ name }) => `${name}.${TOP}`)
    if (domains.length === 0) {
      throw new AgentError('failed', 'this node is in no closed network, so there are no names', {
        next: 'Make one with `agent network create`, or join one with `agent join`.',
      })
    }
    const { host, port } = dns.address
    const reverse = names.reverseZone
    const zones = [...domains, ...(reverse === undefined ? [] : [reverse])]
    return {
      address: host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`,
      domains,
      resolvers: [
        {
          resolver: 'systemd-resolved',
          file: '/etc/systemd/resolved.conf.d/undernet.conf',
          lines: [
            '[Resolve]',
            `DNS=${host.includes(':') ? `[${host}]` : host}:${port}`,
            // `~`: these names only are asked for there.
            `Domains=${zones.map((zone) => `~${zone}`).join(' ')}`,
            // The root says, signed, that there is no `internal`.
            'DNSSEC=no',
          ],
          restart: 'systemctl restart systemd-resolved',
        },
        {
          resolver: 'dnsmasq',
          file: '/etc/dnsmasq.d/undernet.conf',
          lines: [
            ...zones.map((zone) => `server=/${zone}/${host}#${port}`),
            // Where loopback addresses from elsewhere are dropped (stop-dns-rebind).
            ...domains.map((domain) => `rebind-domain-ok=/${domain}/`),
          ],
          restart: 'systemctl restart dnsmasq',
        },
      ],
    }
  }
}
