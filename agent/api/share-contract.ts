/**
 * The contract about what is given out in a network: what was published there, or the whole Nix store of this machine. As contract.ts,
 * which it is a part of; and what the routes need of a running agent for it.
 */

/** `published`: what was published there, and nothing else. `store`: all of the local Nix store, but for what is private by rule. */
export type ShareMode = 'published' | 'store'

export type ShareRequest = { network: string; share: ShareMode }

export type ShareView = {
  /** Name of the network, and its id. */
  network: string
  id: string
  share: ShareMode
  /** Of the store, with `store`: how many paths are given out; null until they have been read. */
  paths: number | null
  /** Why nobody there sees what this node gives out, and what to do. */
  unseen?: { why: string; next: string }
}

export interface ShareApi {
  share(network: string): ShareView
  /** In force when it returns. */
  setShare(request: ShareRequest): ShareView
}
