/** What `agent doctor` can see without asking the agent: the configuration, the state directory, the ports, and why the agent does not answer. */
import { accessSync, constants, statfsSync, statSync } from 'node:fs'
import { createServer } from 'node:net'
import type { Check } from '../api/upkeep-contract.ts'
import { type LoadedConfig, loadConfig } from '../config/config.ts'
import type { Config } from '../config/keys.ts'
import { filesEnvironment, SERVICE_STATE } from '../config/paths.ts'
import { AgentError, reasonOf } from '../error.ts'
import { showSize } from './measures.ts'

/** Below this, fetching anything worth having fails. */
const FREE_BYTES_MIN = 512 * 1024 * 1024

export function checkConfig(): { checks: Check[]; config?: LoadedConfig } {
  const name = 'configuration'
  try {
    const config = loadConfig({ env: filesEnvironment(process.env) })
    const message = config.file ? `${config.file} is sound` : 'no file; the defaults hold'
    return { checks: [{ id: name, name, state: 'ok', message }], config }
  } catch (error) {
    if (!(error instanceof AgentError)) throw error
    const { message, next = 'Correct it there; `agent config` shows what holds then.' } = error
    return { checks: [{ id: 'config.invalid', name, state: 'failed', message, next }] }
  }
}

/** Why an agent did not answer. */
export function checkSilence(error: AgentError): Check {
  const { code, message, next = 'See its log: journalctl -u undernet.' } = error
  const id = code === 'not-running' ? 'agent.down' : code === 'not-allowed' ? 'agent.not-allowed' : 'agent.silent'
  return { id, name: 'agent', state: code === 'not-running' ? 'warning' : 'failed', message, next }
}

export async function checkState(path: string): Promise<Check[]> {
  const check = checkDirectory(path)
  if (!mayRead(path) || check.state === 'failed') return [check]
  const { examineState } = await import('../state/examine.ts')
  return [check, ...examineState(path).map((finding) => ({ name: finding.id.split('.')[0] ?? '', ...finding }))]
}

function mayRead(path: string): boolean {
  try {
    accessSync(path, constants.R_OK | constants.X_OK)
    return true
  } catch {
    return false
  }
}

function checkDirectory(path: string): Check {
  const name = 'state'
  const stats = statSync(path, { throwIfNoEntry: false })
  if (!stats) return { id: name, name, state: 'ok', message: `${path} will be made at the first start` }
  if (stats.uid !== process.getuid?.() && process.getuid?.() !== 0) {
    if (path === SERVICE_STATE)
      return { id: name, name, state: 'ok', message: `${path} is the service's; sudo agent doctor looks into it` }
    const next = 'Run the agent as that user, or choose another directory with --state.'
    return { id: 'state.other-user', name, state: 'failed', message: `${path} belongs to another user`, next }
  }
  if ((stats.mode & 0o077) !== 0) {
    const next = 'The agent closes it when it starts; from then on only its user can read the key.'
    return { id: 'state.open', name, state: 'warning', message: `${path} is open to other users`, next }
  }
  const { bavail, bsize } = statfsSync(path)
  if (bavail * bsize < FREE_BYTES_MIN) {
    const next = 'Make room, or choose a larger disk with --state.'
    return {
      id: 'disk.low',
      name: 'disk',
      state: 'warning',
      message: `only ${showSize(bavail * bsize)} free at ${path}`,
      next,
    }
  }
  return { id: name, name, state: 'ok', message: `${path}, ${showSize(bavail * bsize)} free` }
}

/** For when no agent runs: could one listen? */
export async function checkPorts({ listen, http, proxy, dns }: Config): Promise<Check[]> {
  const checks: Check[] = []
  for (const address of listen) {
    const [, , host = '', , port = '0'] = address.split('/')
    checks.push(await checkPort(address, host, Number(port), '--listen'))
  }
  for (const [what, place] of Object.entries({ http, proxy, dns })) {
    if (place === undefined) continue
    checks.push(await checkPort(`${what} ${place.host}:${place.port}`, place.host, place.port, `--${what}`))
  }
  return checks
}

function checkPort(what: string, host: string, port: number, flag: string): Promise<Check> {
  const name = 'port'
  return new Promise((resolve) => {
    const server = createServer()
    server.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EADDRINUSE') {
        const next = `Find it with \`ss -ltnp 'sport = :${port}'\`, or give the agent another address with ${flag}.`
        resolve({ id: 'port.taken', name, state: 'failed', message: `${what}: another program listens there`, next })
      } else if (error.code === 'EAFNOSUPPORT' || error.code === 'EADDRNOTAVAIL') {
        const next = `This machine has no such address: give the agent others with ${flag}.`
        resolve({ id: 'port.no-address', name, state: 'warning', message: `${what}: ${reasonOf(error)}`, next })
      } else {
        const id = error.code === 'EACCES' ? 'port.not-allowed' : 'port.unusable'
        resolve({
          id,
          name,
          state: 'failed',
          message: `${what}: ${reasonOf(error)}`,
          next: `Choose another with ${flag}.`,
        })
      }
    })
    server.listen({ host, port, ipv6Only: true }, () => {
      server.close(() => resolve({ id: name, name, state: 'ok', message: `${what} is free` }))
    })
  })
}
