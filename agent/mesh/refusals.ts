/** Why a connection is not let in, or was cut, or is less than was shown: for whoever dialled, and for who is told of it. */
import type { Connection } from '@libp2p/interface'
import type { Admission } from '../../protocols/hello/hello.ts'
import type { Refused } from '../../protocols/hello/messages.ts'
import { sameBytes } from '../../protocols/membership/statement.ts'
import { AgentError, reasonOf } from '../error.ts'

export type Refusal = {
  readonly peerId: string
  readonly address: string
  readonly direction: Connection['direction']
  /** Whether it had been let in before. */
  readonly wasIn: boolean
  /** For people. */
  readonly why: string
}

/** For whoever dialled. */
export function refusal(peerId: string, cause: unknown): AgentError {
  return new AgentError('not-allowed', `no connection with ${peerId}: ${reasonOf(cause)}`, { cause })
}

/** The gate's reason in what a dial failed with; undefined when it failed otherwise. */
export function refusalIn(error: unknown): AgentError | undefined {
  if (error instanceof AggregateError) return error.errors.map(refusalIn).find((one) => one !== undefined)
  return error instanceof AgentError && error.code === 'not-allowed' ? error : undefined
}

export function toError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error))
}

/** What is left of an admission when the peer refused some of what we showed: there we are nothing to each other. */
export function without({ open, members, faults, guest }: Admission, refused: Refused): Admission {
  const rest = members.filter((one) => !refused.some(({ network }) => sameBytes(network, one.network)))
  return { open, members: rest, faults, guest }
}
