/**
 * How offers of services and forwards are written in the configuration: `web=127.0.0.1:8080?check=http:/health&label=tier:front`, and
 * `web.home=127.0.0.1:8000`. One line each, without spaces, so that flags and variables can hold them as well.
 */
import { LABEL_KEY_PATTERN, LABEL_VALUE_PATTERN, NAME_PATTERN } from '../../protocols/membership/words.ts'
import type { Kind } from './values.ts'

export const PROTOS = ['tcp', 'udp', 'http'] as const
const WEIGHT_MAX = 1_000
const PORT_MAX = 65_535
const CHECK_PATTERN = /^(tcp|none|http:\/[!-~]{0,255})$/
/** A name, where it is, and what else there is to say. */
const WRITTEN_PATTERN = /^([^=?]+)=([^?]+)(?:\?(.*))?$/s
const OFFER_KEYS = ['proto', 'check', 'label', 'weight', 'network', 'proxy-protocol']
const FORWARD_KEYS = ['proto', 'sticky']

/** An offer as somebody wrote it. */
export type WrittenOffer = {
  name: string
  host: string
  port: number
  proto: (typeof PROTOS)[number]
  /** `tcp`, `http:/path` or `none`. */
  check: string
  labels: Record<string, string>
  weight: number
  proxyProtocol: boolean
  network: string | undefined
}

export type WrittenForward = {
  name: string
  host: string
  port: number
  proto: (typeof PROTOS)[number]
  isSticky: boolean
}

export const offerText: Kind<string> = {
  form: { is: 'text', what: 'like web=127.0.0.1:8080', pattern: WRITTEN_PATTERN },
  read: (raw) => checked(raw, parseOffer),
  show: (value) => value,
}
export const forwardText: Kind<string> = {
  form: { is: 'text', what: 'like web.home=127.0.0.1:8000', pattern: WRITTEN_PATTERN },
  read: (raw) => checked(raw, parseForward),
  show: (value) => value,
}

/** @throws {Error} whose message ends a sentence that begins with what was read */
export function parseOffer(text: string): WrittenOffer {
  const { name, host, port, query } = parts(text, OFFER_KEYS)
  if (!NAME_PATTERN.test(name)) throw new Error(`has "${name}", which cannot be the name of a service: a-z, 0-9 and -`)
  if (port === 0) throw new Error('needs the port of the application')
  const proto = protoIn(query.get('proto') ?? 'tcp')
  const check = query.get('check') ?? (proto === 'udp' ? 'none' : 'tcp')
  if (!CHECK_PATTERN.test(check) || (proto === 'udp' && check !== 'none'))
    throw new Error(`has the check "${check}"; there are tcp, http:/path and none, and for udp none only`)
  const weight = Number(query.get('weight') ?? 1)
  if (!Number.isInteger(weight) || weight < 0 || weight > WEIGHT_MAX)
    throw new Error(`has a weight that is no whole number from 0 to ${WEIGHT_MAX}`)
  const proxyProtocol = query.get('proxy-protocol') === 'yes'
  const network = query.get('network') ?? undefined
  return { name, host, port, proto, check, labels: labelsIn(query.getAll('label')), weight, proxyProtocol, network }
}

/** @throws {Error} as parseOffer */
export function parseForward(text: string): WrittenForward {
  const { name, host, port, query } = parts(text, FORWARD_KEYS)
  const labels = name.replace(/\.internal\.?$/, '').split('.')
  if (labels.length > 3 || labels.some((label) => !NAME_PATTERN.test(label)))
    throw new Error(`has "${name}", which is no name of a service like web, web.home or web.nas.home.internal`)
  return { name, host, port, proto: protoIn(query.get('proto') ?? 'tcp'), isSticky: query.get('sticky') === 'yes' }
}

/** `key:value`, each. @throws {Error} */
export function labelsIn(texts: readonly string[]): Record<string, string> {
  const labels: Record<string, string> = {}
  for (const text of texts) {
    const [key = '', value = ''] = text.split(/[:=](.*)/s)
    if (!LABEL_KEY_PATTERN.test(key) || !LABEL_VALUE_PATTERN.test(value))
      throw new Error(`has "${text}", which is no label`)
    labels[key] = value
  }
  return labels
}

/** `[HOST:]PORT`; loopback when no host is said. @throws {Error} */
export function endpointIn(text: string): { host: string; port: number } {
  const [, bracketed, plain, digits] = /^(?:\[([^\]]+)\]:|([^:[\]]+):)?(\d{1,5})$/.exec(text) ?? []
  const port = Number(digits)
  if (digits === undefined || port > PORT_MAX) throw new Error(`has "${text}", which is no port and no host:port`)
  return { host: bracketed ?? plain ?? '127.0.0.1', port }
}

function parts(text: string, known: readonly string[]) {
  const [, name = '', where = '', search = ''] = WRITTEN_PATTERN.exec(text) ?? []
  if (name === '') throw new Error(`must be like web=127.0.0.1:8080, not ${JSON.stringify(text)}`)
  const query = new URLSearchParams(search)
  const other = [...query.keys()].find((key) => !known.includes(key))
  if (other !== undefined) throw new Error(`has "${other}"; there are ${known.join(', ')}`)
  return { name, query, ...endpointIn(where) }
}

function protoIn(text: string): (typeof PROTOS)[number] {
  const proto = PROTOS.find((one) => one === text)
  if (proto === undefined) throw new Error(`has the protocol "${text}"; there are ${PROTOS.join(', ')}`)
  return proto
}

function checked(raw: unknown, parse: (text: string) => unknown): string {
  if (typeof raw !== 'string') throw new Error(`must be a text, not ${JSON.stringify(raw)}`)
  parse(raw)
  return raw
}
