/** `agent doctor`: looks for what keeps an agent from doing its work, whether it runs or not. */
import type { Check, DoctorResult } from '../api/contract.ts'
import { AgentError } from '../error.ts'
import { printable } from '../printable.ts'
import type { CommandLine, Session } from './command-line.ts'
import { count } from './measures.ts'
import { textWidth } from './table.ts'
import type { Terminal } from './terminal.ts'

const MARKS = { ok: ['green', '✓'], warning: ['yellow', '!'], failed: ['red', '✗'] } as const

export function addDoctor(line: CommandLine): void {
  const command = line.command({
    usage: 'doctor',
    summary: 'look for what keeps the agent from working, and say what to do',
    details: 'Works without a running agent, too. Exit status 1 when something is broken.',
    examples: [['doctor', 'configuration, state, ports, Nix, and the running agent’s own checks']],
  })
  line.asks(command, async (session) => {
    const { terminal, isJson } = session
    const checks = await allChecks(session)
    if (isJson) terminal.json({ checks })
    else terminal.print(...doctorScreen(checks, terminal))
    if (checks.some(({ state }) => state === 'failed')) line.endWith(1)
  })
}

async function allChecks({ client }: Session): Promise<Check[]> {
  const { checkConfig, checkNix, checkPorts, checkState } = await import('./doctor-checks.ts')
  const running = await client.get<DoctorResult>('doctor').catch((error: unknown) => {
    if (error instanceof AgentError) return error
    throw error
  })
  const { checks, config } = checkConfig()
  if (running instanceof AgentError) {
    const state = running.code === 'not-running' ? 'warning' : 'failed'
    checks.push({ name: 'agent', state, message: running.message, ...(running.next && { next: running.next }) })
    if (config) checks.push(checkState(config.values.state), ...(await checkPorts(config.values)))
  } else {
    checks.push({ name: 'agent', state: 'ok', message: 'it is running and answers' }, ...running.checks)
  }
  checks.push(...(await checkNix(client)))
  return checks
}

export function doctorScreen(checks: readonly Check[], terminal: Pick<Terminal, 'style'>): string[] {
  const width = Math.max(...checks.map(({ name }) => textWidth(name)))
  const lines = checks.flatMap(({ name, state, message, next }) => {
    const [style, mark] = MARKS[state]
    const said = state === 'ok' || !next ? [message] : [message, next]
    return said.map((text, at) =>
      at === 0
        ? `${terminal.style(style, mark)} ${name.padEnd(width)}  ${printable(text)}`
        : `${' '.repeat(width + 4)}${printable(text)}`,
    )
  })
  const bad = checks.filter(({ state }) => state !== 'ok').length
  return [...lines, '', bad === 0 ? 'Nothing to mend.' : `${count(bad, 'thing')} to look at.`]
}
