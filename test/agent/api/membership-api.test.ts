/** What closed networks add to the local API: answers of many lines that end when they end, and larger requests. */
import { rmSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import type { AuditEntry } from '../../../agent/api/membership-contract.ts'
import { routes } from '../../../agent/api/routes.ts'
import type { AgentError } from '../../../agent/error.ts'
import { clientOf, collect, failure, never } from './asking.ts'
import { notFound, serve } from './fake-agent.ts'
import { fakeMembership, policy } from './fake-membership.ts'

describe('lines without a last one', () => {
  const entry = (event: string) => ({ at: '2026-01-01T00:00:00.000Z', event })

  it('come as they are made, until the one who asked hangs up', async () => {
    const aborted = Promise.withResolvers<unknown>()
    const asked: unknown[] = []
    await using agent = await serve({
      membership: fakeMembership({
        audit: async function* (request, signal) {
          asked.push(request)
          yield entry('network.created')
          await new Promise((resolve) => signal.addEventListener('abort', resolve))
          aborted.resolve(signal.reason)
        },
      }),
    })
    const hangUp = new AbortController()
    const lines = clientOf(agent.socket).lines<AuditEntry>('audit', { follow: 'true', limit: 3 }, hangUp.signal)
    expect((await lines.next()).value).toEqual(entry('network.created'))
    expect(asked).toEqual([{ follow: true, limit: 3 }])
    hangUp.abort(new Error('Ctrl-C'))
    await expect(lines.next()).rejects.toThrow('Ctrl-C')
    expect(await aborted.promise).toMatchObject({ code: 'cancelled' })
  })

  it('are all there when the client is slow, and are not made faster than it reads', async () => {
    const total = 2_000
    let made = 0
    await using agent = await serve({
      membership: fakeMembership({
        audit: async function* () {
          for (; made < total; made++) yield { ...entry('peer.refused'), why: 'x'.repeat(2_000), count: made }
        },
      }),
    })
    const lines = clientOf(agent.socket).lines<AuditEntry>('audit', {}, never)
    await lines.next()
    expect(made).toBeLessThan(total)
    expect((await collect(lines)).map(({ count }) => count)).toEqual(
      Array.from({ length: total - 1 }, (_, at) => at + 1),
    )
  })

  it('may be none, and may end with an error', async () => {
    const failing = async function* (lines: number) {
      for (let nth = 0; nth < lines; nth++) yield entry('network.left')
      throw notFound
    }
    const answers = [async function* () {}, () => failing(0), () => failing(1)]
    const results: unknown[] = []
    for (const audit of answers) {
      await using agent = await serve({ membership: fakeMembership({ audit }) })
      const lines = collect(clientOf(agent.socket).lines<AuditEntry>('audit', {}, never))
      results.push(await lines.catch((error: AgentError) => error.code))
    }
    expect(results).toEqual([[], 'not-found', 'not-found'])
  })

  it('end when the agent stops', async () => {
    const agent = await serve({
      membership: fakeMembership({
        audit: async function* (_request, signal) {
          yield entry('network.created')
          await new Promise((_resolve, reject) => signal.addEventListener('abort', () => reject(signal.reason)))
        },
      }),
    })
    const lines = clientOf(agent.socket).lines<AuditEntry>('audit', { follow: 'true' }, never)
    await lines.next()
    const end = failure(lines.next())
    await agent.server[Symbol.asyncDispose]()
    expect((await end).message).toMatch(/agent is stopping/)
    rmSync(agent.directory, { recursive: true })
  })
})

describe('requests', () => {
  it('with a field that is not known are refused, since it would not be heeded', async () => {
    await using agent = await serve()
    const client = clientOf(agent.socket)
    const asked = [
      client.post('invitations', { labels: {}, uses: 1, expiresSeconds: 60, onlyOnMondays: true }),
      client.post('members/pear/revoke', { scope: 'issuer' }),
      client.post('publish', { storePath: '/nix/store/x', networks: ['home'] }),
      client.delete('networks/home', { forced: 'true' }),
    ]
    for (const one of asked)
      expect(await failure(one)).toMatchObject({
        code: 'usage',
        message: expect.stringMatching(/nrecognized key/),
      })
  })

  it('are understood or refused, whatever they are', () => {
    const word = fc.constantFrom(
      'network',
      'labels',
      'name',
      'member',
      'token',
      'may',
      'text',
      'reason',
      'limit',
      'ref',
    )
    const value = fc.anything({ key: fc.oneof(word, fc.string({ unit: 'binary' })), withNullPrototype: true })
    fc.assert(
      fc.property(fc.constantFrom(...routes), value, (route, sent) => {
        route.input.safeParse(sent)
      }),
      { numRuns: 3_000 },
    )
  })
})

describe('a policy', () => {
  it('may be larger than other requests', async () => {
    const texts: number[] = []
    await using agent = await serve({
      membership: fakeMembership({
        setPolicy: ({ text }) => {
          texts.push(text.length)
          return policy
        },
      }),
    })
    await clientOf(agent.socket).put('policy', { text: '#\n'.repeat(90_000) })
    expect(texts).toEqual([180_000])
    const large = failure(clientOf(agent.socket).put('policy', { text: '#'.repeat(200_000) }))
    expect((await large).message).toMatch(/text: /)
  })
})
