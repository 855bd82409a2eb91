/**
 * A process of a benchmark's own, told what to do over Node's IPC channel, so that it costs nothing else. It ends with whoever started it.
 */
import { fork } from 'node:child_process'
import { once } from 'node:events'

/** What a child is asked, by name, and what it answers to that. */
type Calls = Record<string, { ask: unknown; answer: unknown }>
export type Handlers<C extends Calls> = { [N in keyof C]: (ask: C[N]['ask']) => Promise<C[N]['answer']> }
type Question = { id: number; name: string; ask: unknown }
type Answer = { id: number; answer?: unknown; error?: string }

const ANSWER_MS_MAX = 180_000

export type ChildOptions = {
  /** Its first argument: modules that are also imported by others look whether it is theirs. */
  role: string
  /** Network namespace that it runs in. */
  namespace?: string | undefined
  /** Of Node. */
  flags?: string[]
}

/** The one end of the channel. */
export class Child<C extends Calls> implements AsyncDisposable {
  readonly #child
  readonly #role: string
  readonly #waiting = new Map<number, (answer: Answer) => void>()
  #asked = 0

  constructor(entry: string, { role, namespace, flags = [] }: ChildOptions) {
    this.#role = role
    // `ip netns exec` passes the channel on: it is an inherited file descriptor.
    const how = namespace
      ? { execPath: 'ip', execArgv: ['netns', 'exec', namespace, process.execPath, ...flags] }
      : { execArgv: flags }
    // Unlike JSON, it carries bytes.
    this.#child = fork(entry, [role], { ...how, serialization: 'advanced' })
    this.#child.on('message', (answer: Answer) => this.#waiting.get(answer.id)?.(answer))
  }

  get pid(): number {
    return this.#child.pid ?? 0
  }

  async ask<N extends keyof C & string>(name: N, ask: C[N]['ask']): Promise<C[N]['answer']> {
    const id = this.#asked++
    const signal = AbortSignal.timeout(ANSWER_MS_MAX)
    const answer = await new Promise<Answer>((resolve, reject) => {
      const fail = () => reject(new Error(`a ${this.#role} node did not answer ${name}`))
      signal.addEventListener('abort', fail, { once: true })
      this.#child.once('exit', fail)
      this.#waiting.set(id, (answered) => {
        this.#waiting.delete(id)
        signal.removeEventListener('abort', fail)
        this.#child.off('exit', fail)
        resolve(answered)
      })
      this.#child.send({ id, name, ask } satisfies Question)
    })
    if (answer.error !== undefined) throw new Error(`${this.#role} node, ${name}: ${answer.error}`)
    return answer.answer as C[N]['answer']
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return
    const gone = once(this.#child, 'exit')
    this.#child.kill('SIGKILL')
    await gone
  }
}

/** The other end, in a process that was started in this role; in any other this does nothing. */
export function serveParent<C extends Calls>(role: string, make: () => Handlers<C>): void {
  if (process.send === undefined || process.argv[2] !== role) return
  const handle = make() as unknown as Record<string, (ask: unknown) => Promise<unknown>>
  process.on('message', ({ id, name, ask }: Question) => {
    const work = handle[name]?.(ask) ?? Promise.reject(new Error('no such call'))
    work.then(
      (answer) => process.send?.({ id, answer }),
      (error: unknown) => process.send?.({ id, error: String(error) }),
    )
  })
  process.on('disconnect', () => process.exit())
}
