/**
 * Says again what this node said for long, from start() until disposed, before it expires elsewhere; and at start what expired while the
 * node was off. Only what was said from this state directory: a record of this node's key that came back from the network
 * may speak of things that are not here any more.
 */
import { ISSUED_AHEAD_MS_MAX } from '../../protocols/records/record.ts'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import type { Records } from './records.ts'

/** Coarse against leases of weeks; it costs one query. */
const CHECK_MS = 3_600_000

export type RenewerOptions = {
  records: Pick<Records, 'own' | 'put' | 'now'>
  /** Kinds to renew, each with its full lease; renewed when less than half of it is left. */
  leases: Readonly<Record<string, number>>
  log: Log
}

export class Renewer implements Disposable {
  readonly #options: RenewerOptions
  readonly #timer: NodeJS.Timeout

  private constructor(options: RenewerOptions) {
    this.#options = options
    this.#timer = setInterval(() => this.#renew(), CHECK_MS).unref()
  }

  static start(options: RenewerOptions): Renewer {
    const renewer = new Renewer(options)
    renewer.#renew()
    return renewer
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer)
  }

  #renew(): void {
    const { records, leases, log } = this.#options
    for (const [kind, leaseMs] of Object.entries(leases)) {
      const now = records.now()
      // What was issued ahead of time was said while this node's clock was wrong, and nobody took it.
      const due = records
        .own(kind)
        .filter(({ issued, expires }) => expires - now < leaseMs / 2 || issued > now + ISSUED_AHEAD_MS_MAX)
      try {
        for (const { name, body } of due) records.put({ kind, name, body, leaseMs })
        if (due.length > 0) log.info({ kind, count: due.length }, 'records.renewed')
      } catch (error) {
        log.warn({ kind, reason: reasonOf(error) }, 'records.unrenewed')
      }
    }
  }
}
