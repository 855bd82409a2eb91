/**
 * Tells the service manager how the agent is (sd_notify(3)): ready, reloading, stopping, alive. Without NOTIFY_SOCKET there is nobody to
 * tell, and nothing is loaded.
 *
 * The protocol is a datagram on a unix socket, which Node cannot send: libc's sendto does, through koffi. Sending never waits, and a
 * manager that does not listen is no reason to fail.
 */
import { AgentError, reasonOf } from '../error.ts'

/** As in <sys/socket.h> of Linux. */
const AF_UNIX = 1
const SOCK_DGRAM = 2
const SOCK_CLOEXEC = 0o2000000
const MSG_DONTWAIT = 0x40
const MSG_NOSIGNAL = 0x4000
/** sockaddr_un: a family of two bytes, then the path. */
const PATH_BYTES_MAX = 108

type Environment = Readonly<Record<string, string | undefined>>
type Send = (message: Buffer) => void

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

/** One socket for the life of the process; the manager may go and come back, so it is not connected. */
async function openSocket(address: string): Promise<Send> {
  const sockaddr = socketAddress(address)
  try {
    const { default: koffi } = await import('koffi')
    // The process itself has libc loaded, by whichever name.
    const libc = koffi.load(null)
    const socket = libc.func('int socket(int domain, int type, int protocol)')
    const sendto = libc.func(
      'intptr_t sendto(int fd, const void *bytes, size_t length, int flags, const void *address, uint32_t addressLength)',
    )
    const fd: number = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)
    return (message) => {
      sendto(fd, message, message.byteLength, MSG_NOSIGNAL | MSG_DONTWAIT, sockaddr, sockaddr.byteLength)
    }
  } catch (cause) {
    throw new AgentError('failed', `the service manager cannot be notified: ${reasonOf(cause)}`, {
      cause,
      next: 'Use Type=exec in the unit, without WatchdogSec.',
    })
  }
}

/** A path, or `@` and a name in the abstract namespace, which begins with a NUL and has none at its end. */
function socketAddress(address: string): Buffer {
  const isAbstract = address.startsWith('@')
  const path = Buffer.from(isAbstract ? `\0${address.slice(1)}` : `${address}\0`)
  if (!(isAbstract || address.startsWith('/')) || path.byteLength > PATH_BYTES_MAX) {
    throw new AgentError('usage', `NOTIFY_SOCKET=${address} is no unix socket`, {
      next: 'systemd sets it; unset it to start the agent by hand.',
    })
  }
  const family = Buffer.from(new Uint16Array([AF_UNIX]).buffer)
  return Buffer.concat([family, path])
}
