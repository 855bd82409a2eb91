/** The contract about the upkeep of a node: what is the matter with it, and its backup. As contract.ts, which it is a part of. */

/**
 * One thing that was looked at. `id` is stable: `noun.state` of what was found (`peers.none`), or the noun alone when that is well. `name` is what it
 * is about, for people.
 */
export type Check = {
  id: string
  name: string
  state: 'ok' | 'warning' | 'failed'
  message: string
  /** The command that mends it, or what else to do. */
  next?: string
}
export type DoctorResult = { checks: Check[] }

/** The answer is an age file (age-encryption.org/v1), encrypted with the passphrase. */
export type BackupRequest = { passphrase: string }
