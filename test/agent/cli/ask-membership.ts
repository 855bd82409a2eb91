/** Runs a command against an agent whose closed networks answer as a test wants. */
import type { MembershipApi } from '../../../agent/api/membership-api.ts'
import { serve } from '../api/fake-agent.ts'
import { fakeMembership } from '../api/fake-membership.ts'
import { run, type Surroundings } from './capture.ts'

export async function ask(
  words: string[],
  replaced: Partial<MembershipApi> = {},
  surroundings: Omit<Surroundings, 'socket'> = {},
) {
  await using agent = await serve({ membership: fakeMembership(replaced) })
  return await run(words, { socket: agent.socket, ...surroundings })
}
