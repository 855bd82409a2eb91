/**
 * What a person should know or do about the closed networks of this node: certificates that ended or are about to, root keys that nobody
 * could lose, networks that do not run.
 */
import type { Warning } from '../api/contract.ts'
import type { Membership } from '../identity/membership.ts'
import type { ClosedNetworks } from './closed-networks.ts'

const HOUR_MS = 3_600_000
const DAY_MS = 24 * HOUR_MS
/** Certificates are renewed at half of their time. One that is so near its end was not, for weeks. */
const ENDING_SHARE = 0.2

export type NetworksCondition = {
  memberships: readonly Membership[]
  failed: ReturnType<ClosedNetworks['failed']>
  /** Ids of networks whose root key is here, and nothing else of them. */
  orphans: readonly string[]
  /** Milliseconds since 1970. */
  now: number
}

export function networkWarnings({ memberships, failed, orphans, now }: NetworksCondition): Warning[] {
  return [
    ...failed.map(
      ({ membership, reason }): Warning => ({
        code: 'network.failed',
        message: `the network "${membership.name}" does not run: ${reason}`,
        next: 'Mend that and start the agent again; or leave the network and join it anew.',
      }),
    ),
    ...memberships.flatMap((membership) => certificateWarning(membership, now) ?? []),
    ...orphans.map(
      (id): Warning => ({
        code: 'network.lost',
        message: `the root key of the network ${id.slice(0, 8)} is here, and the database no longer knows that network`,
        next: 'Restore the state directory from a backup, or join the network again and keep the key file.',
      }),
    ),
  ]
}

function certificateWarning(membership: Membership, now: number): Warning | undefined {
  const { name, self } = membership
  const fault = membership.fault(now)
  const again = 'Ask for an invitation (`agent invite` on a node that may let others in), then `agent join` here.'
  if (fault?.fault === 'expired')
    return { code: 'membership.ended', message: `this node is not in "${name}" any more: ${fault.why}`, next: again }
  if (fault?.fault === 'revoked')
    return {
      code: 'membership.revoked',
      message: `this node was put out of "${name}": ${fault.why}`,
      next: `That is for good for this key. \`agent network leave ${name}\` removes what is left of it here.`,
    }
  if (fault !== undefined)
    return { code: 'membership.fault', message: `this node is not in "${name}" now: ${fault.why}`, next: again }
  const leftMs = self.notAfter - now
  if (leftMs > (self.notAfter - self.issued) * ENDING_SHARE) return undefined
  return {
    code: 'membership.ending',
    message: `the certificate of this node in "${name}" ends in ${timeText(leftMs)} and could not be renewed`,
    next: 'Let this node reach one that may let others in (`agent member list` shows who issues); it then renews by itself.',
  }
}

/** Days, or hours when there are few. */
function timeText(ms: number): string {
  if (ms >= 2 * DAY_MS) return `${Math.round(ms / DAY_MS)} days`
  const hours = Math.max(1, Math.round(ms / HOUR_MS))
  return hours === 1 ? '1 hour' : `${hours} hours`
}
