/**
 * Bulk lanes between agents as they are shipped, each a process of its own: they are used, said in `agent status`, and not needed.
 */
import { createReadStream, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { PublishResult } from '../../agent/api/contract.ts'
import { Bundle, RealAgent, until } from '../agents.ts'
import { pattern } from '../protocols/pieces/pattern.ts'

const BYTES = 48 * 2 ** 20
const never = new AbortController().signal
const stack = new AsyncDisposableStack()
let bundle: Bundle
let source: RealAgent
const users: RealAgent[] = []

beforeAll(async () => {
  bundle = stack.use(await Bundle.build())
  source = stack.use(await start('source'))
  const file = join(bundle.directory, 'file')
  writeFileSync(file, pattern(BYTES))
  const query = { type: 'file', name: 'file' }
  await source.client.upload<PublishResult>('upload', query, createReadStream(file), never)
}, 60_000)

afterAll(() => stack.disposeAsync())

function start(name: string, options: { bootstrap?: string[]; flags?: string[] } = {}): Promise<RealAgent> {
  const { entry, env } = bundle
  return RealAgent.start({ name, entry, env, ...options })
}

async function getter(name: string, flags: string[] = []): Promise<RealAgent> {
  const agent = stack.use(await start(name, { bootstrap: [await source.address()], flags }))
  await until(async () => (await agent.status()).artifacts.known > 0, { what: 'the file is known' })
  return agent
}

async function fetched(agent: RealAgent): Promise<Awaited<ReturnType<RealAgent['status']>>['content']> {
  for await (const event of agent.client.events('fetch', { ref: 'file' }, never)) if (event.type === 'done') break
  const { content } = await agent.status()
  // At the end a piece that is late is asked of a second source, too.
  expect(content.fetchedBytes).toBeGreaterThanOrEqual(BYTES)
  expect(content.fetchedBytes).toBeLessThan(BYTES * 1.1)
  return content
}

describe('bulk lanes', () => {
  test('are on a port of their own when another agent has theirs, and carry a large file', async () => {
    const agent = await getter('lanes')
    users.push(agent)
    expect(threadsOf(agent)).toBe(0)
    const [here, there] = [(await agent.status()).content.lanes, (await source.status()).content.lanes]
    expect(here.port).toBeGreaterThan(0)
    expect(here.port).not.toBe(there.port)
    expect((await fetched(agent)).lanes.fetchedBytes).toBeGreaterThan(BYTES / 8)
    expect((await source.status()).content.lanes.servedBytes).toBeGreaterThan(BYTES / 8)
    expect((await agent.run('status')).stdout).toContain('over lanes')
    expect(threadsOf(agent)).toBeGreaterThan(0)
  }, 60_000)

  test('are not needed: a node that has them off gets the same over a stream', async () => {
    const agent = await getter('stream', ['--lanes', 'off'])
    expect((await fetched(agent)).lanes).toEqual({ port: null, fetchedBytes: 0, servedBytes: 0 })
  }, 60_000)

  test('cost nothing when they are idle: their threads end', async () => {
    const [agent] = users
    if (!agent) throw new Error('no agent used lanes')
    await until(() => threadsOf(agent) === 0, { what: 'the threads of lanes end', ms: 40_000 })
  }, 60_000)
})

/** By the name that they are given. */
function threadsOf({ pid }: RealAgent): number {
  const names = readdirSync(`/proc/${pid}/task`).map((task) => readFileSync(`/proc/${pid}/task/${task}/comm`, 'utf8'))
  return names.filter((name) => name.trim() === 'lanes').length
}
