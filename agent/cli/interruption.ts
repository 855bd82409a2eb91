/** Ctrl-C: how a command hears of it, and how it says that it has tidied up. */

const INTERRUPTS = ['SIGINT', 'SIGTERM'] as const

/** Thrown when the user pressed Ctrl-C and the command has tidied up; the message says what remains. */
export class Interrupted extends Error {
  override readonly name = 'Interrupted'
}

/** Ctrl-C once: the command tidies up. Twice: it is over, since the signals then act as ever. */
export class Interruption implements Disposable {
  readonly #controller = new AbortController()
  readonly #abort = () => {
    this[Symbol.dispose]()
    this.#controller.abort(new Interrupted())
  }

  begin(): AbortSignal {
    for (const name of INTERRUPTS) process.on(name, this.#abort)
    return this.#controller.signal
  }

  [Symbol.dispose](): void {
    for (const name of INTERRUPTS) process.off(name, this.#abort)
  }
}
