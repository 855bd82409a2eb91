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

/** So many at a time for each peer, and for all of them. */
export class SlotsByPeer {
  readonly #each: number
  readonly #all: Slots
  readonly #of = new Map<string, { slots: Slots; users: number }>()

  constructor(each: number, all: number) {
    this.#each = each
    this.#all = new Slots(all)
  }

  async take(peerId: string, signal: AbortSignal): Promise<() => void> {
    const entry = this.#of.get(peerId) ?? { slots: new Slots(this.#each), users: 0 }
    this.#of.set(peerId, entry)
    entry.users++
    const leave = () => {
      if (--entry.users === 0) this.#of.delete(peerId)
    }
    let freeOne: (() => void) | undefined
    try {
      freeOne = await entry.slots.take(signal)
      const freeAll = await this.#all.take(signal)
      return () => {
        freeAll()
        freeOne?.()
        leave()
      }
    } catch (error) {
      freeOne?.()
      leave()
      throw error
    }
  }
}
