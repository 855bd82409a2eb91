/**
 * Whether the application behind an offer answers: asked now and then by its own node, from the construction until disposed.
 *
 * Two failures in a row make it ill, two successes well again, so that one lost packet moves nobody. What is ill is asked less and less often; whoever
 * could not connect to it says so, and it is asked at once.
 */
import { connect } from 'node:net'
import { reasonOf } from '../error.ts'

const INTERVAL_MS = 5_000
/** After the first failure: soon, so that an application that died is known within a few seconds. */
const SUSPECT_MS = 500
/** While it is ill, doubled each time. */
const BACKOFF_MS_MAX = 30_000
const ANSWER_MS_MAX = 2_000
const FAILURES_MIN = 2
const SUCCESSES_MIN = 2
/** Of whatever the application answers; more is not read. */
const STATUS_OK_BELOW = 400

export type Check = { kind: 'tcp' } | { kind: 'http'; path: string } | { kind: 'none' }
export type Health = 'healthy' | 'ill' | 'unknown'

export type HealthOptions = {
  host: string
  port: number
  check: Check
  /** Told when the health is another one than before. */
  onChange: (health: Health, why: string | undefined) => void
  /** For tests. */
  intervalMs?: number
  suspectMs?: number
}

export class HealthCheck implements Disposable {
  readonly #options: HealthOptions
  readonly #stopping = new AbortController()
  #health: Health
  #why: string | undefined
  /** In a row; negative for failures. */
  #run = 0
  #timer: NodeJS.Timeout | undefined
  #isAsking = false

  constructor(options: HealthOptions) {
    this.#options = options
    this.#health = options.check.kind === 'none' ? 'healthy' : 'unknown'
    if (options.check.kind !== 'none') this.#timer = setTimeout(() => void this.#ask(), 0).unref()
  }

  get health(): Health {
    return this.#health
  }

  /** Why it is ill. */
  get why(): string | undefined {
    return this.#why
  }

  /** Somebody could not connect: it is asked now. */
  suspect(): void {
    if (this.#options.check.kind === 'none' || this.#isAsking || this.#stopping.signal.aborted) return
    if (this.#health === 'ill') return
    clearTimeout(this.#timer)
    void this.#ask()
  }

  [Symbol.dispose](): void {
    this.#stopping.abort(new Error('the service is offered no more'))
    clearTimeout(this.#timer)
  }

  async #ask(): Promise<void> {
    this.#isAsking = true
    const why = await failureOf(
      this.#options,
      AbortSignal.any([this.#stopping.signal, AbortSignal.timeout(ANSWER_MS_MAX)]),
    )
    this.#isAsking = false
    if (this.#stopping.signal.aborted) return
    this.#run = why === undefined ? Math.max(this.#run, 0) + 1 : Math.min(this.#run, 0) - 1
    this.#settle(why)
    this.#timer = setTimeout(() => void this.#ask(), this.#waitMs()).unref()
  }

  #settle(why: string | undefined): void {
    const before = this.#health
    if (this.#run <= -FAILURES_MIN) this.#health = 'ill'
    // The first answer is enough for what nobody knows anything of.
    else if (this.#run >= (before === 'unknown' ? 1 : SUCCESSES_MIN)) this.#health = 'healthy'
    this.#why = this.#health === 'ill' ? (why ?? this.#why) : undefined
    if (this.#health !== before) this.#options.onChange(this.#health, this.#why)
  }

  #waitMs(): number {
    const { intervalMs = INTERVAL_MS, suspectMs = SUSPECT_MS } = this.#options
    const failures = -this.#run
    if (failures >= FAILURES_MIN) return Math.min(suspectMs * 2 ** Math.min(failures - 1, 16), BACKOFF_MS_MAX)
    const isSettled = this.#run >= SUCCESSES_MIN || (this.#run === 1 && this.#health === 'healthy')
    return isSettled ? intervalMs : suspectMs
  }
}

/** `tcp`, `http:/path` or `none`; undefined for anything else. */
export function checkIn(text: string): Check | undefined {
  if (text === 'tcp' || text === 'none') return { kind: text }
  const [, path] = /^http:(\/[!-~]{0,255})$/.exec(text) ?? []
  return path === undefined ? undefined : { kind: 'http', path }
}

export function checkText(check: Check): string {
  return check.kind === 'http' ? `http:${check.path}` : check.kind
}

/** Undefined when it answers as it should. */
async function failureOf({ host, port, check }: HealthOptions, signal: AbortSignal): Promise<string | undefined> {
  try {
    if (check.kind === 'http') await askHttp(host, port, check.path, signal)
    else await askTcp(host, port, signal)
    return undefined
  } catch (error) {
    if (signal.aborted && signal.reason instanceof DOMException) return `no answer within ${ANSWER_MS_MAX / 1_000} s`
    return reasonOf(error) || (error as NodeJS.ErrnoException).code || 'it does not answer'
  }
}

function askTcp(host: string, port: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host, port, signal })
    socket.once('error', reject)
    socket.once('connect', () => {
      socket.destroy()
      resolve()
    })
  })
}

function askHttp(host: string, port: number, path: string, signal: AbortSignal): Promise<void> {
  // Not imported: as an ES module it brings all of undici, a tenth of the agent's start.
  const { request } = process.getBuiltinModule('node:http')
  return new Promise((resolve, reject) => {
    const asked = request(
      { host, port, path, signal, agent: false, headers: { 'user-agent': 'undernet' } },
      (response) => {
        const { statusCode = 0 } = response
        response.destroy()
        if (statusCode < STATUS_OK_BELOW) resolve()
        else reject(new Error(`it answers ${path} with ${statusCode}`))
      },
    )
    asked.once('error', reject)
    asked.end()
  })
}
