/**
 * The composition root: starts the parts of an agent in order, wires what they need of each other, and stops them in reverse. A start
 * that fails half-way undoes just what had started.
 */
import { arch, cpus, platform, totalmem } from 'node:os'
import { multiaddr } from '@multiformats/multiaddr'
import type { CID } from 'multiformats/cid'
import type { Logger } from 'pino'
import type { Digest } from '../protocols/artifact/artifact.ts'
import { ApiServer } from './api/server.ts'
import { Catalogs } from './catalog/catalogs.ts'
import { changedKeys, type LoadedConfig } from './config/config.ts'
import type { Fault } from './content/content.ts'
import { OPEN_NETWORK_ID } from './content/publication-key.ts'
import { AgentError, reasonOf } from './error.ts'
import { loadOrMakeNodeKey, type NodeKey } from './identity/node-key.ts'
import { type Log, makeLog } from './log.ts'
import { Host } from './mesh/host.ts'
import { Keeper } from './mesh/keeper.ts'
import { NetworkStreams } from './mesh/network-streams.ts'
import { PeerBook } from './mesh/peer-book.ts'
import type { Providers } from './mesh/providers.ts'
import type { SharedFetches } from './nix/shared-fetches.ts'
import { CacheKey } from './nix/signing.ts'
import type { Substituter } from './nix/substituter.ts'
import type { TrustedKeys } from './nix/trust.ts'
import type { Upstreams } from './nix/upstreams.ts'
import { NodeApi } from './node/api.ts'
import { ClosedNetworks } from './node/closed-networks.ts'
import { type Content, closedNetworksOf, forgetContent, startContent } from './node/content.ts'
import { Entrance, OPEN_NETWORK_NAME } from './node/entrance.ts'
import { Joining } from './node/joining.ts'
import { networkWarnings } from './node/network-warnings.ts'
import { startNix, startShared } from './node/nix.ts'
import { NodeOci } from './node/oci.ts'
import { OpenNetwork } from './node/open-network.ts'
import { Places } from './node/places.ts'
import { roomWarnings } from './node/room-warnings.ts'
import { PeerFaults, warningsOf } from './node/warnings.ts'
import { Holders } from './oci/holders.ts'
import { readKeys, Signatures } from './oci/signatures.ts'
import { Notifier } from './service/notify.ts'
import { type Database, dropHistory, openDatabase } from './state/database.ts'
import { StateDirectory } from './state/directory.ts'
import { diskError, freeBytesOf } from './state/disk.ts'
import { VERSION } from './version.ts'

/** systemd and people wait this long for a stop; what has not ended by then is left to the end of the process. */
const STOP_MS_MAX = 4_500
/** A person's socket is the person's; that of a service also its group's. */
const SOCKET_MODE_PERSON = 0o600
const SOCKET_MODE_SERVICE = 0o660

/**
 * Runs an agent until SIGTERM or SIGINT, and returns the exit code.
 *
 * @throws {AgentError} when it cannot start.
 */
export async function runAgent(config: LoadedConfig): Promise<number> {
  const startedMs = performance.now()
  const log = makeLog(config.values.logLevel)
  const told = Promise.withResolvers<NodeJS.Signals>()
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, told.resolve)

  const stack = new AsyncDisposableStack()
  try {
    using notifier = await Notifier.fromEnvironment()
    const { reload, summary } = await startNode(config, stack, log, startedMs)
    process.on('SIGHUP', () => {
      notifier?.reloading()
      reload()
      notifier?.ready(summary())
    })
    notifier?.ready(summary())
    notifier?.watch()
    log.info({ ms: Math.round(performance.now() - startedMs) }, 'agent.started')
    const signal = await told.promise
    log.info({ signal }, 'agent.stopping')
    notifier?.stopping(`stopping on ${signal}`)
  } catch (error) {
    await stopWithin(stack, log)
    throw error
  }
  return (await stopWithin(stack, log)) ? 0 : 1
}

/** Libraries linger after a stop, so the process ends by itself only when told to: see main.ts. */
async function stopWithin(stack: AsyncDisposableStack, log: Log): Promise<boolean> {
  const late = Promise.withResolvers<'late'>()
  const timer = setTimeout(() => late.resolve('late'), STOP_MS_MAX)
  try {
    const outcome = await Promise.race([stack.disposeAsync(), late.promise])
    if (outcome === 'late') log.warn({ ms: STOP_MS_MAX }, 'agent.stop-late')
    else log.info({}, 'agent.stopped')
    return outcome !== 'late'
  } catch (error) {
    log.error({ reason: reasonOf(error) }, 'agent.stop-failed')
    return false
  } finally {
    clearTimeout(timer)
  }
}

type RunningNode = {
  /** Reads the configuration again, and takes over what can be. */
  reload: () => void
  /** One line on how the node is. */
  summary: () => string
}

async function startNode(
  config: LoadedConfig,
  stack: AsyncDisposableStack,
  log: Logger,
  startedMs: number,
): Promise<RunningNode> {
  const { values } = config
  const state = stack.use(StateDirectory.open(values.state))
  const db = openDatabase(state.file('state.db'))
  stack.defer(() => db.close())
  const key = loadOrMakeNodeKey(state.file('node.key'))
  const cacheKey = CacheKey.loadOrMake(state.file('cache.key'), values.name)
  /** Parts that earlier ones ask for when they run. */
  const later: Later = {}
  const { open, name } = values
  const entrance = stack.use(
    new Entrance({ db, directory: values.state, key, open, roll: (id) => later.closed?.get(id)?.roll, log }),
  )
  const { gate } = entrance
  const { listen, mdns, maxPeers } = values
  const host = stack.use(await Host.start({ key, listen, mdns, gate, open, maxPeers, version: VERSION, log }))
  const streams = stack.use(await NetworkStreams.start({ host, gate, log }))

  const faults = new PeerFaults()
  const mayFetch = (peerId: string, network: string, digest: Digest) =>
    later.oci?.mayGive(peerId, network, digest) ?? entrance.mayFetch(peerId, network)
  const mayAsk = (peerId: string, network: string) => entrance.mayAsk(peerId, network)
  const onFault = ({ peerId, digest, reason }: Fault) =>
    faults.add({ peerId, about: later.substituter?.pathOf(digest) ?? `blob ${digest}`, reason })
  const { quotaBytes, uploadRateBytes } = values
  const access = { self: host.peerId, mayFetch, mayAsk }
  const content = await startContent(
    { state, db, quotaBytes, uploadRateBytes, streams: host, ...access, onFault, log },
    stack,
  )
  const { blobs, published, passThrough } = content
  const current = { config }
  const shared = startShared({ content, self: host.peerId, mayFetch, log }, stack)
  const oci = NodeOci.start(
    {
      values: () => current.config.values,
      state,
      db,
      content,
      shared,
      entrance,
      self: host.peerId,
      connected: () => host.connected(),
      log,
    },
    stack,
  )
  later.oci = oci
  const { openNetwork, catalogs, closed } = await startNetworks(
    { shared, db, key, host, streams, entrance, content, oci, later, presence: presenceBody(name), log },
    stack,
  )
  later.closed = closed
  oci.connect({ openNetwork, closed })

  const sources = (cid: CID, network: string, signal: AbortSignal) =>
    sourcesOf(cid, network, { catalogs, closed, providers: openNetwork?.providers, self: host.peerId }, signal)
  const places = new Places({ openNetwork, closed, entrance, host })
  const isShared = process.env.RUNTIME_DIRECTORY !== undefined
  const nix = await startNix(
    {
      config: values,
      db,
      cacheKey,
      content,
      catalogs,
      places,
      closed,
      shared,
      self: host.peerId,
      sources,
      faults,
      isShared,
      register: (app) => oci.register(app, isShared),
      log,
    },
    stack,
  )
  const { trust, substituter, http } = nix
  later.substituter = substituter

  const wants = (peerId: string) => closed.wants(peerId)
  const keeper = stack.use(
    Keeper.start({ host, book: new PeerBook(db), bootstrap: values.bootstrap, maxPeers, wants, log }),
  )
  later.keeper = keeper
  const joining = stack.use(new Joining({ gate, host, networks: entrance.networks, name, log }))
  if (values.joinFile !== undefined) joining.useFile(values.joinFile)

  const warnings = () => [
    ...warningsOf({
      uptimeSeconds: (performance.now() - startedMs) / 1_000,
      peerCount: host.connected().length,
      mdns,
      open,
      bootstraps: keeper.bootstraps(),
      clockOffsetMs: openNetwork?.replicator.clockOffsetMs() ?? closed.clockOffsetMs(),
      missingPaths: published.missingPaths(),
      disk: { directory: values.state, freeBytes: freeBytesOf(values.state) },
    }),
    ...networkWarnings({
      memberships: entrance.networks.list(),
      failed: closed.failed(),
      orphans: entrance.networks.orphans,
      now: Date.now(),
    }),
    ...joining.warnings(),
    ...roomWarnings({
      unkept: passThrough.stats,
      quotaBytes: blobs.stats.quotaBytes,
      keptBytes: blobs.index.pinnedBytes(),
      pins: api.room.pins().pins,
      now: Date.now(),
    }),
    ...faults.warnings(),
    ...nix.warnings(),
    ...oci.warnings(),
  ]
  const api = new NodeApi({
    current,
    host,
    keeper,
    openNetwork,
    closed,
    catalogs,
    entrance,
    joining,
    places,
    content,
    cacheKey,
    trust,
    substituter,
    upstreams: nix.upstreams,
    signersIn: nix.signersIn,
    oci,
    holders: stack.use(new Holders(host, log)),
    signatures: new Signatures(readKeys(values.imageKeys), oci.repositories, log),
    httpUrl: http?.url,
    sources,
    warnings,
    startedMs,
    log,
  })
  const mode = isShared ? SOCKET_MODE_SERVICE : SOCKET_MODE_PERSON
  const explain = (error: unknown) => diskError(error, values.state)
  stack.use(await ApiServer.start({ socket: values.socket, mode, api, log, explain }))

  return {
    reload: () => reload(current, { keeper, trust, upstreams: nix.upstreams, oci, content, log }),
    summary: () => `${host.connected().length} peers, ${catalogs.count().known} artifacts known`,
  }
}

/** A holder that the DHT has not named by then does not help whoever waits. */
const PROVIDERS_MS_MAX = 5_000

/** Parts that are made after those that ask for them. */
type Later = { closed?: ClosedNetworks; keeper?: Keeper; substituter?: Substituter; oci?: NodeOci }

type NetworksDeps = {
  shared: SharedFetches
  db: Database
  key: NodeKey
  host: Host
  streams: NetworkStreams
  entrance: Entrance
  content: Content
  oci: NodeOci
  later: Later
  presence: ReturnType<typeof presenceBody>
  log: Logger
}

async function startNetworks(deps: NetworksDeps, stack: AsyncDisposableStack) {
  const { shared, db, key, host, streams, entrance, content, oci, later, presence, log } = deps
  const { networks, gate, issuer, directory } = entrance
  const publishing = { pins: content.blobs, paths: content.published }
  const catalogs = new Catalogs()
  const openNetwork = entrance.isOpen
    ? stack.use(await OpenNetwork.start({ db, key, host, publishing, presence, log }))
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
      },
      contentOf: closedNetworksOf(content),
      deps: {
        serve: async (id, scope, images) => {
          await using stack = new AsyncDisposableStack()
          stack.use(await shared.serve(id, scope))
          stack.use(await oci.serve(id, scope, images))
          return stack.move()
        },
        key,
        host,
        streams,
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
async function* sourcesOf(
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

function presenceBody(name: string) {
  const system = `${arch() === 'x64' ? 'x86_64' : arch() === 'arm64' ? 'aarch64' : arch()}-${platform()}`
  return { name, version: VERSION, capabilities: { system, cpus: cpus().length, memoryBytes: totalmem() } }
}

type Reloadable = {
  keeper: Keeper
  trust: TrustedKeys
  upstreams: Upstreams
  oci: NodeOci
  content: Pick<Content, 'blobs' | 'uploads'>
  log: Logger
}

/** Takes over what a running agent can, says what it cannot, and keeps what it has when the new configuration is not sound. */
function reload(current: { config: LoadedConfig }, { keeper, trust, upstreams, oci, content, log }: Reloadable): void {
  let next: LoadedConfig
  try {
    next = current.config.reload()
    keeper.setBootstrap(next.values.bootstrap)
    trust.configure(next.values.trustedKeys, next.values.requireSignatures)
  } catch (error) {
    if (!(error instanceof AgentError)) throw error
    log.error({ reason: error.message }, 'config.refused')
    return
  }
  if (String(next.values.upstreams) !== String(current.config.values.upstreams))
    upstreams.configure(next.values.upstreams)
  content.blobs.setQuota(next.values.quotaBytes)
  content.uploads.setRate(next.values.uploadRateBytes)
  log.level = next.values.logLevel
  const { reloaded, restart } = changedKeys(current.config, next)
  const areOthers = String(next.values.registries) !== String(current.config.values.registries)
  current.config = next
  if (areOthers) oci.configure()
  log.info({ changed: [...reloaded, ...restart], needRestart: restart }, 'config.reloaded')
}
