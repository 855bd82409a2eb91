/**
 * Tells the service manager how the agent is (sd_notify(3)): ready, reloading, stopping, alive. Without NOTIFY_SOCKET there is nobody to
 * tell, and nothing is loaded.
 *
 * The protocol is a datagram on a unix socket. A manager that does not listen is no reason to fail.
 */
import { AgentError, reasonOf } from '../error.ts'
import { isSocketAddress, openDatagrams, type Send } from './datagrams.ts'

type Environment = Readonly<Record<string, string | undefined>>

export class Notifier implements Disposable {
  readonly #send: Send
  readonly #watchdogMs: number | undefined
  #watchdog: NodeJS.Timeout | undefined

  private constructor(send: Send, watchdogMs: number | undefined) {
    this.#send = send
    this.#watchdogMs = watchdogMs
  }

  /**
   * The notifier of the manager that started this process; undefined when there is none.
   *
   * @throws {AgentError} `usage` when NOTIFY_SOCKET is no address of a unix socket.
   */
  static async fromEnvironment(env: Environment = process.env, pid = process.pid): Promise<Notifier | undefined> {
    const { NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID } = env
    if (!NOTIFY_SOCKET) return undefined
    const isOurs = WATCHDOG_PID === undefined || Number(WATCHDOG_PID) === pid
    const watchdogMs = isOurs && Number(WATCHDOG_USEC) > 0 ? Number(WATCHDOG_USEC) / 1_000 : undefined
    return new Notifier(await openSocket(NOTIFY_SOCKET), watchdogMs)
  }

  /** The agent serves; also ends a reload. `status` is what `systemctl status` shows. */
  ready(status: string): void {
    this.#notify('READY=1', statusLine(status))
  }

  status(status: string): void {
    this.#notify(statusLine(status))
  }

  /** SIGHUP has come; ready() follows. */
  reloading(): void {
    this.#notify('RELOADING=1', `MONOTONIC_USEC=${process.hrtime.bigint() / 1_000n}`)
  }

  stopping(status: string): void {
    this.#notify('STOPPING=1', statusLine(status))
  }

  /**
   * From now until disposed says that the agent is alive, twice in each period that the manager asked for, as long as `isAlive` says so.
   * The timer itself shows that the event loop turns.
   */
  watch(isAlive: () => boolean = () => true): void {
    if (this.#watchdogMs === undefined || this.#watchdog) return
    this.#watchdog = setInterval(() => {
      if (isAlive()) this.#notify('WATCHDOG=1')
    }, this.#watchdogMs / 2)
    this.#watchdog.unref()
  }

  [Symbol.dispose](): void {
    clearInterval(this.#watchdog)
  }

  #notify(...lines: string[]): void {
    this.#send(Buffer.from(`${lines.join('\n')}\n`))
  }
}

/** A line break would begin another assignment. */
function statusLine(status: string): string {
  return `STATUS=${status.replace(/\s+/g, ' ')}`
}

async function openSocket(address: string): Promise<Send> {
  if (!isSocketAddress(address))
    throw new AgentError('usage', `NOTIFY_SOCKET=${address} is no unix socket`, {
      next: 'systemd sets it; unset it to start the agent by hand.',
    })
  try {
    return await openDatagrams(address)
  } catch (cause) {
    throw new AgentError('failed', `the service manager cannot be notified: ${reasonOf(cause)}`, {
      cause,
      next: 'Use Type=exec in the unit, without WatchdogSec.',
    })
  }
}
