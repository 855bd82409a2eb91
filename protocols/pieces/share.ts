/**
 * Who of several that fetch a blob at once takes which part of it first from those that have all of it: rendezvous hashing, so that all come
 * to the same answer without a word. Pure; see spec.md. Nobody gains by a name whose hash collides, so the hash need not be a strong one.
 */

/** Pieces of one share: a request, 1 MiB. */
export const SHARE_PIECES = 4

/** FNV-1a of a peer id's text. */
export function nameHash(peerId: string): number {
  let hash = 0x811c9dc5
  for (let at = 0; at < peerId.length; at++) hash = Math.imul(hash ^ peerId.charCodeAt(at), 0x01000193)
  return hash >>> 0
}

/** Of those that fetch, the one with the highest weight for a run of pieces has the share of it. `run` is its number from 0. */
export function shareWeight(name: number, run: number): number {
  let hash = name ^ Math.imul(run + 1, 0x9e3779b1)
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b)
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35)
  return (hash ^ (hash >>> 16)) >>> 0
}
