/** What a person should know about peers that signed what is false: warnings of `agent status`. */
import type { Warning } from '../api/contract.ts'
import type { Liar } from '../content/lies.ts'

/** Shown; all that is kept is in the database. */
export const LIARS_SHOWN_MAX = 3

/** `about` names a blob for people. */
export function lieWarnings(liars: readonly Liar[], about: (digest: string) => string): Warning[] {
  return liars.map(({ peerId, lies, digest, foundMs }) => ({
    code: 'peer.lied',
    message: `${peerId} signed a false piece list of ${about(digest)} (${new Date(foundMs).toISOString()}${lies > 1 ? `, and ${lies - 1} more` : ''})`,
    next: 'Nothing false was kept. Its signature proves it, and is kept in the table content_lies of state.db in the state directory: show it to whoever runs that node, or revoke it where it is a member.',
  }))
}
