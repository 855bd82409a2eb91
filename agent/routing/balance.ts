/**
 * In which order the instances of a service are tried: the healthy before those that nobody looked at yet, the near before the far, and among equals
 * by weight; ill and draining ones not at all. Nothing is kept between two questions: whoever asks says who failed lately.
 */
import { createHash } from 'node:crypto'
import type { Instance } from './services.ts'

/** Round trips of one class: half as long again, and what a busy machine adds. */
const NEAR_FACTOR = 1.5
const NEAR_MS = 5

export type Choosing = {
  /** Zone of this node. */
  zone?: string | undefined
  /** Peer id of this node: nothing is nearer. */
  self: string
  sticky?: string | undefined
  /** Whether a dial of it failed a moment ago: then it comes last. */
  failedLately?: (instance: Instance) => boolean
  random?: () => number
}

/** Best first; without those that take no new streams. */
export function order(instances: readonly Instance[], choosing: Choosing): Instance[] {
  const open = instances.filter(({ state }) => state === 'healthy' || state === 'unknown')
  const nearest = Math.min(...open.map((one) => rttOf(one, choosing.self)))
  const random = choosing.random ?? Math.random
  const ranked = open.map((instance) => ({
    instance,
    class: classOf(instance, nearest, choosing),
    lot: lotOf(instance, choosing.sticky === undefined ? random() : hashOf(choosing.sticky, instance)),
  }))
  return ranked.sort((a, b) => a.class - b.class || a.lot - b.lot).map(({ instance }) => instance)
}

/** The lower the better. Sticky streams stay where they are though another becomes nearer: only what cannot be used moves them. */
function classOf(instance: Instance, nearestMs: number, { zone, self, sticky, failedLately }: Choosing): number {
  const isUnsure = instance.state === 'unknown' ? 8 : 0
  const isFailed = failedLately?.(instance) === true ? 16 : 0
  const isSpare = instance.weight === 0 ? 4 : 0
  if (sticky !== undefined) return isFailed + isUnsure + isSpare
  const isElsewhere = zone !== undefined && instance.zone !== zone && instance.peerId !== self ? 2 : 0
  const isFar = rttOf(instance, self) > nearestMs * NEAR_FACTOR + NEAR_MS ? 1 : 0
  return isFailed + isUnsure + isSpare + isElsewhere + isFar
}

/** Those that are not connected are farther than all that are, and all are farther than this node. */
function rttOf({ peerId, rttMs }: Instance, self: string): number {
  return peerId === self ? Number.NEGATIVE_INFINITY : (rttMs ?? Number.MAX_VALUE)
}

/** Weighted without putting back (Efraimidis and Spirakis): the lowest of -ln(u) / weight comes first in proportion to the weights. */
function lotOf({ weight }: Instance, uniform: number): number {
  return -Math.log(Math.max(uniform, Number.MIN_VALUE)) / Math.max(weight, 1)
}

/** A number in (0, 1] that is always the same: the instance with the best lot keeps it when others come and go (rendezvous hashing). */
function hashOf(sticky: string, { peerId, service, network }: Instance): number {
  const digest = createHash('sha256').update(`${network}\0${service}\0${peerId}\0${sticky}`).digest()
  return (digest.readUInt32BE(0) + 1) / 2 ** 32
}
