/**
 * The networks of a node, put together: the open one if it takes part in that, and the closed ones that it is in; and who may have what
 * is published there.
 */
import { multiaddr } from '@multiformats/multiaddr'
import type { CID } from 'multiformats/cid'
import type { Logger } from 'pino'
import { Catalogs } from '../catalog/catalogs.ts'
import type { PresenceOptions } from '../catalog/presence.ts'
import type { Records } from '../catalog/records.ts'
import { OPEN_NETWORK_ID } from '../content/publication-key.ts'
import type { NodeKey } from '../identity/node-key.ts'
import type { Host } from '../mesh/host.ts'
import type { Keeper } from '../mesh/keeper.ts'
import type { NetworkStreams } from '../mesh/network-streams.ts'
import type { Providers } from '../mesh/providers.ts'
import type { SharedFetches } from '../nix/shared-fetches.ts'
import type { PathsScope } from '../nix/store-paths.ts'
import type { Substituter } from '../nix/substituter.ts'
import { type Database, dropCopies, dropHistory } from '../state/database.ts'
import { ClosedNetworks } from './closed-networks.ts'
import { type Content, closedNetworksOf, forgetContent } from './content.ts'
import { type Entrance, OPEN_NETWORK_NAME } from './entrance.ts'
import type { NodeOci } from './oci.ts'
import { OpenNetwork } from './open-network.ts'
import type { NodePaths } from './paths.ts'
import type { Reach } from './reach.ts'
import type { NodeRouting } from './routing.ts'

/** A holder that the DHT has not named by then does not help whoever waits. */
const PROVIDERS_MS_MAX = 5_000

/** Parts that are made after those that ask for them. */
export type Later = { closed?: ClosedNetworks; keeper?: Keeper; substituter?: Substituter; oci?: NodeOci }

type NetworksDeps = {
  routing: NodeRouting
  shared: SharedFetches
  db: Database
  key: NodeKey
  host: Host
  reach: Reach
  streams: NetworkStreams
  paths: NodePaths
  entrance: Entrance
  content: Content
  oci: NodeOci
  later: Later
  presence: PresenceOptions['body']
  log: Logger
}

export async function startNetworks(deps: NetworksDeps, stack: AsyncDisposableStack) {
  const { routing, shared, db, key, host, reach, streams, paths, entrance, content, oci, later, presence, log } = deps
  const { networks, gate, issuer, directory } = entrance
  const publishing = { pins: content.blobs, paths: content.published }
  const serve = (id: string, scope: PathsScope, records: Records) => content.sharing.serve(id, scope, records)
  const catalogs = new Catalogs()
  const openNetwork = entrance.isOpen
    ? stack.use(await OpenNetwork.start({ db, key, host, publishing, presence, serve, log }))
    : undefined
  if (openNetwork !== undefined) catalogs.add(OPEN_NETWORK_NAME, openNetwork.artifacts)
  const hear = (peerId: string, addresses: readonly string[]) =>
    later.keeper?.hear(
      peerId,
      addresses.map((address) => multiaddr(address)),
    )
  const providers = openNetwork?.providers
  const closed = stack.use(
    await ClosedNetworks.start({
      networks,
      catalogs,
      forget: async (id) => {
        oci.forgetNetwork(id)
        await forgetContent(id, content)
        dropHistory(db)
        dropCopies(db)
      },
      contentOf: closedNetworksOf(content),
      deps: {
        serve: async (id, scope, records, images) => {
          await using stack = new AsyncDisposableStack()
          stack.use(await shared.serve(id, scope))
          stack.use(await serve(id, scope, records))
          stack.use(await oci.serve(id, scope, images))
          return stack.move()
        },
        route: (parts) => routing.route(parts),
        key,
        host,
        reach,
        streams,
        paths,
        gate,
        issuer,
        directory,
        publishing,
        providers,
        presence,
        hear,
        log,
      },
      log,
    }),
  )
  return { openNetwork, catalogs, closed }
}

type SourcesDeps = {
  catalogs: Pick<Catalogs, 'holders'>
  closed: Pick<ClosedNetworks, 'get'>
  providers: Pick<Providers, 'find'> | undefined
  self: string
}

/**
 * Who may have an artifact: its publishers in the network, then whoever the DHT knows, or the members that are connected. Nobody outside a
 * closed network is asked for what is in it.
 */
export async function* sourcesOf(
  cid: CID,
  network: string,
  { catalogs, closed, providers, self }: SourcesDeps,
  signal: AbortSignal,
): AsyncGenerator<string> {
  const seen = new Set([self])
  const near = [...catalogs.holders(cid.toString(), network), ...(closed.get(network)?.connected() ?? [])]
  for (const peerId of near) {
    if (seen.has(peerId)) continue
    seen.add(peerId)
    yield peerId
  }
  if (network !== OPEN_NETWORK_ID || providers === undefined) return
  const limited = AbortSignal.any([signal, AbortSignal.timeout(PROVIDERS_MS_MAX)])
  try {
    for await (const peerId of providers.find(cid.toString(), limited)) if (!seen.has(peerId)) yield peerId
  } catch (error) {
    if (signal.aborted || !limited.aborted) throw error
  }
}
