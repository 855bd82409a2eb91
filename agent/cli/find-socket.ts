/**
 * Where the command line looks for a running agent when no --socket is given. A person's own agent comes before the machine's
 * service; what the environment names is the only one asked.
 */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import {
  configFile,
  type Environment,
  SERVICE_CONFIG,
  SERVICE_SOCKET,
  SOCKET_NAME,
  socketPath,
  stateDirectory,
} from '../config/paths.ts'

/** The sockets to try, the likeliest first. */
export async function socketCandidates(env: Environment = process.env): Promise<string[]> {
  if (env.UNDERNET_SOCKET) return [env.UNDERNET_SOCKET]
  const state = env.UNDERNET_STATE || stateDirectory(env)
  const candidates = [
    await configuredSocket(env.UNDERNET_CONFIG || configFile(env)),
    socketPath(env, state),
    join(state, SOCKET_NAME),
    await configuredSocket(SERVICE_CONFIG),
    SERVICE_SOCKET,
  ]
  return [...new Set(candidates.filter((path) => path !== undefined))]
}

/** The parser is loaded only where there is a file. One that does not parse is the daemon's to complain of. */
async function configuredSocket(file: string): Promise<string | undefined> {
  if (!existsSync(file)) return undefined
  const { socketInFile } = await import('../config/config.ts')
  return socketInFile(file)
}
