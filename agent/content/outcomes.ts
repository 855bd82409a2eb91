/**
 * What became of the sources of one blob: who failed, who lied, and what to tell whoever waited in vain.
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { AgentError } from '../error.ts'

/** Named in an error message; the log has them all. */
const REASONS_MAX = 5

/** Of a source that was tried. `hasGiven`: some of the blob, before it failed. */
type Outcome = { reason: string; lied: boolean; hasGiven?: boolean }

export class Outcomes {
  readonly #digest: Digest
  readonly #onFault: (peerId: string, reason: string) => void
  readonly #of = new Map<string, Outcome>()

  /** `onFault` is told of each liar once. */
  constructor(digest: Digest, onFault: (peerId: string, reason: string) => void) {
    this.#digest = digest
    this.#onFault = onFault
  }

  note(peerId: string, outcome: Outcome): void {
    this.#of.set(peerId, outcome)
  }

  hasGiven(peerId: string): boolean {
    return this.#of.get(peerId)?.hasGiven ?? false
  }

  blame(peerId: string, reason: string): void {
    if (this.#of.get(peerId)?.lied) return
    this.#of.set(peerId, { reason, lied: true })
    this.#onFault(peerId, reason)
  }

  /** Who failed and how, as far as it is known; liars first. */
  reasons(): string {
    const told = [...this.#of].sort(([, a], [, b]) => Number(b.lied) - Number(a.lied)).slice(0, REASONS_MAX)
    return told.map(([peerId, { reason }]) => `${peerId}: ${reason}`).join('; ')
  }

  failure(): AgentError {
    const outcomes = [...this.#of.values()]
    if (outcomes.some(({ lied }) => lied))
      return new AgentError('corrupt', `no peer gave the right bytes of ${this.#digest}: ${this.reasons()}`)
    if (outcomes.length > 0) return new AgentError('not-found', `no peer could give ${this.#digest}: ${this.reasons()}`)
    return new AgentError('not-found', `no peer is known to have ${this.#digest}`)
  }
}

/** What someone is told who left, or was sent away: then whoever did that said why. */
export function cancelled(signal?: AbortSignal): AgentError {
  return signal?.reason instanceof AgentError ? signal.reason : new AgentError('cancelled', 'the fetch was cancelled')
}

/** The promise's outcome, or an AgentError `cancelled` as soon as the signal fires. */
export function untilAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  if (signal.aborted) return Promise.reject(cancelled(signal))
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(cancelled(signal))
    signal.addEventListener('abort', onAbort, { once: true })
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort))
  })
}
