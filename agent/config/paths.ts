/**
 * Where an agent's files are when nobody says otherwise.
 *
 * The service is told by systemd (STATE_DIRECTORY, RUNTIME_DIRECTORY); a person's agent follows the XDG base directories. Both the
 * daemon and the command line compute these, so only the environment may decide, never who runs it. Imports nothing heavy.
 */
import { existsSync } from 'node:fs'
import { homedir } from 'node:os'
import { dirname, join } from 'node:path'

export type Environment = Readonly<Record<string, string | undefined>>

export const SERVICE_CONFIG = '/etc/undernet/agent.toml'
export const SERVICE_SOCKET = '/run/undernet/agent.sock'
export const SERVICE_STATE = '/var/lib/undernet'
export const SOCKET_NAME = 'agent.sock'

/** True under a systemd unit that gives the agent its directories. */
function isService(env: Environment): boolean {
  return Boolean(env.STATE_DIRECTORY || env.RUNTIME_DIRECTORY)
}

export function configFile(env: Environment): string {
  if (isService(env)) return SERVICE_CONFIG
  return join(env.XDG_CONFIG_HOME || join(home(env), '.config'), 'undernet', 'agent.toml')
}

export function stateDirectory(env: Environment): string {
  if (env.STATE_DIRECTORY) return first(env.STATE_DIRECTORY)
  return join(env.XDG_STATE_HOME || join(home(env), '.local', 'state'), 'undernet')
}

export function socketPath(env: Environment, state: string): string {
  if (isService(env)) return env.RUNTIME_DIRECTORY ? join(first(env.RUNTIME_DIRECTORY), SOCKET_NAME) : SERVICE_SOCKET
  // Set but not there: after `su`, and in containers.
  if (env.XDG_RUNTIME_DIR && existsSync(env.XDG_RUNTIME_DIR)) return join(env.XDG_RUNTIME_DIR, 'undernet', SOCKET_NAME)
  return join(state, SOCKET_NAME)
}

/**
 * For commands that look at an agent's files while none answers: those of the service where there is one, unless this user has an agent of his own or the
 * environment names one.
 */
export function filesEnvironment(env: Environment): Environment {
  const isNamed = env.UNDERNET_STATE || env.UNDERNET_CONFIG || isService(env)
  if (isNamed || !existsSync(SERVICE_STATE) || existsSync(stateDirectory(env))) return env
  return { ...env, STATE_DIRECTORY: SERVICE_STATE, RUNTIME_DIRECTORY: dirname(SERVICE_SOCKET) }
}

function home(env: Environment): string {
  return env.HOME || homedir()
}

/** systemd separates several directories by colons; our unit asks for one. */
function first(list: string): string {
  return list.split(':')[0] as string
}
