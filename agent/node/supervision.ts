/**
 * What the service manager is told while the agent runs: that it is ready, how it is in one line, that a reload has begun and ended, and,
 * as long as it answers on its own socket, that it is alive. An agent that hangs, or whose socket somebody removed, is so started again.
 */
import { Client } from '../api/client.ts'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import type { Notifier } from '../service/notify.ts'

/** `systemctl status` is looked at by people. */
const STATUS_MS = 10_000

type Telling = Pick<Notifier, 'ready' | 'status' | 'reloading' | 'stopping' | 'watch'>

export type SupervisionInit = {
  /** undefined when nobody asked. */
  notifier: Telling | undefined
  /** Whether the agent answers. */
  ask: () => Promise<unknown>
  /** One line on how the node is. */
  summary: () => string
  log: Log
  statusMs?: number
}

export class Supervision implements Disposable {
  readonly #init: SupervisionInit
  readonly #timer: NodeJS.Timeout
  #told = ''
  /** By the answer to the last question; one that is still awaited counts as none. */
  #isWell = true

  constructor(init: SupervisionInit) {
    this.#init = init
    const { notifier, summary, statusMs = STATUS_MS } = init
    this.#told = summary()
    notifier?.ready(this.#told)
    notifier?.watch(() => this.#isAlive())
    this.#timer = setInterval(() => this.#tell(), statusMs).unref()
  }

  /** Says that a reload begins, does it, and says that it has ended. */
  reload(work: () => void): void {
    const { notifier, summary } = this.#init
    notifier?.reloading()
    work()
    this.#told = summary()
    notifier?.ready(this.#told)
  }

  stopping(why: string): void {
    this[Symbol.dispose]()
    this.#init.notifier?.stopping(why)
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer)
  }

  #tell(): void {
    const text = this.#init.summary()
    if (text === this.#told) return
    this.#told = text
    this.#init.notifier?.status(text)
  }

  /** Called twice in the period after which the manager loses patience: so what it says is half of that old. */
  #isAlive(): boolean {
    const wasWell = this.#isWell
    this.#isWell = false
    this.#init.ask().then(
      () => {
        this.#isWell = true
      },
      (error: unknown) => this.#init.log.warn({ reason: reasonOf(error) }, 'agent.unwell'),
    )
    return wasWell
  }
}

/** Asks an agent what costs it nothing, over its own socket. */
export function askOwnSocket(socket: string): () => Promise<unknown> {
  const client = new Client(async () => [socket])
  return () => client.get('peers')
}

/** How a node is, for `systemctl status`. */
export function summaryOf({
  peers,
  networks,
  artifacts,
}: {
  peers: number
  networks: number
  artifacts: number
}): string {
  const count = (number: number, noun: string) => `${number} ${noun}${number === 1 ? '' : 's'}`
  return `${count(peers, 'peer')} in ${count(networks, 'network')}, ${count(artifacts, 'artifact')} known`
}
