/**
 * Twenty nodes in one network from nothing in less than 60 s: by a script that somebody writes once (fleet.sh), and by a file with a
 * token, without anybody at the keyboard. All members see all.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, onTestFinished, test } from 'vitest'
import { Client } from '../../agent/api/client.ts'
import type { MemberList } from '../../agent/api/membership-contract.ts'
import { cpuSecondsOf, fairClock, type RealAgent, until } from '../agents.ts'
import { allSee, invite, Lab, membersOf, says } from './members.ts'

const NODES = 20
/** What the issue promises, from nothing until all see all. */
const JOINED_MS_MAX = 60_000
const POLL_MS = 250
const SCRIPT = fileURLToPath(new URL('fleet.sh', import.meta.url))
/** An interrupted test ends the script, which ends its agents. */
const ENDS_WITH_US = ['--pdeathsig', 'TERM']

test(`${NODES} nodes are joined by one script within 60 s, and all see all`, { timeout: 600_000 }, async () => {
  await using lab = await Lab.open()
  const directory = lab.path('fleet')
  const startMs = performance.now()
  const script = spawn('setpriv', [...ENDS_WITH_US, 'sh', SCRIPT, directory, String(NODES)], {
    env: { ...process.env, ...lab.env, AGENT: lab.command.join(' ') },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const ended = new Promise((resolve) => script.once('close', resolve))
  onTestFinished(async () => {
    script.kill('SIGTERM')
    await ended
  })
  const said = listen(script)
  const clock = fairClock(() => cpuSecondsOfGroup(script.pid ?? 0))
  const waiting = {
    clock,
    ms: JOINED_MS_MAX,
    everyMs: POLL_MS,
    unless: () => script.exitCode !== null && `the script ended: ${said()}${lastOf(directory)}`,
  }
  await until(() => said().includes('all have joined'), {
    ...waiting,
    what: () => `the script ends: ${said()}${lastOf(directory)}`,
  })
  const joinedMs = performance.now()

  const names = Array.from({ length: NODES }, (_, nth) => `node${nth + 1}`)
  const clients = names.map((name) => new Client(async () => [join(directory, name, 'agent.sock')]))
  let missing = ''
  const allSeeAll = async () => {
    for (const [nth, client] of clients.toReversed().entries()) {
      const { members } = await client.get<MemberList>('members')
      const here = members.filter(({ state }) => state === 'here').map(({ name }) => name)
      missing = `node${NODES - nth} sees ${here.length}: ${here.join(' ')}`
      if (here.length < NODES) return false
      expect(here.toSorted()).toEqual(names.toSorted())
    }
    return true
  }
  await until(allSeeAll, { ...waiting, what: () => missing })
  expect(clock()).toBeLessThan(JOINED_MS_MAX)
  const { invitations } = await (clients[0] as Client).get<{ invitations: object[] }>('invitations')
  expect(invitations).toMatchObject([{ used: NODES - 1, uses: NODES }])
  console.log(
    `joined ${seconds(joinedMs - startMs)} after the start, and all saw all after ${seconds(performance.now() - startMs)} (${seconds(clock())} without other programs)`,
  )
})

test(`${NODES} nodes join by a file, before the node that made the token is up`, { timeout: 600_000 }, async () => {
  await using lab = await Lab.open()
  const founder = await lab.start({ name: 'founder', flags: ['--no-open'] })
  await says(founder, 'network', 'create', 'fleet')
  const token = await invite(founder, '--name', 'ci-*', '--label', 'role=ci', '--uses', String(NODES - 1))
  const file = lab.file('tokens', `# of the founder\n${token}\n`)
  await founder.end('SIGTERM')

  const startMs = performance.now()
  const names = Array.from({ length: NODES - 1 }, (_, nth) => `node${nth + 1}`)
  const launched = names.map((name) => lab.launch({ name, flags: ['--no-open', '--join-file', file] }))
  const fleet = await Promise.all(launched)
  const clock = fairClock(() => [founder, ...fleet].reduce((sum, { cpuSeconds }) => sum + cpuSeconds, 0))
  await Promise.all(fleet.map((agent) => agent.answers()))
  const all = [await lab.restart(founder), ...fleet]
  const [restarted] = all as [RealAgent]
  const inside = await until(
    async () => {
      const members = await membersOf(restarted)
      return members.length === NODES && members
    },
    { what: () => `all are in:\n${restarted.log.slice(-20).join('\n')}`, ms: JOINED_MS_MAX, everyMs: POLL_MS, clock },
  )
  const given = inside.map(({ name }) => name)
  expect(given.filter((name) => /^ci-[a-z2-7]{5}$/.test(name))).toHaveLength(NODES - 1)
  expect(inside.filter(({ labels }) => labels.role === 'ci')).toHaveLength(NODES - 1)
  await allSee(all, given, undefined, { ms: JOINED_MS_MAX, clock })
  expect(clock()).toBeLessThan(JOINED_MS_MAX)
  console.log(`all saw all after ${seconds(performance.now() - startMs)} (${seconds(clock())} without other programs)`)
})

/** What the script says, as far as it has. */
function listen({ stdout, stderr }: ChildProcess): () => string {
  let text = ''
  for (const stream of [stdout, stderr]) stream?.on('data', (chunk: Buffer) => (text += chunk.toString()))
  return () => text
}

/** The ends of the logs. */
function lastOf(directory: string): string {
  const lines = readdirSync(directory).flatMap((name) => {
    if (!name.startsWith('node')) return []
    return [
      `${name}: ${readFileSync(join(directory, name, 'log'), 'utf8')
        .trim()
        .split('\n')
        .at(-1)}`,
    ]
  })
  return `\nat the end of the logs:\n${lines.join('\n')}`
}

/** CPU time of a process, its children that run, and those that ended. */
function cpuSecondsOfGroup(pid: number): number {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ').filter(Boolean)
  return [pid, ...children.map(Number)].reduce((sum, one) => sum + cpuSecondsOf(one), 0)
}

function seconds(ms: number): string {
  return `${(ms / 1_000).toFixed(1)} s`
}
