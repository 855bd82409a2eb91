/** `agent doctor`: looks for what keeps an agent from doing its work, whether it runs or not. */
import type { Check, DoctorResult } from '../api/upkeep-contract.ts'
import { AgentError } from '../error.ts'
import { printable } from '../printable.ts'
import type { CommandLine, Session } from './command-line.ts'
import { thisMachine } from './machine.ts'
import { count } from './measures.ts'
import { textWidth } from './table.ts'
import type { Terminal } from './terminal.ts'

const MARKS = { ok: ['green', '✓'], warning: ['yellow', '!'], failed: ['red', '✗'] } as const

export function addDoctor(line: CommandLine): void {
  const command = line.command({
    usage: 'doctor',
    summary: 'look for what keeps the agent from working, and say what to do',
    details:
      'Works without a running agent, too. Exit status 1 when something is broken. Each finding has an id that stays the same: scripts find it in --json.',
    examples: [
      ['doctor', 'configuration, state, ports, peers, networks, Nix, container engines, DNS, the clock'],
      ['doctor --json | jq -r \'.checks[] | select(.state != "ok") | .id\'', 'for scripts'],
    ],
  })
  line.asks(command, async (session) => {
    const { terminal, isJson } = session
    const checks = await allChecks(session)
    if (isJson) terminal.json({ checks })
    else terminal.print(...doctorScreen(checks, terminal))
    if (checks.some(({ state }) => state === 'failed')) line.endWith(1)
  })
}

/** Also for a report. */
export async function allChecks({ client }: Pick<Session, 'client'>, machine = thisMachine): Promise<Check[]> {
  const { checkConfig, checkPorts, checkSilence, checkState } = await import('./doctor-checks.ts')
  const { checkClock, checkDns, checkEngines, checkNix } = await import('./doctor-programs.ts')
  const running = await client.get<DoctorResult>('doctor').catch((error: unknown) => {
    if (error instanceof AgentError) return error
    throw error
  })
  const { checks, config } = checkConfig()
  if (running instanceof AgentError) {
    checks.push(checkSilence(running))
    const isDown = running.code === 'not-running'
    if (config && isDown) checks.push(...(await checkState(config.values.state)), ...(await checkPorts(config.values)))
    return [...checks, ...(await checkNix(client, machine)), ...(await checkClock(machine))]
  }
  checks.push({ id: 'agent', name: 'agent', state: 'ok', message: 'it is running and answers' }, ...running.checks)
  const beside = [checkNix(client, machine, running.checks), checkEngines(client, machine), checkDns(client, machine)]
  return [...checks, ...(await Promise.all([...beside, checkClock(machine)])).flat()]
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
