/**
 * Asks a router for ports by UPnP (Internet Gateway Device, http://upnp.org/specs/gw/UPnP-gw-WANIPConnection-v1-Service.pdf): a multicast
 * question, a description in XML, and calls in SOAP.
 *
 * Whoever is on the LAN may answer the question, so only an answer of the default gateway counts, and only URLs that lead to it are
 * asked, with no redirect followed: nobody else on the LAN can have this node call or read something for it. What is read is bounded in bytes
 * and time, and the few elements that are needed are looked up in it by name: there is no XML parser to be confused.
 */
import { createSocket, type Socket } from 'node:dgram'
import { isIPv4 } from 'node:net'
import { WireError } from '../../protocols/error.ts'
import type { Gateway } from './gateway.ts'
import type { Transport } from './nat-pmp.ts'

const GROUP = '239.255.255.250'
const PORT = 1900
/** Devices of version 2 answer for version 1, too. */
const DEVICE = 'urn:schemas-upnp-org:device:InternetGatewayDevice:1'
const SERVICES = ['WANIPConnection:1', 'WANIPConnection:2', 'WANPPPConnection:1'].map(
  (name) => `urn:schemas-upnp-org:service:${name}`,
)
/** Asked three times: datagrams get lost, most of all on Wi-Fi. */
const SEARCHES_MS = [0, 300, 900]
const SEARCH_MS_MAX = 2_500
const ANSWER_BYTES_MAX = 4_096
/** Descriptions of routers are some 5 KB. */
const BODY_BYTES_MAX = 64 * 1024
const REQUEST_MS_MAX = 3_000
/** In a description; a router has two or three. */
const SERVICES_MAX = 64
const URL_LENGTH_MAX = 1_024

/** Shown in the router's list of mappings. */
const DESCRIPTION = 'undernet'
/** Error codes of the service. */
const CONFLICT = 718
const PERMANENT_ONLY = 725

type Wish = { transport: Transport; port: number; externalPort: number; leaseSeconds: number }
export type Service = { readonly url: URL; readonly type: string }

/** That external port is somebody else's. */
export class PortTaken extends Error {}

/** The gateway's service, if it has one. @throws {WireError} `timeout` when it does not answer, `malformed`, `too-large` */
export async function findUpnp(gateway: Gateway, signal: AbortSignal): Promise<Upnp> {
  const location = await search(gateway, signal)
  const service = readDescription(await get(location, {}, signal), location)
  return new Upnp(service, gateway.localAddress)
}

export class Upnp {
  readonly #service: Service
  readonly #localAddress: string

  constructor(service: Service, localAddress: string) {
    this.#service = service
    this.#localAddress = localAddress
  }

  /** The router's own address outside. @throws {WireError} */
  async externalAddress(signal: AbortSignal): Promise<string> {
    const address = element(await this.#call('GetExternalIPAddress', {}, signal), 'NewExternalIPAddress') ?? ''
    if (!isIPv4(address)) throw new WireError('malformed', 'the router does not tell its address')
    return address
  }

  /** @throws {PortTaken}, {WireError} `refused` with the router's reason */
  async map(wish: Wish, signal: AbortSignal): Promise<{ externalPort: number }> {
    try {
      await this.#add(wish, signal)
    } catch (error) {
      if (!(error instanceof Refusal) || error.fault !== PERMANENT_ONLY) throw error
      // Such a router forgets nothing by itself: what is not given back stays until it starts anew.
      await this.#add({ ...wish, leaseSeconds: 0 }, signal)
    }
    return { externalPort: wish.externalPort }
  }

  /** @throws {WireError} */
  async unmap({ transport, externalPort }: Pick<Wish, 'transport' | 'externalPort'>, signal: AbortSignal) {
    const mapping = { NewRemoteHost: '', NewExternalPort: externalPort, NewProtocol: transport.toUpperCase() }
    await this.#call('DeletePortMapping', mapping, signal)
  }

  async #add({ transport, port, externalPort, leaseSeconds }: Wish, signal: AbortSignal): Promise<void> {
    const mapping = {
      NewRemoteHost: '',
      NewExternalPort: externalPort,
      NewProtocol: transport.toUpperCase(),
      NewInternalPort: port,
      NewInternalClient: this.#localAddress,
      NewEnabled: 1,
      NewPortMappingDescription: DESCRIPTION,
      NewLeaseDuration: leaseSeconds,
    }
    try {
      await this.#call('AddPortMapping', mapping, signal)
    } catch (cause) {
      if (cause instanceof Refusal && cause.fault === CONFLICT)
        throw new PortTaken(`port ${externalPort} of the router is taken`, { cause })
      throw cause
    }
  }

  /** Values are numbers and addresses of ours: nothing in them has to be escaped. */
  async #call(action: string, values: Record<string, string | number>, signal: AbortSignal): Promise<string> {
    const { url, type } = this.#service
    const inner = Object.entries(values).map(([name, value]) => `<${name}>${value}</${name}>`)
    const envelope = 'http://schemas.xmlsoap.org/soap/envelope/'
    const body = `<?xml version="1.0"?><s:Envelope xmlns:s="${envelope}" s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body><u:${action} xmlns:u="${type}">${inner.join('')}</u:${action}></s:Body></s:Envelope>`
    const headers = { 'content-type': 'text/xml; charset="utf-8"', soapaction: `"${type}#${action}"` }
    return await get(url, { method: 'POST', headers, body }, signal)
  }
}

/** The service that maps ports, and its URL, which has to lead to where the description came from. @throws {WireError} `malformed` */
export function readDescription(xml: string, location: URL): Service {
  const blocks = xml.split('<service>', SERVICES_MAX + 1).slice(1)
  for (const block of blocks) {
    const [inside = ''] = block.split('</service>', 1)
    const type = SERVICES.find((one) => one === element(inside, 'serviceType'))
    if (type === undefined) continue
    return { type, url: sameHost(element(inside, 'controlURL') ?? '', location) }
  }
  throw new WireError('malformed', 'the router offers no service that maps ports')
}

/** The URL in an answer to the search. @throws {WireError} `malformed` */
export function readAnswer(bytes: Uint8Array, gateway: string): URL {
  const lines = Buffer.from(bytes).subarray(0, ANSWER_BYTES_MAX).toString('latin1').split('\r\n')
  const location = lines.find((line) => /^location:/i.test(line))
  if (!/^HTTP\/1\.[01] 200 /.test(lines[0] ?? '') || location === undefined)
    throw new WireError('malformed', 'this is no answer to a search')
  return sameHost(location.slice('location:'.length).trim(), new URL(`http://${gateway}/`))
}

/** A URL as it stands there, and only if it leads to the same machine. @throws {WireError} `malformed` */
function sameHost(text: string, base: URL): URL {
  const url = text.length <= URL_LENGTH_MAX && URL.canParse(text, base.href) ? new URL(text, base) : undefined
  if (url === undefined || url.protocol !== 'http:' || url.hostname !== base.hostname || url.username !== '')
    throw new WireError('malformed', 'the router names a URL that does not lead to itself')
  return url
}

/** The text of the first element of that name. */
function element(xml: string, name: string): string | undefined {
  const from = xml.indexOf(`<${name}>`)
  const to = xml.indexOf(`</${name}>`, from)
  if (from < 0 || to < 0) return undefined
  return xml
    .slice(from + name.length + 2, to)
    .trim()
    .replaceAll('&amp;', '&')
}

/** An error of the service itself. */
class Refusal extends WireError {
  readonly fault: number

  constructor(fault: number, text: string) {
    super('refused', `the router refuses: ${text} (${fault})`)
    this.fault = fault
  }
}

/** Resolves with the first answer of the gateway that can be read. */
async function search({ address, localAddress }: Gateway, signal: AbortSignal): Promise<URL> {
  const socket = createSocket('udp4')
  const found = Promise.withResolvers<URL>()
  const limited = AbortSignal.any([signal, AbortSignal.timeout(SEARCH_MS_MAX)])
  const give = () => found.reject(new WireError('timeout', 'the router does not answer by UPnP'))
  const timers: NodeJS.Timeout[] = []
  limited.addEventListener('abort', give, { once: true })
  socket.on('error', give)
  socket.on('message', (bytes, from) => {
    if (from.address !== address) return
    try {
      found.resolve(readAnswer(bytes, address))
    } catch {
      // Something else that it offers, or nonsense: there may be more.
    }
  })
  socket.bind(0, localAddress, () => {
    socket.setMulticastInterface(localAddress)
    timers.push(...SEARCHES_MS.map((ms) => setTimeout(() => ask(socket, address), ms)))
  })
  try {
    return await found.promise
  } finally {
    for (const timer of timers) clearTimeout(timer)
    limited.removeEventListener('abort', give)
    socket.close()
  }
}

/** Everybody, and the gateway itself: some answer the one only. */
function ask(socket: Socket, gateway: string): void {
  const text = `M-SEARCH * HTTP/1.1\r\nHOST: ${GROUP}:${PORT}\r\nMAN: "ssdp:discover"\r\nMX: 1\r\nST: ${DEVICE}\r\n\r\n`
  for (const to of [GROUP, gateway]) socket.send(text, PORT, to, () => undefined)
}

/** @throws {WireError} `timeout`, `too-large`, `refused` with what the service says */
async function get(url: URL, request: RequestInit, signal: AbortSignal): Promise<string> {
  const limited = AbortSignal.any([signal, AbortSignal.timeout(REQUEST_MS_MAX)])
  try {
    const response = await fetch(url, { ...request, redirect: 'error', signal: limited })
    const text = await bodyOf(response)
    if (response.ok) return text
    const fault = Number(element(text, 'errorCode') ?? response.status)
    // Printable: it is a router's.
    throw new Refusal(fault, (element(text, 'errorDescription') ?? 'HTTP').replaceAll(/[^ -~]/g, '').slice(0, 80))
  } catch (cause) {
    signal.throwIfAborted()
    if (cause instanceof WireError) throw cause
    if (limited.aborted) throw new WireError('timeout', 'the router did not answer in time', { cause })
    throw new WireError('closed', `the router does not answer at ${url.host}`, { cause })
  }
}

async function bodyOf(response: Response): Promise<string> {
  const chunks: Uint8Array[] = []
  let sizeBytes = 0
  for await (const chunk of response.body ?? []) {
    sizeBytes += chunk.byteLength
    if (sizeBytes > BODY_BYTES_MAX) throw new WireError('too-large', 'the router sends more than it should')
    chunks.push(chunk)
  }
  return Buffer.concat(chunks).toString('utf8')
}
