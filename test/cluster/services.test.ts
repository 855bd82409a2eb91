/**
 * Services between real agents: what is offered by name is used by unmodified programs through a forward, by those whom a grant allows, and goes on
 * when an instance is drained, killed, or loses its node.
 */
import { once } from 'node:events'
import { createServer as createHttpServer, type Server as HttpServer } from 'node:http'
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net'
import { createHash, randomBytes } from 'node:crypto'
import { createSocket } from 'node:dgram'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import type { Status } from '../../agent/api/contract.ts'
import type { ConnectionList, ForwardEvent, ServiceDetail, TraceResult } from '../../agent/api/service-contract.ts'
import { type RealAgent, run, until } from '../agents.ts'
import { allSee, invite, joinWith, Lab, refuses, SOON_MS_MAX, says } from './members.ts'

const POLICY = `
[[grants]]
from = "*"
to = "*"
allow = ["content:fetch", "content:publish", "service:offer *"]

[[grants]]
from = "label:role=client"
to = "*"
allow = ["service:connect *"]
`

describe('a service of a network', () => {
  let lab: Lab
  /** Uses services; the others offer them. */
  let client: RealAgent
  let first: RealAgent
  let second: RealAgent
  /** A member to whom nothing is granted. */
  let guest: RealAgent
  const servers: { close(): unknown }[] = []

  beforeAll(async () => {
    lab = await Lab.open()
    first = await lab.start({ name: 'first', flags: ['--no-open'] })
    const bootstrap = [await first.address()]
    const flags = ['--no-open']
    ;[client, second, guest] = await Promise.all([
      lab.start({ name: 'client', bootstrap, flags }),
      lab.start({ name: 'second', bootstrap, flags }),
      lab.start({ name: 'guest', bootstrap, flags }),
    ])
    await first.json('network', 'create', 'home', '--as', 'first')
    await joinWith(client, await invite(first, '--label', 'role=client'), '--as', 'client')
    await joinWith(second, await invite(first), '--as', 'second')
    await joinWith(guest, await invite(first), '--as', 'guest')
    await says(first, 'policy', 'set', lab.file('policy.toml', POLICY), '--yes')
    await allSee([client, first, second, guest], ['client', 'first', 'second', 'guest'])
  })
  afterAll(async () => {
    for (const server of servers) server.close()
    await lab?.[Symbol.asyncDispose]()
  })

  test('is reached by curl through a forward, and every step is told', async () => {
    const web = await httpServer('one', servers)
    await offer(first, 'web', web.port, '--proto', 'http', '--check', 'http:/')
    await sees(client, 'web', ['first healthy'])
    const port = await forward(client, 'web')
    const { stdout, code } = await run('curl', ['-sS', `http://127.0.0.1:${port}/`])
    expect([code, stdout]).toEqual([0, 'one'])
    const trace = await client.client.post<TraceResult>('trace', { name: 'web.home.internal' })
    expect(trace, JSON.stringify(trace)).toMatchObject({ ok: true })
    expect(trace.steps.map(({ step }) => step)).toEqual(['resolve', 'choose', 'rule', 'reach', 'open'])
    console.log(JSON.stringify(trace.steps))
    const status = await client.client.get<Status>('status')
    console.log(JSON.stringify([status.services, status.instances]))
    console.log(await says(client, 'ping', 'web', '-c', '20'))
    console.log(await says(client, 'service', 'show', 'web'), await says(first, 'service', 'list'))
    console.log(await says(client, 'audit'), await says(first, 'audit'))
  })
})

async function httpServer(text: string, servers: { close(): unknown }[]): Promise<{ server: HttpServer; port: number }> {
  const server = createHttpServer((_request, response) => response.end(text))
  servers.push({ close: () => server.close().closeAllConnections() })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return { server, port: (server.address() as AddressInfo).port }
}

async function offer(agent: RealAgent, name: string, port: number, ...flags: string[]): Promise<void> {
  await says(agent, 'service', 'add', name, String(port), ...flags)
}

/** Resolves when the agent knows these instances of a service, and no others. */
async function sees(agent: RealAgent, name: string, wanted: string[]): Promise<void> {
  let found: string[] = []
  const look = async () => {
    const detail = await agent.client.get<ServiceDetail>(`services/${name}`).catch(() => undefined)
    found = (detail?.instances ?? []).map(({ node, state }) => `${node} ${state}`).toSorted()
    return found.join() === wanted.toSorted().join()
  }
  await until(look, { what: () => `${agent.name} sees ${found.join()} instead of ${wanted.join()}`, ms: SOON_MS_MAX })
}

/** A port that leads to the service until the test is over. */
async function forward(agent: RealAgent, name: string, more: object = {}): Promise<number> {
  const over = new AbortController()
  const listening = Promise.withResolvers<number>()
  const watching = (async () => {
    for await (const event of agent.client.events<ForwardEvent>('forward', { name, port: 0, ...more }, over.signal))
      if (event.type === 'listening') listening.resolve(event.port)
  })()
  watching.catch((error: unknown) => listening.reject(error))
  onTestFinished(async () => {
    over.abort()
    await watching.catch(() => undefined)
  })
  return await listening.promise
}
