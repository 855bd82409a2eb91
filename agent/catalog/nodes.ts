/**
 * Who is there: a view of the presence records, kept in memory. A node whose presence expired, or who said goodbye, is not in it. In a
 * closed network it also tells where nodes say that they can be dialled.
 */
import { multiaddr } from '@multiformats/multiaddr'
import {
  addressesIn,
  PRESENCE_KIND,
  PRESENCE_NAME,
  type PresenceBody,
  presenceBody,
  relaysIn,
} from '../../protocols/records/presence.ts'
import { peerIdOf } from '../identity/peer-id.ts'
import { peerIdIn } from '../mesh/addresses.ts'
import type { Change, Records } from './records.ts'

/** A node that is there, as it describes itself. */
export type NodeView = Omit<PresenceBody, 'addresses' | 'relays'> & {
  peerId: string
  expires: number
  /** Multiaddrs where it says that it can be dialled; none in the open network. */
  addresses: readonly string[]
  /** Peer ids of those through whom it says that it can be reached. */
  relays: readonly string[]
}

export class Nodes implements Disposable {
  readonly #now: () => number
  readonly #nodes = new Map<string, NodeView>()
  readonly #renamed = new Set<(publisher: Uint8Array) => void>()
  readonly #moved = new Set<(peerId: string, addresses: readonly string[]) => void>()
  readonly #unlisten: () => void

  constructor(records: Pick<Records, 'list' | 'onChange' | 'now'>) {
    this.#now = records.now
    for (const record of records.list(PRESENCE_KIND)) this.#apply({ ...record, record, cause: 'accepted' })
    this.#unlisten = records.onChange((changes) => {
      for (const change of changes) this.#apply(change)
    })
  }

  [Symbol.dispose](): void {
    this.#unlisten()
  }

  /** In no order. */
  list(): NodeView[] {
    const now = this.#now()
    return [...this.#nodes.values()].filter(({ expires }) => expires > now)
  }

  get count(): number {
    return this.#nodes.size
  }

  get(peerId: string): NodeView | undefined {
    const node = this.#nodes.get(peerId)
    return node && node.expires > this.#now() ? node : undefined
  }

  /** Told when a node has another name than before, none included. */
  onRename(listener: (publisher: Uint8Array) => void): () => void {
    this.#renamed.add(listener)
    return () => this.#renamed.delete(listener)
  }

  /** Told of who is there and says addresses, at once, and then whenever a node says other ones than before. */
  onAddresses(listener: (peerId: string, addresses: readonly string[]) => void): () => void {
    this.#moved.add(listener)
    for (const { peerId, addresses } of this.list()) if (addresses.length > 0) listener(peerId, addresses)
    return () => this.#moved.delete(listener)
  }

  #apply({ publisher, kind, name, record }: Change): void {
    if (kind !== PRESENCE_KIND || name !== PRESENCE_NAME) return
    const peerId = peerIdOf(publisher)
    const before = this.#nodes.get(peerId)
    const body = record && !record.deleted ? presenceBody.safeParse(record.body) : undefined
    if (record && body?.success) {
      const addresses = usableAddresses(body.data, peerId)
      const relays = relaysIn(body.data).map(peerIdOf)
      this.#nodes.set(peerId, { ...body.data, addresses, relays, peerId, expires: record.expires })
      if (addresses.length > 0 && addresses.join() !== before?.addresses.join())
        for (const listener of this.#moved) listener(peerId, addresses)
    } else this.#nodes.delete(peerId)
    if (this.#nodes.get(peerId)?.name === before?.name) return
    for (const listener of this.#renamed) listener(publisher)
  }
}

/** What can be dialled of what a node says, and would lead to that node. */
function usableAddresses(body: PresenceBody, peerId: string): string[] {
  return addressesIn(body).filter((text) => {
    try {
      const named = peerIdIn(multiaddr(text))
      return named === undefined || named === peerId
    } catch {
      return false
    }
  })
}
