/** The ways in to services for programs of this machine, put together: the proxy and DNS on loopback. */
import type { Config } from '../config/keys.ts'
import type { Log } from '../log.ts'
import { DnsServer } from '../routing/dns-server.ts'
import { ServiceProxy } from '../routing/proxy.ts'
import type { NodeNames } from './names.ts'
import type { NodeRouting } from './routing.ts'

type Deps = {
  config: Pick<Config, 'proxy' | 'dns'>
  routing: Pick<NodeRouting, 'services' | 'dialer' | 'networks'>
  names: NodeNames
  log: Log
}

export type WaysIn = { proxy: ServiceProxy | undefined; dns: DnsServer | undefined }

/** Parts that stop are left to the stack. */
export async function startWaysIn({ config, routing, names, log }: Deps, stack: AsyncDisposableStack): Promise<WaysIn> {
  const { services, dialer } = routing
  const networks = () => routing.networks().map(({ name }) => name)
  const nameAt = (address: string) => names.nameAt(address)
  const destinations = { services, networks, nameAt }
  const proxy = config.proxy && stack.use(await ServiceProxy.start(config.proxy, { destinations, dialer, log }))
  const zones = {
    networks,
    services,
    hold: (name: string) => names.hold(name),
    nameAt,
    get reverseZone() {
      return names.reverseZone
    },
  }
  const dns = config.dns && stack.use(await DnsServer.start(config.dns, zones, log))
  await names.resume()
  return { proxy, dns }
}
