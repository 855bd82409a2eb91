/**
 * Errors for people: what happened, to what, and what to do next. The code decides the command's exit status and the API's HTTP
 * status; a bug is not an AgentError, and crashes.
 */

/** Closed list. */
export type AgentErrorCode =
  /** Anything that went wrong and has no narrower code. Exit 1. */
  | 'failed'
  /** The user asked in a way that cannot be carried out: bad flag, bad configuration, bad name. Exit 2. */
  | 'usage'
  /** No agent answers on the socket. Exit 3. */
  | 'not-running'
  /** A rule or a permission says no. Exit 4. */
  | 'not-allowed'
  /** What was named does not exist, here or on any peer asked. Exit 5. */
  | 'not-found'
  /** Another process holds it: a port, a state directory. Exit 1. */
  | 'taken'
  /** Bytes on disk or from a peer are not what they must be. Exit 1. */
  | 'corrupt'
  /** A limit was reached: quota, count, size. Exit 1. */
  | 'limit'
  /** The one who asked went away, or the agent is stopping. Exit 1. */
  | 'cancelled'

export class AgentError extends Error {
  override readonly name = 'AgentError'
  readonly code: AgentErrorCode
  /** What the user can do now, as a sentence; shown on a line of its own. */
  readonly next: string | undefined

  constructor(code: AgentErrorCode, message: string, options?: ErrorOptions & { next?: string }) {
    super(message, options)
    this.code = code
    this.next = options?.next
  }
}

/** The text of whatever was thrown, for a message or a log field. */
export function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
