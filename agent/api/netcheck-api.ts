/** What the routes need of a running agent for netcheck. As AgentApi, which it is a part of. */
import type { NetcheckResult } from './netcheck-contract.ts'

export interface NetcheckApi {
  /** Takes some seconds: members, the router and the resolver are asked. */
  check(signal: AbortSignal): Promise<NetcheckResult>
}
