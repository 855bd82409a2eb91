/**
 * The Nix front-end of a node, put together: what is believed, what the local Nix is answered, what is pushed here, and the loopback
 * server on which all of it is asked.
 */
import type { Socket } from 'node:net'
import type { FastifyInstance } from 'fastify'
import type { CID } from 'multiformats/cid'
import type { Digest } from '../../protocols/artifact/artifact.ts'
import type { Warning } from '../api/contract.ts'
import type { Catalogs } from '../catalog/catalogs.ts'
import type { Filters } from '../catalog/filters.ts'
import type { Config } from '../config/keys.ts'
import { reasonOf } from '../error.ts'
import { callerFault, ownRules } from '../http/caller.ts'
import { HttpServer } from '../http/server.ts'
import type { Log } from '../log.ts'
import { Closures } from '../nix/closures.ts'
import { digestOfNarFile, type Narinfo } from '../nix/narinfo.ts'
import type { PathInfo } from '../nix/nix-store.ts'
import { registerPushRoutes } from '../nix/push-routes.ts'
import { Pushes, type PushPlace } from '../nix/pushes.ts'
import { registerNixRoutes } from '../nix/routes.ts'
import { SharedFetches, type SharedFetchesInit } from '../nix/shared-fetches.ts'
import { SideFiles } from '../nix/side-files.ts'
import type { CacheKey, PublicKey } from '../nix/signing.ts'
import { Substituter } from '../nix/substituter.ts'
import { TrustedKeys } from '../nix/trust.ts'
import { Upstreams } from '../nix/upstreams.ts'
import type { Database } from '../state/database.ts'
import type { ClosedNetworks } from './closed-networks.ts'
import type { Content } from './content.ts'
import { MemberSigners } from './member-signers.ts'
import { pushWarnings } from './part-warnings.ts'
import type { Places } from './places.ts'
import { storePeers } from './sharing.ts'
import { Misses, type PeerFaults } from './warnings.ts'

/** Where Nix keeps the logs of builds. */
const LOG_DIRECTORY = '/nix/var/log/nix'

type NixDeps = {
  /** What else answers on the loopback server: routes, and who speaks HTTP/2. */
  beside: { register: (app: FastifyInstance) => void; accept: (socket: Socket) => void }
  config: Pick<Config, 'http' | 'trustedKeys' | 'requireSignatures' | 'upstreams'>
  db: Database
  cacheKey: CacheKey
  content: Content
  catalogs: Catalogs
  places: Places
  closed: ClosedNetworks
  shared: SharedFetches
  /** This node's peer id. */
  self: string
  /** Of what peers give out of their stores, in all networks. */
  filters: () => Iterable<Filters>
  isConnected: (peerId: string) => boolean
  /** Peers that may hold an artifact. */
  sources: (cid: CID, network: string, signal: AbortSignal) => AsyncIterable<string>
  faults: PeerFaults
  /** Whether the agent is its group's, not its owner's alone. */
  isShared: boolean
  /** Puts the routes of other front-ends on the loopback server. */
  register: (app: FastifyInstance) => void
  log: Log
}

export type NodeNix = {
  trust: TrustedKeys
  substituter: Substituter
  upstreams: Upstreams
  /** Keys of members who may sign in a network. */
  signersIn: (network: string) => readonly PublicKey[]
  http: HttpServer | undefined
  warnings(): Warning[]
}

/** What members agree on before one of them fetches from upstream. Networks serve it, so it is there before they are. */
export function startShared(
  { content, ...init }: Pick<SharedFetchesInit, 'self' | 'mayFetch' | 'log'> & { content: Content },
  stack: AsyncDisposableStack,
): SharedFetches {
  const { holdings, blobs, fetcher } = content
  const gives = (digest: Digest, network: string) =>
    blobs.has(digest) && new Set(holdings.networksOf(digest)).has(network)
  return stack.use(new SharedFetches({ ...init, gives, fetcher }))
}

/** Parts that stop are left to the stack. */
export async function startNix(deps: NixDeps, stack: AsyncDisposableStack): Promise<NodeNix> {
  const { config, db, cacheKey, content, catalogs, closed, self, sources, faults, log } = deps
  const { blobs, published, held, sharing, fetcher, passThrough, store } = content
  const trust = new TrustedKeys(db, cacheKey.publicKey, config.trustedKeys, config.requireSignatures)
  const misses = new Misses()
  const signers = new MemberSigners(closed)
  const signersIn = (network: string) => signers.in(network)
  const upstreams = stack.use(
    new Upstreams({
      urls: config.upstreams,
      blobs,
      held,
      trust,
      storeDirectory: store.directory,
      networkOf: (name) => sharedIn(name, deps),
      shared: deps.shared,
      log,
    }),
  )
  const substituter = stack.use(
    new Substituter({
      store,
      published,
      closures: stack.use(new Closures({ blobs, fetcher, passThrough })),
      key: cacheKey,
      trust,
      blobs,
      held,
      fetcher,
      passThrough,
      named: (digest, path) => blobs.index.notes.name(digest, path),
      upstreams,
      signersIn,
      candidates: (hashPart) => catalogs.candidates(hashPart).filter(({ peerId }) => peerId !== self),
      stores: storePeers({ filters: deps.filters, paths: sharing.paths, trust, isConnected: deps.isConnected }),
      sources,
      onFault: ({ peerId, path, reason, next }) => faults.add({ peerId, about: path, reason, next }),
      onFetched: (path, failure) => misses.note(path, failure),
      log,
    }),
  )
  const pushes = startPushes(deps, { trust, substituter, signersIn }, stack)
  const http = config.http && stack.use(await startHttp(config.http, deps, { substituter, pushes }))
  const warnings = () => [...misses.warnings(), ...pushWarnings(pushes.failures()), ...upstreamWarnings(upstreams)]
  return { trust, substituter, upstreams, signersIn, http, warnings }
}

function startPushes(
  { cacheKey, content, places, log }: NixDeps,
  { trust, substituter, signersIn }: Pick<NodeNix, 'trust' | 'substituter' | 'signersIn'>,
  stack: AsyncDisposableStack,
): Pushes {
  const { blobs, held, store } = content
  const pushes = stack.use(
    new Pushes({
      blobs,
      held,
      store,
      trust,
      signersIn,
      key: cacheKey,
      find: async (hashPart, signal) => {
        const { narinfo } = await substituter.narinfo(hashPart, signal)
        return narinfo && pathInfoOf(narinfo)
      },
      bring: (info, signal) => substituter.bring(info, signal),
      place: (network) => pushPlaceIn(places, network),
      log,
    }),
  )
  pushes.resume()
  return pushes
}

async function startHttp(
  place: NonNullable<Config['http']>,
  { db, content, isShared, beside, register: registerOthers, log }: NixDeps,
  { substituter, pushes }: { substituter: Substituter; pushes: Pushes },
): Promise<HttpServer> {
  const { blobs, holdings, store } = content
  const rules = ownRules(isShared)
  const sideFiles = new SideFiles({ db, blobs, logDirectory: process.env.NIX_LOG_DIR ?? LOG_DIRECTORY })
  const register = (app: FastifyInstance) => {
    registerOthers(app)
    registerNixRoutes(app, { substituter, sideFiles, storeDirectory: store.directory, log })
    registerPushRoutes(app, {
      pushes,
      sideFiles,
      local: (hashPart, network) => {
        const known = substituter.local(hashPart)
        return known && new Set(holdings.networksOf(known.narHash)).has(network) ? known : undefined
      },
      sizeHere: async (file) => {
        const digest = digestOfNarFile(file)
        return digest === undefined ? undefined : blobs.sizeOf(digest)
      },
      refusal: (socket) => callerFault(socket, rules),
      storeDirectory: store.directory,
      log,
    })
    beside.register(app)
  }
  return await HttpServer.start(place, register, log, (socket) => beside.accept(socket))
}

function pushPlaceIn(places: Places, network: string | undefined): PushPlace {
  const { id, name, publications } = places.toPush(network)
  return {
    id,
    name,
    publish: (publication) => publications.publish(publication),
    withdraw: (artifact) => publications.withdraw(artifact),
  }
}

function pathInfoOf({ path, narHash, narSize, references, signatures, ca }: Narinfo): PathInfo {
  const lists = { references: [...references], signatures: [...signatures] }
  return { path, narHash, narSize, ...lists, ca, deriver: undefined, ultimate: false }
}

/** Where what comes from upstream may be given on: in the network that is named, or in the only closed one; never by a guess. */
function sharedIn(name: string | undefined, { places, closed, log }: NixDeps): string | undefined {
  if (name === undefined) {
    const [only, ...others] = closed.list()
    return others.length === 0 ? only?.membership.id : undefined
  }
  try {
    return places.idOf(name)
  } catch (error) {
    log.warn({ network: name, reason: reasonOf(error) }, 'upstream.unshared')
    return undefined
  }
}

function upstreamWarnings(upstreams: Upstreams): Warning[] {
  return upstreams.resting().map(({ url, reason }) => ({
    code: 'upstream.resting',
    message: `the cache ${url} is not asked at the moment: ${reason}`,
    next: 'The agent tries it again by itself. Take it out of `upstreams` if it is gone.',
  }))
}
