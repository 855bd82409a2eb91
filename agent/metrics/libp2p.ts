/**
 * What libp2p counts of itself, as far as it tells people something: libp2p asks for each of its metrics by name, and gets one that is told
 * on, or one that does nothing. Most are read when somebody asks for them, and cost nothing until then.
 *
 * libp2p names some of them against Prometheus' conventions (gauges that end in `_total`, several words in one label), and puts addresses of
 * peers into others: FROM says what becomes of each. The modules for it, @libp2p/prometheus-metrics and prom-client with it, would pass all on
 * as it is, and bring along a registry that the agent has no other use for.
 */
import type { Metrics, MultiaddrConnection } from '@libp2p/interface'
import { Counts } from './counts.ts'
import type { MetricName, Sample } from './table.ts'

type Group = Partial<Record<string, number | true>>
type Place = { name: MetricName; labels: Readonly<Record<string, string>> }
type Naming = {
  name: MetricName
  labels: readonly string[]
  /** Values of the labels, by libp2p's own label. */
  words: (key: string) => readonly string[]
  /** Has no label there. */
  isOne?: true
  /** Its key that is the sum of the others. */
  sum?: string
}

/** By libp2p's name. */
const FROM: Readonly<Record<string, Naming>> = {
  libp2p_connection_manager_connections: one('libp2p_connections', 'state'),
  libp2p_protocol_streams_total: {
    name: 'libp2p_protocol_streams',
    labels: ['direction', 'protocol'],
    words: (key) => [key.split(' ', 1)[0] ?? '', key.slice(key.indexOf(' ') + 1)],
  },
  libp2p_dial_queue: { ...one('libp2p_dial_queue', 'state'), sum: 'size' },
  libp2p_tcp_dialer_events_total: one('libp2p_tcp_dialer_events_total', 'event'),
  libp2p_connection_manager_dials_total: one('libp2p_upgrades_total', 'direction'),
  libp2p_connection_manager_dials_inbound_errors_total: two(
    'libp2p_upgrade_errors_total',
    'direction',
    'inbound',
    'error',
  ),
  libp2p_connection_manager_dials_outbound_errors_total: two(
    'libp2p_upgrade_errors_total',
    'direction',
    'outbound',
    'error',
  ),
  libp2p_noise_xxhandshake_successes_total: fixed('libp2p_noise_handshakes_total', 'result', 'success'),
  libp2p_noise_xxhandshake_error_total: fixed('libp2p_noise_handshakes_total', 'result', 'error'),
  libp2p_noise_encrypted_packets_total: fixed('libp2p_noise_packets_total', 'operation', 'encrypted'),
  libp2p_noise_decrypted_packets_total: fixed('libp2p_noise_packets_total', 'operation', 'decrypted'),
  libp2p_noise_decrypt_errors_total: fixed('libp2p_noise_packets_total', 'operation', 'error'),
  libp2p_kad_dht_routing_table_size: { name: 'libp2p_kad_dht_routing_table_size', labels: [], words: () => [] },
  libp2p_kad_dht_inbound_rpc_requests_total: two('libp2p_kad_dht_rpc_requests_total', 'direction', 'inbound', 'type'),
  libp2p_kad_dht_outbound_rpc_requests_total: two('libp2p_kad_dht_rpc_requests_total', 'direction', 'outbound', 'type'),
  libp2p_kad_dht_inbound_rpc_errors_total: two('libp2p_kad_dht_rpc_errors_total', 'direction', 'inbound', 'type'),
  libp2p_kad_dht_outbound_rpc_errors_total: two('libp2p_kad_dht_rpc_errors_total', 'direction', 'outbound', 'type'),
}

function one(name: MetricName, label: string): Naming {
  return { name, labels: [label], words: (key) => [key] }
}

function two(name: MetricName, label: string, word: string, other: string): Naming {
  return { name, labels: [label, other], words: (key) => [word, key] }
}

function fixed(name: MetricName, label: string, word: string): Naming {
  return { name, labels: [label], words: () => [word], isOne: true }
}

type Asked = { naming: Naming; calculate: () => unknown }

export class Libp2pMetrics {
  readonly #counts = new Map<MetricName, Counts>()
  readonly #values = new Map<MetricName, number>()
  readonly #asked: Asked[] = []
  readonly #transferred = new Counts('libp2p_data_transfer_bytes_total', ['direction'])
  readonly #received = this.#transferred.at(['received'])
  readonly #sent = this.#transferred.at(['sent'])

  /** For libp2p's option `metrics`. */
  readonly factory = (): Metrics => this.#metrics()

  async samples(): Promise<Sample[]> {
    const samples = [...this.#counts.values(), this.#transferred].flatMap((counts) => counts.samples())
    for (const [name, value] of this.#values) samples.push({ name, value })
    for (const { naming, calculate } of this.#asked) {
      const answer = await calculate()
      const values = typeof answer === 'number' ? { '': answer } : (answer as Record<string, number>)
      for (const [key, value] of Object.entries(values))
        if (key !== naming.sum) samples.push({ ...placeOf(naming, key), value })
    }
    return samples
  }

  #metrics(): Metrics {
    const register = (libp2pName: string, options?: { calculate?: () => unknown }) =>
      this.#register(libp2pName, options)
    return {
      trackMultiaddrConnection: (connection: MultiaddrConnection) => this.#track(connection),
      // What the streams of a protocol carry is known where it is understood.
      trackProtocolStream: () => undefined,
      registerMetric: register,
      registerMetricGroup: register,
      registerCounter: register,
      registerCounterGroup: register,
      registerHistogram: register,
      registerHistogramGroup: register,
      registerSummary: register,
      registerSummaryGroup: register,
      traceFunction: (_name: string, traced: unknown) => traced,
      createTrace: () => undefined,
    } as unknown as Metrics
  }

  #register(libp2pName: string, options?: { calculate?: () => unknown }) {
    const naming = FROM[libp2pName]
    if (naming === undefined) return SILENT
    if (options?.calculate !== undefined) {
      this.#asked.push({ naming, calculate: options.calculate })
      return SILENT
    }
    if (naming.labels.length === 0) {
      return { ...SILENT, update: (value: number) => this.#values.set(naming.name, value) }
    }
    const counts = this.#counts.get(naming.name) ?? new Counts(naming.name, naming.labels)
    this.#counts.set(naming.name, counts)
    if (naming.isOne) {
      const count = counts.at(naming.words(''))
      return {
        ...SILENT,
        increment: (by = 1) => {
          count.value += by
        },
      }
    }
    const increment = (values: Group) => {
      for (const [key, by = 0] of Object.entries(values)) counts.add(naming.words(key), by === true ? 1 : by)
    }
    return { ...SILENT, increment }
  }

  /** By the methods through which all bytes of a connection go (AbstractMessageStream, 7.x). One that a relay carries is in another. */
  #track(connection: MultiaddrConnection): void {
    if (connection.remoteAddr.toString().includes('/p2p-circuit')) return
    const raw = connection as unknown as Partial<RawConnection>
    const { onData, sendData } = raw
    if (onData === undefined || sendData === undefined) return
    raw.onData = (data) => {
      this.#received.value += data.byteLength
      onData.call(raw, data)
    }
    raw.sendData = (data) => {
      const outcome = sendData.call(raw, data)
      this.#sent.value += outcome.sentBytes
      return outcome
    }
  }
}

type RawConnection = {
  onData: (data: { byteLength: number }) => void
  sendData: (data: { byteLength: number }) => { sentBytes: number }
}

function placeOf({ name, labels, words }: Naming, key: string): Place {
  const values = words(key)
  return { name, labels: Object.fromEntries(labels.map((label, at) => [label, values[at] ?? ''])) }
}

const nothing = () => undefined
/** Of what is not told on. */
const SILENT = {
  update: nothing,
  increment: nothing,
  decrement: nothing,
  reset: nothing,
  observe: nothing,
  timer: () => nothing,
}
