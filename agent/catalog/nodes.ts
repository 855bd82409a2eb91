/**
 * Who is there: a view of the presence records, kept in memory. A node whose presence expired, or who said goodbye, is not in it.
 */
import { PRESENCE_KIND, PRESENCE_NAME, type PresenceBody, presenceBody } from '../../protocols/records/presence.ts'
import { peerIdOf } from './peer-id.ts'
import type { Change, Records } from './records.ts'

/** A node that is there, as it describes itself. */
export type NodeView = PresenceBody & { peerId: string; expires: number }

export class Nodes implements Disposable {
  readonly #now: () => number
  readonly #nodes = new Map<string, NodeView>()
  readonly #renamed = new Set<(publisher: Uint8Array) => void>()
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

  #apply({ publisher, kind, name, record }: Change): void {
    if (kind !== PRESENCE_KIND || name !== PRESENCE_NAME) return
    const peerId = peerIdOf(publisher)
    const before = this.#nodes.get(peerId)?.name
    const body = record && !record.deleted ? presenceBody.safeParse(record.body) : undefined
    if (record && body?.success) this.#nodes.set(peerId, { ...body.data, peerId, expires: record.expires })
    else this.#nodes.delete(peerId)
    if (this.#nodes.get(peerId)?.name === before) return
    for (const listener of this.#renamed) listener(publisher)
  }
}
