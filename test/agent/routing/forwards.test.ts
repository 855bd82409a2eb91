/** Ports of this machine that lead to services. */
import { once } from 'node:events'
import { connect, createServer } from 'node:net'
import { type Duplex, PassThrough } from 'node:stream'
import pino from 'pino'
import { describe, expect, it, onTestFinished } from 'vitest'
import { AgentError } from '../../../agent/error.ts'
import type { Target, Tunnel } from '../../../agent/routing/dialer.ts'
import { Forward, type ForwardOptions } from '../../../agent/routing/forwards.ts'
import { freePort, until } from '../../agents.ts'
import { instanceOf } from './instance.ts'

/** Every service sends back what it is sent. */
async function start(more: Partial<ForwardOptions> = {}) {
  const targets: Target[] = []
  const refused: string[] = []
  const forward = await Forward.start({
    name: 'web.home',
    host: '127.0.0.1',
    port: 0,
    isSticky: false,
    self: 'me',
    services: { resolve: () => ({ network: 'home', service: 'web', instances: [instanceOf()] }) },
    dialer: {
      open: async (target) => {
        targets.push(target)
        return Object.assign(new PassThrough(), { instance: instanceOf(), path: 'direct' }) as Duplex as Tunnel
      },
      openDatagrams: () => Promise.reject(new Error('no datagrams')),
    },
    onRefused: ({ message }) => refused.push(message),
    log: pino({ level: 'silent' }),
    ...more,
  })
  onTestFinished(() => forward[Symbol.asyncDispose]())
  return { forward, targets, refused }
}

describe('a forward', () => {
  it('is the service on a port of loopback, until it is over', async () => {
    const { forward, targets } = await start({ isSticky: true })
    const { host, port, proto } = forward.address
    expect([host, proto]).toEqual(['127.0.0.1', 'tcp'])
    const socket = connect({ host, port, allowHalfOpen: true })
    socket.end('hello')
    expect(Buffer.concat((await socket.toArray()) as Buffer[]).toString()).toBe('hello')
    expect(targets).toEqual([{ network: 'home', service: 'web', sticky: 'me' }])
    const open = connect({ host, port })
    open.on('error', () => undefined)
    await until(async () => targets.length === 2, { what: 'it is taken', ms: 5_000 })
    const closed = once(open, 'close')
    await forward[Symbol.asyncDispose]()
    await closed
    await expect(once(connect({ host, port }), 'connect')).rejects.toMatchObject({ code: 'ECONNREFUSED' })
  })

  it('resets what cannot be carried, and says why', async () => {
    const nobody = await start({ services: { resolve: () => undefined } })
    const denied = await start({
      dialer: {
        open: () => Promise.reject(new AgentError('not-allowed', 'no grant')),
        openDatagrams: () => Promise.reject(new Error('no')),
      },
    })
    for (const [one, why] of [
      [nobody, 'nobody offers web.home now'],
      [denied, 'no grant'],
    ] as const) {
      const socket = connect(one.forward.address.port, '127.0.0.1')
      await expect(once(socket, 'close')).rejects.toMatchObject({ code: 'ECONNRESET' })
      expect(one.refused).toEqual([why])
    }
  })

  it('says what is wrong with a port that cannot be had', async () => {
    const port = await freePort()
    const other = createServer().listen(port, '127.0.0.1')
    onTestFinished(() => void other.close())
    await once(other, 'listening')
    await expect(start({ port })).rejects.toMatchObject({ code: 'taken' })
    await expect(start({ host: '192.0.2.1' })).rejects.toMatchObject({ code: 'usage' })
  })
})
