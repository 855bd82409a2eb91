/**
 * What `agent doctor` can see without asking the agent: the configuration, the state directory, the ports, and whether Nix is set up to
 * use the agent.
 */
import { execFile } from 'node:child_process'
import { statfsSync, statSync } from 'node:fs'
import { createServer } from 'node:net'
import { promisify } from 'node:util'
import type { Client } from '../api/client.ts'
import type { Check, NixConfView } from '../api/contract.ts'
import { type LoadedConfig, loadConfig } from '../config/config.ts'
import type { Config } from '../config/keys.ts'
import { AgentError, reasonOf } from '../error.ts'
import { showSize } from './measures.ts'

/** Nix reads a few files; slower, it hangs on something that is not ours to find. */
const NIX_MS_MAX = 10_000
/** Below this, fetching anything worth having fails. */
const FREE_BYTES_MIN = 512 * 1024 * 1024

export function checkConfig(): { checks: Check[]; config?: LoadedConfig } {
  const name = 'configuration'
  try {
    const config = loadConfig()
    const message = config.file ? `${config.file} is sound` : 'no file; the defaults hold'
    return { checks: [{ name, state: 'ok', message }], config }
  } catch (error) {
    if (!(error instanceof AgentError)) throw error
    return { checks: [{ name, state: 'failed', message: error.message, ...(error.next && { next: error.next }) }] }
  }
}

export function checkState(path: string): Check {
  const name = 'state'
  const stats = statSync(path, { throwIfNoEntry: false })
  if (!stats) return { name, state: 'ok', message: `${path} will be made at the first start` }
  if (stats.uid !== process.getuid?.() && process.getuid?.() !== 0) {
    const next = 'Run the agent as that user, or choose another directory with --state.'
    return { name, state: 'failed', message: `${path} belongs to another user`, next }
  }
  if ((stats.mode & 0o077) !== 0) {
    const next = 'The agent closes it when it starts; from then on only its user can read the key.'
    return { name, state: 'warning', message: `${path} is open to other users`, next }
  }
  const { bavail, bsize } = statfsSync(path)
  if (bavail * bsize < FREE_BYTES_MIN) {
    const next = 'Make room, or choose a larger disk with --state.'
    return { name, state: 'warning', message: `only ${showSize(bavail * bsize)} free at ${path}`, next }
  }
  return { name, state: 'ok', message: `${path}, ${showSize(bavail * bsize)} free` }
}

/** For when no agent runs: could one listen? */
export async function checkPorts({ listen, http }: Config): Promise<Check[]> {
  const checks: Check[] = []
  for (const address of listen) {
    const [, , host = '', , port = '0'] = address.split('/')
    checks.push(await checkPort(address, host, Number(port), '--listen'))
  }
  if (http) checks.push(await checkPort(`http ${http.host}:${http.port}`, http.host, http.port, '--http'))
  return checks
}

function checkPort(what: string, host: string, port: number, flag: string): Promise<Check> {
  const name = 'port'
  return new Promise((resolve) => {
    const server = createServer()
    server.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EADDRINUSE') {
        const next = `Find it with \`ss -ltnp 'sport = :${port}'\`, or give the agent another address with ${flag}.`
        resolve({ name, state: 'failed', message: `${what}: another program listens there`, next })
      } else if (error.code === 'EAFNOSUPPORT' || error.code === 'EADDRNOTAVAIL') {
        const next = `This machine has no such address: give the agent others with ${flag}.`
        resolve({ name, state: 'warning', message: `${what}: ${reasonOf(error)}`, next })
      } else {
        resolve({ name, state: 'failed', message: `${what}: ${reasonOf(error)}`, next: `Choose another with ${flag}.` })
      }
    })
    server.listen({ host, port, ipv6Only: true }, () => {
      server.close(() => resolve({ name, state: 'ok', message: `${what} is free` }))
    })
  })
}

export async function checkNix(client: Pick<Client, 'get'>): Promise<Check[]> {
  const name = 'nix'
  const settings = await nixSettings()
  if (settings === undefined) {
    return [{ name, state: 'ok', message: 'Nix is not installed here; files and folders are shared all the same' }]
  }
  const wanted = await client.get<NixConfView>('nix-conf').catch(() => undefined)
  if (wanted === undefined)
    return [{ name, state: 'ok', message: 'Nix is installed; whether it uses the agent is checked while that runs' }]
  const words = (key: string) => (settings.get(key) ?? '').split(/\s+/).map((word) => word.replace(/\/$/, ''))
  const next = 'Add the lines that `agent nix-conf` prints to nix.conf, and restart nix-daemon.'
  if (!words('substituters').includes(wanted.url.replace(/\/$/, '')))
    return [
      { name, state: 'warning', message: `Nix does not ask this agent (${wanted.url} is not in substituters)`, next },
    ]
  if (!words('trusted-public-keys').includes(wanted.publicKey))
    return [
      {
        name,
        state: 'warning',
        message: `Nix does not trust this agent's key (${wanted.publicKey.split(':')[0]})`,
        next,
      },
    ]
  return [{ name, state: 'ok', message: 'Nix asks this agent and trusts its key' }]
}

/** Nix's effective settings; undefined when there is no Nix. Newer ones renamed the command. */
async function nixSettings(): Promise<Map<string, string> | undefined> {
  for (const command of [['config', 'show'], ['show-config']]) {
    try {
      const words = ['--extra-experimental-features', 'nix-command', ...command]
      const { stdout } = await promisify(execFile)('nix', words, { timeout: NIX_MS_MAX })
      return new Map(stdout.split('\n').map((line) => line.split(' = ', 2) as [string, string]))
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    }
  }
  return new Map()
}
