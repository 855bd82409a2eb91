/**
 * What `/metrics` tells of a node, put together: most of it is read off the parts when somebody asks, little is counted as it happens.
 * Asked for before the node has started, it tells of the process only.
 */
import { statfsSync, statSync } from 'node:fs'
import { join } from 'node:path'
import type { FastifyInstance } from 'fastify'
import type { PeerView, Status } from '../api/contract.ts'
import type { Records } from '../catalog/records.ts'
import type { BootstrapView } from '../mesh/bootstraps.ts'
import { Counts } from '../metrics/counts.ts'
import { EXPOSITION_TYPE, exposition } from '../metrics/exposition.ts'
import { HttpTimes } from '../metrics/http-times.ts'
import { Libp2pMetrics } from '../metrics/libp2p.ts'
import { processSamples } from '../metrics/process.ts'
import type { MetricName, Sample } from '../metrics/table.ts'
import type { Upstreams } from '../nix/upstreams.ts'
import type { Flows } from '../routing/flows.ts'
import { databaseFiles } from '../state/directory.ts'
import { VERSION } from '../version.ts'
import type { ClosedNetworks } from './closed-networks.ts'
import type { Content } from './content.ts'
import { OPEN_NETWORK_NAME } from './entrance.ts'
import type { NodeOci } from './oci.ts'
import type { OpenNetwork } from './open-network.ts'

/** What is counted elsewhere. */
export type Metered = {
  status: () => Status
  bootstraps: () => readonly BootstrapView[]
  relays: { readonly carriedCount: number }
  closed: ClosedNetworks
  openNetwork: OpenNetwork | undefined
  content: Pick<Content, 'blobs' | 'fetcher' | 'pieces' | 'laneServer' | 'passThrough'>
  upstreams: Pick<Upstreams, 'fetchedBytes' | 'resting'>
  /** Caches upstream in the configuration. */
  cacheCount: () => number
  oci: Pick<NodeOci, 'arrivals' | 'registries' | 'uploadStats'>
  flows: Pick<Flows, 'list' | 'totals'>
  clockOffsetMs: () => number | undefined
  /** The state directory. */
  directory: string
}

export class NodeMetrics {
  readonly libp2p = new Libp2pMetrics()
  readonly #logged = new Counts('undernet_log_entries_total', ['level', 'event'])
  readonly #http = new HttpTimes()
  #metered: Metered | undefined

  /** An entry of the log. */
  logged(level: string, event: string): void {
    this.#logged.add([level, event])
  }

  /** Puts the route on the loopback server, and counts what that answers. */
  register(app: FastifyInstance): void {
    this.#http.watch(app)
    app.get('/metrics', async (_request, reply) => reply.type(EXPOSITION_TYPE).send(await this.text()))
  }

  /** The node runs now. */
  connect(metered: Metered): void {
    this.#metered = metered
  }

  async text(): Promise<string> {
    const metered = this.#metered
    const samples = [
      sample('undernet_build_info', 1, { version: VERSION, node_version: process.versions.node }),
      ...this.#logged.samples(),
      ...this.#http.samples(),
      ...(await this.libp2p.samples()),
      ...(await processSamples()),
      ...(metered === undefined ? [] : nodeSamples(metered)),
    ]
    return exposition(samples)
  }
}

function sample(name: MetricName, value: number, labels?: Record<string, string>): Sample {
  return { name, value, ...(labels !== undefined && { labels }) }
}

function nodeSamples(metered: Metered): Sample[] {
  const status = metered.status()
  const { bootstraps, relays, clockOffsetMs } = metered
  const offsetMs = clockOffsetMs()
  return [
    ...counted('undernet_warnings', status.warnings, ({ code }) => ({ code })),
    ...(offsetMs === undefined ? [] : [sample('undernet_clock_offset_seconds', offsetMs / 1_000)]),
    ...peerSamples(status.peers),
    ...counted('undernet_bootstraps', bootstraps(), ({ state }) => ({ state })),
    sample('undernet_relayed_connections', relays.carriedCount),
    ...networkSamples(status, metered),
    ...contentSamples(status, metered),
    ...serviceSamples(status, metered),
    ...stateSamples(metered.directory),
  ]
}

/** So many of each kind. */
function counted<T>(name: MetricName, all: readonly T[], labelsOf: (one: T) => Record<string, string>): Sample[] {
  const counts = new Map<string, { labels: Record<string, string>; value: number }>()
  for (const one of all) {
    const labels = labelsOf(one)
    const key = JSON.stringify(labels)
    const count = counts.get(key) ?? { labels, value: 0 }
    counts.set(key, count)
    count.value++
  }
  return [...counts.values()].map(({ labels, value }) => ({ name, labels, value }))
}

function peerSamples(peers: readonly PeerView[]): Sample[] {
  const trips = peers.flatMap(({ rttMs }) => (rttMs === null ? [] : [rttMs / 1_000])).sort((a, b) => a - b)
  const kinds = ['direct', 'relay'].flatMap((path) => ['in', 'out'].map((direction) => ({ path, direction })))
  const [median, max] = [trips[Math.floor(trips.length / 2)], trips.at(-1)]
  return [
    // None is a number, too: a rule about peers must not fall silent when the last one goes.
    ...kinds.map(({ path, direction }) => {
      const value = peers.filter((peer) => peer.path === path && peer.direction === direction).length
      return sample('undernet_peers', value, { path, direction })
    }),
    ...(median === undefined ? [] : [sample('undernet_peer_round_trip_median_seconds', median)]),
    ...(max === undefined ? [] : [sample('undernet_peer_round_trip_max_seconds', max)]),
  ]
}

function networkSamples({ networks, artifacts }: Status, { closed, openNetwork }: Metered): Sample[] {
  const isClosed = ({ kind }: { kind: string }) => kind === 'closed'
  const kept = closed.list().map(({ membership, records }) => ({ network: membership.name, records }))
  if (openNetwork !== undefined) kept.push({ network: OPEN_NETWORK_NAME, records: openNetwork.records })
  return [
    sample('undernet_networks', networks.filter(isClosed).length, { kind: 'closed' }),
    sample('undernet_networks', networks.length - networks.filter(isClosed).length, { kind: 'open' }),
    sample('undernet_networks_failed', closed.failed().length),
    ...networks.flatMap(({ name: network, nodes, members, member }) => [
      sample('undernet_network_nodes', nodes, { network }),
      ...(members === undefined ? [] : [sample('undernet_network_members', members, { network })]),
      ...(member === undefined
        ? []
        : [sample('undernet_certificate_expiry_timestamp_seconds', Date.parse(member.expires) / 1_000, { network })]),
    ]),
    ...kept.flatMap(({ network, records }) => recordSamples(network, records)),
    sample('undernet_artifacts', artifacts.own, { publisher: 'own' }),
    sample('undernet_artifacts', artifacts.known - artifacts.own, { publisher: 'other' }),
  ]
}

function recordSamples(network: string, kept: Pick<Records, 'counts' | 'received'>): Sample[] {
  const { records, bytes, publishers } = kept.counts()
  return [
    sample('undernet_records', records, { network }),
    sample('undernet_records_bytes', bytes, { network }),
    sample('undernet_record_publishers', publishers, { network }),
    ...[...kept.received()].map(([outcome, count]) =>
      sample('undernet_records_received_total', count, { network, outcome }),
    ),
  ]
}

function contentSamples(status: Status, { content, upstreams, cacheCount, oci }: Metered): Sample[] {
  const { blobs, fetcher, pieces, laneServer, passThrough } = content
  const { pathsShared, hits, misses, blobs: blobCount, bytes, quotaBytes } = status.content
  const laneBytes = laneServer?.sentBytes ?? 0
  const fetched = {
    streams: fetcher.fetchedBytes - fetcher.laneBytes,
    lanes: fetcher.laneBytes,
    caches: upstreams.fetchedBytes,
    registries: oci.arrivals.fetchedBytes,
  }
  const registries = oci.registries()
  const resting = {
    cache: [cacheCount(), upstreams.resting().length],
    registry: [registries.length, registries.filter((one) => one.resting !== undefined).length],
  }
  const { open, bytes: uploadBytes } = oci.uploadStats
  return [
    sample('undernet_content_blobs', blobCount),
    sample('undernet_content_bytes', bytes),
    sample('undernet_content_kept_bytes', blobs.index.pinnedBytes()),
    sample('undernet_content_quota_bytes', quotaBytes),
    ...Object.entries(fetched).map(([from, value]) => sample('undernet_content_fetched_bytes_total', value, { from })),
    sample('undernet_content_served_bytes_total', Math.max(0, pieces.servedBytes - laneBytes), { over: 'streams' }),
    sample('undernet_content_served_bytes_total', laneBytes, { over: 'lanes' }),
    sample('undernet_content_unkept_total', passThrough.stats.count),
    sample('undernet_lanes', laneServer?.size ?? 0),
    ...Object.entries(resting).flatMap(([kind, [all = 0, left = 0]]) => [
      sample('undernet_upstreams', all - left, { kind, state: 'asked' }),
      sample('undernet_upstreams', left, { kind, state: 'resting' }),
    ]),
    sample('undernet_nix_paths_shared', pathsShared),
    sample('undernet_nix_narinfo_requests_total', hits, { result: 'hit' }),
    sample('undernet_nix_narinfo_requests_total', misses, { result: 'miss' }),
    sample('undernet_oci_uploads', open),
    sample('undernet_oci_upload_bytes', uploadBytes),
  ]
}

function serviceSamples({ services, instances }: Status, { flows }: Metered): Sample[] {
  return [
    ...counted('undernet_services', services, ({ network, offer }) => ({ network, offered: String(offer !== null) })),
    ...counted('undernet_service_instances', instances, ({ network, state }) => ({ network, state })),
    ...counted('undernet_tunnels', flows.list(), ({ direction, carrier }) => ({ direction, carrier })),
    ...Object.entries(flows.totals()).flatMap(([direction, { opened, sentBytes, receivedBytes }]) => [
      sample('undernet_tunnels_opened_total', opened, { direction }),
      sample('undernet_tunnel_sent_bytes_total', sentBytes, { direction }),
      sample('undernet_tunnel_received_bytes_total', receivedBytes, { direction }),
    ]),
  ]
}

function stateSamples(directory: string): Sample[] {
  const { bavail, blocks, bsize } = statfsSync(directory)
  const databases = [...databaseFiles(directory), ...databaseFiles(directory, '.db-wal')]
  // One may go in between.
  const sizeOf = (name: string) => statSync(join(directory, name), { throwIfNoEntry: false })?.size ?? 0
  return [
    sample('undernet_state_disk_free_bytes', bavail * bsize),
    sample('undernet_state_disk_size_bytes', blocks * bsize),
    sample(
      'undernet_state_database_bytes',
      databases.reduce((sum, name) => sum + sizeOf(name), 0),
    ),
  ]
}
