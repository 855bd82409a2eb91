/**
 * The composition root: starts the parts of an agent in order, wires what they need of each other, and stops them in reverse. A start
 * that fails half-way undoes just what had started.
 */
import { arch, cpus, platform, totalmem } from 'node:os'
import type { CID } from 'multiformats/cid'
import type { Logger } from 'pino'
import { OPEN_NETWORK } from '../protocols/records/record.ts'
import { ApiServer } from './api/server.ts'
import { Publications } from './artifacts/publications.ts'
import { ARTIFACT_KIND, ARTIFACT_LEASE_MS, Artifacts } from './catalog/artifacts.ts'
import { Nodes } from './catalog/nodes.ts'
import { Presence } from './catalog/presence.ts'
import { Records } from './catalog/records.ts'
import { Renewer } from './catalog/renewer.ts'
import { Replicator } from './catalog/replicator.ts'
import { changedKeys, type LoadedConfig } from './config.ts'
import { BlobIndex } from './content/blob-index.ts'
import { Blobs } from './content/blobs.ts'
import { Fetcher } from './content/fetcher.ts'
import { Holdings } from './content/holdings.ts'
import { PieceLists } from './content/piece-lists.ts'
import { OPEN_NETWORK_ID } from './content/publication-key.ts'
import { PieceServer } from './content/server.ts'
import { AgentError, reasonOf } from './error.ts'
import { HttpServer } from './http/server.ts'
import { loadOrMakeNodeKey } from './identity/node-key.ts'
import { type Log, makeLog } from './log.ts'
import { Gate } from './mesh/gate.ts'
import { Topic } from './mesh/gossip.ts'
import { Host } from './mesh/host.ts'
import { Keeper } from './mesh/keeper.ts'
import { PeerBook } from './mesh/peer-book.ts'
import { Providers } from './mesh/providers.ts'
import { Closures } from './nix/closures.ts'
import { NarSource } from './nix/nar-source.ts'
import { NixStore } from './nix/nix-store.ts'
import { registerNixRoutes } from './nix/routes.ts'
import { CacheKey } from './nix/signing.ts'
import { Substituter } from './nix/substituter.ts'
import { TrustedKeys } from './nix/trust.ts'
import { NodeApi } from './node-api.ts'
import { Misses, PeerFaults, warningsOf } from './node-warnings.ts'
import { Notifier } from './service/notify.ts'
import { type Database, openDatabase } from './state/database.ts'
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
  const faults = new PeerFaults()
  const misses = new Misses()

  const unrevoked = { faultOf: () => undefined, isRevoked: () => false }
  const party = { key, networks: () => [], isOpen: () => true, revocations: () => unrevoked, now: Date.now }
  const gate = stack.use(new Gate({ party, log }))
  const host = stack.use(
    await Host.start({
      key,
      listen: values.listen,
      mdns: values.mdns,
      gate,
      open: true,
      maxPeers: values.maxPeers,
      version: VERSION,
      log,
    }),
  )
  const { records, nodes, artifacts, replicator } = await startCatalog(db, key, host, stack, log)

  const lists = new PieceLists(db)
  const index = new BlobIndex(db)
  const blobs = Blobs.open({ directory: state.file('blobs'), index, lists, quotaBytes: values.quotaBytes, log })
  const store = NixStore.ofMachine()
  const published = new NarSource({ db, store, log })
  const holdings = new Holdings([published, blobs])
  const pieces = stack.use(await PieceServer.start({ streams: host, holdings, lists, mayFetch: () => true, log }))
  const fetcher = stack.use(
    new Fetcher({
      blobs,
      streams: host,
      log,
      onFault: ({ peerId, digest, reason }) =>
        faults.add({ peerId, about: substituter.pathOf(digest) ?? `blob ${digest}`, reason }),
    }),
  )

  const providers = stack.use(Providers.start({ dht: host.dht, host, log }))
  const publications = new Publications({ network: OPEN_NETWORK_ID, artifacts, pins: blobs, paths: published, providers })
  const sources = (cid: CID, _network: string, signal: AbortSignal) =>
    sourcesOf(cid, artifacts, providers, host.peerId, signal)

  const trust = new TrustedKeys(db, cacheKey.publicKey, values.trustedKeys)
  const closures = stack.use(new Closures({ blobs, fetcher }))
  const substituter = stack.use(
    new Substituter({
      store,
      published,
      closures,
      key: cacheKey,
      trust,
      blobs,
      fetcher,
      candidates: (hashPart) =>
        artifacts
          .candidates(hashPart)
          .filter(({ peerId }) => peerId !== host.peerId)
          .map((candidate) => ({ ...candidate, network: OPEN_NETWORK_ID })),
      sources,
      onFault: ({ peerId, path, reason, next }) => faults.add({ peerId, about: path, reason, next }),
      onFetched: (path, failure) => misses.note(path, failure),
      log,
    }),
  )
  const register = (app: Parameters<typeof registerNixRoutes>[0]) =>
    registerNixRoutes(app, { substituter, storeDirectory: store.directory, log })
  const http = values.http && stack.use(await HttpServer.start(values.http, register, log))

  const book = new PeerBook(db)
  const keeper = stack.use(Keeper.start({ host, book, bootstrap: values.bootstrap, maxPeers: values.maxPeers, log }))
  stack.use(Renewer.start({ records, leases: { [ARTIFACT_KIND]: ARTIFACT_LEASE_MS }, log }))
  stack.use(Presence.start({ records, body: presenceBody(values.name), nodeCount: () => nodes.count, log }))

  const warnings = () => [
    ...warningsOf({
      uptimeSeconds: (performance.now() - startedMs) / 1_000,
      peerCount: host.connected().length,
      mdns: values.mdns,
      bootstraps: keeper.bootstraps(),
      clockOffsetMs: replicator.clockOffsetMs(),
      missingPaths: published.missingPaths(),
      disk: { directory: values.state, freeBytes: freeBytesOf(values.state) },
    }),
    ...faults.warnings(),
    ...misses.warnings(),
  ]
  const current = { config }
  const api = new NodeApi({
    current,
    host,
    keeper,
    nodes,
    artifacts,
    publications,
    blobs,
    holdings,
    fetcher,
    pieces,
    store,
    published,
    cacheKey,
    trust,
    substituter,
    httpUrl: http?.url,
    sources,
    warnings,
    startedMs,
    log,
  })
  const mode = process.env.RUNTIME_DIRECTORY ? SOCKET_MODE_SERVICE : SOCKET_MODE_PERSON
  const explain = (error: unknown) => diskError(error, values.state)
  stack.use(await ApiServer.start({ socket: values.socket, mode, api, log, explain }))

  return {
    reload: () => reload(current, { keeper, trust, blobs, log }),
    summary: () => `${host.connected().length} peers, ${artifacts.count().known} artifacts known`,
  }
}

/** A holder that the DHT has not named by then does not help whoever waits. */
const PROVIDERS_MS_MAX = 5_000

async function startCatalog(
  db: Database,
  signer: Parameters<typeof makeRecords>[1],
  host: Host,
  stack: AsyncDisposableStack,
  log: Log,
) {
  const records = stack.use(makeRecords(db, signer, log))
  const nodes = stack.use(new Nodes(records))
  const artifacts = stack.use(new Artifacts({ db, records, nodes }))
  const { pubsub } = host
  if (pubsub === undefined) throw new Error('a host of the open network has gossip')
  const topic = stack.use(Topic.join(pubsub, `undernet/records/${Buffer.from(OPEN_NETWORK).toString('hex')}`, log))
  const replicator = stack.use(await Replicator.start({ records, gossip: topic, peers: host, log }))
  return { records, nodes, artifacts, replicator }
}

function makeRecords(db: Database, signer: ConstructorParameters<typeof Records>[1]['signer'], log: Log): Records {
  return new Records(db, { network: OPEN_NETWORK, signer, log })
}

/** Who may have an artifact: its publishers, then whoever the DHT knows. */
async function* sourcesOf(
  cid: CID,
  artifacts: Pick<Artifacts, 'holders'>,
  providers: Pick<Providers, 'find'>,
  self: string,
  signal: AbortSignal,
): AsyncGenerator<string> {
  const seen = new Set([self])
  for (const peerId of artifacts.holders(cid.toString())) {
    if (seen.has(peerId)) continue
    seen.add(peerId)
    yield peerId
  }
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

type Reloadable = { keeper: Keeper; trust: TrustedKeys; blobs: Blobs; log: Logger }

/** Takes over what a running agent can, says what it cannot, and keeps what it has when the new configuration is not sound. */
function reload(current: { config: LoadedConfig }, { keeper, trust, blobs, log }: Reloadable): void {
  let next: LoadedConfig
  try {
    next = current.config.reload()
    keeper.setBootstrap(next.values.bootstrap)
    trust.configure(next.values.trustedKeys)
  } catch (error) {
    if (!(error instanceof AgentError)) throw error
    log.error({ reason: error.message }, 'config.refused')
    return
  }
  blobs.setQuota(next.values.quotaBytes)
  log.level = next.values.logLevel
  const { reloaded, restart } = changedKeys(current.config, next)
  current.config = next
  log.info({ changed: [...reloaded, ...restart], needRestart: restart }, 'config.reloaded')
}
