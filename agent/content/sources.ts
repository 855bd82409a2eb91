/**
 * The peers that several waiters for one blob know of, each named once, pulled from their iterables only when one is needed.
 */
export class SourceQueue {
  readonly #iterators = new Map<object, { iterator: AsyncIterator<string>; pending?: Promise<string | undefined> }>()
  readonly #seen = new Set<string>()
  readonly #ready: string[] = []
  #changed = Promise.withResolvers<undefined>()

  /** `owner` is to be given again to `remove`. */
  add(owner: object, sources: Iterable<string> | AsyncIterable<string>): void {
    this.#iterators.set(owner, { iterator: asyncIterator(sources) })
    this.#changed.resolve(undefined)
    this.#changed = Promise.withResolvers<undefined>()
  }

  remove(owner: object): void {
    const entry = this.#iterators.get(owner)
    this.#iterators.delete(owner)
    // A generator that waits inside its search takes this when it comes back; what it then says concerns nobody.
    entry?.iterator.return?.().catch(() => undefined)
  }

  /** A peer not named before; undefined when no iterable has another. */
  async next(signal: AbortSignal): Promise<string | undefined> {
    const aborted = Promise.withResolvers<never>()
    const onAbort = () => aborted.reject(signal.reason as Error)
    signal.addEventListener('abort', onAbort, { once: true })
    try {
      for (;;) {
        signal.throwIfAborted()
        const ready = this.#ready.shift()
        if (ready !== undefined) return ready
        if (this.#iterators.size === 0) return undefined
        const pulls = [...this.#iterators].map(([owner, entry]) => this.#pull(owner, entry))
        await Promise.race([...pulls, this.#changed.promise, aborted.promise])
      }
    } finally {
      signal.removeEventListener('abort', onAbort)
    }
  }

  #pull(
    owner: object,
    entry: { iterator: AsyncIterator<string>; pending?: Promise<string | undefined> },
  ): Promise<unknown> {
    entry.pending ??= entry.iterator.next().then(
      ({ done, value }) => {
        delete entry.pending
        if (done) this.#iterators.delete(owner)
        else if (!this.#seen.has(value)) {
          this.#seen.add(value)
          this.#ready.push(value)
        }
        return undefined
      },
      () => {
        // A search that failed has no more to say; why is for whoever runs it.
        this.#iterators.delete(owner)
        return undefined
      },
    )
    return entry.pending
  }
}

function asyncIterator(sources: Iterable<string> | AsyncIterable<string>): AsyncIterator<string> {
  if (Symbol.asyncIterator in sources) return sources[Symbol.asyncIterator]()
  const iterator = sources[Symbol.iterator]()
  return { next: () => Promise.resolve(iterator.next()), return: () => Promise.resolve(iterator.return?.() ?? END) }
}

const END = { done: true, value: undefined } as const
