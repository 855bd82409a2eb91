/**
 * The content of a node, put together: blobs on the disk and store paths in Nix's store, given to peers and fetched from them.
 */
import type { StatementSigner } from '../../protocols/membership/statement.ts'
import { signList } from '../../protocols/pieces/list-statement.ts'
import { PIECE_BYTES } from '../../protocols/pieces/tree.ts'
import { BlobIndex } from '../content/blob-index.ts'
import { Blobs } from '../content/blobs.ts'
import { Fetcher, type FetcherInit } from '../content/fetcher.ts'
import { Holdings } from '../content/holdings.ts'
import type { LaneServer } from '../content/lane-server.ts'
import { type Lie, Lies } from '../content/lies.ts'
import { PassThrough } from '../content/pass-through.ts'
import { fromHex, PieceLists } from '../content/piece-lists.ts'
import { Pins } from '../content/pins.ts'
import { OPEN_NETWORK_ID } from '../content/publication-key.ts'
import { PieceServer, type PieceServerInit } from '../content/server.ts'
import { Uploads } from '../content/uploads.ts'
import type { Log } from '../log.ts'
import { HeldPaths } from '../nix/held-paths.ts'
import { NarSource } from '../nix/nar-source.ts'
import type { NixStore } from '../nix/nix-store.ts'
import type { Database } from '../state/database.ts'
import type { StateDirectory } from '../state/directory.ts'
import { type LaneDeps, startLaneServer, startLanes } from './lanes.ts'
import type { Sharing } from './sharing.ts'

type ContentDeps = {
  state: StateDirectory
  db: Database
  sharing: Sharing
  quotaBytes: number
  /** Bytes a second to peers; undefined for no bound. */
  uploadRateBytes: number | undefined
  streams: PieceServerInit['streams'] & FetcherInit['streams']
  /** This node's peer id. */
  self: string
  /** Signs the piece lists that this node states. */
  key: StatementSigner
  lanes: LaneDeps
  mayFetch: PieceServerInit['mayFetch']
  mayAsk: NonNullable<FetcherInit['mayAsk']>
  onFault: NonNullable<FetcherInit['onFault']>
  /** A peer signed what is false, which was not known of it. */
  onLied: (lie: Lie) => void
  log: Log
}

export type Content = {
  blobs: Blobs
  published: NarSource
  /** What blobs are, of those that are NARs of store paths. */
  held: HeldPaths
  /** The Nix store, where it is given out. */
  sharing: Sharing
  /** Blobs, published paths, and the Nix store. */
  holdings: Holdings
  pieces: PieceServer
  laneServer: LaneServer | undefined
  fetcher: Fetcher
  store: NixStore
  pins: Pins
  uploads: Uploads
  passThrough: PassThrough
  /** What peers signed and was false. */
  lies: Lies
}

/** Parts that stop are left to the stack. */
export async function startContent(deps: ContentDeps, stack: AsyncDisposableStack): Promise<Content> {
  const {
    state,
    db,
    sharing,
    quotaBytes,
    uploadRateBytes,
    streams,
    self,
    key,
    mayFetch,
    mayAsk,
    onFault,
    onLied,
    log,
  } = deps
  const lists = new PieceLists(db)
  const index = new BlobIndex(db)
  const blobs = stack.use(Blobs.open({ directory: state.file('blobs'), index, lists, quotaBytes, log }))
  const { store } = sharing
  const published = new NarSource({ db, store, log })
  const held = new HeldPaths(db, store.directory)
  const holdings = new Holdings([published, blobs, sharing.source])
  const pins = new Pins({ db, index, blobs })
  stack.use(index.notes)
  const uploads = stack.use(new Uploads({ rateBytes: uploadRateBytes }))
  const onServed: PieceServerInit['onServed'] = (digest, bytes, isBegin) => index.notes.served(digest, bytes, isBegin)
  const lies = new Lies(db)
  const onLie: FetcherInit['onLie'] = (lie) => {
    if (!lies.keep(lie)) return
    const { peerId, digest, bytes } = lie
    log.warn({ peerId, digest, signed: Buffer.from(bytes).toString('base64url') }, 'blob.lie')
    onLied(lie)
  }
  const sign: PieceServerInit['sign'] = (digest, network, { sizeBytes, root }) => {
    // Of one piece the digest is the list.
    if (sizeBytes <= PIECE_BYTES) return undefined
    const facts = { network: fromHex(network), digest: fromHex(digest), sizeBytes, root }
    return signList({ ...facts, issued: Date.now() }, key)
  }
  const lanes = startLanes(deps.lanes, streams, log, stack)
  const fetcher = stack.use(new Fetcher({ blobs, streams, self, ...(lanes && { lanes }), mayAsk, log, onFault, onLie }))
  const arriving = fetcher.arriving.bind(fetcher)
  const onAsked = fetcher.heard.bind(fetcher)
  const server = { streams, holdings, lists, mayFetch, arriving, onAsked, uploads, onServed, sign, log }
  const pieces = stack.use(await PieceServer.start(server))
  const laneServer = await startLaneServer(deps.lanes, { streams, pieces, log }, stack)
  const passThrough = stack.use(new PassThrough({ streams, log, onFault }))
  return {
    blobs,
    published,
    held,
    sharing,
    holdings,
    pieces,
    laneServer,
    fetcher,
    store,
    pins,
    uploads,
    passThrough,
    lies,
  }
}

/** What is here for the sake of a network that was left goes, and what is on its way. */
export async function forgetContent(network: string, content: Content): Promise<void> {
  const { fetcher, published, held, sharing, blobs, pins, lies } = content
  sharing.shares.set(network, 'published')
  await fetcher.forgetNetwork(network)
  held.forgetNetwork(network)
  pins.forgetNetwork(network)
  published.forgetNetwork(network)
  blobs.forgetNetwork(network)
  lies.forgetNetwork(network)
  blobs.index.notes.sweep(
    (digest) =>
      blobs.has(digest) || published.pathOf(digest) !== undefined || sharing.source.pathOf(digest) !== undefined,
  )
}

/** Ids of the closed networks that something is here for. */
export function closedNetworksOf({ published, sharing, blobs, pins }: Content): Set<string> {
  const all = new Set([
    ...published.networks(),
    ...blobs.index.networks(),
    ...pins.networks(),
    ...sharing.shares.networks(),
  ])
  all.delete(OPEN_NETWORK_ID)
  return all
}
