/**
 * A token that is being shown to the node that made it (protocols/hello/spec.md). Which connection it is shown on is not known before: the one
 * that was dialled for it may turn out to be one that was under way already, without it, while it is shown on another. So what became of
 * it is what the hellos with it say, and not what the dial says.
 */
import { type Greeting, greet, type HelloOptions, type Joined } from '../../protocols/hello/hello.ts'
import type { Token } from '../../protocols/membership/token.ts'

export type Shown = {
  readonly token: Token
  /** What this node would like to be called. */
  readonly wished: string | undefined
  /** Stores what the token brought. */
  readonly store: (joined: Joined) => Promise<void> | void
}

export class Showing {
  readonly #shown: Shown
  readonly #outcomes: Promise<Joined | undefined>[] = []

  constructor(shown: Shown) {
    this.#shown = shown
  }

  get isShown(): boolean {
    return this.#outcomes.length > 0
  }

  /** The dialler's hello, with the token. */
  greet(options: HelloOptions): Promise<Greeting> {
    const greeting = this.#greet(options)
    const outcome = greeting.then(({ joined }) => joined)
    outcome.catch(() => undefined)
    this.#outcomes.push(outcome)
    return greeting
  }

  /** What the token brought, stored; undefined if it was not shown. @throws {WireError} and the like: why the first hello with it brought nothing */
  async outcome(): Promise<Joined | undefined> {
    try {
      return await Promise.any(this.#outcomes)
    } catch {
      return await this.#outcomes[0]
    }
  }

  async #greet(options: HelloOptions): Promise<Greeting> {
    const { token, wished, store } = this.#shown
    const greeting = await greet({ ...options, token, wished })
    if (greeting.joined !== undefined) await store(greeting.joined)
    return greeting
  }
}
