/**
 * The open network as it runs on this node, from start() until disposed: everybody's catalog, in the state database; its gossip, its DHT,
 * and what this node publishes to everybody.
 */

import { OCI_TAG_KIND } from '../../protocols/oci-tag/oci-tag.ts'
import { FILTER_KIND } from '../../protocols/records/filter.ts'
import { OPEN_NETWORK } from '../../protocols/records/record.ts'
import { Publications, type PublicationsDeps } from '../artifacts/publications.ts'
import { ARTIFACT_KIND, ARTIFACT_LEASE_MS, Artifacts } from '../catalog/artifacts.ts'
import { Filters } from '../catalog/filters.ts'
import { ImageTags, OCI_TAG_LEASE_MS } from '../catalog/image-tags.ts'
import { Nodes } from '../catalog/nodes.ts'
import { Presence, type PresenceOptions } from '../catalog/presence.ts'
import { Records } from '../catalog/records.ts'
import { Renewer } from '../catalog/renewer.ts'
import { Replicator } from '../catalog/replicator.ts'
import { OPEN_NETWORK_ID } from '../content/publication-key.ts'
import type { NodeKey } from '../identity/node-key.ts'
import type { Log } from '../log.ts'
import { Topic } from '../mesh/gossip.ts'
import type { Host } from '../mesh/host.ts'
import { Providers } from '../mesh/providers.ts'
import { FILTER_LEASE_MS } from '../nix/store-filter.ts'
import type { Database } from '../state/database.ts'

export type OpenNetworkDeps = {
  db: Database
  key: NodeKey
  /** One that takes part in the open network. */
  host: Host
  publishing: Omit<PublicationsDeps, 'artifacts' | 'providers' | 'network'>
  presence: PresenceOptions['body']
  /** What else runs among its nodes, until it is disposed. */
  serve: (network: string, host: Host, records: Records) => Promise<AsyncDisposable>
  log: Log
}

export class OpenNetwork implements AsyncDisposable {
  readonly nodes: Nodes
  readonly artifacts: Artifacts
  /** Of what nodes give out of their Nix stores. */
  readonly filters: Filters
  readonly images: ImageTags
  readonly replicator: Replicator
  readonly publications: Publications
  readonly providers: Providers
  /** For what is counted. */
  readonly records: Pick<Records, 'counts' | 'received'>
  readonly #stack: AsyncDisposableStack

  private constructor(parts: Parts, stack: AsyncDisposableStack) {
    this.nodes = parts.nodes
    this.artifacts = parts.artifacts
    this.filters = parts.filters
    this.images = parts.images
    this.replicator = parts.replicator
    this.publications = parts.publications
    this.providers = parts.providers
    this.records = parts.records
    this.#stack = stack
  }

  static async start(deps: OpenNetworkDeps): Promise<OpenNetwork> {
    await using stack = new AsyncDisposableStack()
    const parts = await startParts(deps, stack)
    return new OpenNetwork(parts, stack.move())
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync()
  }
}

type Parts = Pick<
  OpenNetwork,
  'nodes' | 'artifacts' | 'filters' | 'images' | 'replicator' | 'publications' | 'providers' | 'records'
>

async function startParts(deps: OpenNetworkDeps, stack: AsyncDisposableStack): Promise<Parts> {
  const { db, key, host, publishing, presence, serve, log } = deps
  const { dht, pubsub } = host
  if (dht === undefined || pubsub === undefined) throw new Error('the host takes no part in the open network')
  const records = stack.use(new Records(db, { network: OPEN_NETWORK, signer: key, log }))
  const nodes = stack.use(new Nodes(records))
  const artifacts = stack.use(new Artifacts({ db, records, nodes }))
  const filters = stack.use(new Filters({ records, nodes }))
  const images = stack.use(new ImageTags({ db, records, nodes }))
  const topic = stack.use(Topic.join(pubsub, `undernet/records/${OPEN_NETWORK_ID}`, log))
  const replicator = stack.use(await Replicator.start({ records, gossip: topic, peers: host, log }))
  const providers = stack.use(Providers.start({ dht, host, log }))
  const publications = new Publications({ ...publishing, network: OPEN_NETWORK_ID, artifacts, providers })
  stack.use(await serve(OPEN_NETWORK_ID, host, records))
  const leases = {
    [ARTIFACT_KIND]: ARTIFACT_LEASE_MS,
    [FILTER_KIND]: FILTER_LEASE_MS,
    [OCI_TAG_KIND]: OCI_TAG_LEASE_MS,
  }
  stack.use(Renewer.start({ records, leases, log }))
  stack.use(Presence.start({ records, body: presence, nodeCount: () => nodes.count, log }))
  return { nodes, artifacts, filters, images, replicator, publications, providers, records }
}
