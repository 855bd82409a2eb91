/**
 * Where a program wants to go that asks the proxy: to a service of one of our networks, by its name or by the address that the name has here.
 * This is no open proxy: everything else is refused, with a sentence that says why and what to do.
 */
import { AgentError, type AgentErrorCode } from '../error.ts'
import { printable } from '../printable.ts'
import type { Target } from './dialer.ts'
import { networkOf, normalName, TOP } from './internal-names.ts'
import type { ServiceNames } from './services.ts'

/** In URLs without a port: the name says all. */
const UNSAID_PORTS = [80, 443]

export type Destinations = {
  services: Pick<ServiceNames, 'resolve'>
  /** Networks of this node, by name. */
  networks: () => readonly string[]
  /** Whose address it is. */
  nameAt: (address: string) => string | undefined
}

/** @throws {AgentError} `not-allowed` for what is no name of ours, `not-found` for a name that nobody offers, `usage` for a wrong port. */
export function destinationOf(
  { host, port }: { host: string; port: number },
  kind: 'stream' | 'datagrams',
  { services, networks, nameAt }: Destinations,
): Target {
  const name = normalName(nameAt(host) ?? host)
  const network = name && networkOf(name)
  if (name === undefined || network === undefined || name === `${network}.${TOP}` || !networks().includes(network))
    throw foreign(host, network, networks())
  const resolved = services.resolve(name)
  if (resolved === undefined) {
    throw new AgentError('not-found', `no member of ${network} offers ${name}`, {
      next: '`agent service list` shows what there is.',
    })
  }
  const fitting = resolved.instances.filter(({ proto }) => (proto === 'udp') === (kind === 'datagrams'))
  if (fitting.length === 0) {
    const other = kind === 'stream' ? 'UDP, not TCP' : 'TCP, not UDP'
    throw new AgentError('usage', `${name} speaks ${other}`)
  }
  const ports = [...new Set(fitting.map((instance) => instance.port))]
  if (!ports.includes(port) && !(kind === 'stream' && UNSAID_PORTS.includes(port)))
    throw new AgentError('usage', `${name} is at port ${ports.join(', ')}, not ${port}`)
  const { service, node } = resolved
  return { network: resolved.network, service, ...(node !== undefined && { node }) }
}

function foreign(host: string, network: string | undefined, networks: readonly string[]): AgentError {
  const told = printable(host)
  const message =
    network === undefined
      ? `this proxy leads to services of your networks only, and ${told} is none`
      : `this node is in no network called ${printable(network)}, so it cannot lead to ${told}`
  const names = networks.map((one) => `SERVICE.${one}.internal`).join(', ')
  return new AgentError('not-allowed', message, {
    next: names === '' ? 'Join a network first: `agent join`.' : `Names are like ${names}.`,
  })
}

/** What a refusal is in each protocol. */
export type Refusal = {
  /** RFC 1928, section 6. */
  socks: number
  status: number
  /** RFC 9209, section 2.3. */
  proxyError: string
  text: string
}

/** By the code of what was thrown. */
const REFUSALS: Partial<Record<AgentErrorCode, Omit<Refusal, 'text'>>> = {
  'not-allowed': { socks: 0x02, status: 403, proxyError: 'http_request_denied' },
  'not-found': { socks: 0x04, status: 502, proxyError: 'destination_not_found' },
  usage: { socks: 0x05, status: 502, proxyError: 'connection_refused' },
  limit: { socks: 0x01, status: 503, proxyError: 'connection_limit_reached' },
  cancelled: { socks: 0x01, status: 503, proxyError: 'proxy_internal_error' },
}
const UNAVAILABLE = { socks: 0x05, status: 503, proxyError: 'destination_unavailable' }
const TIMED_OUT = { socks: 0x06, status: 504, proxyError: 'connection_timeout' }

export function refusalOf(error: unknown): Refusal {
  if (error instanceof AgentError) {
    const text = error.next === undefined ? error.message : `${error.message}. ${error.next}`
    return { ...(REFUSALS[error.code] ?? UNAVAILABLE), text }
  }
  if (error instanceof Error && error.name === 'TimeoutError')
    return { ...TIMED_OUT, text: 'no instance of the service answered in time' }
  return { ...UNAVAILABLE, text: error instanceof Error ? error.message : String(error) }
}
