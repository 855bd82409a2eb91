/**
 * Secrets that the service manager hands to the agent (systemd.exec(5), "Credentials"): files in $CREDENTIALS_DIRECTORY that only the agent
 * can read. Each is what a key of the configuration is when nobody says otherwise, if it is there.
 */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import type { Environment } from './paths.ts'

/** By the key that each stands in for. The names are those of files in /etc/credstore, which is everybody's. */
export const CREDENTIALS = { registry_auth: 'undernet.registry-auth', join_file: 'undernet.join' } as const

/** The credential's file; undefined when there is none. */
export function credential(key: keyof typeof CREDENTIALS, env: Environment): string | undefined {
  if (!env.CREDENTIALS_DIRECTORY) return undefined
  const file = join(env.CREDENTIALS_DIRECTORY, CREDENTIALS[key])
  return existsSync(file) ? file : undefined
}
