/**
 * Agents in closed networks, brought there by the commands that people type. Each has a port of its own that it keeps, so that the
 * addresses in tokens hold when it is started again, also with another clock.
 */
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { expect } from 'vitest'
import type { PublishResult, SearchResult } from '../../agent/api/contract.ts'
import type { MemberList, MemberView, NetworkDetail } from '../../agent/api/membership-contract.ts'
import { type AgentOptions, Bundle, freePort, type Outcome, RealAgent, run, until } from '../agents.ts'

/** For what takes a second on a machine that one has for oneself. */
export const SOON_MS_MAX = 60_000
const POLL_MS = 100
const SHIFT_CLOCK = new URL('../shift-clock.ts', import.meta.url).href

export type MemberOptions = AgentOptions & {
  /** How far ahead its clock is. */
  aheadMs?: number
}

export class Lab implements AsyncDisposable {
  readonly #bundle: Bundle
  readonly #directory = mkdtempSync(join(tmpdir(), 'undernet-lab-'))
  readonly #agents = new Map<RealAgent, MemberOptions>()

  private constructor(bundle: Bundle) {
    this.#bundle = bundle
  }

  static async open(): Promise<Lab> {
    return new Lab(await Bundle.build())
  }

  /** A file of this name, for its owner only. */
  file(name: string, content: string): string {
    const path = join(this.#directory, name)
    writeFileSync(path, content, { mode: 0o600 })
    return path
  }

  /** A place for a directory or a file that something else makes. */
  path(name: string): string {
    return join(this.#directory, name)
  }

  async start(options: MemberOptions): Promise<RealAgent> {
    const agent = await this.launch(options)
    await agent.answers()
    return agent
  }

  /** Starts an agent and does not wait for it. */
  async launch({ aheadMs, ...options }: MemberOptions): Promise<RealAgent> {
    const { entry, env } = this.#bundle
    const kept = {
      state: mkdtempSync(join(this.#directory, `${options.name}-`)),
      listen: `/ip4/127.0.0.1/tcp/${await freePort()}`,
      ...options,
    }
    const agent = RealAgent.launch({ entry, ...kept, env: { ...env, ...options.env, ...clockEnv(aheadMs) } })
    this.#agents.set(agent, { ...kept, ...(aheadMs !== undefined && { aheadMs }) })
    return agent
  }

  /** Ends an agent and starts it again, as it was but for what is given. */
  async restart(agent: RealAgent, options: Partial<MemberOptions> = {}): Promise<RealAgent> {
    const before = this.#agents.get(agent)
    if (before === undefined) throw new Error(`${agent.name} is not of this lab`)
    if (!agent.isGone) await this.end(agent)
    return await this.start({ ...before, ...options })
  }

  /** Ends an agent; it may be started again. */
  async end(agent: RealAgent): Promise<void> {
    expect(await agent.end('SIGTERM'), agent.log.slice(-20).join('\n')).toBe(0)
  }

  /** Runs a command with the clock of an agent that was started with another one. */
  run(agent: RealAgent, ...args: string[]): Promise<Outcome> {
    const { entry, env } = this.#bundle
    const own = { XDG_CONFIG_HOME: agent.state, UNDERNET_SOCKET: agent.socket, UNDERNET_STATE: agent.state }
    return run(process.execPath, [entry, ...args], { ...env, ...own, ...clockEnv(this.#agents.get(agent)?.aheadMs) })
  }

  /** What a script runs as `agent`. */
  get command(): string[] {
    return [process.execPath, this.#bundle.entry]
  }

  /** For what such a script runs. */
  get env(): Record<string, string> {
    return this.#bundle.env
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#agents.keys()].map((agent) => agent[Symbol.asyncDispose]()))
    rmSync(this.#directory, { recursive: true, force: true })
    this.#bundle[Symbol.dispose]()
  }
}

function clockEnv(aheadMs: number | undefined): Record<string, string> {
  return aheadMs === undefined ? {} : { NODE_OPTIONS: `--import=${SHIFT_CLOCK}`, SHIFT_CLOCK_MS: String(aheadMs) }
}

/** Runs a command that has to succeed, and returns what it printed. */
export async function says(agent: RealAgent, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await agent.run(...args)
  expect(code, `agent ${args.join(' ')} on ${agent.name}: ${stderr}${stdout}`).toBe(0)
  return stdout.trim()
}

/** Runs a command that has to fail, and returns what it said. */
export async function refuses(agent: RealAgent, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await agent.run(...args)
  expect(code, `agent ${args.join(' ')} on ${agent.name} succeeded: ${stdout}`).not.toBe(0)
  expect(stderr, 'no stack traces').not.toMatch(/^\s+at |node:internal/m)
  return stderr.trim()
}

/** A token. */
export function invite(agent: RealAgent, ...flags: string[]): Promise<string> {
  return says(agent, 'invite', ...flags)
}

/** Tries to join by a token, in a way in which no other user of the machine sees it. */
export async function tryToken(agent: RealAgent, token: string, ...flags: string[]): Promise<Outcome> {
  const file = join(agent.state, 'token')
  writeFileSync(file, `${token}\n`, { mode: 0o600 })
  try {
    return await agent.run('join', '--file', file, ...flags)
  } finally {
    rmSync(file)
  }
}

export async function joinWith(agent: RealAgent, token: string, ...flags: string[]): Promise<NetworkDetail> {
  const { code, stdout, stderr } = await tryToken(agent, token, ...flags, '--json')
  expect(code, `${agent.name} joins: ${stderr}`).toBe(0)
  return JSON.parse(stdout) as NetworkDetail
}

/** Why a token does not let an agent in. */
export async function refusalOf(agent: RealAgent, token: string): Promise<string> {
  const { code, stdout, stderr } = await tryToken(agent, token)
  expect(code, `${agent.name} joins: ${stdout}`).not.toBe(0)
  return stderr.trim()
}

/** Members as an agent knows them, by name. */
export async function membersOf(agent: RealAgent, network?: string): Promise<MemberView[]> {
  return (await agent.client.get<MemberList>('members', { network })).members
}

/** Resolves when each agent knows members of these names, and no others, and all of them are there. */
export async function allSee(
  agents: RealAgent[],
  names: string[],
  network?: string,
  within: { ms: number; clock?: () => number } = { ms: SOON_MS_MAX },
): Promise<void> {
  const wanted = names.toSorted().join(' ')
  const seen = async (agent: RealAgent) => {
    const members = await membersOf(agent, network)
    const here = members.filter(({ state }) => state === 'here')
    return here
      .map(({ name }) => name)
      .toSorted()
      .join(' ')
  }
  let missing = ''
  const all = async () => {
    for (const agent of agents) {
      const here = await seen(agent)
      if (here !== wanted) {
        missing = `${agent.name} sees "${here}" instead of "${wanted}":\n${agent.log.slice(-20).join('\n')}`
        return false
      }
    }
    return true
  }
  await until(all, { what: () => missing, everyMs: POLL_MS, ...within })
}

/** Uploads a file of that text, and returns its CID. */
export async function publish(lab: Lab, agent: RealAgent, name: string, text: string, ...flags: string[]) {
  const said = await says(agent, 'publish', lab.file(name, text), '--json', ...flags)
  return (JSON.parse(said) as PublishResult).artifact.cid
}

/** Resolves when the agent knows an artifact of that name. */
export async function findsNamed(agent: RealAgent, name: string, network?: string): Promise<void> {
  const found = async () => {
    const { artifacts } = await agent.client.get<SearchResult>('search', { limit: 100, network })
    return artifacts.some((artifact) => artifact.name === name)
  }
  await until(found, {
    what: () => `${agent.name} finds ${name}:\n${agent.log.slice(-20).join('\n')}`,
    ms: SOON_MS_MAX,
  })
}

/** Files below a directory that contain one of these bytes, with what they contain. */
export function filesWith(directory: string, needles: Record<string, string | Uint8Array>): string[] {
  const found: string[] = []
  for (const entry of readdirSync(directory, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue
    const path = join(entry.parentPath, entry.name)
    const bytes = readFileSync(path)
    for (const [what, needle] of Object.entries(needles)) {
      if (path.includes(String(needle)) || bytes.includes(Buffer.from(needle))) found.push(`${what} in ${path}`)
    }
  }
  return found
}

/** The secret of a network, as the agent keeps it. */
export function secretOf(agent: RealAgent, id: string): Uint8Array {
  using db = new DatabaseSync(join(agent.state, 'state.db'), { readOnly: true })
  const row = db.prepare('SELECT secret FROM networks WHERE id = ?').get(id)
  if (row === undefined) throw new Error(`${agent.name} is not in the network ${id}`)
  return row.secret as Uint8Array
}
