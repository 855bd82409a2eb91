/** Why a connection that was let in may not stay: what it proved has ended, was revoked, or is of no network of this node any more. */
import type { Admission, Party } from '../../protocols/hello/hello.ts'
import { sameBytes } from '../../protocols/membership/statement.ts'

/** Who is let in to be carried to somebody (guests.ts) is a member by then, or goes. */
const GUEST_MS_MAX = 60_000

/** For people; undefined when it may stay. */
export function lossOf(
  { admission: { open, members, guest }, sinceMs }: { readonly admission: Admission; readonly sinceMs: number },
  party: Party,
): string | undefined {
  const now = party.now()
  const isOver = members.length === 0 && !open && now - sinceMs >= GUEST_MS_MAX
  if (guest !== undefined && isOver) return 'it was let in to join a network, and did not'
  const networks = party.networks()
  for (const member of members) {
    if (!networks.some(({ network }) => sameBytes(network, member.network))) return 'this node left the network'
    if (member.notAfter <= now) return `the certificate of "${member.name}" ended`
    const fault = party.revocations(member.network).faultOf(member)
    if (fault === 'revoked') return `the key of "${member.name}" was revoked`
    if (fault !== undefined) return `whoever issued the certificate of "${member.name}" was revoked`
  }
  return members.length === 0 && open && !party.isOpen() ? 'the open network was switched off' : undefined
}
