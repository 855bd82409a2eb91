/**
 * The local Nix store as it is given out, put together: which paths may be, in which networks, how peers learn of them and are answered; and
 * the stores of peers, for the local Nix.
 */
import type { Warning } from '../api/contract.ts'
import type { ShareApi, ShareRequest, ShareView } from '../api/share-contract.ts'
import type { Filters } from '../catalog/filters.ts'
import type { Records } from '../catalog/records.ts'
import { OPEN_NETWORK_ID } from '../content/publication-key.ts'
import type { Log } from '../log.ts'
import { NixStore } from '../nix/nix-store.ts'
import type { CacheKey } from '../nix/signing.ts'
import { StoreFilter } from '../nix/store-filter.ts'
import { StoreIndex } from '../nix/store-index.ts'
import { type PathsScope, StorePaths } from '../nix/store-paths.ts'
import { StorePeers } from '../nix/store-peers.ts'
import { StoreRules } from '../nix/store-rules.ts'
import { StoreShares } from '../nix/store-shares.ts'
import { StoreSource } from '../nix/store-source.ts'
import type { TrustedKeys } from '../nix/trust.ts'
import type { Database } from '../state/database.ts'
import type { ClosedNetworks } from './closed-networks.ts'
import { OPEN_NETWORK_NAME } from './entrance.ts'
import type { OpenNetwork } from './open-network.ts'
import { shareWarnings } from './part-warnings.ts'
import type { Places } from './places.ts'

export type SharingDeps = {
  db: Database
  cacheKey: CacheKey
  /** Patterns of names. */
  privatePaths: readonly string[]
  mayFetch: (peerId: string, network: string) => boolean
  log: Log
}

export class Sharing {
  readonly store: NixStore
  readonly shares: StoreShares
  readonly index: StoreIndex
  readonly source: StoreSource
  readonly paths: StorePaths
  readonly #filter: StoreFilter
  #rules: StoreRules
  #following: Promise<void> = Promise.resolve()

  /** Parts that stop are left to the stack. */
  constructor({ db, cacheKey, privatePaths, mayFetch, log }: SharingDeps, stack: AsyncDisposableStack) {
    this.#rules = new StoreRules(privatePaths)
    this.store = NixStore.ofMachine()
    this.shares = new StoreShares(db)
    const { store, shares } = this
    this.index = stack.use(new StoreIndex({ store, rules: this.#rules, log }))
    const { index } = this
    this.source = new StoreSource({ index, shares, log })
    this.paths = stack.use(
      new StorePaths({
        index,
        isShared: (network) => shares.modeOf(network) === 'store',
        rules: () => this.#rules,
        storeDirectory: store.directory,
        key: cacheKey,
        mayFetch,
        log,
      }),
    )
    this.#filter = stack.use(new StoreFilter({ index, shares, signer: cacheKey.publicKey.text, log }))
    stack.defer(shares.onChange(() => this.#follow()))
    stack.defer(() => this.#following)
    this.#follow()
  }

  /** Answers in a network, asks there, and says what this node gives out, until disposed. */
  async serve(network: string, scope: PathsScope, records: Records): Promise<AsyncDisposable> {
    const stack = new AsyncDisposableStack()
    stack.use(await this.paths.serve(network, scope))
    stack.use(this.#filter.join(network, records))
    return stack
  }

  /** Takes other patterns. */
  configure(privatePaths: readonly string[]): void {
    this.#rules = new StoreRules(privatePaths)
    this.index.setRules(this.#rules)
  }

  /** How many store paths are given out; undefined where none are, or they have not been read yet. */
  get pathCount(): number | undefined {
    return this.shares.networks().size > 0 && this.index.isReady ? this.index.pathCount : undefined
  }

  warnings(): Warning[] {
    const { shares, store } = this
    return shareWarnings({
      isOpen: shares.modeOf(OPEN_NETWORK_ID) === 'store',
      isSharing: shares.networks().size > 0,
      hasStore: store.isInstalled,
      failure: this.#filter.failure,
    })
  }

  /** The store is looked at only while it is given out. One change follows the other. */
  #follow(): void {
    this.#following = this.#following.then(async () => {
      if (this.shares.networks().size > 0) this.index.start()
      else {
        await this.index.stop()
        this.source.clear()
      }
    })
  }
}

/** Whose stores may have a path, in all networks of this node. */
export function storePeers({
  filters,
  paths,
  trust,
  isConnected,
}: {
  filters: () => Iterable<Filters>
  paths: StorePaths
  trust: Pick<TrustedKeys, 'has'>
  isConnected: (peerId: string) => boolean
}): StorePeers {
  return new StorePeers({
    holders: (hashPart) => [...filters()].flatMap((one) => one.holders(hashPart)),
    paths,
    isConnected,
    isTrusted: (signer) => trust.has(signer),
  })
}

/** Of all networks that run. */
export function* filtersOf(
  closed: Pick<ClosedNetworks, 'list'>,
  openNetwork: OpenNetwork | undefined,
): Generator<Filters> {
  for (const { filters } of closed.list()) yield filters
  if (openNetwork !== undefined) yield openNetwork.filters
}

/** What the local API does with it. */
export class NodeShare implements ShareApi {
  readonly #sharing: Pick<Sharing, 'shares' | 'pathCount'>
  readonly #places: Pick<Places, 'named'>
  readonly #log: Log

  constructor(sharing: Pick<Sharing, 'shares' | 'pathCount'>, places: Pick<Places, 'named'>, log: Log) {
    this.#sharing = sharing
    this.#places = places
    this.#log = log
  }

  share(network: string): ShareView {
    const place = this.#places.named(network)
    const { id, name } = place
    const share = this.#sharing.shares.modeOf(id)
    const unseen = share === 'store' ? place.refusal() : undefined
    return {
      network: name,
      id,
      share,
      paths: share === 'store' ? (this.#sharing.pathCount ?? null) : null,
      ...(unseen && { unseen }),
    }
  }

  setShare({ network, share }: ShareRequest): ShareView {
    const { id, name } = this.#places.named(network)
    this.#sharing.shares.set(id, share)
    this.#log.info({ network: id === OPEN_NETWORK_ID ? OPEN_NETWORK_NAME : name, share }, 'network.share')
    return this.share(network)
  }
}
