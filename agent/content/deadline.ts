/**
 * A signal that fires when nothing was heard for a while, or when the parent signal does. Cheap to wind again: one timer, refreshed.
 */
import { WireError } from '../../protocols/error.ts'

export class Deadline implements Disposable {
  readonly #controller = new AbortController()
  readonly #parent: AbortSignal
  #timer: NodeJS.Timeout
  readonly #onParentAbort = () => this.#controller.abort(this.#parent.reason)
  #held = 0
  #isLate = false

  constructor(quietMs: number, parent: AbortSignal) {
    this.#parent = parent
    this.#timer = this.#timerOf(quietMs)
    if (parent.aborted) this.#onParentAbort()
    else parent.addEventListener('abort', this.#onParentAbort, { once: true })
  }

  get signal(): AbortSignal {
    return this.#controller.signal
  }

  /** Whether the time is over. */
  get isLate(): boolean {
    return this.#isLate
  }

  /** Something was heard. */
  wind(): void {
    this.#timer.refresh()
  }

  /** Begins anew, and from now on it may be quiet for so long. */
  allow(quietMs: number): void {
    clearTimeout(this.#timer)
    this.#timer = this.#timerOf(quietMs)
  }

  /** While `work` runs it is our turn, not the peer's: the time does not count. */
  async hold<T>(work: Promise<T>): Promise<T> {
    this.#held++
    try {
      return await work
    } finally {
      this.#held--
      this.wind()
    }
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer)
    this.#parent.removeEventListener('abort', this.#onParentAbort)
  }

  #timerOf(quietMs: number): NodeJS.Timeout {
    return setTimeout(() => {
      if (this.#held > 0) this.#timer.refresh()
      else {
        this.#isLate = true
        this.#controller.abort(new WireError('timeout', `nothing came for ${Math.ceil(quietMs / 1000)} s`))
      }
    }, quietMs)
  }
}
