/**
 * Members of a network whose streams are in memory: each takes tunnels for its offers, and dials those of the others. What they may do is decided
 * by a policy, as ever.
 */
import type { Stream } from '@libp2p/interface'
import pino from 'pino'
import { onTestFinished } from 'vitest'
import type { AuditFields } from '../../../agent/identity/audit.ts'
import { Acceptor } from '../../../agent/routing/acceptor.ts'
import { Flows } from '../../../agent/routing/flows.ts'
import type { Offer } from '../../../agent/routing/offers.ts'
import { ServiceDialer } from '../../../agent/routing/service-dialer.ts'
import type { Instance } from '../../../agent/routing/services.ts'
import { decide, type Grant } from '../../../protocols/membership/policy.ts'
import { streamPair } from '../../stream-pair.ts'
import { instanceOf } from './instance.ts'

const log = pino({ level: 'silent' })
type Handler = (stream: Stream, peerId: string) => Promise<void> | void

export class FakeMesh {
  readonly #handlers = new Map<string, Handler>()
  readonly #listeners = new Set<() => void>()
  /** Peers that take streams and never answer. */
  readonly silent = new Set<string>()
  grants: Grant[] = [{ from: '*', to: '*', allow: ['service:connect *'] }]
  /** Streams that were opened, by who was asked. */
  readonly opened: string[] = []

  /** Somebody's policy or certificate changed. */
  change(grants: Grant[]): void {
    this.grants = grants
    for (const listener of this.#listeners) listener()
  }

  /** A member of this name, which is its peer id, too. */
  async member(name: string, offers: Record<string, Partial<Offer>> = {}) {
    const audit: AuditFields[] = []
    const flows = new Flows({ append: (fields) => void audit.push(fields) })
    const suspected: string[] = []
    const changed = new Set<() => void>()
    const subject = (who: string) => ({ name: who, labels: {} })
    const membership = {
      name: 'home',
      self: subject(name),
      decide: (...asked: [never, never, string]) => decide({ grants: this.grants }, ...asked),
      onChange: (listener: () => void) => listening(this.#listeners, listener),
    }
    const acceptor = await Acceptor.start({
      self: name,
      scope: {
        handle: async (_protocol, handler) => void this.#handlers.set(name, handler),
        unhandle: async () => void this.#handlers.delete(name),
      },
      membership,
      memberOf: (peerId) => (peerId === 'stranger' ? undefined : (subject(peerId) as never)),
      onProven: () => () => undefined,
      linkOf: () => ({ path: 'direct', address: { host: '192.0.2.7', port: 1 } }),
      offers: {
        get: (service) => (offers[service] === undefined ? undefined : offerOf(service, offers[service])),
        suspect: (service) => void suspected.push(service),
        onChange: (listener) => listening(changed, listener),
      },
      flows,
      audit: { append: (fields) => void audit.push(fields) },
      log,
    })
    const instances: Instance[] = []
    const dialer = new ServiceDialer({
      self: name,
      network: (network) =>
        network === 'home' ? { ...source(instances), zone: () => undefined, openStream, acceptor } : undefined,
      pathOf: () => 'direct',
      flows,
      patienceMs: 50,
    })
    const openStream = async (peerId: string): Promise<Stream> => this.#open(peerId, name)
    const stop = async () => {
      dialer[Symbol.dispose]()
      await acceptor[Symbol.asyncDispose]()
      flows[Symbol.dispose]()
    }
    onTestFinished(stop)
    return { acceptor, dialer, flows, audit, suspected, instances, offers, stop, changed }
  }

  async #open(peerId: string, from: string): Promise<Stream> {
    this.opened.push(peerId)
    const [near, far] = streamPair()
    if (this.silent.has(peerId)) return near
    const handler = this.#handlers.get(peerId)
    if (handler === undefined) throw new Error(`${peerId} cannot be reached`)
    void (async () => {
      try {
        await handler(far, from)
      } catch (error) {
        far.abort(error as Error)
      }
    })()
    return near
  }
}

function source(instances: Instance[]) {
  return {
    name: 'home',
    instances: {
      services: () => [...new Set(instances.map(({ service }) => service))],
      of: (service: string) => instances.filter((one) => one.service === service),
      onChange: () => () => undefined,
    },
  }
}

function listening(all: Set<() => void>, listener: () => void): () => void {
  all.add(listener)
  return () => void all.delete(listener)
}

function offerOf(name: string, more: Partial<Offer> = {}): Offer {
  return {
    ...instanceOf(),
    name,
    host: '127.0.0.1',
    port: 1,
    proto: 'tcp',
    check: { kind: 'none' },
    proxyProtocol: false,
    isDeclared: false,
    isDraining: false,
    sinceMs: 0,
    state: 'healthy',
    why: undefined,
    ...more,
  }
}
