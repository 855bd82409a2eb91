/**
 * The router that this machine's IPv4 traffic leaves by, as the kernel says (/proc/net/route). Linux only: elsewhere there is none, and what
 * asks for it goes on without.
 */
import { createSocket } from 'node:dgram'
import { readFileSync } from 'node:fs'

const ROUTES = '/proc/net/route'
/** RTF_UP and RTF_GATEWAY, of linux/route.h. */
const FLAGS_OF_GATEWAY = 0x3
/** A router with a full table of the Internet is no machine that asks another one for a port. */
const ROUTES_CHARS_MAX = 1024 * 1024
/** Nothing is sent: any will do. */
const ANY_PORT = 9

export type Gateway = {
  /** IPv4 address of the router. */
  readonly address: string
  /** That of this machine on the way there. */
  readonly localAddress: string
}

/** Undefined where there is no default route. */
export async function defaultGateway(routes = readRoutes()): Promise<Gateway | undefined> {
  const address = gatewayIn(routes)
  if (address === undefined) return undefined
  const localAddress = await localAddressTo(address)
  return localAddress === undefined ? undefined : { address, localAddress }
}

/** Of the default routes, the one with the smallest metric. */
export function gatewayIn(routes: string): string | undefined {
  const defaults = routes
    .split('\n')
    .slice(1)
    .map((line) => line.trim().split(/\s+/))
    .filter(
      ([, destination, gateway = '', flags = '', , , , mask]) =>
        destination === '00000000' &&
        mask === '00000000' &&
        /^[0-9A-F]{8}$/.test(gateway) &&
        (Number.parseInt(flags, 16) & FLAGS_OF_GATEWAY) === FLAGS_OF_GATEWAY,
    )
    .map(([, , gateway = '', , , , metric]) => ({ gateway, metric: Number(metric) }))
    .sort((a, b) => a.metric - b.metric)
  const [best] = defaults
  // In the byte order of the machine, which is little-endian on all that this runs on.
  return best && [...Buffer.from(best.gateway, 'hex')].reverse().join('.')
}

/** The kernel's choice for packets to there. */
async function localAddressTo(address: string): Promise<string | undefined> {
  const socket = createSocket('udp4')
  try {
    await new Promise<void>((resolve, reject) => {
      socket.once('error', reject)
      socket.connect(ANY_PORT, address, resolve)
    })
    return socket.address().address
  } catch {
    return undefined
  } finally {
    socket.close()
  }
}

function readRoutes(): string {
  try {
    return readFileSync(ROUTES, 'utf8').slice(0, ROUTES_CHARS_MAX)
  } catch {
    return ''
  }
}
