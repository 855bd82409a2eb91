/**
 * What each name of our networks is in DNS: `web.home.internal` has an address (A), its instances (SRV) and what is known of them (TXT);
 * `web.nas.home.internal` is the instance of one member; `_web._tcp.home.internal` is the same for programs that look for SRV (RFC 2782) or
 * know HAProxy's `server-template`. Addresses have names (PTR). Zones have an SOA and an NS of themselves, as RFC 6303 has it for local ones.
 *
 * Instances that are ill or drained are in no answer. All else in the world is refused: this is not a resolver.
 */
import type { Answer, SrvAnswer } from 'dns-packet'
import { type Query, type QuestionType, RCODE, type Rcode, type Reply } from './dns-message.ts'
import { nameOf, networkOf, normalName, TOP } from './internal-names.ts'
import type { Held } from './name-listeners.ts'
import type { Instance, Resolved, ServiceNames } from './services.ts'

/** Instances come and go. */
const TTL_SECONDS = 5
/** A service that is started now should be there soon. */
const NEGATIVE_SECONDS = 2
/** The same for as long as this agent runs. */
const ZONE_SECONDS = 300
/** RFC 1035, section 3.3.14. */
const TEXT_BYTES_MAX = 255
/** So that an answer fits a message of TCP. HAProxy takes as many as it has servers. */
const INSTANCES_MAX = 256
const TEXTS_MAX = 64
/** SRV weights have 16 bits. */
const WEIGHT_MAX = 0xffff

export type Zones = {
  networks: () => readonly string[]
  services: Pick<ServiceNames, 'resolve' | 'list'>
  /** The address of a name, which is listened on from then on. */
  hold: (name: string) => Promise<Held | undefined>
  nameAt: (address: string) => string | undefined
  /** Of the addresses of names; undefined where names have none. */
  reverseZone: string | undefined
}

export async function answer({ name, type }: Pick<Query, 'name' | 'type'>, zones: Zones): Promise<Reply> {
  const asked = normalName(name)
  if (asked === undefined) return empty(RCODE.refused)
  const reverse = zones.reverseZone
  if (reverse !== undefined && (asked === reverse || asked.endsWith(`.${reverse}`)))
    return answerReverse(name, asked, type, reverse, zones)
  const network = networkOf(asked)
  if (network === undefined || !zones.networks().includes(network)) return empty(RCODE.refused)
  const zone = `${network}.${TOP}`
  if (asked === zone) return apex(name, zone, type)
  const [, service, proto, rest] = /^_([0-9a-z-]+)\._(tcp|udp)\.(.+)$/.exec(asked) ?? []
  if (service !== undefined && rest !== undefined) {
    const resolved = zones.services.resolve(`${service}.${rest}`)
    const fitting = resolved?.instances.filter((one) => (one.proto === 'udp') === (proto === 'udp')) ?? []
    if (resolved === undefined || fitting.length === 0) return negative(RCODE.noName, zone)
    return type === 'SRV' || type === 'ANY'
      ? await instancesOf(name, { ...resolved, instances: fitting }, zone, zones)
      : negative(RCODE.ok, zone)
  }
  const resolved = zones.services.resolve(asked)
  if (resolved !== undefined) return await answerService(name, type, resolved, zone, zones)
  // Names below which there are names exist, though nothing is there: RFC 8020.
  return negative(isBetween(asked, network, zones) ? RCODE.ok : RCODE.noName, zone)
}

async function answerService(
  name: string,
  type: QuestionType,
  resolved: Resolved,
  zone: string,
  zones: Zones,
): Promise<Reply> {
  if (type === 'A' || type === 'ANY') {
    const held = await zones.hold(nameOf(resolved))
    if (held === undefined) return negative(RCODE.noName, zone)
    if ('fault' in held) return { ...empty(RCODE.failed), explanation: held.fault }
    return positive([{ name, type: 'A', class: 'IN', ttl: TTL_SECONDS, data: held.address }])
  }
  if (type === 'SRV') return await instancesOf(name, resolved, zone, zones)
  if (type === 'TXT') {
    const texts = textsOf(resolved).map((data): Answer => ({ name, type: 'TXT', class: 'IN', ttl: TTL_SECONDS, data }))
    return positive(texts)
  }
  return negative(RCODE.ok, zone)
}

/** Each instance by the name of its member, with its address. */
async function instancesOf(name: string, { instances }: Resolved, zone: string, zones: Zones): Promise<Reply> {
  const reply = positive([])
  for (const instance of instances.filter(isUsable).slice(0, INSTANCES_MAX)) {
    const target = nameOf(instance)
    const held = await zones.hold(target)
    if (held === undefined || 'fault' in held) continue
    const weight = Math.min(instance.weight, WEIGHT_MAX)
    const data: SrvAnswer['data'] = { priority: 0, weight, port: instance.port, target }
    reply.answers.push({ name, type: 'SRV', class: 'IN', ttl: TTL_SECONDS, data })
    reply.additionals.push({ name: target, type: 'A', class: 'IN', ttl: TTL_SECONDS, data: held.address })
  }
  return reply.answers.length === 0 ? negative(RCODE.ok, zone) : reply
}

function isUsable({ state }: Pick<Instance, 'state'>): boolean {
  return state === 'healthy' || state === 'unknown'
}

function textsOf({ node, instances }: Resolved): string[] {
  const [first] = instances
  if (first === undefined) return []
  const usable = instances.filter(isUsable).length
  const common = [`proto=${first.proto}`, `port=${first.port}`, `instances=${instances.length}`, `usable=${usable}`]
  if (node === undefined) return common
  const zone = first.zone === undefined ? [] : [`zone=${first.zone}`]
  const labels = Object.entries(first.labels).map(([key, value]) => `label.${key}=${value}`)
  const texts = [...common, `state=${first.state}`, `weight=${first.weight}`, ...zone, ...labels]
  return texts.filter((text) => Buffer.byteLength(text) <= TEXT_BYTES_MAX).slice(0, TEXTS_MAX)
}

/** Members of whom an instance has a name, and `_tcp`. */
function isBetween(asked: string, network: string, { services }: Zones): boolean {
  const own = services.list().filter((one) => one.network === network)
  if (asked === `_tcp.${network}.${TOP}` || asked === `_udp.${network}.${TOP}`) return own.length > 0
  return own.some(({ instances }) => instances.some(({ node }) => asked === `${node}.${network}.${TOP}`))
}

function answerReverse(name: string, asked: string, type: QuestionType, zone: string, zones: Zones): Reply {
  if (asked === zone) return apex(name, zone, type)
  const octets = asked.slice(0, -'.in-addr.arpa'.length).split('.').reverse()
  const pointed = zones.nameAt(octets.join('.'))
  if (pointed === undefined) return negative(octets.length < 4 ? RCODE.ok : RCODE.noName, zone)
  if (type !== 'PTR' && type !== 'ANY') return negative(RCODE.ok, zone)
  return positive([{ name, type: 'PTR', class: 'IN', ttl: TTL_SECONDS, data: pointed }])
}

function apex(name: string, zone: string, type: QuestionType): Reply {
  if (type === 'SOA' || type === 'ANY') return positive([soaOf(name, zone, ZONE_SECONDS)])
  if (type === 'NS') return positive([{ name, type: 'NS', class: 'IN', ttl: ZONE_SECONDS, data: zone }])
  return negative(RCODE.ok, zone)
}

/** RFC 6303, section 3: for zones without secondaries. `minimum` is how long a resolver may keep a no. */
function soaOf(name: string, zone: string, ttl: number): Answer {
  const times = { serial: 1, refresh: 3_600, retry: 1_200, expire: 604_800, minimum: NEGATIVE_SECONDS }
  return { name, type: 'SOA', class: 'IN', ttl, data: { mname: zone, rname: 'nobody.invalid', ...times } }
}

function positive(answers: Answer[]): Reply {
  return { rcode: RCODE.ok, answers, authorities: [], additionals: [] }
}

function negative(rcode: Rcode, zone: string): Reply {
  return { rcode, answers: [], authorities: [soaOf(zone, zone, NEGATIVE_SECONDS)], additionals: [] }
}

function empty(rcode: Rcode): Reply {
  return { rcode, answers: [], authorities: [], additionals: [] }
}
