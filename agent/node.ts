/**
 * The composition root: starts the parts of an agent in order, wires what they need of each other, and stops them in reverse. A start
 * that fails half-way undoes just what had started.
 */
import { arch, cpus, platform, totalmem } from 'node:os'
import type { CID } from 'multiformats/cid'
import type { Logger } from 'pino'
import type { Digest } from '../protocols/artifact/artifact.ts'
import { ApiServer } from './api/server.ts'
import { changedKeys, type LoadedConfig } from './config/config.ts'
import type { Fault } from './content/content.ts'
import { AgentError, reasonOf } from './error.ts'
import { FreedMemory } from './freed-memory.ts'
import { loadOrMakeNodeKey } from './identity/node-key.ts'
import { type Log, makeLog } from './log.ts'
import { Host } from './mesh/host.ts'
import { Keeper } from './mesh/keeper.ts'
import { NetworkStreams } from './mesh/network-streams.ts'
import { PeerBook } from './mesh/peer-book.ts'
import { CacheKey } from './nix/signing.ts'
import type { TrustedKeys } from './nix/trust.ts'
import type { Upstreams } from './nix/upstreams.ts'
import { NodeApi } from './node/api.ts'
import { NodeNamesApi } from './node/api-names.ts'
import { type Content, startContent } from './node/content.ts'
import { NodeDiscovery } from './node/discovery.ts'
import { Entrance } from './node/entrance.ts'
import { Joining } from './node/joining.ts'
import { LIARS_SHOWN_MAX, lieWarnings } from './node/lie-warnings.ts'
import { NodeNames } from './node/names.ts'
import { networkWarnings } from './node/network-warnings.ts'
import { type Later, sourcesOf, startNetworks } from './node/networks.ts'
import { startNix, startShared } from './node/nix.ts'
import { NodeOci } from './node/oci.ts'
import { NodePaths } from './node/paths.ts'
import { Places } from './node/places.ts'
import { roomWarnings } from './node/room-warnings.ts'
import { NodeRouting } from './node/routing.ts'
import { filtersOf, Sharing } from './node/sharing.ts'
import { PeerFaults, warningsOf } from './node/warnings.ts'
import { startWaysIn } from './node/ways-in.ts'
import { Holders } from './oci/holders.ts'
import { readKeys, Signatures } from './oci/signatures.ts'
import { Notifier } from './service/notify.ts'
import { openDatabase } from './state/database.ts'
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
    stack.use(new FreedMemory({ log }))
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
  const { relay, reflectPort, punch } = values
  const paths = stack.use(await NodePaths.start({ host, listen, relay, reflectPort, punch, log }))

  const faults = new PeerFaults()
  const isFetcher = (peerId: string, network: string) => entrance.mayFetch(peerId, network)
  const mayFetch = (peerId: string, network: string, digest: Digest) =>
    later.oci?.mayGive(peerId, network, digest) ?? isFetcher(peerId, network)
  const mayAsk = (peerId: string, network: string) => entrance.mayAsk(peerId, network)
  const about = (digest: string) => later.substituter?.pathOf(digest) ?? `blob ${digest}`
  const onFault = ({ peerId, digest, reason }: Fault) => faults.add({ peerId, about: about(digest), reason })
  const onLied: Entrance['noteLie'] = (lie) => entrance.noteLie(lie)
  const { quotaBytes, uploadRateBytes } = values
  const lanes = { port: values.lanePort, listen, hostOf: (peerId: string) => host.hostOf(peerId) }
  const access = { self: host.peerId, mayFetch, mayAsk }
  const sharing = new Sharing({ db, cacheKey, privatePaths: values.privatePaths, mayFetch: isFetcher, log }, stack)
  const content = await startContent(
    { state, db, sharing, quotaBytes, uploadRateBytes, streams: host, key, ...access, lanes, onFault, onLied, log },
    stack,
  )
  const { blobs, published, passThrough } = content
  const current = { config }
  const shared = startShared({ content, self: host.peerId, mayFetch, log }, stack)
  const routing = stack.use(new NodeRouting({ host, gate, audit: entrance.audit, config: values, log }))
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
    {
      routing,
      shared,
      db,
      key,
      host,
      streams,
      paths,
      entrance,
      content,
      oci,
      later,
      presence: presenceBody(name),
      log,
    },
    stack,
  )
  later.closed = closed
  await routing.configure(values)
  const names = stack.use(new NodeNames({ db, routing, config: values, self: host.peerId, log }))
  const discovery = new NodeDiscovery({ routing, names, log })
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
      filters: () => filtersOf(closed, openNetwork),
      isConnected: (peerId) => host.isConnected(peerId),
      sources,
      faults,
      isShared,
      beside: discovery,
      register: (app) => oci.register(app, isShared),
      log,
    },
    stack,
  )
  stack.use(discovery)
  const { dns } = await startWaysIn({ config: values, routing, names, log }, stack)
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
    ...lieWarnings(content.lies.liars(LIARS_SHOWN_MAX), about),
    ...nix.warnings(),
    ...sharing.warnings(),
    ...routing.warnings(),
    ...names.warnings(),
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
    routing,
    names: new NodeNamesApi({ names, dns, routing }),
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
    reload: () => reload(current, { keeper, trust, routing, upstreams: nix.upstreams, oci, content, log }),
    summary: () => `${host.connected().length} peers, ${catalogs.count().known} artifacts known`,
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
  routing: NodeRouting
  oci: NodeOci
  content: Pick<Content, 'blobs' | 'uploads' | 'sharing'>
  log: Logger
}

/** Takes over what a running agent can, says what it cannot, and keeps what it has when the new configuration is not sound. */
function reload(
  current: { config: LoadedConfig },
  { keeper, trust, routing, upstreams, oci, content, log }: Reloadable,
): void {
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
  void routing.configure(next.values)
  content.blobs.setQuota(next.values.quotaBytes)
  content.uploads.setRate(next.values.uploadRateBytes)
  if (String(next.values.privatePaths) !== String(current.config.values.privatePaths))
    content.sharing.configure(next.values.privatePaths)
  log.level = next.values.logLevel
  const { reloaded, restart } = changedKeys(current.config, next)
  const areOthers = String(next.values.registries) !== String(current.config.values.registries)
  current.config = next
  if (areOthers) oci.configure()
  log.info({ changed: [...reloaded, ...restart], needRestart: restart }, 'config.reloaded')
}
