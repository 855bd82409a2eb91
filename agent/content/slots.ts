/**
 * So many at a time; the others wait in line.
 */
export class Slots {
  #free: number
  readonly #waiting = new Set<() => void>()

  constructor(count: number) {
    this.#free = count
  }

  /** Resolves with the way to give the slot back, once. */
  async take(signal: AbortSignal): Promise<() => void> {
    while (this.#free === 0) await this.#turn(signal)
    if (signal.aborted) {
      this.#wakeNext()
      throw signal.reason as Error
    }
    this.#free--
    let held = true
    return () => {
      if (!held) return
      held = false
      this.#free++
      this.#wakeNext()
    }
  }

  #wakeNext(): void {
    const [next] = this.#waiting
    next?.()
  }

  #turn(signal: AbortSignal): Promise<void> {
    if (signal.aborted) return Promise.reject(signal.reason as Error)
    return new Promise((resolve, reject) => {
      const settle = (act: () => void) => {
        this.#waiting.delete(onTurn)
        signal.removeEventListener('abort', onAbort)
        act()
      }
      const onTurn = () => settle(resolve)
      const onAbort = () => settle(() => reject(signal.reason as Error))
      this.#waiting.add(onTurn)
      signal.addEventListener('abort', onAbort, { once: true })
    })
  }
}
